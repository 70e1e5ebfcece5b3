"""‖A‖² by Lanczos iterations, with the probability that it is underestimated."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from retune._torch.batch import image_norm

__all__ = ["FAILURE", "SAFETY", "lanczos_sqnorm"]

#: ‖A‖² ≤ SAFETY · (Lanczos estimate), with probability at least 1 − FAILURE over the start vector.
SAFETY = 1.05
FAILURE = 1e-6


def lanczos_sqnorm(normal: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Largest Ritz value of AᵀA per image, shape (B,). Up to rounding it is at most ‖A‖². It is inf if AᵀA overflows.

    With k steps, ``SAFETY`` times the value is below ‖A‖² with probability at most ``FAILURE``: for a start uniform on
    the sphere of R^n, P(θ_k < (1 − ε)‖A‖²) ≤ 1.648 √n exp(−√ε (2k − 1)) (Kuczyński and Woźniakowski, SIAM J. Matrix
    Anal. Appl. 13(4):1094-1122, 1992).
    """
    n = start[0].numel()
    epsilon = 1 - 1 / SAFETY
    # Norms are computed for AᵀA/s with s near ‖A‖²: with ‖A‖ = 1e10, squares would overflow in float32.
    unit = start / image_norm(start).clamp_min(torch.finfo(start.dtype).tiny)
    first = normal(unit)
    scale = first.abs().amax((1, 2, 3), keepdim=True)
    if not bool(torch.isfinite(scale).all()):
        return scale.flatten()
    scale = torch.where(scale > 0, scale, 1)
    steps = math.ceil((math.log(1.648 * math.sqrt(n) / FAILURE) / math.sqrt(epsilon) + 1) / 2)
    tiny = torch.finfo(start.dtype).tiny
    v, previous = unit, torch.zeros_like(start)
    beta = torch.zeros_like(image_norm(start))
    diagonal, off = [], []
    for k in range(min(steps, n)):
        w = (normal(v) if k else first) / scale - beta * previous
        alpha = (w * v).sum((1, 2, 3), keepdim=True)
        w = w - alpha * v
        beta = image_norm(w)
        diagonal.append(alpha)
        off.append(beta)
        # After an exact breakdown w is 0. Only zeros are appended, and the largest value does not change.
        previous, v = v, w / beta.clamp_min(tiny)
    main = torch.cat(diagonal, 1).flatten(1).double()
    side = torch.cat(off, 1).flatten(1).double()[:, :-1]
    matrix = torch.diag_embed(main) + torch.diag_embed(side, 1) + torch.diag_embed(side, -1)
    if not bool(torch.isfinite(matrix).all()):
        return torch.full_like(scale.flatten(), math.inf)
    largest = torch.linalg.eigvalsh(matrix.cpu())[:, -1].clamp_min(0).to(start.device)
    return (largest * scale.flatten().double()).to(start.dtype)
