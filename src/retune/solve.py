"""THE loop: every solver runs in it; it decides when each image stops and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retune._allocator import keep_freed_memory
from retune.equilibrium import Status, Trace
from retune.errors import InvalidParameterError, require_real, require_whole
from retune.solvers.base import AbstractSolver, SolverState

__all__ = ["Solution", "Stop", "solve"]

#: An iterate this many times larger than the largest of its start and its first block has diverged.
GROWTH = 1e4
#: Blocks shorter than this many layers are looked at together.
LOOK = 5


@dataclass(frozen=True)
class Stop:
    """When to stop.

    Args:
        rtol: relative change ``‖Φ(u) − u‖ / ‖Φ(u)‖`` over one block of K layers below which an image has converged;
            0 runs exactly `max_layers` layers.
        max_layers: upper bound on the number of layers.
    """

    rtol: float = 1e-4
    max_layers: int = 2000

    def __post_init__(self):
        # NumPy numbers become plain ones, so that a description of the network is plain data.
        object.__setattr__(self, "rtol", require_real("rtol", self.rtol))
        object.__setattr__(self, "max_layers", require_whole("max_layers", self.max_layers))
        if not 0 <= self.rtol < 1 or self.max_layers < 0:
            raise InvalidParameterError(
                f"Stop needs 0 ≤ rtol < 1 and max_layers ≥ 0, got rtol={self.rtol}, max_layers={self.max_layers}"
            )


@dataclass(frozen=True)
class Solution:
    """The result of :func:`solve`; see :class:`retune.equilibrium.Equilibrium` for the fields."""

    u: Tensor
    residual: Tensor
    status: tuple[Status, ...]
    layers: Tensor
    trace: Trace | None


def solve(
    layer: Callable[[Tensor, int], Tensor],
    u: Tensor,
    *,
    solver: AbstractSolver,
    depth: int,
    stop: Stop,
    trace: bool = False,
    observe: Callable[[int, Tensor], None] | None = None,
) -> Solution:
    """Iterate blocks ``Φ`` of `depth` layers from `u` until every image has converged, failed, or run out of layers.

    An image that has converged, diverged or become non-finite stops changing, whatever the others of the batch do;
    the last finite iterate is kept. The images are looked at after every block, or every five layers if blocks are
    shorter; each look is one host–device synchronisation, and none with ``rtol=0``.

    Args:
        layer: ``(u, k) -> T_k(u)``.
        u: first state, leading axis B.
        solver: the algorithm.
        depth: K, layers per block.
        stop: when to stop.
        trace: record the residuals.
        observe: called at each look with (layers run, copy of the state).
    """
    keep_freed_memory(u.device)
    batch = u.shape[0]
    blocks = math.ceil(stop.max_layers / depth)
    period = max(1, LOOK // depth)
    state = seen = solver.init(u)
    active = torch.ones(batch, dtype=torch.bool, device=u.device)
    code = torch.full((batch,), _RUNNING, dtype=torch.int8, device=u.device)
    residual = torch.full((batch,), torch.inf, dtype=u.dtype, device=u.device)
    layers = torch.zeros(batch, dtype=torch.long, device=u.device)
    bound = _norm(u)
    history: list[tuple[int, Tensor]] = []
    done = 0
    for r in range(blocks):
        size = min(depth, stop.max_layers - done)

        def block(z: Tensor, size: int = size) -> Tensor:
            for k in range(size):
                z = layer(z, k)
            return z

        state = solver.step(block, state)
        done += size
        if (r + 1) % period and r + 1 < blocks:
            continue
        new = state
        norm, change = _norm(new.u), _norm(new.change)
        bound = torch.maximum(bound, norm) if r < period else bound
        finite = torch.isfinite(norm) & torch.isfinite(change)
        exploded = norm > GROWTH * bound
        relative = change / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        code = torch.where(active & ~finite, _NOT_FINITE, code)
        code = torch.where(active & finite & exploded, _DIVERGED, code)
        code = torch.where(active & finite & ~exploded & (relative <= stop.rtol), _CONVERGED, code)
        usable = active & finite
        state = seen = _advance(seen, new, usable)
        residual = torch.where(active, torch.where(finite, relative, torch.inf), residual)
        layers = torch.where(usable, done, layers)
        active = code == _RUNNING
        if trace:
            history.append((done, residual))
        if observe is not None:
            observe(done, state.u.clone())
        if stop.rtol > 0 and not bool(active.any()):
            break
    end = Status.DEPTH_REACHED if stop.rtol == 0 else Status.MAX_LAYERS
    status = tuple(_STATUS.get(c, end) for c in code.tolist())
    record = None
    if trace:
        rows = [r for _, r in history]
        record = Trace(tuple(n for n, _ in history), torch.stack(rows) if rows else residual.new_empty(0, batch))
    return Solution(state.u, residual, status, layers, record)


_RUNNING, _CONVERGED, _DIVERGED, _NOT_FINITE = 0, 1, 2, 3
_STATUS = {_CONVERGED: Status.CONVERGED, _DIVERGED: Status.DIVERGED, _NOT_FINITE: Status.NOT_FINITE}


def _norm(u: Tensor) -> Tensor:
    return torch.linalg.vector_norm(u.flatten(1), dim=1)


def _advance(old: SolverState, new: SolverState, move: Tensor) -> SolverState:
    """The new state for images that move, the old one for those that have stopped."""
    if move.numel() == 1 and move.device.type == "cpu":  # nothing to select within a batch of one
        return new if bool(move) else old

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(move.view(-1, *[1] * (a.ndim - 1)), b, a)

    memory = tuple(pick(a, b) if a.shape == b.shape else b for a, b in zip(old.memory, new.memory, strict=True))
    return SolverState(pick(old.u, new.u), new.change, memory)
