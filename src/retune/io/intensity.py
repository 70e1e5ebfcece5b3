"""The scale of intensities: the factor from a file's values to [0, 1], the range of the networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retune.errors import InvalidParameterError
from retune.io.files import Layout, read

__all__ = ["intensity_scale", "read_scaled", "require_white"]

#: A given white is refused if the brightest value is more than this times it, or less than its inverse.
_FARTHEST = 1e6


def intensity_scale(
    file: Path,
    images: Tensor,
    layout: Layout,
    white: float | None,
    option: str = "--white ",
    *,
    remembered: bool = False,
) -> float:
    """The factor that scales the intensities of a file, as read, to [0, 1].

    Args:
        file: name of the images in error messages.
        images: the images as read (integers of up to 16 bits are scaled by the largest value of their type).
        layout: how they were stored.
        white: intensity, in the units of the file, that counts as 1; default: the largest value of an integer type, and
            1 for floats.
        option: how error messages tell to give it.
        remembered: whether `white` comes from the network and not from the user for this file.

    Raises:
        InvalidParameterError: `white` is not an intensity, or more than the file can hold; or a remembered `white`
            makes the image almost black or far too bright; or, without `white`, integers have an unknown range or
            floats are not in [0, 1].
    """
    require_white(white)
    finite = images[images.isfinite()] if images.is_floating_point() else images
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)
    if white is not None:
        return _scale_of(file, layout, white, high, option, remembered)
    if layout.top is None and layout.dtype.kind in "iu":
        example = next((n for n in (255, 1023, 4095, 16383, 65535) if n >= high), f"{high:.0f}")
        raise InvalidParameterError(
            f"{file} is stored as {layout.dtype.name}, with intensities from {low:.10g} to {high:.10g}, and this type "
            f"does not tell which intensity is white: give it, for example {option}{example}"
        )
    if layout.top is None and (high > 3 or low < -3):
        raise InvalidParameterError(
            f"{file} has intensities from {low:.4g} to {high:.4g}, but networks need [0, 1]: give the intensity of "
            f"white, for example {option}4095"
        )
    return 1.0


def _scale_of(file: Path, layout: Layout, white: float, high: float, option: str, remembered: bool) -> float:
    largest = layout.top
    if layout.dtype.kind in "iu" and white > (most := largest or int(np.iinfo(layout.dtype).max)):
        raise InvalidParameterError(
            f"{file} is stored as {_stored(layout)}, up to {most}, so {white:g} cannot be its white: give the "
            f"intensity of white, for example {option}{most}"
        )
    scale = (largest or 1) / white
    if high > 0 and not 1 / _FARTHEST < high * scale < _FARTHEST:
        raise InvalidParameterError(
            f"{file} has intensities up to {high * (largest or 1):.4g}, so {white:g} cannot be its white: give the "
            f"intensity of white in the units of the file, for example {option}{largest or 1}"
        )
    if remembered and not 0.02 < high * scale < 3:
        raise InvalidParameterError(
            f"{file} has intensities up to {high * (largest or 1):.4g}, but the network uses {white:g} as white: give "
            f"the intensity of white for this file, for example {option}{largest or 1}"
        )
    return scale


def _stored(layout: Layout) -> str:
    return layout.dtype.name if layout.bits is None else f"integers of {layout.bits} bits"


def read_scaled(file: Path, white: float | None, option: str) -> Tensor:
    """The images (N, C, H, W) of a file of sharp images, scaled to [0, 1].

    Raises:
        RetuneError: see [`read`][retune.io.read] and ``intensity_scale``.
    """
    images, layout = read(file, any_integers=True)
    scale = intensity_scale(file, images, layout, white, option)
    return (images if scale == 1 else images * scale).to(torch.get_default_dtype())


def require_white(white: float | None) -> None:
    """Refuse a given `white` that is not an intensity."""
    if white is not None and not 0 < white < float("inf"):
        raise InvalidParameterError(f"white must be a positive intensity, got {white}")
