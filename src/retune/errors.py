"""All exceptions that the package raises on purpose.

Each message says what was given, what was expected, and how to get it. Every exception derives from
[`RetuneError`][retune.errors.RetuneError] and from the matching builtin exception, so that ``except`` works with both.

"""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class RetuneError(Exception):
    """Base class of all errors raised by ReTune."""


class InvalidParameterError(RetuneError, ValueError):
    """A parameter has a value that is not allowed."""


class ShapeError(RetuneError, ValueError):
    """A tensor does not have the expected shape."""


class NotFiniteError(RetuneError, ValueError):
    """NaN or Inf in place of finite numbers."""


class PhysicsError(RetuneError, TypeError):
    """The forward operator is not linear, or contradicts itself."""


class UnknownNameError(RetuneError, KeyError):
    """A name is not registered; the message gives similar known names."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class TooManyLevelsError(RetuneError, ValueError):
    """The image is too small for the number of wavelet levels."""


class CutGradientError(RetuneError, RuntimeError):
    """A gradient rule needs to differentiate a map, but no gradient flows through the map."""


class ConfigError(RetuneError, ValueError):
    """The description of a run (TOML) is invalid; the message names every wrong field and the allowed values."""


class DivergedError(RetuneError, RuntimeError):
    """The iteration diverged, or its values became NaN or Inf."""


class CheckpointError(RetuneError, RuntimeError):
    """A checkpoint cannot be read: it is truncated, from other software, or from another version."""


class ProcessLostError(RetuneError, ConnectionError):
    """This process of a multi-process training cannot continue, because another process has ended."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop; the argument is its number (SIGINT for Ctrl-C, SIGTERM)."""


class AdjustedWarning(UserWarning):
    """An input was corrected before use; the message describes the correction."""


class DoubtfulWarning(UserWarning):
    """An input is used unchanged, but is probably a mistake; the message says why."""


class NotConvergedWarning(UserWarning):
    """An image was returned before it settled."""


_speaks_command = False


def advice(python: str, command: str) -> str:
    """Advice in the words of the reader: `command` on the command line, otherwise `python`."""
    return command if _speaks_command else python


def on_command_line() -> bool:
    """Whether messages are for a reader of the command line."""
    return _speaks_command


@contextmanager
def told_to_command(command: bool = True) -> Iterator[None]:
    """Let [`advice`][retune.errors.advice] name options of the command within the block, in all threads."""
    global _speaks_command
    before, _speaks_command = _speaks_command, command
    try:
        yield
    finally:
        _speaks_command = before


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """The error for an unregistered `name`; it lists similar known names."""
    choices = sorted(known)
    hint = did_you_mean(name, choices)
    shown = ", ".join(choices) if len(choices) <= 20 else f"{len(choices)} names, among them {', '.join(choices[:8])}"
    given = repr(name)
    given = given if len(given) <= 100 else f"{given[:80]}… ({len(given)} characters)"
    return UnknownNameError(f"unknown {kind} {given}{hint or '.'} Known: {shown}.")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or "" if no known name is similar."""
    lowered, wanted = {c.lower(): c for c in known}, str(name).lower()
    found = [wanted] if wanted in lowered else difflib.get_close_matches(wanted, lowered, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(lowered[f]) for f in found)}?" if found else ""


def wrong_type(name: str, value: object, expected: str, hint: str = "") -> InvalidParameterError:
    """The error for a `value` that is not `expected` (a phrase with its article); `hint` tells what to write."""
    if isinstance(value, type):
        given = f"the class {value.__name__} itself"
    else:
        text = " ".join(repr(value).split())
        given = f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
    return InvalidParameterError(f"{name} must be {expected}, got {given}{'; ' + hint if hint else ''}")


def require(name: str, value: object, kinds: type | tuple[type, ...], expected: str, hint: str = "") -> None:
    """Raise [`wrong_type`][retune.errors.wrong_type] unless `value` has a type in `kinds`. A bool is not a number."""
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise wrong_type(name, value, expected, hint)


def require_whole(name: str, value: object, hint: str = "") -> int:
    """`value` as an int, if it is a whole number (also of NumPy)."""
    require(name, value, numbers.Integral, "a whole number", hint)
    return int(value)  # type: ignore[call-overload]


def require_real(name: str, value: object, hint: str = "") -> float:
    """`value` as a float, if it is a real number (also of NumPy)."""
    require(name, value, numbers.Real, "a number", hint)
    return float(value)  # type: ignore[arg-type]


def one_line(error: BaseException) -> str:
    """The message of an error in one line, for a table."""
    return " ".join(str(error).split())
