"""Restarts that are damped where the residual grows, and only there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retune._registry.entries import register
from retune.errors import InvalidParameterError, require_real
from retune.solvers.base import AbstractSolver, SolverState

__all__ = ["Damped"]

#: Blocks without growth, at most, until θ is raised again.
LONGEST = 64


@register
class Damped(AbstractSolver):
    r"""``u_{r+1} = (1 − θ_r) u_r + θ_r Φ(u_r)``, with θ lowered for an image while its residual grows.

    θ starts at 1 and is multiplied by `shrink` each time ``‖Φ(u_r) − u_r‖`` exceeds the one before. For a nonexpansive
    Φ the residual of plain restarts never grows, so these iterates are exactly the plain ones; a trained denoiser may
    have lost that property, and damping (Krasnosel'skiĭ–Mann) then settles every mode whose eigenvalue has a real part
    below 1. What has an eigenvalue beyond that has no stable equilibrium there: θ ends at `floor`, and the status says
    that the image did not settle. The fixed points are those of Φ.

    A residual may also grow for a while on its way to an equilibrium that attracts, as when missing pixels are filled
    in from the border of a hole. So after two blocks without growth θ is divided by `shrink` again. Growth that follows
    such a rise doubles the blocks that are waited for until the next one, up to 64. (Growth is never let pass, whatever
    its direction: what leaves an equilibrium that does not attract looks the same at first, and ruins the image.)

    Args:
        shrink: factor in (0, 1).
        floor: smallest θ, in (0, 1].
    """

    def __init__(self, shrink: float = 0.5, floor: float = 1 / 64):
        shrink, floor = require_real("shrink", shrink), require_real("floor", floor)
        if not (0 < shrink < 1 and 0 < floor <= 1):
            raise InvalidParameterError(
                f"Damped needs 0 < shrink < 1 and 0 < floor ≤ 1, got shrink={shrink}, floor={floor}"
            )
        self.shrink, self.floor = shrink, floor

    def init(self, u: Tensor) -> SolverState:
        """See :class:`~retune.solvers.base.AbstractSolver`."""
        one = u.new_ones(len(u))
        # θ, the last residual, blocks without growth, blocks to wait for, and whether the last change of θ was a rise.
        return SolverState(u, torch.zeros_like(u), (one, one * torch.inf, 0 * one, 2 * one, 0 * one))

    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        """See :class:`~retune.solvers.base.AbstractSolver`."""
        theta, before, calm, wait, rose = state.memory
        new = block(state.u)
        change = new - state.u
        size = torch.linalg.vector_norm(change.flatten(1), dim=1)
        # Rounding makes the residual of a settled image waver; that is no growth.
        noise = 10 * torch.finfo(size.dtype).eps * torch.linalg.vector_norm(new.flatten(1), dim=1)
        grew = size > before + noise
        calm = torch.where(grew, 0, calm + 1)
        wait = torch.where(grew & (rose > 0), (2 * wait).clamp_max(LONGEST), wait)
        rise = (theta < 1) & (calm >= wait)
        rose = torch.where(grew, 0, torch.where(rise, 1, rose))
        calm = torch.where(rise, 0, calm)
        raised = torch.where(rise, (theta / self.shrink).clamp_max(1), theta)
        theta = torch.where(grew, (theta * self.shrink).clamp_min(self.floor), raised)
        factor = theta.view(-1, *[1] * (new.ndim - 1))
        u = torch.where(factor == 1, new, torch.addcmul(state.u, change, factor))
        return SolverState(u, change, (theta, size, calm, wait, rose))

    def describe(self) -> dict:
        """Constructor arguments as plain data."""
        return {"type": "Damped", "shrink": self.shrink, "floor": self.floor}
