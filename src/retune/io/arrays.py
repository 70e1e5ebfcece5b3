"""Conversion between arrays from files, (H, W) or (H, W, C), and image tensors (C, H, W) scaled to [0, 1]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from retune.errors import InvalidParameterError, NotFiniteError, ShapeError

__all__ = ["checked", "from_array", "scaled", "to_array"]


def from_array(array: np.ndarray, name: str = "array", top: float | None = None) -> Tensor:
    """One image (C, H, W) of an array (H, W) or (H, W, 1 or 3).

    Args:
        array: pixels.
        name: name of the image in error messages.
        top: integers are divided by it; default: the largest value of their type, see ``scaled``.

    Raises:
        ShapeError: unsupported shape.
        InvalidParameterError: not real numbers.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise ShapeError(
            f"{name}: expected a grey (H, W) or colour (H, W, 3) image, got {array.shape}{_shape_advice(array.shape)}"
        )
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise InvalidParameterError(f"{name}: expected an array of real numbers, got dtype {array.dtype}")
    # By its size: torch does not know NumPy's other types of the same size ("unsigned long long").
    native = np.ascontiguousarray(array.transpose(2, 0, 1)).astype(f"{array.dtype.kind}{array.dtype.itemsize}")
    if top is None or array.dtype.kind not in "iu":
        return scaled(torch.from_numpy(native), name)
    default = torch.get_default_dtype()
    exact = torch.float64 if array.dtype.itemsize > 2 else default  # float32 represents all integers up to 2**24
    return torch.from_numpy(native.astype(np.float64)).to(exact) / top


def to_array(image: Tensor, dtype: np.dtype, top: float | None = None, *, single: bool = False) -> np.ndarray:
    """The array (H, W) or (H, W, C) of an image (C, H, W); integers are scaled, rounded and clipped.

    Args:
        image: the image.
        dtype: type of the array.
        top: the integer for the value 1; default: the largest value of the type. Use 1 for integers that were not
            scaled.
        single: whether a grey image gets a channel axis, (H, W, 1).

    Raises:
        NotFiniteError: NaN or Inf in an image for an integer type.
    """
    image = image.detach().cpu()
    if dtype.kind in "iu":
        if not bool(torch.isfinite(image).all()):
            raise NotFiniteError(f"the image has NaN or Inf, but a file of {dtype} cannot store them")
        limits = np.iinfo(dtype)
        unit = limits.max if top is None else top
        high = unit if dtype.kind == "u" and unit > 1 else limits.max
        if dtype.itemsize == 8:  # no float equals 2**63 - 1; this is the next smaller float
            high = np.nextafter(float(limits.max), 0)
        if dtype.itemsize > 2:  # float32 represents all integers up to 2**24
            image = image.double()
        array = np.clip((image * unit).round_().numpy(), limits.min, high).astype(dtype)
    else:
        array = image.numpy().astype(dtype)
    return array[0] if len(array) == 1 and not single else np.ascontiguousarray(array.transpose(1, 2, 0))


def scaled(image: Tensor, name: str = "image") -> Tensor:
    """Floats unchanged; 8-bit and 16-bit unsigned integers divided by the maximum of their type; booleans as 0 and 1.

    Raises:
        InvalidParameterError: other integers, because their range of intensities is unknown.
    """
    if image.is_floating_point():
        return image.float() if image.dtype == torch.float16 else image
    if image.dtype == torch.bool:
        return image.to(torch.get_default_dtype())
    if image.dtype not in (torch.uint8, torch.uint16):
        kind = str(image.dtype).removeprefix("torch.")
        raise InvalidParameterError(
            f"{name} holds numbers of type {kind}: their range of intensities is unknown; convert it to uint8, "
            "uint16, or floats in [0, 1]"
        )
    return image.to(torch.get_default_dtype()) / torch.iinfo(image.dtype).max


def checked(image: Tensor, name: str, *, finite: bool = True) -> Tensor:
    """The image, after a check that it is (C, H, W) and, unless `finite` is false, finite."""
    if image.ndim != 3 or 0 in image.shape:
        raise ShapeError(f"{name}: expected an image (C, H, W), got shape {tuple(image.shape)}")
    if finite and not torch.isfinite(image).all():
        bad = int((~torch.isfinite(image)).sum())
        raise NotFiniteError(
            f"{name} contains NaN or Inf ({bad} of {image.numel()} values); replace them, or mark them as missing with "
            "a mask"
        )
    return image


def _shape_advice(shape: tuple[int, ...]) -> str:
    if len(shape) != 3:
        return ""
    if shape[0] in (1, 3):
        return "; it looks like (C, H, W): transpose it, image.transpose(1, 2, 0)"
    if shape[-1] in (2, 4):
        return f"; drop the alpha channel, image[..., :{shape[-1] - 1}]"
    return "; a batch of arrays has 4 axes (N, H, W, C)"
