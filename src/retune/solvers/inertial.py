"""Inertia between layers (FISTA-type), with adaptive restart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retune._registry.entries import register
from retune._torch.batch import over_images, per_image_norm, pick
from retune.errors import InvalidParameterError
from retune.solvers._safeguard import Safeguard
from retune.solvers.base import AbstractSolver, SolverState

__all__ = ["Inertial"]

#: If plain steps shrink the residual by this factor, inertia cannot gain anything.
FAST = 0.5
#: Share of the estimated curvature that limits the momentum. The estimate is from above.
CURVATURE = 0.3
#: Convergence is proved for a momentum below 1, and for ``β_k ‖x_k − x_{k−1}‖² ≤ c ‖x_1 − x_0‖² k^{−1.1}`` with any c.
#: These are never reached in practice.
HIGHEST, ROOM, DECAY = 0.9999, 1e6, 1.1


@register
class Inertial(AbstractSolver):
    r"""Nesterov's inertia on the relaxed map with adaptive restart, independently for each image.

    With ``G = (1 − λ) I + λ Φ``: ``x_{k+1} = G(y_k)``, ``y_{k+1} = x_{k+1} + β_k (x_{k+1} − x_k)``, and k goes back to
    0 where ``⟨y_k − x_{k+1}, x_{k+1} − x_k⟩ > 0`` (O'Donoghue and Candès, *Found. Comput. Math.* 15, 2015; no objective
    is evaluated, so the map can be arbitrary). Φ is one cycle of the map's layers.

    ``β_k = min(k/(k + 3), (1 − √q)/(1 + √q))``: Nesterov's momentum for a map that multiplies its slowest error by ``1
    − q``. q is 0.3 times the smallest quotient ``⟨Δy − ΔG(y), Δy⟩/‖Δy‖²`` so far. It overestimates the true q while Δy
    contains fast errors. It costs two products and no evaluation.

    Relaxation makes inertia valid for every step size ``τ < 2/L``; without it, inertia diverges above ``τ = 4/(3L)``.
    An eigenvalue θ of the (symmetric) linearisation of G is stable under inertia for ``θ > −1/3``. A nonexpansive Φ has
    ``θ ≥ 1 − 2λ``, so every ``λ ≤ 2/3`` is stable.

    Convergence: if Φ is averaged (the layers of a convex problem) and has a fixed point, the iterates converge to one.
    The proof (Maingé, *J. Comput. Appl. Math.* 219, 2008) needs ``Σ β_k ‖x_k − x_{k−1}‖² < ∞`` and β_k below a number
    smaller than 1. Two bounds on β_k ensure this; usual problems never reach them.

    Safeguard: plain steps continue while they halve the residual. Inertia fails if the residual exceeds `growth` times
    its smallest value, or if an image gained less in `patience` evaluations than plain steps would have. The image then
    returns to Φ of its best point and takes plain steps before it tries again: `pause` of them, and twice as many after
    each further useless trial.

    It needs four states of memory where [`Anderson`][retune.Anderson] needs 2m + 2, and usually somewhat more
    evaluations.

    Args:
        relaxation: λ in (0, 2/3].
        growth: factor > 1 by which the residual may exceed its smallest value.
        pause: number of plain steps after the first failure.
        patience: number of evaluations over which the gain is compared.
    """

    unit = "cycle"
    accelerates = True
    converges = True

    def __init__(self, relaxation: float = 0.6, growth: float = 2.0, pause: int = 1, patience: int = 16):
        if not 0 < relaxation <= 2 / 3 or growth <= 1 or pause < 1 or patience < 1:
            raise InvalidParameterError(
                "Inertial needs 0 < relaxation ≤ 2/3, growth > 1, pause ≥ 1 and patience ≥ 1, got "
                f"relaxation={relaxation}, growth={growth}, pause={pause}, patience={patience}"
            )
        self.relaxation, self.growth, self.pause, self.patience = relaxation, growth, pause, patience

    def init(self, u: Tensor) -> SolverState:
        """See [`AbstractSolver`][retune.AbstractSolver]."""
        # the point to evaluate; x_k; y_k − y_{k−1}; k, or −1 for a plain step; the last residual; the smallest
        # quotient; a bound of ‖y_k − x_k‖; the first residual; the number of evaluations
        values = (-1.0, torch.inf, 1.0, 0.0, 0.0, 0.0)
        since, last, slowest, ahead, first, count = (u.new_full((u.shape[0],), v) for v in values)
        zero = torch.zeros_like(u)
        guard = Safeguard.begin(u, self.pause)
        return SolverState(u, zero, (u, u, zero, since, last, slowest, ahead, first, count, *guard))

    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        """See [`AbstractSolver`][retune.AbstractSolver]."""
        y, x, moved, k, last, slowest, ahead, begun, count, *rest = state.memory
        image = block(y)
        change = image - y
        residual = per_image_norm(change)
        guard, failed = Safeguard(*rest).watch(
            image, residual, growth=self.growth, patience=self.patience, pause=self.pause, compare=True
        )
        new = torch.add(y, change, alpha=self.relaxation)
        step = new - x
        # ⟨y − x⁺, x⁺ − x⟩ > 0, where y − x⁺ = −λ (Φ(y) − y)
        against = (change * step).flatten(1).sum(1) < 0
        plain = (k < 0) & ((residual < FAST * last) | torch.isinf(last)) | (guard.waits > 0) | failed
        # After a plain step x is Φ of a point, not G of it, so the test does not apply.
        slowest = torch.where(failed, 1.0, torch.where(k < 0, slowest, torch.minimum(slowest, _quotient(moved, step))))
        k = torch.where(plain, -1.0, torch.where(against | (k < 0), 0.0, k + 1))
        root = (CURVATURE * slowest).sqrt()
        count, begun = count + 1, torch.where(count == 0, residual, begun)
        # ‖x_{k+1} − x_k‖ ≤ ‖y_k − x_k‖ + λ ‖Φ(y_k) − y_k‖
        length = ahead + self.relaxation * residual
        room = ROOM * begun.square() / (count**DECAY * length.square()).clamp_min(torch.finfo(length.dtype).tiny)
        momentum = torch.minimum((k / (k + 3)).clamp(0, HIGHEST), (1 - root) / (1 + root))
        momentum = torch.minimum(momentum, room)
        ahead = torch.where(plain, 0.0, momentum * length)
        following = pick(plain, image, torch.addcmul(new, over_images(momentum, y.ndim), step))
        x = pick(plain, image, new)
        following, x, u = (pick(failed, guard.best, v) for v in (following, x, image))
        memory = (following, x, following - y, k, residual, slowest, ahead, begun, count, *guard)
        return SolverState(u, change, memory)


def _quotient(moved: Tensor, step: Tensor) -> Tensor:
    """``⟨Δy − ΔG, Δy⟩/‖Δy‖²`` per image, in [0, 1]."""
    moved, step = moved.flatten(1), step.flatten(1)
    share = (step * moved).sum(1) / (moved * moved).sum(1).clamp_min(torch.finfo(moved.dtype).tiny)
    return (1 - share).clamp(0, 1)
