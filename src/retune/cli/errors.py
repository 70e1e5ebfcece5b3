"""How a verb ends when something is wrong: one message, no traceback, a non-zero exit status."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from retune._terminal import clean, clean_line
from retune.errors import AdjustedWarning, DoubtfulWarning, Interrupted, NotConvergedWarning, RetuneError

__all__ = ["how_to_resume", "one_screen", "say", "say_error", "show", "title"]


@contextmanager
def one_screen(debug: bool = False, go_on: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turn an expected error into a message and exit status 1; with `debug`, let the traceback through.

    Ctrl-C and SIGTERM end the verb with exit status 128 + number of the signal (130 and 143), as shells expect it.

    Args:
        debug: whether the user asked for tracebacks.
        go_on: gives the sentence that says how to go on after an interruption.
    """
    before = warnings.showwarning
    warnings.showwarning = _say_warning
    try:
        with _terminable():
            yield
    except (RetuneError, OSError, MemoryError, RuntimeError) as error:
        # Exceptions are told apart by their classes: that is what they have them for.
        if debug or not (isinstance(error, RetuneError | OSError) or _is_for_want_of_memory(error)):
            raise
        say_error(_text(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt as error:
        number = error.args[0] if isinstance(error, Interrupted) and error.args else signal.SIGINT
        how = go_on()
        say(f"stopped{' by SIGTERM' if number == signal.SIGTERM else ''}{'; ' + how if how else ''}")
        raise typer.Exit(128 + int(number)) from None
    finally:
        warnings.showwarning = before


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, instead of ending the process at once and without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the message
        raise Interrupted(number)

    before = signal.signal(signal.SIGTERM, stop) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """One line for ours; nothing for what other packages tell programmers."""
    if issubclass(category, AdjustedWarning | DoubtfulWarning | NotConvergedWarning):
        typer.echo(typer.style("note: ", fg="yellow", bold=True) + clean(str(message)), err=True)


def show(text: str, end: str = "\n") -> None:
    """Text on the standard output. Every verb prints by this function, `title`, `say` or `say_error`."""
    typer.echo(clean(text) + end, nl=False)


def title(text: str) -> None:
    """A heading of one line on the standard output."""
    typer.echo(typer.style(clean_line(text), bold=True))


def say(text: str) -> None:
    """A line on the standard error output."""
    typer.echo(clean(text), err=True)


def say_error(text: str) -> None:
    """A message on the standard error output, marked as an error."""
    typer.echo(typer.style("error: ", fg="red", bold=True) + clean(text), err=True)


def how_to_resume(verb: str, out: Path, more: str = "") -> str:
    """How to go on with an interrupted run; one that wrote no checkpoint yet begins again."""
    if any(out.glob("checkpoint-*.safetensors")):
        return f"go on with  retune {verb} --resume --out {out}{more}"
    return "it has no checkpoint yet: run the command again"


def _is_for_want_of_memory(error: BaseException) -> bool:
    """PyTorch raises a RuntimeError: a class of its own on CUDA, the plain class on the CPU."""
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
