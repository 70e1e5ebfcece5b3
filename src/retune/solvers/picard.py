"""Plain restarts (Picard iterations)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retune._registry.entries import register
from retune.solvers.base import AbstractSolver, SolverState

__all__ = ["Picard"]


@register
class Picard(AbstractSolver):
    """``u_{r+1} = Φ(u_r)``: the network restarted on its own output.

    If Φ is ρ^K-Lipschitz, ``‖u_R − u*‖ ≤ ρ^{KR} ‖u_0 − u*‖`` (Banach).
    """

    plain = True

    def init(self, u: Tensor) -> SolverState:
        """See [`AbstractSolver`][retune.AbstractSolver]."""
        return SolverState(u, torch.zeros_like(u))

    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        """See [`AbstractSolver`][retune.AbstractSolver]."""
        new = block(state.u)
        return SolverState(new, new - state.u)
