"""Images as pixels of 8 bits: reduced, cut, and encoded for a page."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from retune.records.pictured import Encoded

__all__ = ["by", "cut", "eight", "encode", "reduced"]

#: A PNG of more bytes than this becomes a JPEG.
_HEAVY = 1_200_000


def encode(pixels: np.ndarray) -> Encoded:
    """8-bit pixels (h, w) or (h, w, 3) as a PNG, or as a JPEG if that is large."""
    image, out, kind = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO(), "png"
    image.save(out, "PNG", compress_level=3)
    if out.tell() > _HEAVY:
        out, kind = io.BytesIO(), "jpeg"
        image.save(out, "JPEG", quality=90, subsampling=0)
    height, width = pixels.shape[:2]
    return Encoded(format=kind, data=base64.b64encode(out.getvalue()).decode(), width=width, height=height)


def eight(image: Tensor, low: float, high: float) -> np.ndarray:
    """(h, w) or (h, w, 3) in 8 bits."""
    levels = ((image.float() - low) * (255 / (high - low))).nan_to_num().clamp(0, 255).round().byte().numpy()
    return levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)


def reduced(pixels: np.ndarray, side: int) -> np.ndarray:
    """Reduced by averaging, so that no side is longer."""
    factor = math.ceil(max(pixels.shape[:2]) / side)
    if factor <= 1:
        return pixels
    values = torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)[None].float()
    small = avg_pool2d(values, factor, ceil_mode=True)[0].round().byte().permute(1, 2, 0).numpy()
    return small[..., 0] if pixels.ndim == 2 else small


def cut(pixels: np.ndarray, where: list[int], sides: list[int], factor: float) -> np.ndarray:
    """The part that begins at `where` and has `sides`, both times `factor`."""
    top, left = (round(n * factor) for n in where)
    height, width = (max(1, round(n * factor)) for n in sides)
    return pixels[top : top + height, left : left + width]


def by(image: Tensor) -> str:
    """Height and width in words."""
    return f"{image.shape[-2]}×{image.shape[-1]}"
