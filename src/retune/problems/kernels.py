"""Blur kernels by name or from a file, normalised to sum 1."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import torch
from deepinv.physics.functional import bicubic_filter, bilinear_filter, gaussian_blur, sinc_filter
from torch import Tensor

from retune import io
from retune.errors import (
    AdjustedWarning,
    InvalidParameterError,
    NotFiniteError,
    ShapeError,
    require,
    require_real,
    unknown_name,
    wrong_type,
)
from retune.problems.files import one_image
from retune.problems.psf import background_of, centred, without_background

__all__ = ["kernel"]

_TAPS = 25
_LARGEST = 4096
_BLURS = ("gaussian", "uniform", "motion", "three-motions")
_EXAMPLES = ("gaussian:1.6", "uniform:9", "motion:15@30", "three-motions")
_FILTERS = {
    "bicubic": bicubic_filter,
    "bilinear": bilinear_filter,
    "sinc": lambda factor: sinc_filter(factor, length=4 * factor),
}


def kernel(
    spec: str | Tensor | np.ndarray, *, background: float | str | None = None, centre: bool | None = None
) -> Tensor:
    """A kernel (1, 1 or C, h, w).

    Args:
        spec: ``"gaussian:1.6"`` (standard deviation in pixels), ``"uniform:9"`` (side), ``"motion:15@30"`` (length in
            pixels, angle in degrees counter-clockwise from the horizontal), ``"three-motions"`` (25-tap vertical,
            horizontal and diagonal lines for the red, green and blue channel, as in arXiv:2506.13239), the path of an
            image or NPY file (normalised to sum 1 per channel), or a tensor or array (h, w), (C, h, w) or (1, C, h, w),
            which is used unchanged.
        background: level of the kernel's border in the units of the file or array, as a camera's offset leaves it:
            ``max(k − b, 0)`` is divided by its sum, in each channel. "auto" finds b: the median of the tenth of the
            pixels that are farthest from the brightest spot, where these are as flat as no tail of a blur is. It also
            removes what exceeds b by less than twice the noise of these pixels. None and 0 subtract nothing.
        centre: whether the centre of mass is moved to the middle, by whole pixels and all channels by the same. The
            array becomes the smallest one with odd sides that holds all values around it.

    Raises:
        UnknownNameError: no kernel or file has that name.
        InvalidParameterError, ShapeError, NotFiniteError: the kernel cannot be used.

    Warns:
        AdjustedWarning: a kernel from a file did not sum to 1 and was normalised; or "auto" found no background.
    """
    if background is not None and background != "auto":
        background = require_real("background", background, "or 'auto'")
        if not math.isfinite(background):
            raise InvalidParameterError(f"background must be finite, or 'auto', got {background}")
    if not isinstance(centre, bool | None):
        raise wrong_type("centre", centre, "True or False")
    taps = _read(spec, background)
    return centred(taps) if centre else taps


def _read(spec: str | Tensor | np.ndarray, background: float | str | None) -> Tensor:
    """The kernel as it is given, without its background."""
    if isinstance(spec, str) and Path(spec).suffix.lower() in io.SUFFIXES:
        return _from_file(Path(spec), background)
    return _cleared(_made(spec), background, "the blur kernel")


def _cleared(taps: Tensor, background: float | str | None, name: str) -> Tensor:
    if background in (None, 0):
        return taps
    if background == "auto" and all(background_of(channel) is None for channel in taps[0]):
        warnings.warn(
            f"no background was found in {name}, so none was subtracted; if there is one, give its level as a number "
            "(--kernel-background 100)",
            AdjustedWarning,
            stacklevel=6,
        )
        return taps
    return without_background(taps, background, name)


def _made(spec: str | Tensor | np.ndarray) -> Tensor:
    """A kernel from an array, or by name."""
    if isinstance(spec, Tensor):
        return _checked(spec)
    if isinstance(spec, np.ndarray):
        if spec.dtype.kind not in "biuf":
            raise wrong_type("kernel", spec, "an array of real numbers")
        return _checked(torch.tensor(spec.astype(float), dtype=torch.get_default_dtype()))
    require("kernel", spec, str, "a name, a tensor or an array", "for example 'gaussian:1.6'")
    name, colon, argument = spec.partition(":")
    if name == "three-motions":
        return _three_motions()
    if name not in _BLURS:
        raise unknown_name("blur kernel", spec, [*_EXAMPLES, f"or a file ({', '.join(io.SUFFIXES)})"])
    try:
        if colon and not argument:
            raise ValueError
        if name == "gaussian":
            sigma = float(argument or 1.6)
            if not 0 < sigma < math.inf:
                raise ValueError
            _require_small(spec, 6 * sigma)
            return gaussian_blur(sigma=(sigma, sigma))
        if name == "uniform":
            side = int(argument or 9)
            if side < 1:
                raise ValueError
            _require_small(spec, side)
            return torch.full((1, 1, side, side), 1 / side**2)
        length, at, angle = (argument or "15@0").partition("@")
        turned = float(angle) if at else 0.0
        if int(length) < 1 or not math.isfinite(turned):
            raise ValueError
        _require_small(spec, int(length))
        return _line(int(length), turned)
    except InvalidParameterError:
        raise
    except (ValueError, OverflowError) as error:
        raise InvalidParameterError(
            f"cannot read the blur kernel {spec!r}; expected 'gaussian:SIGMA', 'uniform:SIDE' or "
            "'motion:LENGTH@DEGREES' with positive numbers, such as 'motion:15@30'"
        ) from error


def _require_small(spec: str, side: float) -> None:
    """Refuse a kernel larger than any image before allocating it."""
    if side > _LARGEST:
        raise InvalidParameterError(
            f"the blur kernel {spec!r} has about {side:.3g} pixels on a side, expected at most {_LARGEST}; give its "
            "numbers in pixels"
        )


def antialiasing(
    spec: str | Tensor | np.ndarray | None,
    factor: int,
    background: float | str | None = None,
    centre: bool | None = None,
) -> Tensor | None:
    """The filter applied before subsampling by `factor`: a name, None, or any blur kernel (1, 1 or C, h, w).

    The named filters have no background, and are centred as they are to be.
    """
    if spec is None:
        return None
    if isinstance(spec, str):
        if spec in _FILTERS:
            if background is not None or centre:
                raise InvalidParameterError(
                    f"the filter {spec!r} is made by a formula: it has no background and is in its place; "
                    "kernel_background and centre_kernel are for measured kernels"
                )
            return _FILTERS[spec](factor)
        if spec.partition(":")[0] not in _BLURS and Path(spec).suffix.lower() not in io.SUFFIXES:
            raise unknown_name("filter", spec, [*_FILTERS, *_EXAMPLES])
    return kernel(spec, background=background, centre=centre)


def _checked(given: Tensor) -> Tensor:
    shaped = given[(None,) * (4 - given.ndim)] if 2 <= given.ndim <= 4 else given
    if shaped.ndim != 4 or shaped.shape[0] != 1:
        raise ShapeError(f"a kernel has shape (h, w), (C, h, w) or (1, C, h, w), got {tuple(given.shape)}")
    if not torch.isfinite(shaped).all():
        raise NotFiniteError("the blur kernel contains NaN or Inf")
    if not bool((shaped != 0).any()):
        raise InvalidParameterError("the blur kernel is zero everywhere")
    return shaped


def _from_file(path: Path, background: float | str | None = None) -> Tensor:
    taps, is_float = _taps(path)
    if taps.shape[1] == 3 and torch.equal(taps, taps[:, :1].expand_as(taps)):
        taps = taps[:, :1]  # a grey kernel, saved as a colour image
    given = taps
    taps = _cleared(taps, background, f"the blur kernel {path}")
    if taps is not given:
        return taps  # whoever asks for a background to be removed asks for a sum of 1
    total = taps.sum((-2, -1), keepdim=True)
    if not bool((total > 1e-12 * taps.abs().sum()).all()):
        raise InvalidParameterError(
            f"the blur kernel {path} sums to {total.flatten().tolist()}; "
            "the sum must be positive (is the file inverted?)"
        )
    if bool(((total - 1).abs() > 1e-3).any()):
        # Integers cannot sum to 1, so the message says "integers"; a sum of floats may be intended.
        unit = "" if is_float else " (integers)"
        shown = ", ".join(f"{t:.6g}" for t in total.flatten().tolist())
        warnings.warn(
            f"the blur kernel {path} sums to {shown}{unit}, not to 1: it was divided by its sum, so that the blur "
            "keeps the brightness",
            AdjustedWarning,
            stacklevel=5,
        )
    return taps / total


def _taps(path: Path) -> tuple[Tensor, bool]:
    """The unscaled numbers of a file, (1, C, h, w), and whether they are floats."""
    channels = one_image(path, "the blur kernel", "(h, w) or (h, w, 3)")
    if channels.shape[-1] in (2, 4):
        if not bool((channels[..., -1] == channels[..., -1].max()).all()):
            raise ShapeError(f"the blur kernel {path} has transparent pixels; remove its alpha channel")
        channels = channels[..., :-1]  # an opaque alpha channel carries no information
    taps = torch.from_numpy(np.ascontiguousarray(channels.astype(np.float64).transpose(2, 0, 1)))[None]
    if not bool(torch.isfinite(taps).all()):
        raise NotFiniteError(f"the blur kernel {path} contains NaN or Inf")
    return taps.to(torch.get_default_dtype()), channels.dtype.kind == "f"


def _three_motions() -> Tensor:
    lines = torch.zeros(1, 3, _TAPS, _TAPS)
    lines[0, 0, :, _TAPS // 2] = 1
    lines[0, 1, _TAPS // 2, :] = 1
    lines[0, 2] = torch.eye(_TAPS)
    return lines / _TAPS


def _line(length: int, degrees: float) -> Tensor:
    """A line through the centre, sampled finely; each sample is spread bilinearly over its pixels."""
    reach = (length - 1) / 2
    half = math.ceil(reach)
    side = 2 * half + 1
    angle = math.radians(degrees)
    t = torch.linspace(-reach, reach, 16 * length, dtype=torch.float64) if length > 1 else torch.zeros(1).double()
    rows, cols = half - t * math.sin(angle), half + t * math.cos(angle)
    out = torch.zeros(side, side, dtype=torch.float64)
    for i in (0, 1):
        for j in (0, 1):
            r, c = rows.floor() + i, cols.floor() + j
            weight = (1 - (rows - r).abs()) * (1 - (cols - c).abs())
            inside = (r >= 0) & (r < side) & (c >= 0) & (c < side)
            out.index_put_((r[inside].long(), c[inside].long()), weight[inside], accumulate=True)
    return (out / out.sum()).to(torch.get_default_dtype())[None, None]
