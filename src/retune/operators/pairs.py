"""Random pairs of images that can refute a statement about a function. They cannot prove it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retune._torch.batch import per_image_norm

__all__ = ["random_like", "steepest", "violates_firmness"]

# A difference refutes a bound if it exceeds it by this share, in addition to rounding.
_SLACK = 1e-3
_SIZES = (1e-3, 1e-2, 0.1, 1.0, 10.0)


def _pairs(around: Tensor, scale: Tensor):
    """Pairs at several distances: independent images, and multiples of an image (which cross the same thresholds)."""
    generator = torch.Generator().manual_seed(20250615)
    for size in _SIZES:
        a, b = (
            size * scale * torch.randn(around.shape, generator=generator, dtype=around.dtype).to(around.device)
            for _ in range(2)
        )
        yield around + a, around + b
        yield around + a, around + 0.9 * a


def random_like(like: Tensor, seed: int = 0) -> Tensor:
    """A normal tensor of this shape, the same at every call, from a separate random stream."""
    generator = torch.Generator().manual_seed(20250616 + seed)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def _scale(like: Tensor) -> Tensor:
    return like.abs().mean().clamp_min(torch.finfo(like.dtype).eps)


@torch.no_grad()
def steepest(gradient: Callable[[Tensor], Tensor], around: Tensor) -> Tensor:
    """The largest ``‖G(a) − G(b)‖/‖a − b‖`` of a gradient G over the pairs, per image, shape (B,).

    Minus the possible rounding error, it is a lower bound of the Lipschitz constant of G.
    """
    around = around.detach()
    rounding = 100 * torch.finfo(around.dtype).eps
    found = around.new_zeros(len(around))
    for a, b in _pairs(around, _scale(around)):
        one, two = gradient(a), gradient(b)
        apart = per_image_norm(a - b)
        moved = per_image_norm(one - two)
        noise = rounding * per_image_norm(one)
        slope = (moved - noise) / apart.clamp_min(torch.finfo(around.dtype).tiny)
        found = torch.maximum(found, slope.nan_to_num(torch.inf))
    return found / (1 + _SLACK)


@torch.no_grad()
def violates_firmness(prox: Callable[[Tensor], Tensor], like: Tensor) -> bool:
    """Whether a pair shows that a prox is not firmly nonexpansive, ``‖p − q‖² ≤ ⟨p − q, a − b⟩``.

    The prox of a convex function is firmly nonexpansive.
    """
    like = like.detach()
    for a, b in _pairs(torch.zeros_like(like), _scale(like)):
        p, q = prox(a) - prox(b), a - b
        slack = 1e-4 * torch.linalg.vector_norm(q) ** 2
        if not bool((p * p).sum() <= (p * q).sum() + slack):
            return True
    return False
