"""The iteration of a bound map: its start, its layers, its gradient, and the result for the user."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from retune._torch.precision import coarse_networks
from retune.bound import Moment
from retune.equilibrium import Equilibrium, GradientReport, Status
from retune.errors import InvalidParameterError, NotConvergedWarning, NotFiniteError, require, wrong_type
from retune.gradients.base import AdjointMemory, GradientRule
from retune.maps.base import BoundMap
from retune.maps.watched import Watched
from retune.solve import Solution, Stop, solve
from retune.solvers.base import AbstractSolver
from retune.solvers.picard import Picard

__all__ = ["Init", "differentiated", "equilibrium_of", "iterate", "start_of", "warn_if_unsettled"]

#: Relative change over K layers from which on networks compute in full precision. In bfloat16 the change of a network
#: settles at 2e-3 to 3e-3.
COARSE = 4e-3
#: Number of blocks within which that change has to be reached.
BLOCKS = 6

#: An image to start from, or a function of the usual start.
Init = Tensor | Callable[[Tensor], Tensor]


def start_of(bound: BoundMap, init: Init | None) -> Tensor:
    """The initial state: that of the map, or that of the initial image."""
    usual = bound.init()
    if init is None:
        return usual
    if not isinstance(init, Tensor) and not callable(init):
        raise wrong_type("init", init, "an image (B, C, H, W) or a function of the usual start", "leave it out")
    image = init if isinstance(init, Tensor) else init(bound.image(usual))
    name = "init" if image is init else "the result of init"
    require(name, image, Tensor, "a tensor (B, C, H, W)")
    if image.dtype != usual.dtype:
        wanted = str(usual.dtype)
        raise InvalidParameterError(f"{name} is {image.dtype}, but y is {wanted}: give it as .to({wanted})")
    if not bool(torch.isfinite(image.detach()).all()):
        raise NotFiniteError(f"{name} contains NaN or Inf: replace them, or leave init out")
    return bound.state(image).clone()


def iterate(
    bound: BoundMap,
    init: Init | None,
    stop: Stop,
    solver: AbstractSolver,
    depth: int,
    trace: bool = False,
    observe: Callable[[int, Tensor], None] | None = None,
    watch: Callable[[Moment], None] | None = None,
    coarse: bool = False,
) -> Solution:
    """Solve for the fixed point of a bound map, in whole cycles. `observe` gets images, `watch` moments.

    With `coarse`, networks compute in bfloat16 until a block of K layers changes the state by `COARSE`. If an image
    does not get there within six blocks and a quarter of the layers, the whole batch begins again without: it may never
    settle, and then the solver has to damp single layers from the start.
    """

    def restrict(index: Tensor) -> Callable[[Tensor, int], Tensor] | None:
        chosen = bound.select(index)
        return None if chosen is None else chosen.layer

    def run(u: Tensor, rtol: float, most: int, before: int, near: bool, cycle: int) -> Solution:
        def see(layers: int, u: Tensor) -> None:
            assert observe is not None
            observe(before + layers, bound.image(u))

        def look(layers: int, u: Tensor, residual: Tensor) -> None:
            assert watch is not None
            watch(Moment(before + layers, residual, depth, u, bound, stop.rtol))

        return solve(
            bound.layer,
            u,
            solver=solver.bind(bound.objective),
            depth=depth,
            stop=Stop(rtol, -(-most // bound.layers) * bound.layers),  # only whole cycles
            cycle=cycle,
            trace=trace,
            observe=None if observe is None else see,
            watch=None if watch is None else look,
            restrict=restrict,
            near=near,
            size_of=bound.size,
        )

    start, near = start_of(bound, init), init is not None
    if bound.constant and stop.rtol > 0 and stop.max_layers > 0 and not (trace or observe or watch):
        return _in_one_layer(bound, start)
    done, most = 0, min(stop.max_layers // 4, BLOCKS * depth) // bound.layers * bound.layers
    if coarse and 0 < stop.rtol < COARSE and not trace and most:
        with coarse_networks():
            # The change of a single layer ends as rounding, so only that of the block counts here.
            first = run(start, COARSE, most, 0, near, depth)
        done = int(first.layers.max())
        if all(s is Status.CONVERGED for s in first.status):
            rest = run(first.u, stop.rtol, stop.max_layers - done, done, False, bound.layers)
            return replace(rest, layers=first.layers + rest.layers)
    return run(start, stop.rtol, stop.max_layers, done, near, bound.layers)


def _in_one_layer(bound: BoundMap, u: Tensor) -> Solution:
    """The equilibrium of a layer that does not depend on its state: a second layer would return the same."""
    one = solve(bound.layer, u, solver=Picard(), depth=1, stop=Stop(0.0, 1))
    bound.remember(one.u)
    status = tuple(s if s.failed else Status.CONVERGED for s in one.status)
    failed = torch.tensor([s.failed for s in status], device=u.device)
    return replace(one, status=status, residual=torch.where(failed, one.residual, 0.0))


def differentiated(
    bound: BoundMap,
    rule: GradientRule,
    reached: Solution,
    init: Init | None,
    adjoint: AdjointMemory | None,
    depth: int,
    rtol: float,
) -> Equilibrium:
    """Apply a gradient rule at the state after the restarts, or at the start if the rule needs no restarts."""
    known = {} if adjoint is None else {"adjoint": _of_states(adjoint, bound)}
    if rule.restarts:
        bound = bound.at(reached.u)
    watched = Watched(bound)
    u, report = rule(watched, depth, lambda: reached.u if rule.restarts else start_of(bound, init), **known)
    with torch.no_grad():
        residual, returns = reached.residual, torch.zeros(len(u), dtype=torch.bool)
        if rule.restarts:
            residual, returns = watched.change(reached.u, u, depth, rtol)
        status = _after_block(reached.status, torch.isfinite(u).flatten(1).all(1), returns)
        reached = replace(reached, status=status, layers=reached.layers + report.depth)
    return equilibrium_of(bound.image(u), reached, u, residual, report)


def equilibrium_of(
    image: Tensor,
    solution: Solution,
    u: Tensor | None = None,
    residual: Tensor | None = None,
    report: GradientReport | None = None,
) -> Equilibrium:
    """The result for the user. The state and the residual of a gradient rule replace those of the solution."""
    return Equilibrium(
        image=image,
        state=solution.u if u is None else u,
        residual=solution.residual if residual is None else residual,
        status=solution.status,
        layers=solution.layers,
        trace=solution.trace,
        gradient=report,
    )


def _after_block(reached: tuple[Status, ...], finite: Tensor, returns: Tensor) -> tuple[Status, ...]:
    """The statuses of a training step: those of the restarts, updated by the differentiated block."""
    table = torch.stack([finite, returns.to(finite.device)]).tolist()
    found = []
    for status, ok, back in zip(reached, *table, strict=True):
        if status.failed:
            found.append(status)
        else:
            found.append(Status.NOT_FINITE if not ok else Status.OSCILLATES if back else status)
    return tuple(found)


def _of_states(images: AdjointMemory, bound: BoundMap) -> AdjointMemory:
    """A memory of images, used for the states of the map. In coefficients of a tight frame, w becomes ``Dᵀ D w``."""

    def recall(v: Tensor) -> tuple[Tensor, Tensor]:
        image, gain = images.recall(v)
        return bound.image_adjoint(image.to(v)), gain.to(v)

    return AdjointMemory(recall, lambda w, gain, left: images.keep(bound.image(w), gain, left))


def warn_if_unsettled(equilibrium: Equilibrium, stop: Stop, depth: int) -> None:
    """Warn once for the images that ran out of layers, and once for those that oscillate."""
    for ending in (Status.MAX_LAYERS, Status.OSCILLATES):
        which = [i for i, s in enumerate(equilibrium.status) if s is ending]
        if not which:
            continue
        worst = float(equilibrium.residual[which].max())
        how = "oscillate" if ending is Status.OSCILLATES else f"had not settled after {stop.max_layers} layers"
        warnings.warn(
            f"images {which} {how} (largest relative change {worst:.1e} per {depth} layers, tolerance "
            f"{stop.rtol:.1e}). {ending.advice}",
            NotConvergedWarning,
            stacklevel=3,
        )
