"""The parts that the U-Nets share: the checks of their layout, and their 3×3 convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from retune.errors import InvalidParameterError, require_whole

__all__ = ["conv3", "require_layout"]


def require_layout(channels: int, features: Sequence[int], blocks: int) -> tuple[int, tuple[int, ...], int]:
    """Channels, features and blocks as whole numbers.

    Raises:
        InvalidParameterError: no features, no blocks or no channels.
    """
    channels, blocks = require_whole("channels", channels), require_whole("blocks", blocks)
    features = tuple(require_whole("features", f) for f in features)
    if channels < 1 or blocks < 1 or not features or min(features) < 1:
        raise InvalidParameterError(
            f"channels, blocks and every entry of features must be at least 1, got {channels}, {blocks}, {features}"
        )
    return channels, features, blocks


def conv3(inputs: int, outputs: int, *, bias: bool = False) -> nn.Conv2d:
    """A 3×3 convolution that keeps the size of the image. Its initial bias is 0."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
    nn.init.normal_(conv.weight, std=1 / math.sqrt(9 * inputs))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
