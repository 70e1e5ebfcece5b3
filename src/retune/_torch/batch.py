"""Batches: numbers per image, and broadcasting them over the images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["image_norm", "inner", "middle", "over_images", "per_image_norm", "pick", "window"]


#: Norms below this bound may be wrong in float32: squares of values of 1e-20 are 0.
_SMALL = 1e-14


def per_image_norm(x: Tensor) -> Tensor:
    """``‖x‖`` of each image (B, …), in the shape (B,), also where squares leave the range of float32.

    On an accelerator a look at the values would wait for it, so such a norm is the upper bound ``√n max |x|`` there.
    """
    flat = x.flatten(1)
    norm = torch.linalg.vector_norm(flat, dim=1)
    if x.dtype != torch.float32:
        return norm
    fits = (norm >= _SMALL) & (norm < torch.inf)
    if x.device.type != "cpu":
        largest = torch.linalg.vector_norm(flat, ord=torch.inf, dim=1)
        return torch.where(fits, norm, largest * math.sqrt(flat.shape[1]))
    return norm if bool(fits.all()) else torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64).to(x.dtype)


def image_norm(x: Tensor) -> Tensor:
    """``‖x‖`` of each image (B, …), in the shape (B, 1, …, 1), to divide x by it."""
    return over_images(per_image_norm(x), x.ndim)


def over_images(values: Tensor, axes: int = 4) -> Tensor:
    """One number for each image, (B,), in the shape (B, 1, …, 1) of `axes` axes, to multiply images (B, C, H, W) by."""
    return values.reshape(-1, *[1] * (axes - 1))


def pick(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`yes` for the images of the mask (B,), else `no`; one of the two themselves where that can be seen freely."""
    if mask.device.type == "cpu":  # on an accelerator, a look would wait for it
        if bool(mask.all()):
            return yes
        if not bool(mask.any()):
            return no
    return torch.where(over_images(mask, yes.ndim), yes, no)


def inner(a: Tensor, b: Tensor) -> float:
    """Real part of ``⟨a, b⟩`` over all images, in float64, because squares of 1e20 overflow in float32."""
    double = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    return float((a.to(double).conj() * b.to(double)).real.sum())


def window(size: int, side: int, middle: int | None = None) -> slice:
    """The indices of `side` neighbours out of `size`, around `middle` or in the centre; all if there are fewer."""
    start = (size if middle is None else 2 * middle) - side
    return slice(start := min(max(0, start // 2), max(0, size - side)), min(size, start + side))


def middle(x: Tensor, side: int) -> tuple:
    """The index of the middle of images (…, H, W): at most `side` pixels a side."""
    return (..., *(window(n, side) for n in x.shape[-2:]))
