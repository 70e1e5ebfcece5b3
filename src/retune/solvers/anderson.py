"""Anderson acceleration of the restarts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retune._registry.entries import register
from retune._torch.batch import over_images, per_image_norm, pick
from retune.errors import InvalidParameterError, require_real, require_whole
from retune.solvers._safeguard import Safeguard
from retune.solvers.base import AbstractSolver, SolverState

__all__ = ["Anderson"]

#: Length of a turn: accelerated evaluations and plain ones alternate.
TURN = 200
#: Maximum number of points kept: more would fill the memory.
MOST = 1000


@register
class Anderson(AbstractSolver):
    r"""Safeguarded Anderson acceleration (type II), independently for each image.

    From the last m points ``z_i`` and residuals ``f_i = Φ(z_i) − z_i`` the next point is ``Σ α_i Φ(z_i)``, where
    ``Σ α_i = 1`` minimise ``‖Σ α_i f_i‖² + ε Σ ‖f_i‖² α_i²`` (Walker and Ni, *SIAM J. Numer. Anal.* 49(4), 2011). The
    term with ε keeps the m×m system regular, even if points coincide. Φ is one cycle of the map's layers.

    Safeguard: an extrapolation fails if the residual exceeds `growth` times its smallest value, or if an image gained
    nothing in `patience` evaluations. The image then returns to Φ of its best point, drops its history, and takes plain
    steps before it extrapolates again: `pause` of them, and twice as many after each further useless trial. The result
    is always Φ of some point.

    For any Φ, the solver needs **at most 200 evaluations more than twice those of plain steps**. After every 200
    accelerated evaluations, the next 200 are plain steps from the original start; they continue where they stopped
    before. The better of the two points is returned.

    Args:
        memory: m from 2 to 1000, number of points kept; they cost the memory of 2m + 4 states.
        regularisation: ε > 0, relative to the squared residuals; at least the rounding error of the state.
        growth: factor > 1 by which the residual may exceed its smallest value.
        pause: number of plain steps after the first failure.
        patience: number of evaluations within which the residual must fall.
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
        if not 2 <= memory <= MOST or not regularisation > 0 or not growth > 1 or pause < 1 or patience < 1:
            raise InvalidParameterError(
                f"Anderson needs 2 ≤ memory ≤ {MOST}, regularisation > 0, growth > 1, pause ≥ 1 and patience ≥ 1, got "
                f"memory={memory}, regularisation={regularisation}, growth={growth}, pause={pause}, "
                f"patience={patience}"
            )
        self.memory, self.regularisation, self.growth = memory, regularisation, growth
        self.pause, self.patience = pause, patience

    def init(self, u: Tensor) -> SolverState:
        """See [`AbstractSolver`][retune.AbstractSolver]."""
        batch = u.shape[0]
        past = u.new_zeros(batch, self.memory, u[0].numel())
        gram = u.new_zeros(batch, self.memory, self.memory, dtype=torch.float64)
        count = u.new_zeros(batch, dtype=torch.long)
        # the plain iterate, and the number of evaluations; then, for the accelerated iteration, the point to evaluate;
        # Φ and residuals of the last points; their products; their number, and the slot of the next
        memory = (u, count, u, past, past.clone(), gram, count, count, *Safeguard.begin(u, self.pause))
        return SolverState(u, torch.zeros_like(u), memory)

    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        """See [`AbstractSolver`][retune.AbstractSolver]. The history is written in place."""
        walk, taken, z, images, residuals, gram, kept, slot, *rest = state.memory
        plain = (taken // TURN) % 2 == 1
        point = pick(plain, walk, z)
        image = block(point)
        change = image - point
        size = per_image_norm(change)
        before = Safeguard(*rest)
        guard, failed = before.watch(
            image, size, growth=self.growth, patience=self.patience, pause=self.pause, compare=False
        )
        row = torch.arange(len(z), device=z.device)
        flat_image, flat_change, turn = image.flatten(1), change.flatten(1), plain[:, None]
        images[row, slot] = torch.where(turn, images[row, slot], flat_image)
        residuals[row, slot] = torch.where(turn, residuals[row, slot], flat_change)
        # The long axis is last in both factors: on a CPU this is ten times faster than a product with a column.
        products = torch.bmm(flat_change[:, None], residuals.transpose(1, 2))[:, 0].double()
        updated = gram.clone()
        updated[row, slot], updated[row, :, slot] = products, products
        gram = torch.where(turn[..., None], gram, updated)
        held = (kept + 1).clamp_max(self.memory)

        alpha = self._weights(gram, held, slot, torch.finfo(z.dtype).eps).to(z.dtype)
        mixed = torch.bmm(alpha[:, None], images)[:, 0].view_as(image)
        following = pick((held > 1) & (guard.waits == 0), mixed, image)
        following, u = (pick(failed, guard.best, v) for v in (following, image))
        held = torch.where(failed, 0, held)
        # In a turn of plain steps the accelerated iteration rests; its best point is returned if it is better.
        guard = Safeguard(*(pick(plain, old, new) for old, new in zip(before, guard, strict=True)))
        better = plain & (before.least < size)
        shrink = torch.where(better, before.least / size.clamp_min(torch.finfo(size.dtype).tiny), 1)
        return SolverState(
            pick(better, before.best, pick(plain, image, u)),
            change * over_images(shrink, u.ndim),  # its size is the residual of the returned point
            (
                pick(plain, image, walk),
                taken + 1,
                pick(plain, z, following),
                images,
                residuals,
                gram,
                torch.where(plain, kept, held),
                torch.where(plain, slot, (slot + 1) % self.memory),
                *guard,
            ),
        )

    def _weights(self, gram: Tensor, kept: Tensor, slot: Tensor, rounding: float) -> Tensor:
        """α (B, m) from the products of the residuals; unused points get weight 0."""
        age = (slot[:, None] - torch.arange(self.memory, device=kept.device)) % self.memory
        used = age < kept[:, None]
        newest = torch.diagonal(gram, dim1=1, dim2=2).gather(1, slot[:, None])
        gram = gram / newest.clamp_min(torch.finfo(gram.dtype).tiny)[..., None]
        diagonal = torch.diagonal(gram, dim1=1, dim2=2)
        # An unused slot has a row of the identity, decoupled from the others.
        both = used[:, :, None] & used[:, None, :]
        ridge = max(self.regularisation, rounding) * diagonal.clamp_min(1.0)
        matrix = torch.where(both, gram, 0.0) + torch.diag_embed(torch.where(used, ridge, 1.0))
        identity = torch.eye(self.memory, dtype=matrix.dtype, device=matrix.device)
        matrix = torch.where(torch.isfinite(matrix), matrix, identity)
        alpha = torch.linalg.solve_ex(matrix, used.double())[0]
        return alpha / alpha.sum(1, keepdim=True)
