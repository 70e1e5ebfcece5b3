"""The loop of all solvers. It decides when each image stops, and with which status."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from retune._torch.allocator import keep_freed_memory, return_freed_memory
from retune._torch.batch import per_image_norm, pick
from retune.equilibrium import Status, Trace
from retune.errors import InvalidParameterError, require_real, require_whole
from retune.solvers.base import AbstractSolver, SolverState
from retune.solvers.picard import Picard

__all__ = ["Solution", "Stop", "solve"]

#: An iterate has diverged if it is this many times larger than its start and the result of its first block.
GROWTH = 1e4
#: A relative change of up to this many units in the last place counts as rounding.
ROUNDING = 16
#: Blocks shorter than this many layers are checked together.
LOOK = 5
#: Stopped images leave the batch once at most this share of it is still running.
STAY = 0.75

Layer = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Stop:
    """When to stop.

    Args:
        rtol: relative change over K layers below which an image has converged. It is the larger of two changes:
            ``‖Φ(u) − u‖/‖Φ(u)‖`` over a block of K layers, and the change over the last cycle of the block times the
            number of cycles in the block. 0 runs exactly `max_layers` layers.
        max_layers: upper bound on the number of layers.
    """

    rtol: float = 1e-4
    max_layers: int = 2000

    def __post_init__(self):
        # Convert NumPy numbers to plain ones, so that the description of the network is plain data.
        object.__setattr__(self, "rtol", require_real("rtol", self.rtol))
        object.__setattr__(self, "max_layers", require_whole("max_layers", self.max_layers))
        if not 0 <= self.rtol < 1 or self.max_layers < 0:
            raise InvalidParameterError(
                f"Stop needs 0 ≤ rtol < 1 and max_layers ≥ 0, got rtol={self.rtol}, max_layers={self.max_layers}"
            )


@dataclass(frozen=True)
class Solution:
    """The result of [`solve`][retune.solve.solve]; see [`Equilibrium`][retune.Equilibrium] for the fields."""

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
    watch: Callable[[int, Tensor, Tensor], None] | None = None,
    restrict: Callable[[Tensor], Layer | None] | None = None,
    near: bool = False,
    size_of: Callable[[Tensor], Tensor] = per_image_norm,
) -> Solution:
    """Iterate from `u` until every image has converged, failed, or run out of layers.

    An image that has converged, diverged or become non-finite stops changing, independently of the others; the last
    finite iterate is kept. If `restrict` can restrict the layers to some images, stopped images leave the batch once
    they make up a quarter of it, and cost nothing more. The images are checked after every block of `depth` layers, or
    every five layers if blocks are shorter. Each check is one host–device synchronisation. With ``rtol=0`` there are no
    checks.

    The residual of an image, where c is the length of a cycle, s the number of layers of the block (s = K except for
    the last block) and ``u⁻`` the state before the last cycle, is

    ``max(‖u − u⁻‖ · K/c, ‖Φ(u_0) − u_0‖ · K/s) / ‖u‖``.

    The first part detects changes within a block. Suppose the map alternates between p states, and p divides the number
    of cycles in a block. Then every block ends where it began, and only the first part shows it. Over a block of change
    b, the change of a cycle falls by at most about 2b. If neither the remaining blocks nor as many as were run can
    settle such an image, it stops as ``Status.OSCILLATES``. Otherwise it may approach an equilibrium from alternating
    sides; at the limit it ends as ``Status.MAX_LAYERS``. A solver that evaluates single cycles (see
    ``AbstractSolver.unit``) has the first part only; for a nonexpansive map it bounds the second.

    Args:
        layer: ``(u, k) -> T_k(u)``.
        u: first state, leading axis B.
        solver: the algorithm.
        depth: K, layers per block.
        stop: when to stop.
        cycle: c, the number of different layers, a divisor of `depth`. None means `depth`: cycles within a block are
            then invisible.
        trace: record the residuals.
        observe: called at each check with (layers run, copy of the state).
        watch: called at each check with (layers run, the state itself, residual (B,)). It must not change them.
        restrict: ``index -> layer`` for the images of an index (n,) only; it returns None if this is impossible.
        near: whether `u` is probably near the equilibrium. An accelerating solver then begins with a block of plain
            steps, which may be enough, at half the cost.
        size_of: the size (B,) of a state with which its changes are compared, in place of ‖u‖.
    """
    keep_freed_memory(u.device)
    cycle = depth if cycle is None else cycle
    unit = depth if solver.unit == "block" or not solver.accelerates else cycle
    steps = math.ceil(stop.max_layers / unit)
    period = max(1, LOOK // unit)
    lead = depth if near and solver.accelerates and stop.rtol > 0 else 0
    current = Picard() if lead else solver
    state = seen = current.init(u)
    run = _Running(u, layer, restrict if stop.rtol > 0 else None)
    bound = per_image_norm(u)
    history: list[tuple[int, Tensor]] = []
    done = 0
    for r in range(steps):
        size = min(unit, stop.max_layers - done)
        state, change = _block(run.layer, current, state, size, cycle, depth)
        done += size
        if (r + 1) % period and r + 1 < steps:
            continue
        new = state
        norm = per_image_norm(new.u)
        bound = torch.maximum(bound, norm) if r < period else bound
        finite = torch.isfinite(norm) & torch.isfinite(change.cycle) & torch.isfinite(change.block)
        # An objective that never rises needs no such bound: from a start near 0 the image may grow by any factor.
        exploded = torch.zeros_like(finite) if current.monotone else norm > GROWTH * bound
        scale = norm if size_of is per_image_norm else size_of(new.u)
        change = change.relative_to(scale)
        active = run.code <= _RETURNING
        if stop.rtol > 0:
            ends = change.residual <= stop.rtol if r + 1 < steps else True
            asked = current.confirm(new, active & finite & ~exploded & ends)
            if asked is not None:
                new, moved = asked
                cycle_change = moved / scale.clamp_min(torch.finfo(norm.dtype).tiny)
                change = replace(change, cycle=torch.maximum(change.cycle, cycle_change))
        code = torch.where(active, _RUNNING, run.code)
        if stop.rtol > 0:
            code = torch.where(active & change.returns(stop.rtol), _RETURNING, code)
            left = max(stop.max_layers - done, done) / depth
            code = torch.where(active & change.oscillates(stop.rtol, left), _OSCILLATES, code)
        code = torch.where(active & ~finite, _NOT_FINITE, code)
        code = torch.where(active & finite & exploded, _DIVERGED, code)
        code = torch.where(active & finite & ~exploded & (change.residual <= stop.rtol), _CONVERGED, code)
        usable = active & finite
        state = seen = _advance(seen, new, usable)
        residual = torch.where(active, torch.where(finite, change.residual, torch.inf), run.residual)
        run.code, run.residual, run.layers = code, residual, torch.where(usable, done, run.layers)
        if trace:
            history.append((done, run.whole(run.residual, run.all_residual)))
        if observe is not None:
            observe(done, run.whole(state.u, run.all_u).clone())
        if watch is not None:
            watch(done, run.whole(state.u, run.all_u), run.whole(run.residual, run.all_residual))
        if stop.rtol > 0:
            going = (code <= _RETURNING).tolist()  # the check
            if not any(going):
                break
            shrunk = run.shrink(going, state.u, solver)
            if shrunk is not None:
                keep, part = shrunk
                current, solver = (part, part) if current is solver else (current, part)
                bound = bound[keep]
                state = seen = SolverState(state.u[keep], state.change[keep], tuple(m[keep] for m in state.memory))
        if current is not solver and done >= lead:
            current = solver
            state = seen = current.init(state.u)
    run.finish(state.u)
    return_freed_memory(u)
    end = Status.DEPTH_REACHED if stop.rtol == 0 else Status.MAX_LAYERS
    status = tuple(_STATUS.get(c, end) for c in run.all_code.tolist())
    record = None
    if trace:
        rows = [r for _, r in history]
        record = Trace(tuple(n for n, _ in history), torch.stack(rows) if rows else run.residual.new_empty(0, len(u)))
    return Solution(run.all_u, run.all_residual, status, run.all_layers, record)


@dataclass(frozen=True)
class _Change:
    """The changes (B,) of every image over a block and over its last cycle.

    Attributes:
        block: the change over the block, as a change over K layers.
        cycle: the change over its last cycle.
        cycles: the number of cycles in K layers.
        whole: whether the block was K plain layers, more than one cycle, so that the two can be compared.
    """

    block: Tensor
    cycle: Tensor
    cycles: float
    whole: bool = False

    def relative_to(self, size: Tensor) -> _Change:
        """Both changes relative to the size of the state."""
        size = size.clamp_min(torch.finfo(size.dtype).tiny)
        return replace(self, block=self.block / size, cycle=self.cycle / size)

    @property
    def residual(self) -> Tensor:
        """The larger of the two, as a change over K layers. The change of a cycle that is pure rounding is ignored."""
        jitter = ROUNDING * torch.finfo(self.cycle.dtype).eps
        return torch.maximum(torch.where(self.cycle > jitter, self.cycle * self.cycles, 0.0), self.block)

    def returns(self, rtol: float) -> Tensor:
        """Whether a block returns to its start although a cycle does not."""
        if not self.whole:
            return torch.zeros_like(self.block, dtype=torch.bool)
        return (self.block <= rtol) & (self.residual > rtol) & (self.cycle > self.block)

    def oscillates(self, rtol: float, blocks: float) -> Tensor:
        """Whether the given number of further blocks cannot settle the image."""
        return self.returns(rtol) & (self.cycle - 2 * blocks * self.block > rtol / self.cycles)


def _block(
    layer: Layer, solver: AbstractSolver, state: SolverState, size: int, cycle: int, depth: int
) -> tuple[SolverState, _Change]:
    """Run `size` layers of a solver, in one step or one step per cycle. Returns the state and its changes."""
    cycle = min(cycle, size)
    last: Tensor | None = None

    def layers(z: Tensor, first: int, stop: int) -> Tensor:
        for k in range(first, stop):
            z = layer(z, k)
        return z

    def whole(z: Tensor) -> Tensor:
        nonlocal last
        before = layers(z, 0, size - cycle)
        after = layers(before, size - cycle, size)
        last = None if size == cycle else per_image_norm(after - before)
        return after

    if solver.unit == "block":
        state = solver.step(whole, state)
        moved = per_image_norm(state.change)
        change = _Change(moved * (depth / size), moved if last is None else last, depth / cycle)
        return state, replace(change, whole=last is not None and size == depth)
    start = state.u
    for first in range(0, size, cycle):
        state = solver.step(lambda z, first=first: layers(z, first, min(first + cycle, size)), state)
    last = per_image_norm(state.change)
    moved = last if solver.accelerates or size <= cycle else per_image_norm(state.u - start)
    return state, _Change(moved * (depth / size), last, depth / cycle)


class _Running:
    """The running images, and the results of those that have left the batch."""

    def __init__(self, u: Tensor, layer: Layer, restrict: Callable[[Tensor], Layer | None] | None):
        batch, device = u.shape[0], u.device
        self.layer, self._restrict = layer, restrict
        self._index: Tensor | None = None  # indices of the running images; None: all
        self.code = self.all_code = torch.full((batch,), _RUNNING, dtype=torch.int8, device=device)
        self.residual = self.all_residual = torch.full((batch,), torch.inf, dtype=u.dtype, device=device)
        self.layers = self.all_layers = torch.zeros(batch, dtype=torch.long, device=device)
        self.all_u = u

    def whole(self, part: Tensor, everything: Tensor) -> Tensor:
        """`part` inserted in its place among all images."""
        return part if self._index is None else everything.index_copy(0, self._index, part)

    def finish(self, u: Tensor) -> None:
        """Store the results of the running images."""
        self.all_u = self.whole(u, self.all_u)
        self.all_code = self.whole(self.code, self.all_code)
        self.all_residual = self.whole(self.residual, self.all_residual)
        self.all_layers = self.whole(self.layers, self.all_layers)

    def shrink(self, going: list[bool], u: Tensor, solver: AbstractSolver) -> tuple[Tensor, AbstractSolver] | None:
        """Remove stopped images if there are enough of them. Returns the remaining ones and their solver, or None."""
        if self._restrict is None or sum(going) > STAY * len(going):
            return None
        keep = torch.tensor([i for i, g in enumerate(going) if g], device=u.device)
        index = keep if self._index is None else self._index[keep]
        layer, part = self._restrict(index), solver.select(keep)
        if layer is None or part is None:  # this map, operator or solver cannot be restricted, now or later
            self._restrict = None
            return None
        self.finish(u)
        self.layer, self._index = layer, index
        self.code, self.residual, self.layers = self.code[keep], self.residual[keep], self.layers[keep]
        return keep, part


# _RETURNING also runs: the last block returned to its start, but more blocks may settle the image.
_RUNNING, _RETURNING, _CONVERGED, _OSCILLATES, _DIVERGED, _NOT_FINITE = range(6)
_STATUS = {
    _CONVERGED: Status.CONVERGED,
    _OSCILLATES: Status.OSCILLATES,
    _DIVERGED: Status.DIVERGED,
    _NOT_FINITE: Status.NOT_FINITE,
}


def _advance(old: SolverState, new: SolverState, move: Tensor) -> SolverState:
    """The new state for running images, the old state for stopped ones."""
    if move.numel() == 1 and move.device.type == "cpu":  # a batch of one needs no selection
        return new if bool(move) else old

    memory = tuple(
        b if a is b or a.shape != b.shape else pick(move, b, a) for a, b in zip(old.memory, new.memory, strict=True)
    )
    return SolverState(pick(move, new.u, old.u), new.change, memory)
