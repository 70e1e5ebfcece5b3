"""Measurements of the user, read from files, and parts of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from retune import io
from retune.config import ProblemConfig
from retune.errors import ConfigError, InvalidParameterError
from retune.problems.base import Restoration

__all__ = ["check_device", "intensity_scale", "middle", "one_line", "read_measured", "require_kernel", "require_white"]


def intensity_scale(file: Path, images: Tensor, layout: io.Layout, white: float | None) -> float:
    """What brings the intensities to [0, 1], where networks learn.

    Args:
        file: how errors call the images.
        images: as read, integers scaled by the largest of their type.
        layout: how they were stored.
        white: intensity, in the units of the file, that counts as 1; by default the largest of an integer type, and 1
            for floats.

    Raises:
        InvalidParameterError: `white` is no intensity, or floats that are not in [0, 1] without one.
    """
    require_white(white)
    if white is not None:
        return (torch.iinfo(getattr(torch, layout.dtype.name)).max if layout.dtype.kind == "u" else 1.0) / white
    low, high = float(images.min()), float(images.max())
    if layout.dtype.kind == "f" and (high > 3 or low < -3):
        raise InvalidParameterError(
            f"{file} has intensities from {low:.4g} to {high:.4g}, but the network learned on [0, 1]: say which "
            "intensity is white, for example --white 4095"
        )
    return 1.0


def require_white(white: float | None) -> None:
    """Raise if `white` is given and no intensity."""
    if white is not None and not 0 < white < float("inf"):
        raise InvalidParameterError(f"white must be a positive intensity, got {white}")


def read_measured(file: Path, white: float | None = None, *, in_range: bool = True) -> list[tuple[str, Tensor]]:
    """The measurements of a file, (1, C, h, w) each and scaled to [0, 1] (noise may leave it), with their names.

    Args:
        file: an image, or a stack of them.
        white: see :func:`intensity_scale`.
        in_range: whether floats have to be intensities in [0, 1].

    Raises:
        RetuneError: see :func:`retune.io.read` and :func:`intensity_scale`.
    """
    images, layout = io.read(file)
    scale = intensity_scale(file, images, layout, white) if in_range or white is not None else 1.0
    names = [file.name] if len(images) == 1 else [f"{file.name}, image {i}" for i in range(len(images))]
    return list(zip(names, (images.to(torch.get_default_dtype()) * scale).split(1), strict=True))


def check_device(device: str) -> None:
    """Raise if there is no such device here."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0][:120]
        if "Expected one of" in reason:  # a list of every kind of device there is anywhere
            reason = "no such kind of device"
        raise InvalidParameterError(
            f"device {device!r} is not available here; use cpu, cuda or cuda:1 ({reason})"
        ) from error


def middle(problem: Restoration, y: Tensor, side: int) -> tuple[Restoration, Tensor]:
    """The middle of a measurement (B, C, h, w), at most `side` pixels a side, and its problem.

    Raises:
        InvalidParameterError: the problem is known for whole images only.
    """
    if max(y.shape[-2:]) <= side:
        return problem, y
    rows, cols = (torch.arange(max(0, (n - side) // 2), min(n, (n - side) // 2 + side)) for n in y.shape[-2:])
    return problem.part(rows, cols), y[..., rows, :][..., cols]


def one_line(error: BaseException) -> str:
    """The message of an error, for a table."""
    return " ".join(str(error).split())


def require_kernel(problem: ProblemConfig) -> None:
    """Raise if images are said to be blurred, but not how: no kernel is presumed of what was really measured."""
    if problem.name == "deblur" and problem.kernel is None:
        raise ConfigError(
            "by what the images were blurred is not known: give the kernel, --kernel gaussian:1.6, --kernel "
            "motion:15@30, or an image, NPY or TIFF file of it"
        )
