"""Images of a recipe: a folder with train, val and test, in colour or as 8-bit luminance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from retune.data import as_images, random_crops
from retune.errors import InvalidParameterError

__all__ = ["luminance", "noisy_crops", "split"]


def luminance(x: Tensor) -> Tensor:
    """Grey image (…, 1, H, W) of a colour one, ITU-R BT.601, rounded to 8 bits as the grey BSD68 files are."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype, device=x.device).view(3, 1, 1)
    return ((x * weights).sum(-3, keepdim=True) * 255).round() / 255


def split(data: Path, part: str, channels: int) -> list[Tensor]:
    """The images (C, H, W) of one part of the data."""
    folder = data / part
    if not folder.is_dir():
        raise InvalidParameterError(
            f"--data must be a folder with the subfolders train, val and test of images; {folder} does not exist"
        )
    images = as_images(folder)
    return images if channels == 3 else [luminance(x) for x in images]


def noisy_crops(
    images: Sequence[Tensor], count: int, size: int, sigma: tuple[float, float], seed: int, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(clean, noisy, σ) of one training step: random crops, flips, transpositions and noise levels.

    Everything follows from (seed, step), so that a resumed run draws what the uninterrupted one would have.
    """
    generator = torch.Generator().manual_seed(seed * 100_000_007 + step)
    clean = random_crops(images, count, size, generator)
    if int(torch.randint(2, (), generator=generator)):
        clean = clean.transpose(-1, -2)
    low, high = sigma
    level = low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    return clean, clean + level * noise, level
