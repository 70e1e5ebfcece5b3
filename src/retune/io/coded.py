"""What a codec hands over: the pixels, what the stacked axes are, and what to write back beside the pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Coded"]


@dataclass(frozen=True)
class Coded:
    """The content of an image file.

    Attributes:
        array: pixels (stack …, H, W) or (stack …, H, W, C).
        colour: whether the last axis is one of channels.
        metadata: what the same codec writes back: resolution, colour profile, names of the stacked axes, …
        bits: of each sample, where there are fewer than the type of the array has; the largest sample is then
            ``2**bits - 1``.
    """

    array: np.ndarray
    colour: bool
    metadata: dict[str, Any] = field(default_factory=dict)
    bits: int | None = None
