"""Check that a continued job (a run, a comparison, a recipe) has the settings of its start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retune.errors import CheckpointError

__all__ = ["changes", "require_same"]

_LONGEST = 80


def require_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any], otherwise: str) -> None:
    """Raise if the settings of a job differ from those in a file.

    Args:
        path: the file.
        before: the settings in the file, by name.
        now: the settings of the job.
        otherwise: advice for a job with other settings.

    Raises:
        CheckpointError: the message names each setting that differs, with both values.
    """
    if found := changes(before, now):
        raise CheckpointError(
            f"{path} is of a run with other settings, so it cannot be continued exactly: {'; '.join(found)}. Use the "
            f"same settings, or {otherwise}"
        )


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each setting that differs, in words."""
    pairs = ((name, before.get(name), now.get(name)) for name in {**before, **now})
    return ["{} was {}, now {}".format(name, *_shown(a, b)) for name, a, b in pairs if a != b]


def _shown(before: Any, now: Any) -> tuple[str, str]:
    """Both values as text. Long texts are cut to the surroundings of the first difference."""
    one, two = repr(before), repr(now)
    if max(len(one), len(two)) <= _LONGEST:
        return one, two
    first = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    start = max(0, first - _LONGEST // 2)
    return tuple(f"…{text[start : first + _LONGEST // 2]}…" for text in (one, two))  # type: ignore[return-value]
