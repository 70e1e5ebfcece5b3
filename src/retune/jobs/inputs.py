"""Read measurements from files, and crop them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retune import io
from retune._torch.batch import window
from retune.build import problem_of
from retune.config import ProblemConfig
from retune.errors import ConfigError
from retune.io.arrays import checked
from retune.io.intensity import Level, Unit, intensity_unit
from retune.operators.holes import without_gaps as filled
from retune.problems.base import Problem

__all__ = ["known_noise", "middle", "read_in_unit", "read_measured", "require_kernel", "unit_of", "without_gaps"]


def unit_of(
    file: Path,
    images: Tensor,
    layout: io.Layout,
    problem: ProblemConfig,
    white: Level = None,
    black: Level = None,
    remembered: bool = False,
) -> Unit:
    """The unit of the intensities of a file; see ``retune.io.intensity.intensity_unit``.

    Raises:
        ConfigError: a level is to be found in an image with missing pixels, whose values mean nothing.
    """
    if "auto" in (white, black) and problem.mask is not None:
        raise ConfigError(
            f"{file}: black and white cannot be found in an image with missing pixels: give them as numbers (--black, "
            "--white)"
        )
    return intensity_unit(file, images, layout, white, black, remembered=remembered)


def read_measured(file: Path, problem: ProblemConfig, white: Level = None, **options: Any) -> list[tuple[str, Tensor]]:
    """The measurements in a file with their names; see ``read_in_unit``."""
    return read_in_unit(file, problem, white, **options)[0]


def read_in_unit(
    file: Path,
    problem: ProblemConfig,
    white: Level = None,
    black: Level = None,
    *,
    in_range: bool = True,
    remembered: bool = False,
) -> tuple[list[tuple[str, Tensor]], Unit]:
    """The measurements in a file with their names, and their unit.

    Each is (1, C, h, w), scaled to [0, 1]; noise may exceed this range.

    Args:
        file: an image, or a stack of them.
        problem: the problem of the measurements. NaN and Inf are allowed at the pixels that its mask excludes.
        white, black: see ``retune.io.intensity.intensity_unit``.
        in_range: whether the numbers must be intensities that can be scaled to [0, 1].
        remembered: see ``retune.io.intensity.intensity_scale``.

    Raises:
        RetuneError: see [`read`][retune.io.read] and ``unit_of``.
    """
    images, layout = io.read(file, any_integers=True, finite=False)
    known = in_range or white is not None or black is not None
    unit = unit_of(file, images, layout, problem, white, black, remembered) if known else Unit()
    names = [file.name] if len(images) == 1 else [f"{file.name}, image {i}" for i in range(len(images))]
    scaled = unit.scaled(images).to(torch.get_default_dtype()).split(1)
    if not bool(images.isfinite().all()):
        bound = problem_of(known_noise(problem))
        scaled = [without_gaps(bound, y, name) for name, y in zip(names, scaled, strict=True)]
    return list(zip(names, scaled, strict=True)), unit


def without_gaps(problem: Problem, y: Tensor, name: str) -> Tensor:
    """The measurement (1, C, h, w), with 0 in place of NaN and Inf where the mask of the problem is 0.

    Raises:
        NotFiniteError: NaN or Inf elsewhere.
    """
    if bool(y.isfinite().all()):
        return y
    return checked(filled(y, problem.operator(torch.zeros_like(y)))[0], name)[None]


def known_noise(problem: ProblemConfig) -> ProblemConfig:
    """The problem with some noise level in place of "estimate", for computations that do not depend on the noise."""
    return problem.model_copy(update={"sigma": 0.0}) if problem.sigma == "estimate" else problem


def middle(problem: Problem, y: Tensor, side: int) -> tuple[Problem, Tensor]:
    """The middle of a measurement (B, C, h, w), at most `side` pixels per side, and its problem.

    Raises:
        InvalidParameterError: the problem is defined for whole images only.
    """
    if max(y.shape[-2:]) <= side:
        return problem, y
    rows, cols = (torch.arange(n)[window(n, side)] for n in y.shape[-2:])
    return problem.part(rows, cols), y[..., rows, :][..., cols]


def require_kernel(problem: ProblemConfig) -> None:
    """Raise if a blur has no kernel: for real measurements no kernel is assumed."""
    if problem.name == "deblur" and problem.kernel is None:
        raise ConfigError(
            "the blur kernel is unknown: pass --kernel gaussian:1.6, --kernel motion:15@30, or an image, NPY or TIFF "
            "file of the kernel"
        )
