"""Examples at the end of a verb's ``--help``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable)


def examples(*pairs: tuple[str, str]) -> Callable[[F], F]:
    """Add examples to the help of a verb; each is a sentence and a command."""

    def add(verb: F) -> F:
        # \b stops click from reflowing the lines of a paragraph.
        shown = ["\b\nExamples:", *(f"\b\n  # {what}\n  {command}" for what, command in pairs)]
        verb.__doc__ = "\n\n".join([inspect.cleandoc(verb.__doc__ or ""), *shown])
        return verb

    return add
