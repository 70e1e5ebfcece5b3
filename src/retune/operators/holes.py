"""Fill unobserved pixels from their neighbours, for the start of an iteration."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.physics import Inpainting, LinearPhysics
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate

__all__ = ["fill", "holes_of", "without_gaps"]

#: Factor on the known share (by weight) of a hole's surroundings. From a product of 1 on, the hole takes their mean.
_ENOUGH = 16


def holes_of(physics: LinearPhysics) -> Tensor | None:
    """The pixels where the mask of an inpainting is 0, broadcastable to the image; None for other operators."""
    mask = physics.mask if isinstance(physics, Inpainting) else None
    return mask.detach() == 0 if isinstance(mask, Tensor) and mask.ndim == 4 else None


def without_gaps(y: Any, physics: LinearPhysics) -> Any:
    """The measurement of an inpainting, with NaN and Inf replaced by 0 where its mask is 0. Others stay unchanged.

    Cameras and other software write NaN where nothing was measured. The operator ignores these pixels, but 0·NaN is
    NaN.
    """
    holes = holes_of(physics)
    if holes is None or not isinstance(y, Tensor) or bool(torch.isfinite(y.detach()).all()):
        return y
    return torch.where(holes & ~torch.isfinite(y.detach()), torch.zeros_like(y), y)


def fill(x: Tensor, holes: Tensor) -> Tensor:
    """`x` (B, C, H, W) with its holes filled in, channel by channel. The other pixels stay unchanged.

    The known pixels form a pyramid of averages, and each level is filled from the next coarser one (pull and push;
    Gortler, Grzeszczuk, Szeliski and Cohen, *The Lumigraph*, SIGGRAPH 1996, §3.4). So holes may have any size. A small
    hole takes the mean of its 5×5 neighbourhood with binomial weights (normalised convolution).
    """
    with torch.autocast(x.device.type, enabled=False):  # keep full precision: lerp needs a single dtype
        return _fill(x, holes)


def _fill(x: Tensor, holes: Tensor) -> Tensor:
    known = (~holes).to(x).expand_as(x)
    line = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (line[:, None] * line).expand(x.shape[1], 1, 5, 5)
    weight = conv2d(known, kernel, padding=2, groups=x.shape[1])
    near = conv2d(x * known, kernel, padding=2, groups=x.shape[1]) / weight.clamp_min(torch.finfo(x.dtype).tiny)
    return torch.where(holes, torch.lerp(_level(x, known), near, (_ENOUGH * weight).clamp_max(1)), x)


def _level(x: Tensor, weight: Tensor) -> Tensor:
    """A level of weighted means `x`, filled from the next level where its weight is below 1."""
    if max(x.shape[-2:]) == 1:
        return x * (weight > 0)
    # A coarse pixel is known if at least one of its four pixels is known.
    coarse = avg_pool2d(weight, 2, ceil_mode=True, count_include_pad=False)
    mean = avg_pool2d(x * weight, 2, ceil_mode=True, count_include_pad=False)
    mean = mean / coarse.clamp_min(torch.finfo(x.dtype).tiny)
    filled = _level(mean, (4 * coarse).clamp_max(1))
    around = interpolate(filled, size=x.shape[-2:], mode="bilinear", align_corners=False)
    return torch.lerp(around, x, weight)
