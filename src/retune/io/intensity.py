"""The unit of intensities: what brings those of a file to [0, 1], where networks learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from retune.errors import InvalidParameterError
from retune.io.files import Layout, read

__all__ = ["intensity_scale", "read_scaled", "require_white"]


def intensity_scale(
    file: Path,
    images: Tensor,
    layout: Layout,
    white: float | None,
    option: str = "--white ",
    *,
    remembered: bool = False,
) -> float:
    """The factor that brings the intensities of a file to [0, 1].

    Args:
        file: how errors call the images.
        images: as read, integers scaled by the largest of their type.
        layout: how they were stored.
        white: intensity, in the units of the file, that counts as 1; by default the largest of an integer type, and 1
            for floats.
        option: how errors say to give it.
        remembered: whether `white` is what a network was made with, and not what was said of this file.

    Raises:
        InvalidParameterError: `white` is no intensity, or more than the file can hold; a remembered one that makes the
            image all but black, or far brighter than white; or floats that are not in [0, 1] without one.
    """
    require_white(white)
    largest = int(np.iinfo(layout.dtype).max) if layout.dtype.kind == "u" else None
    if white is not None:
        if largest is not None and white > largest:
            raise InvalidParameterError(
                f"{file} is stored as {layout.dtype.name}, up to {largest}, so {white:g} cannot be white in it: say "
                f"which intensity is, for example {option}{largest}"
            )
        scale = (1.0 if largest is None else largest) / white
        top = float(images.max())
        if remembered and not 0.02 < top * scale < 3:
            raise InvalidParameterError(
                f"{file} has intensities up to {top * (largest or 1):.4g}, but in what the network was made with "
                f"{white:g} was white: say which intensity is white here, for example {option}{largest or 1}"
            )
        return scale
    low, high = float(images.min()), float(images.max())
    if largest is None and (high > 3 or low < -3):
        raise InvalidParameterError(
            f"{file} has intensities from {low:.4g} to {high:.4g}, but networks learn on [0, 1]: say which intensity "
            f"is white, for example {option}4095"
        )
    return 1.0


def read_scaled(file: Path, white: float | None, option: str) -> Tensor:
    """The images (N, C, H, W) of a file of sharp images, scaled to [0, 1].

    Raises:
        RetuneError: see [`read`][retune.io.read] and ``intensity_scale``.
    """
    images, layout = read(file)
    scale = intensity_scale(file, images, layout, white, option)
    return images if scale == 1 else images * scale


def require_white(white: float | None) -> None:
    """Raise if `white` is given and no intensity."""
    if white is not None and not 0 < white < float("inf"):
        raise InvalidParameterError(f"white must be a positive intensity, got {white}")
