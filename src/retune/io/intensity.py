"""The scale of intensities: the factor from a file's values to [0, 1], the range of the networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from retune.errors import InvalidParameterError, unknown_name
from retune.io.files import Layout, read

__all__ = ["Level", "Unit", "intensity_scale", "intensity_unit", "read_level", "read_scaled", "require_white"]

#: An intensity in the units of a file; "auto" finds it in the image, None is the usual value.
Level = float | Literal["auto"] | None

#: Black is the darkest and white the brightest of so many of the smoothed values: noise and hot pixels do not count.
_DARKEST, _BRIGHTEST = 0.002, 0.999
#: Sides of the squares over which the values are averaged.
_BLACK_OVER, _WHITE_OVER = 7, 3


@dataclass(frozen=True)
class Unit:
    """``(v − black)·scale`` for the values v of a file, as read: 0 is black, 1 is white.

    Attributes:
        scale: the factor.
        black: the value that is subtracted first.
        top: the divisor when the file was read; 1 if none.
        auto: whether black or white was found in the image.
    """

    scale: float = 1.0
    black: float = 0.0
    top: float = 1.0
    auto: bool = False

    def scaled(self, values):
        """Values as read, on the scale where 1 is white."""
        values = values - self.black if self.black else values
        return values if self.scale == 1 else values * self.scale

    def stored(self, values):
        """The values as they are read again."""
        values = values if self.scale == 1 else values / self.scale
        return values + self.black if self.black else values

    @property
    def levels(self) -> tuple[float, float]:
        """Black and white, in the units of the file."""
        return float(f"{self.black * self.top:.6g}"), float(f"{(self.black + 1 / self.scale) * self.top:.6g}")

    def __str__(self) -> str:
        return "black {:g}, white {:g}".format(*self.levels)


def intensity_unit(
    file: Path,
    images: Tensor,
    layout: Layout,
    white: Level = None,
    black: Level = None,
    option: str = "--white ",
    *,
    remembered: bool = False,
) -> Unit:
    """The unit of the intensities of a file.

    Args:
        file: name of the images in error messages.
        images: the images as read.
        layout: how they were stored.
        white: see ``intensity_scale``; "auto" is the brightest 0.1 % of the image, averaged over 3×3 pixels.
        black: the intensity that is black, in the units of the file; 0 by default. "auto" is the darkest 0.2 % of the
            image, averaged over 7×7 pixels.
        option: how error messages tell to give white.
        remembered: whether `white` comes from the network and not from the user for this file.

    Raises:
        InvalidParameterError: see ``intensity_scale``; or black is not below white, or the image has one value only.
    """
    top = float(layout.top or 1)
    auto = "auto" in (white, black)
    dark = _found(images, _BLACK_OVER, _DARKEST) * top if black == "auto" else black
    bright = _found(images, _WHITE_OVER, _BRIGHTEST) * top if white == "auto" else white
    if dark is None:
        return Unit(intensity_scale(file, images, layout, bright, option, remembered=remembered), top=top, auto=auto)
    if bright is None:
        intensity_scale(file, images - dark / top, layout, None, option)
        bright = top
    else:
        intensity_scale(file, images, layout, bright, option, remembered=remembered)
    if not dark < bright:
        raise InvalidParameterError(
            f"{file}: black ({dark:g}) must be below white ({bright:g}): give --black and --white, in the units of the "
            "file"
        )
    return Unit(top / (bright - dark), dark / top, top, auto)


def _found(images: Tensor, side: int, share: float) -> float:
    """The share-quantile of the values (N, C, H, W), averaged over squares, with four digits."""
    values = images.double()
    values = torch.where(values.isfinite(), values, values[values.isfinite()].median())
    smooth = avg_pool2d(values, [min(side, n) for n in values.shape[-2:]], stride=1).flatten()
    smooth = smooth[:: max(1, smooth.numel() // 1_000_000)]
    return float(f"{float(smooth.quantile(share)):.4g}")


def read_level(text: str | None, option: str) -> Level:
    """A level as it is written on the command line: a number, or auto.

    Raises:
        InvalidParameterError: neither.
    """
    if text is None or text == "auto":
        return text  # pyright: ignore[reportReturnType] - "auto" it is
    try:
        return float(text)
    except ValueError:
        raise InvalidParameterError(
            f"{option} {text[:40]}: expected an intensity in the units of the file, or auto"
        ) from None


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
        stored = layout.dtype.name if layout.bits is None else f"integers of {layout.bits} bits"
        raise InvalidParameterError(
            f"{file} is stored as {stored}, up to {most}, so {white:g} cannot be its white: give the "
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


def read_scaled(file: Path, white: float | None, option: str) -> Tensor:
    """The images (N, C, H, W) of a file of sharp images, scaled to [0, 1].

    Raises:
        RetuneError: see [`read`][retune.io.read] and ``intensity_scale``.
    """
    images, layout = read(file, any_integers=True)
    scale = intensity_scale(file, images, layout, white, option)
    return (images if scale == 1 else images * scale).to(torch.get_default_dtype())


def require_white(white: Level, black: Level = None) -> None:
    """Refuse a given `white` or `black` that is not an intensity."""
    for name, value in (("white", white), ("black", black)):
        if isinstance(value, str) and value != "auto":
            raise unknown_name(name, value, ["auto"])
    if isinstance(black, float | int) and not abs(black) < float("inf"):
        raise InvalidParameterError(f"black must be a finite intensity, got {black}")
    if white == "auto":
        return
    if white is not None and not 0 < white < float("inf"):
        raise InvalidParameterError(f"white must be a positive intensity, got {white}")
