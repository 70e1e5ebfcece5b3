"""Every exception the package raises on purpose.

Each message says what was given, what was expected, and how to get it. All derive from :class:`RetuneError`,
and from the builtin exception that a caller would expect, so that both ``except`` styles work.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RetuneError(Exception):
    """Base class of all errors raised by ReTune."""


class InvalidParameterError(RetuneError, ValueError):
    """A parameter is outside what is allowed."""


class ShapeError(RetuneError, ValueError):
    """A tensor does not have the expected shape."""


class NotFiniteError(RetuneError, ValueError):
    """NaN or Inf where only finite numbers make sense."""


class PhysicsError(RetuneError, TypeError):
    """The forward operator is not linear, or contradicts itself."""


class UnknownNameError(RetuneError, KeyError):
    """A name that is not registered; the message gives the nearest known ones."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class TooManyLevelsError(RetuneError, ValueError):
    """More wavelet levels than the image allows."""


class CutGradientError(RetuneError, RuntimeError):
    """A rule that differentiates met a map through which no gradient flows."""


class DivergedError(RetuneError, RuntimeError):
    """The iteration diverged or left the finite numbers."""


class CheckpointError(RetuneError, RuntimeError):
    """A checkpoint cannot be read: truncated, foreign, or of another version."""


class NotConvergedWarning(UserWarning):
    """An image was returned before it had settled."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """The error for an unregistered `name`, which names the nearest known ones."""
    choices = sorted(known)
    near = difflib.get_close_matches(str(name), choices, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    shown = ", ".join(choices) if len(choices) <= 20 else f"{len(choices)} names, among them {', '.join(choices[:8])}"
    return UnknownNameError(f"unknown {kind} {name!r}{hint} Known: {shown}.")
