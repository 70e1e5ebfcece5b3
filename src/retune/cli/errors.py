"""How a verb ends when something is wrong: one message, no traceback, a non-zero exit status."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from retune.errors import AdjustedWarning, DoubtfulWarning, NotConvergedWarning, RetuneError

#: Exit status of a run stopped by Ctrl-C, as shells expect it.
INTERRUPTED = 130


@contextmanager
def one_screen(debug: bool = False) -> Iterator[None]:
    """Turn an expected error into a message and exit status 1; with `debug`, let the traceback through."""
    before = warnings.showwarning
    warnings.showwarning = _say_warning
    try:
        yield
    except (RetuneError, OSError, MemoryError, RuntimeError) as error:
        if debug or not (isinstance(error, RetuneError | OSError) or _is_for_want_of_memory(error)):
            raise
        say_error(_text(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        say("stopped")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        warnings.showwarning = before


def _say_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """One line for ours; nothing for what other packages tell programmers."""
    if issubclass(category, AdjustedWarning | DoubtfulWarning | NotConvergedWarning):
        typer.echo(typer.style("note: ", fg="yellow", bold=True) + str(message), err=True)


def say(text: str) -> None:
    """A line on the standard error output."""
    typer.echo(text, err=True)


def say_error(text: str) -> None:
    """A message on the standard error output, marked as an error."""
    typer.echo(typer.style("error: ", fg="red", bold=True) + text, err=True)


def _is_for_want_of_memory(error: BaseException) -> bool:
    """PyTorch raises a RuntimeError: of a kind of its own for CUDA, of none for the CPU."""
    told = str(error)
    signs = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(sign in told for sign in signs)


def _text(error: BaseException) -> str:
    if isinstance(error, RetuneError | OSError):
        return str(error)
    told = str(error).strip().splitlines()
    return (
        f"out of memory{f' ({told[0]})' if told else ''}: restore large images in tiles (--tile 1024), certify a part "
        "(--crop 512), train and tune on smaller crops (--set data.crop=64)"
    )
