"""Errors of a verb: one message without traceback, and a non-zero exit status."""

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
from retune.cli._moving import pause
from retune.cli._words import wrapped
from retune.errors import (
    AdjustedWarning,
    DoubtfulWarning,
    Interrupted,
    NotConvergedWarning,
    RetuneError,
    told_to_command,
)

__all__ = ["how_to_resume", "note", "one_screen", "say", "say_error", "show", "title"]


@contextmanager
def one_screen(debug: bool = False, go_on: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turn an expected error into a message and exit status 1; with `debug`, let the traceback through.

    Ctrl-C and SIGTERM end the verb with exit status 128 + number of the signal (130 and 143), as shells expect it.

    Args:
        debug: whether to show tracebacks.
        go_on: function that returns a sentence on how to continue after an interruption.
    """
    before = warnings.showwarning
    warnings.showwarning = _say_warning
    try:
        with _terminable(), told_to_command():
            yield
    except (RetuneError, OSError, MemoryError, RuntimeError) as error:
        # Exceptions are distinguished by class.
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
    """Let SIGTERM end the block like Ctrl-C. By default it would end the process at once and without a message."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second signal would interrupt the message
        raise Interrupted(number)

    before = signal.signal(signal.SIGTERM, stop) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """One line for ReTune's own warnings; nothing for warnings that other packages address to programmers."""
    if issubclass(category, AdjustedWarning | DoubtfulWarning | NotConvergedWarning):
        note(str(message))


def note(text: str) -> None:
    """Print a remark on the standard error output, marked as one."""
    pause()
    typer.echo(typer.style("note: ", fg="yellow", bold=True) + wrapped(clean(text), "note: ")[6:], err=True)


def show(text: str, end: str = "\n") -> None:
    """Print text on the standard output. Every verb prints with this function, `title`, `say` or `say_error`."""
    pause()
    typer.echo(clean(text) + end, nl=False)


def title(text: str) -> None:
    """Print a heading of one line on the standard output."""
    pause()
    typer.echo(typer.style(clean_line(text), bold=True))


def say(text: str) -> None:
    """Print a line on the standard error output."""
    pause()
    typer.echo(wrapped(clean(text)), err=True)


def say_error(text: str) -> None:
    """Print a message on the standard error output, marked as an error."""
    pause()
    typer.echo(typer.style("error: ", fg="red", bold=True) + wrapped(clean(text), "error: ")[7:], err=True)


def how_to_resume(verb: str, out: Path, more: str = "") -> str:
    """How to continue an interrupted run. Without a checkpoint it must start again."""
    if any(out.glob("checkpoint-*.safetensors")):
        return f"continue with  retune {verb} --resume --out {out}{more}"
    return "there is no checkpoint yet: run the command again"


def _is_for_want_of_memory(error: BaseException) -> bool:
    """For missing memory PyTorch raises a RuntimeError: its own subclass on CUDA, the plain class on the CPU."""
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
