"""THE loop: every solver runs in it. It decides when each image stops, and with which status."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retune._torch.allocator import keep_freed_memory
from retune.equilibrium import Status, Trace
from retune.errors import InvalidParameterError, require_real, require_whole
from retune.solvers.base import AbstractSolver, SolverState
from retune.solvers.picard import Picard

__all__ = ["Solution", "Stop", "solve"]

#: An iterate this many times larger than the largest of its start and its first block has diverged.
GROWTH = 1e4
#: Blocks shorter than this many layers are looked at together.
LOOK = 5
#: Images that have stopped leave the batch once at most this share of it is left.
STAY = 0.75

Layer = Callable[[Tensor, int], Tensor]


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
    layer: Layer,
    u: Tensor,
    *,
    solver: AbstractSolver,
    depth: int,
    stop: Stop,
    cycle: int | None = None,
    trace: bool = False,
    observe: Callable[[int, Tensor], None] | None = None,
    restrict: Callable[[Tensor], Layer | None] | None = None,
    near: bool = False,
) -> Solution:
    """Iterate from `u` until every image has converged, failed, or run out of layers.

    An image that has converged, diverged or become non-finite stops changing, whatever the others of the batch do;
    the last finite iterate is kept. Where `restrict` can tell the layers of some of the images, a quarter of the batch
    that has stopped leaves it and costs nothing any more. The images are looked at after every block of `depth`
    layers, or every five layers if blocks are shorter; each look is one host–device synchronisation, and none with
    ``rtol=0``.

    A solver that evaluates single cycles (see :attr:`AbstractSolver.unit`) has its residual multiplied by the number
    of cycles in a block: where the map is nonexpansive, that bounds the relative change over the whole block.

    Args:
        layer: ``(u, k) -> T_k(u)``.
        u: first state, leading axis B.
        solver: the algorithm.
        depth: K, layers per block.
        stop: when to stop.
        cycle: number of different layers, a divisor of `depth`; `depth` if None.
        trace: record the residuals.
        observe: called at each look with (layers run, copy of the state).
        restrict: ``index -> layer`` for the images of an index (n,) only, or None if it can't be told.
        near: whether `u` is thought to be near the end. An accelerating solver then begins after a block of plain
            steps, which may be all that is needed, at half the price.
    """
    keep_freed_memory(u.device)
    unit = depth if solver.unit == "block" or cycle is None else cycle
    steps = math.ceil(stop.max_layers / unit)
    period = max(1, LOOK // unit)
    lead = depth if near and solver.accelerates and stop.rtol > 0 else 0
    current = Picard() if lead else solver
    state = seen = current.init(u)
    run = _Running(u, layer, restrict if stop.rtol > 0 else None)
    bound = _norm(u)
    history: list[tuple[int, Tensor]] = []
    done = 0
    for r in range(steps):
        size = min(unit, stop.max_layers - done)

        def block(z: Tensor, size: int = size) -> Tensor:
            for k in range(size):
                z = run.layer(z, k)
            return z

        state = current.step(block, state)
        done += size
        if (r + 1) % period and r + 1 < steps:
            continue
        new = state
        norm, change = _norm(new.u), _norm(new.change) * (depth / unit)
        bound = torch.maximum(bound, norm) if r < period else bound
        finite = torch.isfinite(norm) & torch.isfinite(change)
        exploded = norm > GROWTH * bound
        relative = change / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        active = run.code == _RUNNING
        code = torch.where(active & ~finite, _NOT_FINITE, run.code)
        code = torch.where(active & finite & exploded, _DIVERGED, code)
        code = torch.where(active & finite & ~exploded & (relative <= stop.rtol), _CONVERGED, code)
        usable = active & finite
        state = seen = _advance(seen, new, usable)
        residual = torch.where(active, torch.where(finite, relative, torch.inf), run.residual)
        run.code, run.residual, run.layers = code, residual, torch.where(usable, done, run.layers)
        if trace:
            history.append((done, run.whole(run.residual, run.all_residual)))
        if observe is not None:
            observe(done, run.whole(state.u, run.all_u).clone())
        if stop.rtol > 0:
            going = (code == _RUNNING).tolist()  # the look
            if not any(going):
                break
            keep = run.shrink(going, state.u)
            if keep is not None:
                bound = bound[keep]
                state = seen = SolverState(state.u[keep], state.change[keep], tuple(m[keep] for m in state.memory))
        if current is not solver and done >= lead:
            current = solver
            state = seen = current.init(state.u)
    run.finish(state.u)
    end = Status.DEPTH_REACHED if stop.rtol == 0 else Status.MAX_LAYERS
    status = tuple(_STATUS.get(c, end) for c in run.all_code.tolist())
    record = None
    if trace:
        rows = [r for _, r in history]
        record = Trace(tuple(n for n, _ in history), torch.stack(rows) if rows else run.residual.new_empty(0, len(u)))
    return Solution(run.all_u, run.all_residual, status, run.all_layers, record)


class _Running:
    """The images that are still worked on, and what is known of those that have left."""

    def __init__(self, u: Tensor, layer: Layer, restrict: Callable[[Tensor], Layer | None] | None):
        batch, device = u.shape[0], u.device
        self.layer, self._restrict = layer, restrict
        self._index: Tensor | None = None  # which images these are; None: all
        self.code = self.all_code = torch.full((batch,), _RUNNING, dtype=torch.int8, device=device)
        self.residual = self.all_residual = torch.full((batch,), torch.inf, dtype=u.dtype, device=device)
        self.layers = self.all_layers = torch.zeros(batch, dtype=torch.long, device=device)
        self.all_u = u

    def whole(self, part: Tensor, everything: Tensor) -> Tensor:
        """`part` put back in its place among all images."""
        return part if self._index is None else everything.index_copy(0, self._index, part)

    def finish(self, u: Tensor) -> None:
        """Write down how far the images have come."""
        self.all_u = self.whole(u, self.all_u)
        self.all_code = self.whole(self.code, self.all_code)
        self.all_residual = self.whole(self.residual, self.all_residual)
        self.all_layers = self.whole(self.layers, self.all_layers)

    def shrink(self, going: list[bool], u: Tensor) -> Tensor | None:
        """Let images that have stopped leave, if they are worth it; returns which ones stay."""
        if self._restrict is None or sum(going) > STAY * len(going):
            return None
        keep = torch.tensor([i for i, g in enumerate(going) if g], device=u.device)
        index = keep if self._index is None else self._index[keep]
        layer = self._restrict(index)
        if layer is None:  # it can't be told for this map or operator, now or later
            self._restrict = None
            return None
        self.finish(u)
        self.layer, self._index = layer, index
        self.code, self.residual, self.layers = self.code[keep], self.residual[keep], self.layers[keep]
        return keep


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

    memory = tuple(
        b if a is b or a.shape != b.shape else pick(a, b) for a, b in zip(old.memory, new.memory, strict=True)
    )
    return SolverState(pick(old.u, new.u), new.change, memory)
