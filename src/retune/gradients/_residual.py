"""The adjoint equation ``(I − Jᵀ) w = v`` by minimal residuals, per image, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from retune._torch.batch import over_images, per_image_norm

__all__ = ["AdjointSolution", "first_direction", "minimal_residual"]

# If the residual is this many times larger than v, the block is not a contraction and its series is meaningless.
_RUNAWAY = 10.0
# Factor to the next tolerance, if one was not enough.
_TIGHTER = 0.3
# The first of these tolerances is not larger.
_COARSEST = 0.3


class AdjointSolution(NamedTuple):
    """The solution of the adjoint equation.

    Attributes:
        w: the solution.
        gain: (B,) the largest ``‖p‖/‖(I − Jᵀ)p‖`` so far.
        alive: (B,) which images are usable. For the others w is what was found before the series grew, or v.
        products: number of products with Jᵀ.
        left: (B,) share of the residual after the first direction.
    """

    w: Tensor
    gain: Tensor
    alive: Tensor
    products: int
    left: Tensor


def minimal_residual(
    vjp: Callable[[Tensor], Tensor],
    v: Tensor,
    *,
    rtol: float,
    most: int,
    memory: int,
    accept: Callable[[Tensor, Tensor], bool] | None = None,
    start: Tensor | None = None,
    gain: Tensor | None = None,
) -> AdjointSolution:
    r"""Truncated generalised conjugate residuals (Orthomin; Vinsome 1976; Eisenstat, Elman, Schultz, 1983).

    Each step multiplies by Jᵀ once and minimises the residual over the last directions. So it lowers the residual at
    least as far as one more term of the Neumann series from the same point. The iteration stops when the estimated
    relative error ``gain · ‖v + Jᵀw − w‖/‖w‖`` of every image is below `rtol`. The gain is the largest
    ``‖p‖/‖(I − Jᵀ)p‖`` so far. It is a lower bound of ``‖(I − Jᵀ)⁻¹‖``, and the slow modes contribute most to it.

    If ``I − Jᵀ`` is not positive along the residual of an image, the image continues with plain terms of the series. If
    these grow, there is a direction of negative curvature. The image then keeps what was found before these terms, as a
    truncated Newton method does (Steihaug, SIAM J. Numer. Anal. 20, 1983), and is marked as unusable.

    Args:
        vjp: ``p ↦ Jᵀp``.
        v: right-hand side, leading axis B.
        rtol: requested relative error.
        most: bound on the products with Jᵀ, ≥ 1.
        memory: directions kept, ≥ 1; costs twice as many states.
        accept: called with w and the size (B,) of the residual once the error is nearly small enough, and then at ever
            smaller tolerances, until it returns True at one of at most `rtol`, or down to rounding.
        start: the first direction in place of v, for images where it is not zero; only its direction matters.
        gain: (B,) a known gain. After a good start the iteration would not see the slow modes.
    """
    finest = 16 * torch.finfo(v.dtype).eps
    # `accept` compares two solutions, so it is asked for the first time a little before.
    tolerance = rtol if accept is None else max(rtol, min(rtol / _TIGHTER, _COARSEST))
    tiny = torch.finfo(v.dtype).tiny
    w, r = torch.zeros_like(v), v
    first = per_image_norm(v)
    gain = torch.ones_like(first) if gain is None else gain.clamp_min(1.0)
    alive = torch.ones_like(first, dtype=torch.bool)
    plain = torch.zeros_like(alive)
    left = torch.ones_like(first)
    held = torch.zeros_like(v)  # w before the plain terms
    kept: list[tuple[Tensor, Tensor, Tensor]] = []  # p, (I − Jᵀ)p, ‖(I − Jᵀ)p‖²
    every = 1 if v.device.type == "cpu" else 8  # on an accelerator each read of the numbers stalls it
    used, size = 0, first
    given = plain if start is None else _given(start)
    p = v if start is None else torch.where(over_images(given, v.ndim), start, v)
    while used < most:
        q = p - vjp(p)
        used += 1
        turned = ~plain & ~(_dot(r, q) > 0) & (size > 0) & ~given
        held, plain = torch.where(over_images(turned, w.ndim), w, held), plain | turned
        for direction, image, square in kept:
            beta = torch.where(plain, 0.0, _dot(q, image) / square.clamp_min(tiny))
            p, q = p - over_images(beta, p.ndim) * direction, q - over_images(beta, q.ndim) * image
        square = _dot(q, q)
        step = torch.where(plain, 1.0, _dot(r, q) / square.clamp_min(tiny))
        new = r - over_images(step, r.ndim) * q
        after = per_image_norm(new)
        alive = alive & torch.isfinite(after) & (after <= _RUNAWAY * first)
        w = torch.where(over_images(alive, w.ndim), w + over_images(step, p.ndim) * p, w)
        r = torch.where(over_images(alive, r.ndim), new, torch.zeros_like(r))
        # An image with plain terms has no directions: the decay of the terms predicts the remainder.
        ratio = after / size.clamp_min(tiny)
        met = torch.where(plain, torch.where(ratio < 1, 1 / (1 - ratio).clamp_min(tiny), torch.inf), per_image_norm(p))
        gain = torch.where(
            plain, met, torch.maximum(gain, torch.where(square > 0, met / square.sqrt().clamp_min(tiny), gain))
        )
        left = after / first.clamp_min(tiny) if used == 1 else left
        size, given = torch.where(alive, after, 0.0), torch.zeros_like(given)
        kept = [*kept, (p, q, square)][-memory:]
        if used % every == 0:
            # The gain still grows during the first products, so trust it less then.
            margin = 1 + 1 / used
            if not bool((alive & (size > 0) & (margin * gain * size > tolerance * per_image_norm(w))).any()):
                if accept is None or tolerance <= finest or (accept(w, size) and tolerance <= rtol):
                    break
                tolerance = max(_TIGHTER * tolerance, finest)
        p = r
    fallen = torch.where(over_images(per_image_norm(held) > 0, w.ndim), held, v)
    return AdjointSolution(torch.where(over_images(alive, w.ndim), w, fallen), gain, alive, used, left)


def first_direction(vjp: Callable[[Tensor], Tensor], v: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The multiple w of `start` (of v, for images where `start` is zero) with the smallest residual, and the residual.

    ``r = v − (I − Jᵀ) w``, so ``‖r‖ ≤ ‖v‖`` for any start. It costs one product.
    """
    p = torch.where(over_images(_given(start), v.ndim), start, v)
    q = p - vjp(p)
    step = _dot(v, q) / _dot(q, q).clamp_min(torch.finfo(v.dtype).tiny)
    w, r = over_images(step, p.ndim) * p, v - over_images(step, q.ndim) * q
    usable = over_images(torch.isfinite(per_image_norm(w)) & torch.isfinite(per_image_norm(r)), v.ndim)
    return torch.where(usable, w, torch.zeros_like(v)), torch.where(usable, r, v)


def _given(start: Tensor) -> Tensor:
    size = per_image_norm(start)
    return torch.isfinite(size) & (size > 0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a.flatten(1).unsqueeze(1), b.flatten(1).unsqueeze(2)).flatten()
