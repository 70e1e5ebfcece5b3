"""Restarts that are damped when, and only when, the residual grows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retune.errors import InvalidParameterError, require_real
from retune.solvers.base import AbstractSolver, SolverState

__all__ = ["Damped"]


class Damped(AbstractSolver):
    r"""``u_{r+1} = (1 − θ_r) u_r + θ_r Φ(u_r)``, with θ lowered for an image whose residual grows.

    θ starts at 1 and is multiplied by `shrink` each time ``‖Φ(u_r) − u_r‖`` exceeds the one before. For a nonexpansive
    Φ the residual of plain restarts never grows, so these iterates are exactly the plain ones; a trained denoiser may
    have lost that property, and damping (Krasnosel'skiĭ–Mann) then settles every mode whose eigenvalue has a real part
    below 1. What has an eigenvalue beyond that has no stable equilibrium there: θ ends at `floor`, and the status says
    that the image did not settle. The fixed points are those of Φ.

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
        return SolverState(u, torch.zeros_like(u), (u.new_ones(len(u)), u.new_full((len(u),), torch.inf)))

    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        """See :class:`~retune.solvers.base.AbstractSolver`."""
        theta, before = state.memory
        new = block(state.u)
        change = new - state.u
        size = torch.linalg.vector_norm(change.flatten(1), dim=1)
        # Rounding makes the residual of a settled image waver; that is no growth.
        noise = 10 * torch.finfo(size.dtype).eps * torch.linalg.vector_norm(new.flatten(1), dim=1)
        theta = torch.where(size > before + noise, (theta * self.shrink).clamp_min(self.floor), theta)
        factor = theta.view(-1, *[1] * (new.ndim - 1))
        u = torch.where(factor == 1, new, torch.addcmul(state.u, change, factor))
        return SolverState(u, change, (theta, size))

    def describe(self) -> dict:
        """Constructor arguments as plain data."""
        return {"type": "Damped", "shrink": self.shrink, "floor": self.floor}
