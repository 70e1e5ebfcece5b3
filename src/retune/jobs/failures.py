"""The failure of one file, described in one line."""

from __future__ import annotations

import traceback
from pathlib import Path

from retune.errors import RetuneError, one_line

__all__ = ["failure"]

_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def failure(error: Exception) -> str:
    """The reason why a file failed: our own message, or the type and place of an unexpected error."""
    told = one_line(error)
    if isinstance(error, RetuneError | OSError):  # exceptions are distinguished by class
        return told
    if isinstance(error, MemoryError) or any(sign in told for sign in _NO_MEMORY):
        return (
            f"out of memory{f' ({told})' if told else ''}: restore it in smaller tiles (--tile), with fewer --workers"
        )
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (in {Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {told}{where}"
