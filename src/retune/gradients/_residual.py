"""The adjoint equation ``(I − Jᵀ) w = v`` by minimal residuals, per image, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from retune._torch.batch import over_images, per_image_norm

__all__ = ["AdjointSolution", "first_direction", "minimal_residual"]

# A residual this many times larger than v: the block is no contraction there, and its series means nothing.
_RUNAWAY = 10.0
# The next tolerance, where one did not do.
_TIGHTER = 0.3


class AdjointSolution(NamedTuple):
    """Attributes: w; the gain ``max ‖p‖/‖(I − Jᵀ)p‖`` met, (B,); which images can be used, (B,); products used; the
    share (B,) of the residual that the first direction left."""

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

    Each step multiplies by Jᵀ once and minimises the residual over the last directions, so it lowers the residual at
    least as far as a further term of the Neumann series would from the same point: it never does worse. It stops when
    the estimated relative error ``gain · ‖v + Jᵀw − w‖/‖w‖`` of every image is below `rtol`; the gain, the largest
    ``‖p‖/‖(I − Jᵀ)p‖`` met, is a lower bound of ``‖(I − Jᵀ)⁻¹‖`` to which the slow modes contribute first.

    An image on which ``I − Jᵀ`` is not positive along the residual goes on with plain terms of the series, and is
    given up if they grow.

    Args:
        vjp: ``p ↦ Jᵀp``.
        v: right-hand side, leading axis B.
        rtol: requested relative error.
        most: bound on the products with Jᵀ, ≥ 1.
        memory: directions kept, ≥ 1; costs twice as many states.
        accept: asked once the error is small enough, with w and the size (B,) of the residual; if it says no, the
            solution goes on to a tolerance smaller by a factor, until rounding.
        start: the first direction instead of v, for images where it is not zero; only its direction counts.
        gain: (B,) one that is known; from a good start the slow modes that are left would not be met.
    """
    tolerance, finest = rtol, 16 * torch.finfo(v.dtype).eps
    tiny = torch.finfo(v.dtype).tiny
    w, r = torch.zeros_like(v), v
    first = per_image_norm(v)
    gain = torch.ones_like(first) if gain is None else gain.clamp_min(1.0)
    alive = torch.ones_like(first, dtype=torch.bool)
    plain = torch.zeros_like(alive)
    left = torch.ones_like(first)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []  # p, (I − Jᵀ)p, ‖(I − Jᵀ)p‖²
    every = 1 if v.device.type == "cpu" else 8  # on an accelerator each look at the numbers stalls it
    used, size = 0, first
    given = plain if start is None else _given(start)
    p = v if start is None else torch.where(over_images(given, v.ndim), start, v)
    while used < most:
        q = p - vjp(p)
        used += 1
        plain = plain | ~(_dot(r, q) > 0) & (size > 0) & ~given
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
        # An image that goes on with plain terms has no directions: the decay of the terms says what is left.
        ratio = after / size.clamp_min(tiny)
        met = torch.where(plain, torch.where(ratio < 1, 1 / (1 - ratio).clamp_min(tiny), torch.inf), per_image_norm(p))
        gain = torch.where(
            plain, met, torch.maximum(gain, torch.where(square > 0, met / square.sqrt().clamp_min(tiny), gain))
        )
        left = after / first.clamp_min(tiny) if used == 1 else left
        size, given = torch.where(alive, after, 0.0), torch.zeros_like(given)
        kept = [*kept, (p, q, square)][-memory:]
        if used % every == 0:
            # The gain is still growing while it is little known: trust it less after few products.
            margin = 1 + 1 / used
            if not bool((alive & (size > 0) & (margin * gain * size > tolerance * per_image_norm(w))).any()):
                if accept is None or tolerance <= finest or accept(w, size):
                    break
                tolerance = max(_TIGHTER * tolerance, finest)
        p = r
    return AdjointSolution(torch.where(over_images(alive, w.ndim), w, v), gain, alive, used, left)


def first_direction(vjp: Callable[[Tensor], Tensor], v: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The multiple w of `start` (of v, for images where that is zero) that leaves the least residual, and that one.

    ``r = v − (I − Jᵀ) w``, so ``‖r‖ ≤ ‖v‖`` whatever the start is. Costs one product.
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
