"""Measurements of the user, read from files, and parts of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from retune import io
from retune.config import ProblemConfig
from retune.errors import ConfigError
from retune.io.intensity import intensity_scale
from retune.problems.base import Problem

__all__ = ["middle", "read_measured", "require_kernel"]


def read_measured(
    file: Path, white: float | None = None, *, in_range: bool = True, remembered: bool = False
) -> list[tuple[str, Tensor]]:
    """The measurements of a file, (1, C, h, w) each and scaled to [0, 1] (noise may leave it), with their names.

    Args:
        file: an image, or a stack of them.
        white: see ``retune.io.intensity.intensity_scale``.
        in_range: whether floats have to be intensities in [0, 1].
        remembered: see ``retune.io.intensity.intensity_scale``.

    Raises:
        RetuneError: see [`read`][retune.io.read] and ``retune.io.intensity.intensity_scale``.
    """
    images, layout = io.read(file)
    known = in_range or white is not None
    scale = intensity_scale(file, images, layout, white, remembered=remembered) if known else 1.0
    names = [file.name] if len(images) == 1 else [f"{file.name}, image {i}" for i in range(len(images))]
    return list(zip(names, (images.to(torch.get_default_dtype()) * scale).split(1), strict=True))


def middle(problem: Problem, y: Tensor, side: int) -> tuple[Problem, Tensor]:
    """The middle of a measurement (B, C, h, w), at most `side` pixels a side, and its problem.

    Raises:
        InvalidParameterError: the problem is known for whole images only.
    """
    if max(y.shape[-2:]) <= side:
        return problem, y
    rows, cols = (torch.arange(max(0, (n - side) // 2), min(n, (n - side) // 2 + side)) for n in y.shape[-2:])
    return problem.part(rows, cols), y[..., rows, :][..., cols]


def require_kernel(problem: ProblemConfig) -> None:
    """Raise if images are said to be blurred, but not how: no kernel is presumed of what was really measured."""
    if problem.name == "deblur" and problem.kernel is None:
        raise ConfigError(
            "the blur kernel is unknown: pass --kernel, as --kernel gaussian:1.6, --kernel motion:15@30, or an image, "
            "NPY or TIFF file of it"
        )
