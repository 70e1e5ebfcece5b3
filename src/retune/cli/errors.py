"""How a verb ends when something is wrong: one message, no traceback, a non-zero exit status."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from retune.errors import AdjustedWarning, NotConvergedWarning, RetuneError

#: Exit status of a run stopped by Ctrl-C, as shells expect it.
INTERRUPTED = 130


@contextmanager
def one_screen(debug: bool = False) -> Iterator[None]:
    """Turn an expected error into a message and exit status 1; with `debug`, let the traceback through."""
    before = warnings.showwarning
    warnings.showwarning = _say_warning
    try:
        yield
    except (RetuneError, OSError, MemoryError) as error:
        if debug:
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
    if issubclass(category, AdjustedWarning | NotConvergedWarning):
        typer.echo(typer.style("note: ", fg="yellow", bold=True) + str(message), err=True)


def say(text: str) -> None:
    """A line on the standard error output."""
    typer.echo(text, err=True)


def say_error(text: str) -> None:
    """A message on the standard error output, marked as an error."""
    typer.echo(typer.style("error: ", fg="red", bold=True) + text, err=True)


def _text(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"out of memory ({error}); restore large images in tiles (--tile 1024), or use smaller crops"
    return str(error)
