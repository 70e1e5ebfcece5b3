"""Measurements of the user, read from files, and parts of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retune import io
from retune.config import ProblemConfig
from retune.errors import ConfigError, InvalidParameterError
from retune.io.intensity import intensity_scale
from retune.problems.base import Restoration
from retune.problems.named import Inpaint
from retune.problems.noise import estimate_noise

__all__ = ["check_chosen_device", "check_device", "doubts", "middle", "one_line", "read_measured", "require_kernel"]

#: Share of equal values, at the smallest or the largest one, from which on they are taken to be clipped.
_CLIPPED = 0.01
#: Side of what is looked at.
_LOOKED_AT = 512


def read_measured(
    file: Path, white: float | None = None, *, in_range: bool = True, remembered: bool = False
) -> list[tuple[str, Tensor]]:
    """The measurements of a file, (1, C, h, w) each and scaled to [0, 1] (noise may leave it), with their names.

    Args:
        file: an image, or a stack of them.
        white: see :func:`retune.io.intensity.intensity_scale`.
        in_range: whether floats have to be intensities in [0, 1].
        remembered: see :func:`retune.io.intensity.intensity_scale`.

    Raises:
        RetuneError: see :func:`retune.io.read` and :func:`retune.io.intensity.intensity_scale`.
    """
    images, layout = io.read(file)
    known = in_range or white is not None
    scale = intensity_scale(file, images, layout, white, remembered=remembered) if known else 1.0
    names = [file.name] if len(images) == 1 else [f"{file.name}, image {i}" for i in range(len(images))]
    return list(zip(names, (images.to(torch.get_default_dtype()) * scale).split(1), strict=True))


def doubts(problem: Restoration, measured: Sequence[tuple[str, Tensor]]) -> Iterator[str]:
    """What makes it unlikely that the measurements (1, C, h, w), each with its name, are ``A x`` plus noise of σ.

    One sentence about each thing, with the first measurement that shows it. Of a large one the middle is looked at.
    """
    clipped, noise = [], []
    for name, y in measured:
        part = (..., *(slice(max(0, (n - _LOOKED_AT) // 2), (n + _LOOKED_AT) // 2) for n in y.shape[-2:]))
        values = y = y[part]
        if isinstance(problem, Inpaint) and problem.mask is not None:
            values = y[problem.mask[part].to(y.device).expand_as(y) > 0]
            if not len(values):
                continue
        ends = [(float((values == end).float().mean()), float(end)) for end in (values.min(), values.max())]
        if max(ends)[0] > _CLIPPED and len(values.unique()) > 10:
            clipped.append(f"{max(ends)[0]:.0%} of the values of {name} are {max(ends)[1]:.3g} exactly")
        if isinstance(problem, Inpaint):
            continue
        try:
            seen = np.max(estimate_noise(y))
        except InvalidParameterError:  # an image without any
            continue
        given = np.max(problem.sigma)
        # Fine texture counts as noise, so that less than what is seen is usual, and much more is not.
        if not seen / 30 < given < 3 * seen:
            noise.append(f"σ = {given:.3g} was given, and {name} shows about {seen:.2g}")
    if clipped:
        yield (
            f"{clipped[0]}{_and_others(clipped)}: clipped, or a border or background without noise. y = A x + noise "
            "allows for neither, and what is estimated of the error is then off: keep values below black and above "
            "white, and cut borders off, if you can"
        )
    if noise:
        yield (
            f"{noise[0]}{_and_others(noise)}. The noise level is the standard deviation where 1 is white (levels of 8 "
            "bits divided by 255); --sigma estimate takes it from the images"
        )


def _and_others(found: Sequence[str]) -> str:
    return f" (and so in {len(found) - 1} other image(s))" if len(found) > 1 else ""


def check_chosen_device(device: str) -> None:
    """Raise if training was asked for on a device that is not here; one of several processes gets its own."""
    if device != "auto" and "LOCAL_RANK" not in os.environ:
        check_device(device)


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
