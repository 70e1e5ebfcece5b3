"""Steps that are damped only if the map does not act like an averaged map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retune._registry.entries import register
from retune._torch.batch import over_images, per_image_norm
from retune.errors import InvalidParameterError, require_real
from retune.solvers.base import AbstractSolver, SolverState

__all__ = ["Damped"]

#: Maximum number of calm cycles before θ is raised again.
LONGEST = 64
#: κ: weight of the change between two steps. A forward–backward map with step size s · 2/L allows κ ≤ 1 − s.
TURN = 0.01


@register
class Damped(AbstractSolver):
    r"""``u_{n+1} = (1 − θ_n) u_n + θ_n T(u_n)``: T is one cycle; θ is lowered if T does not act averaged.

    This is the iteration of Krasnosel'skiĭ and Mann. Let ``d_n = T(u_n) − u_n``. θ starts at 1. For each image it is
    multiplied by `shrink` whenever

    ``‖d_n‖² + κ ‖d_n − d_{n−1}‖² > ‖d_{n−1}‖²``, κ = 0.01.

    An α-averaged T with ``(1 − α)/α ≥ κ`` never meets this condition. A forward–backward map with convex functions is
    such a T for any step size up to ``0.99 · 2/L``, so its iterates are exactly the plain ones. A trained denoiser may
    have lost this property. Then either the residual grows (κ = 0 would detect that), or the iterates alternate between
    several images at a constant residual. The term with κ detects the second case: an averaged map loses residual
    whenever its direction changes.

    With a small θ every mode whose eigenvalue has a real part below 1 converges, and the fixed points are those of T.
    (Relaxing T^K instead would be weaker: an even K turns the eigenvalue −1 into +1.) An eigenvalue above 1 has no
    stable equilibrium: θ ends at `floor`, and the status says that the image did not settle.

    A residual may also grow for a while on its way to an attracting equilibrium, for example while missing pixels are
    filled in from the border of a hole. So after two calm cycles θ is divided by `shrink` again. If growth follows such
    a rise, the required number of calm cycles doubles, up to 64. (Growth is never ignored: an iteration that leaves a
    repelling equilibrium looks the same at first, and ruins the image.)

    Args:
        shrink: factor in (0, 1).
        floor: smallest θ, in (0, 1].
    """

    unit = "cycle"

    def __init__(self, shrink: float = 0.5, floor: float = 1 / 64):
        shrink, floor = require_real("shrink", shrink), require_real("floor", floor)
        if not (0 < shrink < 1 and 0 < floor <= 1):
            raise InvalidParameterError(
                f"Damped needs 0 < shrink < 1 and 0 < floor ≤ 1, got shrink={shrink}, floor={floor}"
            )
        self.shrink, self.floor = shrink, floor

    def init(self, u: Tensor) -> SolverState:
        """See [`AbstractSolver`][retune.AbstractSolver]."""
        one = u.new_ones(len(u))
        # θ, the last residual, calm cycles so far, calm cycles required, and whether θ was last raised.
        return SolverState(u, torch.zeros_like(u), (one, one * torch.inf, 0 * one, 2 * one, 0 * one))

    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        """See [`AbstractSolver`][retune.AbstractSolver]."""
        theta, before, calm, wait, rose = state.memory
        new = block(state.u)
        change = new - state.u
        size = per_image_norm(change)
        # Rounding makes the residual of a settled image fluctuate; this does not count as growth.
        noise = 10 * torch.finfo(size.dtype).eps * per_image_norm(new)
        turn = per_image_norm(change - state.change)
        last = before.clamp_min(torch.finfo(size.dtype).tiny)
        grew = (size / last) ** 2 + TURN * (turn / last) ** 2 > 1 + (noise / last) ** 2
        calm = torch.where(grew, 0, calm + 1)
        wait = torch.where(grew & (rose > 0), (2 * wait).clamp_max(LONGEST), wait)
        rise = (theta < 1) & (calm >= wait)
        rose = torch.where(grew, 0, torch.where(rise, 1, rose))
        calm = torch.where(rise, 0, calm)
        raised = torch.where(rise, (theta / self.shrink).clamp_max(1), theta)
        theta = torch.where(grew, (theta * self.shrink).clamp_min(self.floor), raised)
        factor = over_images(theta, new.ndim)
        u = torch.where(factor == 1, new, torch.addcmul(state.u, change, factor))
        return SolverState(u, change, (theta, size, calm, wait, rose))
