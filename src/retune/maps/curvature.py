"""The largest curvature of an objective at a state, by a power iteration on differences of gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["largest_curvature"]


@torch.no_grad()
def largest_curvature(gradient: Callable[[Tensor], Tensor], u: Tensor, products: int = 12) -> Tensor:
    """``‖∇²F(u)‖`` of every image, shape (B,), estimated from below.

    The products with the Hessian are finite differences, ``(∇F(u + hv) − ∇F(u))/h``: they need no graph, and work in
    inference mode, too.

    Args:
        gradient: ``∇F``, (B, …) → (B, …), each image for itself.
        u: the states.
        products: with the Hessian, each as costly as one gradient.
    """
    shape = (-1, *[1] * (u.ndim - 1))
    tiny = torch.finfo(u.dtype).tiny
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(u.shape[1:], generator=generator, dtype=u.dtype).to(u.device).expand(u.shape)
    here = gradient(u)
    h = torch.finfo(u.dtype).eps ** 0.5 * _norm(u).clamp_min(1.0)
    size = _norm(v)
    for _ in range(products):
        v = v / size.clamp_min(tiny).view(shape)
        v = (gradient(u + h.view(shape) * v) - here) / h.view(shape)
        size = _norm(v)
    return size


def _norm(u: Tensor) -> Tensor:
    return torch.linalg.vector_norm(u.flatten(1), dim=1)
