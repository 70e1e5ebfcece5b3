"""The result of a codec: the pixels, the stacked axes, and the metadata."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["HAS_ALPHA", "Coded"]

#: The refusal of an alpha channel.
HAS_ALPHA = (
    "it has an alpha channel, and ReTune cannot restore it; remove the alpha channel first (in ImageMagick: convert IN "
    "-alpha off OUT)"
)


@dataclass(frozen=True)
class Coded:
    """The content of an image file.

    Attributes:
        array: pixels (stack …, H, W) or (stack …, H, W, C).
        colour: whether the last axis is the channel axis.
        metadata: data for the same codec to write back: resolution, colour profile, names of the stacked axes, …
        bits: bits of each sample, if fewer than the array type has; the largest sample is then ``2**bits - 1``.
    """

    array: np.ndarray
    colour: bool
    metadata: dict[str, Any] = field(default_factory=dict)
    bits: int | None = None
