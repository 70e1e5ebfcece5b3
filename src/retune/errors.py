"""Every exception the package raises on purpose.

Each message says what was given, what was expected, and how to get it. All derive from
[`RetuneError`][retune.errors.RetuneError],
and from the builtin exception that a caller would expect, so that both ``except`` styles work.
"""

from __future__ import annotations

import difflib
import numbers
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


class ConfigError(RetuneError, ValueError):
    """The description of a run (TOML) is not valid; the message names every field, its value and what is allowed."""


class DivergedError(RetuneError, RuntimeError):
    """The iteration diverged or left the finite numbers."""


class CheckpointError(RetuneError, RuntimeError):
    """A checkpoint cannot be read: truncated, foreign, or of another version."""


class ProcessLostError(RetuneError, ConnectionError):
    """Another process of a training that runs in several has ended, so this one cannot go on."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop; the argument is its number (SIGINT for Ctrl-C, SIGTERM)."""


class AdjustedWarning(UserWarning):
    """An input was usable only after a correction; the message says which."""


class DoubtfulWarning(UserWarning):
    """An input is used as it is, but may not be what was meant; the message says why."""


class NotConvergedWarning(UserWarning):
    """An image was returned before it had settled."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """The error for an unregistered `name`, which names the nearest known ones."""
    choices = sorted(known)
    hint = did_you_mean(name, choices)
    shown = ", ".join(choices) if len(choices) <= 20 else f"{len(choices)} names, among them {', '.join(choices[:8])}"
    given = repr(name)
    given = given if len(given) <= 100 else f"{given[:80]}… ({len(given)} characters)"
    return UnknownNameError(f"unknown {kind} {given}{hint or '.'} Known: {shown}.")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or nothing if no known name is near."""
    lowered, wanted = {c.lower(): c for c in known}, str(name).lower()
    found = [wanted] if wanted in lowered else difflib.get_close_matches(wanted, lowered, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(lowered[f]) for f in found)}?" if found else ""


def wrong_type(name: str, value: object, expected: str, hint: str = "") -> InvalidParameterError:
    """The error for a `value` that is not `expected` (a phrase with its article); the hint says what to write."""
    if isinstance(value, type):
        given = f"the class {value.__name__} itself"
    else:
        text = " ".join(repr(value).split())
        given = f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
    return InvalidParameterError(f"{name} must be {expected}, got {given}{'; ' + hint if hint else ''}")


def require(name: str, value: object, kinds: type | tuple[type, ...], expected: str, hint: str = "") -> None:
    """Raise [`wrong_type`][retune.errors.wrong_type] unless `value` is of one of `kinds`; a bool is never a number
    here."""
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise wrong_type(name, value, expected, hint)


def require_whole(name: str, value: object, hint: str = "") -> int:
    """`value` as an int, if it is a whole number (of NumPy too)."""
    require(name, value, numbers.Integral, "a whole number", hint)
    return int(value)  # type: ignore[call-overload]


def require_real(name: str, value: object, hint: str = "") -> float:
    """`value` as a float, if it is a real number (of NumPy too)."""
    require(name, value, numbers.Real, "a number", hint)
    return float(value)  # type: ignore[arg-type]


def one_line(error: BaseException) -> str:
    """The message of an error, for a table."""
    return " ".join(str(error).split())
