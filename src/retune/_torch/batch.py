"""Batches: one number for each image, and how it is spread over the image again."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["image_norm", "inner"]


def image_norm(x: Tensor) -> Tensor:
    """``‖x‖`` of each image (B, C, H, W), in the shape (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)


def inner(a: Tensor, b: Tensor) -> float:
    """Real part of ``⟨a, b⟩`` over all images, summed in float64."""
    return float((a.conj() * b).real.sum(dtype=torch.float64))
