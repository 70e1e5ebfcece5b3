"""Batches: numbers per image, and broadcasting them over the images."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["image_norm", "inner", "window"]


def image_norm(x: Tensor) -> Tensor:
    """``‖x‖`` of each image (B, C, H, W), in the shape (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)


def inner(a: Tensor, b: Tensor) -> float:
    """Real part of ``⟨a, b⟩`` over all images, in float64, because squares of 1e20 overflow in float32."""
    double = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    return float((a.to(double).conj() * b.to(double)).real.sum())


def window(size: int, side: int, middle: int | None = None) -> slice:
    """The indices of `side` neighbours out of `size`, around `middle` or in the centre; all if there are fewer."""
    start = (size if middle is None else 2 * middle) - side
    return slice(start := min(max(0, start // 2), max(0, size - side)), min(size, start + side))
