"""Anderson acceleration of the restarts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retune.errors import InvalidParameterError, require_real, require_whole
from retune.solvers._safeguard import Safeguard, norm, pick
from retune.solvers.base import AbstractSolver, SolverState

__all__ = ["Anderson"]


class Anderson(AbstractSolver):
    r"""Safeguarded Anderson acceleration (type II), independently for each image.

    From the last m points ``z_i`` and residuals ``f_i = Φ(z_i) − z_i`` the next point is ``Σ α_i Φ(z_i)``, where
    ``Σ α_i = 1`` minimise ``‖Σ α_i f_i‖² + ε Σ ‖f_i‖² α_i²`` (Walker and Ni, *SIAM J. Numer. Anal.* 49(4), 2011). The
    term with ε keeps the m×m system regular, also when points coincide. Φ is one cycle of the map's layers.

    Safeguard: an image whose residual exceeds `growth` times its smallest one, or that gained nothing in `patience`
    evaluations, goes back to Φ of its best point, forgets its history, and takes plain steps before it extrapolates
    again: `pause`, and twice as many after each further trial that did not pay. What is returned is always Φ of some
    point.

    Args:
        memory: m ≥ 2, points kept; the memory cost is 2m states.
        regularisation: ε > 0, relative to the squared residuals; never less than the rounding error of the state.
        growth: factor > 1 by which the residual may exceed its smallest value.
        pause: plain steps after a first fall-back.
        patience: evaluations in which something must be gained.
    """

    unit = "cycle"
    accelerates = True

    def __init__(
        self,
        memory: int = 8,
        regularisation: float = 1e-8,
        growth: float = 2.0,
        pause: int = 1,
        patience: int = 12,
    ):
        memory, pause = require_whole("memory", memory), require_whole("pause", pause)
        patience = require_whole("patience", patience)
        regularisation, growth = require_real("regularisation", regularisation), require_real("growth", growth)
        if memory < 2 or not regularisation > 0 or not growth > 1 or pause < 1 or patience < 1:
            raise InvalidParameterError(
                "Anderson needs memory ≥ 2, regularisation > 0, growth > 1, pause ≥ 1 and patience ≥ 1, got "
                f"memory={memory}, regularisation={regularisation}, growth={growth}, pause={pause}, "
                f"patience={patience}"
            )
        self.memory, self.regularisation, self.growth = memory, regularisation, growth
        self.pause, self.patience = pause, patience

    def init(self, u: Tensor) -> SolverState:
        """See :class:`~retune.solvers.base.AbstractSolver`."""
        batch = u.shape[0]
        past = u.new_zeros(batch, self.memory, u[0].numel())
        gram = u.new_zeros(batch, self.memory, self.memory, dtype=torch.float64)
        count = u.new_zeros(batch, dtype=torch.long)
        # the point to evaluate; Φ and residuals of the last points; their products; how many, and where the next goes
        memory = (u, past, past.clone(), gram, count, count, *Safeguard.begin(u, self.pause))
        return SolverState(u, torch.zeros_like(u), memory)

    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        """See :class:`~retune.solvers.base.AbstractSolver`. The history is written in place."""
        z, images, residuals, gram, kept, slot, *rest = state.memory
        image = block(z)
        change = image - z
        guard, failed = Safeguard(*rest).watch(
            image, norm(change), growth=self.growth, patience=self.patience, pause=self.pause, compare=False
        )
        row = torch.arange(len(z), device=z.device)
        images[row, slot], residuals[row, slot] = image.flatten(1), change.flatten(1)
        # With the long axis last in both factors: on a CPU ten times faster than the product with a column.
        products = torch.bmm(change.flatten(1)[:, None], residuals.transpose(1, 2))[:, 0].double()
        gram = gram.clone()
        gram[row, slot], gram[row, :, slot] = products, products
        kept = (kept + 1).clamp_max(self.memory)

        alpha = self._weights(gram, kept, slot, torch.finfo(z.dtype).eps).to(z.dtype)
        mixed = torch.bmm(alpha[:, None], images)[:, 0].view_as(image)
        following = pick((kept > 1) & (guard.waits == 0), mixed, image)
        following, u = (pick(failed, guard.best, v) for v in (following, image))
        kept, slot = torch.where(failed, 0, kept), (slot + 1) % self.memory
        return SolverState(u, change, (following, images, residuals, gram, kept, slot, *guard))

    def _weights(self, gram: Tensor, kept: Tensor, slot: Tensor, rounding: float) -> Tensor:
        """α (B, m) from the products of the residuals; points that are not kept get weight 0."""
        age = (slot[:, None] - torch.arange(self.memory, device=kept.device)) % self.memory
        used = age < kept[:, None]
        newest = torch.diagonal(gram, dim1=1, dim2=2).gather(1, slot[:, None])
        gram = gram / newest.clamp_min(torch.finfo(gram.dtype).tiny)[..., None]
        diagonal = torch.diagonal(gram, dim1=1, dim2=2)
        # An unused slot has a row of the identity, decoupled from the others.
        both = used[:, :, None] & used[:, None, :]
        ridge = max(self.regularisation, rounding) * diagonal.clamp_min(1.0)
        matrix = torch.where(both, gram, 0.0) + torch.diag_embed(torch.where(used, ridge, 1.0))
        matrix = torch.where(torch.isfinite(matrix), matrix, torch.eye(self.memory, dtype=matrix.dtype).to(matrix))
        alpha = torch.linalg.solve_ex(matrix, used.double())[0]
        return alpha / alpha.sum(1, keepdim=True)

    def describe(self) -> dict:
        """Constructor arguments as plain data."""
        return {
            "type": "Anderson",
            "memory": self.memory,
            "regularisation": self.regularisation,
            "growth": self.growth,
            "pause": self.pause,
            "patience": self.patience,
        }
