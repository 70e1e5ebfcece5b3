"""The largest curvature of an objective at a state, by a power iteration on differences of gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retune._torch.batch import over_images, per_image_norm

__all__ = ["largest_curvature"]


@torch.no_grad()
def largest_curvature(gradient: Callable[[Tensor], Tensor], u: Tensor, products: int = 12) -> Tensor:
    """``‖∇²F(u)‖`` of every image, shape (B,), estimated from below.

    The products with the Hessian are finite differences, ``(∇F(u + hv) − ∇F(u))/h``. They need no graph, and also work
    in inference mode.

    Args:
        gradient: ``∇F``, (B, …) → (B, …), for each image separately.
        u: the states.
        products: number of products with the Hessian; each costs one gradient.
    """
    tiny = torch.finfo(u.dtype).tiny
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(u.shape[1:], generator=generator, dtype=u.dtype).to(u.device).expand(u.shape)
    here = gradient(u)
    h = over_images(torch.finfo(u.dtype).eps ** 0.5 * per_image_norm(u).clamp_min(1.0), u.ndim)
    size = _norm(v)
    for _ in range(products):
        v = v / over_images(size.clamp_min(tiny), u.ndim)
        v = (gradient(u + h * v) - here) / h
        size = _norm(v)
    return size


def _norm(v: Tensor) -> Tensor:
    """``‖v‖`` per image, in float64: in float32 the square of a steep gradient would overflow."""
    return torch.linalg.vector_norm(v.flatten(1), dim=1, dtype=torch.float64).to(v.dtype)
