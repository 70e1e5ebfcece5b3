"""The messages between the page and the process that computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Event", "Request"]


@dataclass(frozen=True)
class Request:
    """One computation.

    Attributes:
        kind: a name in `retune.app.work`.
        options: its arguments, plain data.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """A step of a computation, or its end.

    Attributes:
        kind: "step", "done" or "failed".
        values: the new facts; for "failed", ``{"why": sentence}``.
    """

    kind: str
    values: dict[str, Any] = field(default_factory=dict)
