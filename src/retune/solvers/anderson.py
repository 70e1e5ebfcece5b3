"""Anderson acceleration of the restarts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retune.errors import InvalidParameterError, require_real, require_whole
from retune.solvers.base import AbstractSolver, SolverState

__all__ = ["Anderson"]


class Anderson(AbstractSolver):
    r"""Safeguarded Anderson acceleration (type II), independently for each image.

    From the last m points ``z_i`` and residuals ``f_i = Φ(z_i) − z_i`` the next point is ``Σ α_i Φ(z_i)``, where
    ``Σ α_i = 1`` minimise ``‖Σ α_i f_i‖² + ε Σ ‖f_i‖² α_i²`` (Walker and Ni, *SIAM J. Numer. Anal.* 49(4), 2011). The
    term with ε keeps the m×m system regular, also when points coincide.

    Safeguard: an image whose residual grows beyond `growth` times its smallest one goes back to Φ of its best point,
    forgets its history, and takes `pause` plain steps before it extrapolates again. So at most one evaluation in
    ``pause + 1`` is lost to extrapolation, and the image returned is always Φ of some point.

    Args:
        memory: m ≥ 2, points kept; the memory cost is 2m states.
        regularisation: ε > 0, relative to the squared residuals.
        growth: factor > 1 by which the residual may exceed its smallest value.
        pause: plain steps after a fall-back.
    """

    def __init__(self, memory: int = 5, regularisation: float = 1e-8, growth: float = 1.5, pause: int = 10):
        memory, pause = require_whole("memory", memory), require_whole("pause", pause)
        regularisation, growth = require_real("regularisation", regularisation), require_real("growth", growth)
        if memory < 2 or not regularisation > 0 or not growth > 1 or pause < 1:
            raise InvalidParameterError(
                "Anderson needs memory ≥ 2, regularisation > 0, growth > 1 and pause ≥ 1, got "
                f"memory={memory}, regularisation={regularisation}, growth={growth}, pause={pause}"
            )
        self.memory, self.regularisation, self.growth, self.pause = memory, regularisation, growth, pause

    def init(self, u: Tensor) -> SolverState:
        """See :class:`~retune.solvers.base.AbstractSolver`."""
        batch = u.shape[0]
        past = u.new_zeros(batch, self.memory, u[0].numel())
        least = u.new_full((batch,), torch.inf)
        kept = u.new_zeros(batch, dtype=torch.long)  # points in the history
        waits = u.new_zeros(batch, dtype=torch.long)  # plain steps still to take
        return SolverState(u, torch.zeros_like(u), (u, past, past.clone(), u, least, kept, waits))

    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        """See :class:`~retune.solvers.base.AbstractSolver`."""
        z, images, residuals, best, least, kept, waits = state.memory
        image = block(z)
        change = image - z
        size = torch.linalg.vector_norm(change.flatten(1), dim=1)

        worse = size > self.growth * least  # never true for the first point, nor for NaN, which the loop handles
        better = size < least
        best = _pick(better, image, best)
        least = torch.where(better, size, least)
        images = torch.cat([images[:, 1:], image.flatten(1)[:, None]], 1)
        residuals = torch.cat([residuals[:, 1:], change.flatten(1)[:, None]], 1)
        kept = torch.where(worse, 0, (kept + 1).clamp_max(self.memory))
        waits = torch.where(worse, self.pause, (waits - 1).clamp_min(0))

        mixed = torch.bmm(self._weights(residuals, kept)[:, None], images)[:, 0].view_as(image)
        following = _pick(worse, best, _pick((kept > 1) & (waits == 0), mixed, image))
        return SolverState(_pick(worse, best, image), change, (following, images, residuals, best, least, kept, waits))

    def _weights(self, residuals: Tensor, kept: Tensor) -> Tensor:
        """α (B, m) from the Gram matrix, in float64; points that are not kept get weight 0."""
        gram = torch.bmm(residuals, residuals.transpose(1, 2)).double()
        slots = torch.arange(self.memory, device=kept.device)
        used = slots >= self.memory - kept[:, None]
        newest = gram[:, -1, -1].clamp_min(torch.finfo(torch.float64).tiny)
        gram = gram / newest[:, None, None]
        diagonal = torch.diagonal(gram, dim1=1, dim2=2)
        # An unused slot has a row of the identity, decoupled from the others.
        both = used[:, :, None] & used[:, None, :]
        matrix = torch.where(both, gram, 0.0) + torch.diag_embed(
            torch.where(used, self.regularisation * diagonal.clamp_min(1.0), 1.0)
        )
        matrix = torch.where(torch.isfinite(matrix), matrix, torch.eye(self.memory, dtype=matrix.dtype).to(matrix))
        alpha = torch.linalg.solve_ex(matrix, used.double())[0]
        return (alpha / alpha.sum(1, keepdim=True)).to(residuals.dtype)

    def describe(self) -> dict:
        """Constructor arguments as plain data."""
        return {
            "type": "Anderson",
            "memory": self.memory,
            "regularisation": self.regularisation,
            "growth": self.growth,
            "pause": self.pause,
        }


def _pick(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (yes.ndim - 1)), yes, no)
