"""Masks: where an image was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retune.errors import InvalidParameterError, ShapeError
from retune.problems.files import one_image

__all__ = ["parts_of_mask", "read_mask"]


def read_mask(given: str | Path | Tensor) -> Tensor:
    """A mask (1, 1 or C, H, W) of zeros and ones.

    Args:
        given: an image file, or a tensor (H, W), (C, H, W) or (1, C, H, W). The file is black where nothing was
            measured; any number type will do, labels included. If its colours are the same everywhere, its alpha
            channel is the mask: transparent where nothing was measured.

    Raises:
        ShapeError: not exactly one image.
        InvalidParameterError: more than two values, or black everywhere.
    """
    name = "the mask" if isinstance(given, Tensor) else f"the mask {given}"
    mask = given if isinstance(given, Tensor) else _of_file(Path(given))
    mask = mask[(None,) * (4 - mask.ndim)] if 2 <= mask.ndim <= 4 else mask
    if mask.ndim != 4 or len(mask) != 1:
        raise ShapeError(f"{name} must be one image (H, W) or (C, H, W), got shape {tuple(mask.shape)}")
    values = mask.unique()
    if len(values) > 2 or values[0] < 0 or (len(values) == 2 and values[0] != 0):
        shown = ", ".join(f"{v:.3g}" for v in values[:5].tolist())
        raise InvalidParameterError(
            f"{name} has {len(values)} different values ({shown}, …), expected 0 where nothing was measured and one "
            "other value elsewhere; save masks as PNG: JPEG compression changes their values"
        )
    if not bool(values[-1] > 0):
        raise InvalidParameterError(f"{name} is black everywhere: nothing was measured")
    mask = (mask > 0).to(torch.get_default_dtype())
    return mask[:, :1] if torch.equal(mask, mask[:, :1].expand_as(mask)) else mask


def _of_file(path: Path) -> Tensor:
    """The unscaled numbers of a file, (1, C, H, W)."""
    channels = one_image(path, "the mask", "(H, W) or (H, W, 1 to 4)")
    if channels.shape[-1] in (2, 4):
        colours, alpha = channels[..., :-1], channels[..., -1:]
        if bool((alpha == alpha.max()).all()):
            channels = colours  # opaque
        elif bool((colours[alpha[..., 0] > 0] == colours[alpha[..., 0] > 0][:1]).all()):
            channels = alpha  # a single colour, painted where pixels were measured
        else:
            raise ShapeError(f"the mask {path} has both colours and transparency; remove its alpha channel")
    if bool((channels != channels).any()):
        raise InvalidParameterError(f"the mask {path} contains NaN; expected 0 where nothing was measured")
    # A float cannot tell all 32-bit and 64-bit labels apart, but only 0 matters here.
    numbers = channels.astype(np.float64)
    return torch.from_numpy(np.ascontiguousarray(numbers.transpose(2, 0, 1)))[None]


def parts_of_mask(mask: Tensor, img_size: tuple[int, int, int], batch: int, generator: torch.Generator) -> Tensor:
    """The mask for images of its size. Each smaller image gets its own random part; the shape is (B, ·, H, W).

    Raises:
        ShapeError: the images are larger than the mask, or their channels differ.
    """
    height, width = mask.shape[-2:]
    if height < img_size[1] or width < img_size[2] or mask.shape[1] not in (1, img_size[0]):
        raise ShapeError(
            f"the mask has shape {tuple(mask.shape[1:])}, which does not cover images {img_size} (C, H, W); give a "
            "mask of their size, or smaller crops"
        )
    parts = []
    for _ in range(batch):
        top = int(torch.randint(height - img_size[1] + 1, (), generator=generator))
        left = int(torch.randint(width - img_size[2] + 1, (), generator=generator))
        parts.append(mask[..., top : top + img_size[1], left : left + img_size[2]])
    return torch.cat(parts)
