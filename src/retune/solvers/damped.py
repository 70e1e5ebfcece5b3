"""Steps that are damped where the map does not act averaged, and only there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retune._registry.entries import register
from retune._torch.batch import over_images, per_image_norm
from retune.errors import InvalidParameterError, require_real
from retune.solvers.base import AbstractSolver, SolverState

__all__ = ["Damped"]

#: Calm cycles, at most, until θ is raised again.
LONGEST = 64
#: κ: what a turn must cost. A forward–backward map with step size s · 2/L pays 1 − s.
TURN = 0.01


@register
class Damped(AbstractSolver):
    r"""``u_{n+1} = (1 − θ_n) u_n + θ_n T(u_n)``: T is one cycle; θ is lowered where T does not act averaged.

    This is the iteration of Krasnosel'skiĭ and Mann. With ``d_n = T(u_n) − u_n``, θ starts at 1, and it is multiplied
    by `shrink` for an image each time

    ``‖d_n‖² + κ ‖d_n − d_{n−1}‖² > ‖d_{n−1}‖²``, κ = 0.01.

    The iterates of an α-averaged T never do that if ``(1 − α)/α ≥ κ``: those of a forward–backward map with convex
    functions do not for any step size up to ``0.99 · 2/L``, so they are exactly the plain ones. A trained denoiser may
    have lost that property. Then either the residual grows (κ = 0 would do), or the iterates jump to and fro between
    several images at a constant residual, which the term with κ tells: a turn costs an averaged map part of its
    residual. A small θ settles every mode whose eigenvalue has a real part below 1, and the fixed points are those of
    T. (To relax T^K instead would settle less: an even K turns the eigenvalue −1 into +1.) An eigenvalue beyond 1 has
    no stable equilibrium there: θ ends at `floor`, and the status says that the image did not settle.

    A residual may also grow for a while on its way to an equilibrium that attracts, as when missing pixels are filled
    in from the border of a hole. So after two calm cycles θ is divided by `shrink` again. Growth that follows such a
    rise doubles the calm cycles that are waited for until the next one, up to 64. (Growth is never let pass, whatever
    its direction: what leaves an equilibrium that does not attract looks the same at first, and ruins the image.)

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
        # θ, the last residual, calm cycles, calm cycles to wait for, and whether the last change of θ was a rise.
        return SolverState(u, torch.zeros_like(u), (one, one * torch.inf, 0 * one, 2 * one, 0 * one))

    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        """See [`AbstractSolver`][retune.AbstractSolver]."""
        theta, before, calm, wait, rose = state.memory
        new = block(state.u)
        change = new - state.u
        size = per_image_norm(change)
        # Rounding makes the residual of a settled image waver; that is no growth.
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
