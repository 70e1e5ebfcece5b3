"""A solver of somebody's: relaxed restarts."""

from dataclasses import dataclass

import torch

import retune


@retune.register
@dataclass(frozen=True)
class Halfway(retune.AbstractSolver):
    """``u_{r+1} = u_r + θ (Φ(u_r) − u_r)``."""

    theta: float = 0.5

    def init(self, u):
        return retune.SolverState(u, torch.zeros_like(u))

    def step(self, block, state):
        change = block(state.u) - state.u
        return retune.SolverState(state.u + self.theta * change, change)
