"""The parts that the networks share: the checks of their layout and of their images, and their 3×3 convolution."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from retune.errors import InvalidParameterError, ShapeError, require, require_whole

__all__ = ["ON_EACH", "conv3", "require_channels", "require_layout"]

#: another way for images with several channels
ON_EACH = ", or use retune.priors.Denoiser, which can apply a grey network to every channel"


def require_layout(channels: int, features: Sequence[int], blocks: int) -> tuple[int, tuple[int, ...], int]:
    """Channels, features and blocks as whole numbers.

    Raises:
        InvalidParameterError: no features, no blocks or no channels, or features is no sequence.
    """
    channels, blocks = require_whole("channels", channels), require_whole("blocks", blocks)
    require("features", features, Iterable, "a sequence of numbers", "one for each resolution, such as (32, 64)")
    features = tuple(require_whole("features", f) for f in features)
    if channels < 1 or blocks < 1 or not features or min(features) < 1:
        raise InvalidParameterError(
            f"channels, blocks and every entry of features must be at least 1, got {channels}, {blocks}, {features}"
        )
    return channels, features, blocks


def require_channels(x: Tensor, channels: int, what: str, hint: str) -> None:
    """Check that images are a batch with this number of channels.

    Args:
        x: the images.
        channels: the number of channels of the network.
        what: the purpose of the network, such as "this energy is for".
        hint: another way, after "load weights for this number of channels".

    Raises:
        ShapeError: not a batch, or another number of channels.
    """
    if x.ndim != 4 or x.shape[1] != channels:
        raise ShapeError(
            f"{what} images of {channels} channel(s), (B, {channels}, H, W), got {tuple(x.shape)}; load weights for "
            f"this number of channels{hint}"
        )


def conv3(inputs: int, outputs: int, *, bias: bool = False) -> nn.Conv2d:
    """A 3×3 convolution that keeps the size of the image. Its initial bias is 0."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
    nn.init.normal_(conv.weight, std=1 / math.sqrt(9 * inputs))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
