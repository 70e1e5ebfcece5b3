"""How a verb ends when something is wrong: one message, no traceback, a non-zero exit status."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from retune.errors import RetuneError


@contextmanager
def one_screen(debug: bool = False) -> Iterator[None]:
    """Turn an expected error into a message and exit status 1; with `debug`, let the traceback through."""
    try:
        yield
    except (RetuneError, OSError) as error:
        if debug:
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {_escaped(str(error))}", highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped", highlight=False)
        raise typer.Exit(130) from None


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
