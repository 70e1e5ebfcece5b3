"""The network: a map, a solver, a gradient rule and a stopping rule, as a deepinv ``Reconstructor``."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from deepinv.models import Reconstructor
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune import _checkpoint
from retune._registry.describe import description, rebuild
from retune._registry.entries import kind_base, register
from retune._torch.precision import without_autocast
from retune.auto import OR_AUTO, Auto, Choice, asked, choose, provisional_depth
from retune.bound import Bound, Moment, versions_of
from retune.equilibrium import Equilibrium, GradientReport, Status
from retune.errors import (
    InvalidParameterError,
    NotConvergedWarning,
    NotFiniteError,
    require,
    require_whole,
    wrong_type,
)
from retune.gradients.base import AdjointMemory, GradientRule
from retune.gradients.truncated import Truncated
from retune.gradients.verify import is_foreign, verify
from retune.maps.base import AbstractMap, BoundMap
from retune.maps.watched import Watched
from retune.operators.data_term import DataTerm
from retune.solve import Solution, Stop, solve
from retune.solvers.base import AbstractSolver
from retune.solvers.damped import Damped
from retune.solvers.descent import Descent
from retune.solvers.inertial import Inertial
from retune.solvers.picard import Picard

__all__ = ["Bound", "Restarted"]

#: The trained parameters at the last comparison of the gradients of a map with its values.
_verified: weakref.WeakKeyDictionary[AbstractMap, frozenset[int]] = weakref.WeakKeyDictionary()
#: The default rule for maps that search for their step: K layers are far too few near the equilibrium of an energy.
_SLOW_MODES = Truncated(rtol=0.02, max_blocks=20, memory=3)
#: An image to start from, or a function of the usual start.
Init = Tensor | Callable[[Tensor], Tensor]


@register
@kind_base("model")
class Restarted(Reconstructor):
    r"""A restarted truncated unrolled network.

    Train mode runs R restarts of K layers without graph, then the gradient rule (for ReTune, K layers with graph). So
    the memory is that of K layers, for any R. Eval mode runs to the tolerance of `stop`, without graph. The depth K
    controls the gradient error (ρ^K); the restarts control the distance to the equilibrium (ρ^{KR}).

    Args:
        map: the map to iterate, for example [`ForwardBackward`][retune.ForwardBackward].
        depth: K, layers per block; a multiple of the map's cycle. K = 1 is ordinary Jacobian-free backpropagation.
            "auto" chooses K on the first training batch, from `accuracy` and `memory`. It also chooses the number of
            adjoint blocks of a plain ``Truncated``. Until then, blocks have about ten layers.
        restarts: R, or "auto".
        gradient: the gradient rule; by default ReTune's [`Truncated`][retune.Truncated]. For an energy, the default
            rule has a tolerance: ``Truncated(rtol=0.02, max_blocks=20, memory=3)``.
        solver: the solver for the fixed point; by default plain restarts. For a map that may expand (a free denoiser)
            the default is [`Damped`][retune.Damped], which is the same until the residual grows. For an
            [`Energy`][retune.priors.Energy] it is [`Descent`][retune.Descent].
        stop: the stopping rule of eval mode; by default ``rtol=1e-4`` for rules at the equilibrium, and exactly K
            layers for [`Unrolled`][retune.Unrolled].
        accuracy: for "auto": requested relative error of the gradient and relative distance to the equilibrium, in
            (0, 1).
        memory: for ``depth="auto"``: memory limit of a training step, in bytes or as ``"8 GB"``; None sets no limit.

    Attributes:
        auto: None, or the options that are "auto"; ``auto.choice.why`` explains the choice.

    Raises:
        InvalidParameterError: the depth does not fit the cycle, the restarts are negative, or an argument has a wrong
            type.

    Source: arXiv:2506.13239.
    """

    def __init__(
        self,
        map: AbstractMap,
        depth: int | Literal["auto"] = 10,
        restarts: int | Literal["auto"] = 10,
        gradient: GradientRule | None = None,
        solver: AbstractSolver | None = None,
        stop: Stop | None = None,
        *,
        accuracy: float = 1e-2,
        memory: int | float | str | None = None,
    ):
        super().__init__()
        require("map", map, AbstractMap, "a map", "wrap a prior: retune.ForwardBackward(prior)")
        self.auto = asked(depth, restarts, accuracy, memory, gradient)
        depth = provisional_depth(map.layers) if depth == "auto" else require_whole("depth", depth, OR_AUTO)
        restarts = 10 if restarts == "auto" else require_whole("restarts", restarts, OR_AUTO)
        if gradient is not None:
            require("gradient", gradient, GradientRule, "a gradient rule", "for example retune.Truncated()")
        if solver is not None:
            require("solver", solver, AbstractSolver, "a solver", "for example retune.Picard()")
        if stop is not None:
            require("stop", stop, Stop, "a stopping rule", "for example retune.Stop(rtol=1e-4)")
        if depth < 1 or depth % map.layers:
            raise InvalidParameterError(
                f"depth must be a positive multiple of the map's cycle of {map.layers} layer(s), got {depth}"
            )
        if restarts < 0:
            raise InvalidParameterError(f"restarts must be ≥ 0, got {restarts}")
        self.map = map
        self.depth, self.restarts = depth, restarts
        rule = _SLOW_MODES if map.backtracks else Truncated()
        self.gradient = rule if gradient is None else gradient
        default = Descent() if map.backtracks else Picard() if map.nonexpansive else Damped()
        self.solver = default if solver is None else solver
        self.stop = self.gradient.default_stop(depth) if stop is None else stop

    def forward(
        self,
        y: Tensor,
        physics: LinearPhysics,
        *,
        init: Init | None = None,
        stop: Stop | None = None,
        adjoint: AdjointMemory | None = None,
        report: Callable[[Equilibrium], None] | None = None,
    ) -> Tensor:
        """Restore: return the image (B, C, H, W).

        This does not change the network, with one exception for your own training loops: in train mode, options that
        are still "auto" are chosen on this batch, by [`choose`][retune.Restarted.choose]. ``retune.fit`` chooses them
        before its first step.

        Args:
            y: measurement.
            physics: the operator that made it.
            init: see [`solve`][retune.Restarted.solve].
            stop: see [`solve`][retune.Restarted.solve].
            adjoint: see [`solve`][retune.Restarted.solve].
            report: called with the full [`Equilibrium`][retune.Equilibrium], which holds more than the image.

        Raises:
            DivergedError: an image diverged or became non-finite ([`solve`][retune.Restarted.solve] returns a status
                instead).

        Warns:
            NotConvergedWarning: eval mode ended before an image settled: it ran out of layers, or the image oscillates.
        """
        if self.training:
            self.choose(y, physics)
        equilibrium = self.solve(y, physics, init=init, stop=stop, adjoint=adjoint)
        if report is not None:
            report(equilibrium)
        equilibrium.raise_for_status()
        if not self.training:
            _warn_if_unsettled(equilibrium, self.stop if stop is None else stop, self.depth)
        return equilibrium.image

    @without_autocast
    def bind(self, y: Tensor, physics: LinearPhysics) -> Bound:
        """Bind the map to a measurement once, for several calls: `solve`, then `certify`.

        Args:
            y: measurement.
            physics: the operator that made it.

        Raises:
            RetuneError: see [`DataTerm`][retune.DataTerm].
        """
        data_term = self.map.data_term(y, physics)
        return Bound(y, data_term, self.map.bind(data_term), self.map, versions_of(y, self.map))

    @without_autocast
    def solve(
        self,
        y: Tensor,
        physics: LinearPhysics,
        *,
        init: Init | None = None,
        stop: Stop | None = None,
        adjoint: AdjointMemory | None = None,
        trace: bool = False,
        observe: Callable[[int, Tensor], None] | None = None,
        watch: Callable[[Moment], None] | None = None,
        bound: Bound | None = None,
    ) -> Equilibrium:
        """Restore, and report the status of each image. A failed image raises no error: its status says so.

        This does not change the network. Options that are still "auto" are chosen for this call only. If your own
        training loop calls this method, call [`choose`][retune.Restarted.choose] once before the loop.

        The solve uses the precision of `y`. It switches autocast off, since iterates in bfloat16 do not reach an
        equilibrium. ``retune.priors.Denoiser(bfloat16=True)`` trains a network in bfloat16.

        Args:
            y: measurement.
            physics: the operator that made it.
            init: initial image (B, C, H, W), or a function that computes it from the usual start. The usual start is
                the scaled back-projection; with a denoiser or a smooth prior, the holes of a mask are filled in.
            stop: replaces the stopping rule; in train mode, it replaces the R restarts.
            adjoint: in train mode, provides a start for the adjoint solve, and receives its solution, both in image
                space (B, C, H, W); for rules that solve to a tolerance.
            trace: record the residuals of the restarts.
            observe: called after each block of the restarts with (layers run, a copy of the image).
            watch: called at the same times with the [`Moment`][retune.bound.Moment] of the solve, whose image and
                objective are computed when they are asked for.
            bound: the result of [`bind`][retune.Restarted.bind] for `y` and `physics`, if you have it.

        Raises:
            InvalidParameterError: `adjoint` was given in eval mode or for a rule that solves no adjoint equation,
                `bound` belongs to another measurement, or `init` is no image of the precision of `y`.
            NotFiniteError: NaN or Inf in `init`.
            ShapeError: `init` has another shape than the image.
        """
        if adjoint is not None and not (self.training and self.gradient.solves_adjoint):
            mode = "train" if self.training else "eval"
            raise InvalidParameterError(
                f"adjoint is a start for an adjoint solve, but {self.gradient!r} in {mode} mode solves for no "
                "adjoint: leave it out, or train with retune.Implicit() or retune.Truncated(rtol=...)"
            )
        if self.training and self.auto is not None and self.auto.choice is None:
            chosen = copy.copy(self)  # it shares the weights; the choice of this call is not kept
            chosen.choose(y, physics)
            return chosen.solve(
                y,
                physics,
                init=init,
                stop=stop,
                adjoint=adjoint,
                trace=trace,
                observe=observe,
                watch=watch,
                bound=bound,
            )
        if bound is None:
            bound = self.bind(y, physics)
        require("bound", bound, Bound, "what net.bind(y, physics) returned", "or leave it out")
        bound.require(y, physics, self.map)
        if self.training:
            self._verify(bound.data_term, bound.map)
            return self._train(bound.map, init, stop, adjoint, trace, observe, watch)
        with torch.no_grad():
            solution = self._run(bound.map, init, self.stop if stop is None else stop, trace, observe, watch)
            return _equilibrium_of(bound.map.image(solution.u), solution)

    def accelerated(self) -> Restarted:
        """The network with [`Inertial`][retune.Inertial] in place of plain restarts, where that is sound.

        Both reach the same equilibrium, and the result shares the weights. It is sound for a map whose layers are
        proximal gradient steps on one objective ([`symmetric`][retune.AbstractMap]), and for a network that runs to a
        tolerance. Every other network, and one with a solver that is not plain, is returned as it is.
        """
        if not (self.solver.plain and self.map.symmetric and self.gradient.restarts and self.stop.rtol > 0):
            return self
        faster = copy.copy(self)
        faster.solver = Inertial()
        return faster

    def choose(self, y: Tensor, physics: LinearPhysics) -> Choice | None:
        """Choose the options that are "auto" on a batch, once. The first call in train mode does so, too.

        Args:
            y: measurement.
            physics: the operator that made it.

        Returns:
            The choice, made now or before, with its reason; None if no option is "auto".

        Raises:
            InvalidParameterError: one cycle of layers, or the restarts, exceed the memory limit.
        """
        auto = self.auto
        if auto is None or auto.choice is not None:
            return None if auto is None else auto.choice
        # The measured functions build the data term and the bound map again, as every training step does.

        def restart(layers: int) -> None:
            self._run(self.map.bind(self.map.data_term(y, physics)), None, Stop(0.0, layers), False)

        def step(depth: int) -> None:
            with torch.enable_grad():
                bound = self.map.bind(self.map.data_term(y, physics))
                u, _ = self.gradient(bound, depth, bound.init)
                image = bound.image(u)
                leaves = [p for p in self.map.parameters() if p.requires_grad]
                if image.requires_grad and leaves:
                    torch.autograd.grad(image.square().sum(), leaves, allow_unused=True)

        with torch.no_grad():
            bound = self.map.bind(self.map.data_term(y, physics))
            choice = choose(bound, auto, self.gradient, self.solver, self.depth, self.restarts, step, restart)
        self.auto = replace(auto, choice=choice)
        self.depth, self.restarts = choice.depth, choice.restarts
        if self.gradient.fixed_blocks is not None:
            self.gradient = self.gradient.with_blocks(choice.blocks)
        return choice

    def _verify(self, data_term: DataTerm, bound: BoundMap) -> None:
        """Check once per set of trained parameters that gradients of foreign code in the map agree with its values."""
        if not torch.is_grad_enabled():
            return
        trained = frozenset(id(p) for p in self.map.parameters() if p.requires_grad)
        if _verified.get(self.map) != trained and (
            not is_foreign(self.map) or verify(self.map, data_term, bound.init())
        ):
            _verified[self.map] = trained

    def _train(
        self,
        bound: BoundMap,
        init: Init | None,
        stop: Stop | None,
        adjoint: AdjointMemory | None,
        trace: bool,
        observe: Callable[[int, Tensor], None] | None,
        watch: Callable[[Moment], None] | None,
    ) -> Equilibrium:
        rounds = self.restarts if self.gradient.restarts else 0
        stop = Stop(rtol=0.0, max_layers=self.depth * rounds) if stop is None else stop
        with torch.no_grad():
            reached = self._run(bound, init, stop, trace, observe, watch)
        known = {} if adjoint is None else {"adjoint": _of_states(adjoint, bound)}
        if self.gradient.restarts:
            bound = bound.at(reached.u)
        watched = Watched(bound)
        u, report = self.gradient(
            watched, self.depth, lambda: reached.u if self.gradient.restarts else _start(bound, init), **known
        )
        with torch.no_grad():
            residual, returns = reached.residual, torch.zeros(len(u), dtype=torch.bool)
            if self.gradient.restarts:
                residual, returns = watched.change(reached.u, u, self.depth, self.stop.rtol or Stop().rtol)
            status = _statuses(reached.status, torch.isfinite(u).flatten(1).all(1), returns)
            reached = replace(reached, status=status, layers=reached.layers + report.depth)
        return _equilibrium_of(bound.image(u), reached, u, residual, report)

    def _run(
        self,
        bound: BoundMap,
        init: Init | None,
        stop: Stop,
        trace: bool,
        observe: Callable[[int, Tensor], None] | None = None,
        watch: Callable[[Moment], None] | None = None,
    ) -> Solution:
        def see(layers: int, u: Tensor) -> None:
            assert observe is not None
            observe(layers, bound.image(u))

        def look(layers: int, u: Tensor, residual: Tensor) -> None:
            assert watch is not None
            watch(Moment(layers, residual, self.depth, u, bound))

        def restrict(index: Tensor) -> Callable[[Tensor, int], Tensor] | None:
            chosen = bound.select(index)
            return None if chosen is None else chosen.layer

        whole = -(-stop.max_layers // self.map.layers) * self.map.layers  # only whole cycles
        return solve(
            bound.layer,
            _start(bound, init),
            solver=self.solver.bind(bound.objective),
            depth=self.depth,
            stop=stop if whole == stop.max_layers else replace(stop, max_layers=whole),
            cycle=self.map.layers,
            trace=trace,
            observe=None if observe is None else see,
            watch=None if watch is None else look,
            restrict=restrict,
            near=init is not None,
            size_of=bound.size,
        )

    def describe(self) -> dict:
        """Everything except the weights, as plain data. [`load`][retune.load] rebuilds the network from it."""
        chosen = {} if self.auto is None else {"auto": self.auto.to_dict()}
        return chosen | {
            "type": "Restarted",
            "map": description(self.map),
            "depth": self.depth,
            "restarts": self.restarts,
            "gradient": description(self.gradient),
            "solver": description(self.solver),
            "stop": {"rtol": self.stop.rtol, "max_layers": self.stop.max_layers},
        }

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        options = (
            f"depth={self.depth}, restarts={self.restarts}, gradient={self.gradient!r}, solver={self.solver!r}, "
            f"stop={self.stop!r}"
        )
        if self.auto is None:
            return options
        choice = self.auto.choice
        return f"{options}, auto: {'to be chosen on the first training batch' if choice is None else choice.why}"

    @classmethod
    def rebuild(cls, stop: dict[str, Any], auto: dict | None = None, **options: Any) -> Restarted:
        """The network from the result of ``describe()``; `auto` contains the choice and its reason."""
        net = cls(stop=Stop(**stop), **options)
        if auto is not None:
            choice = auto["choice"]
            net.auto = Auto(**{**auto, "choice": None if choice is None else Choice(**choice)})
        return net

    def save(self, path: str | Path, **notes: str) -> None:
        """Write weights and description to one safetensors file, atomically; read it with [`load`][retune.load].

        Args:
            path: file to write.
            notes: short texts to keep with the weights (training data, figures, licence, …).

        Raises:
            InvalidParameterError: [`load`][retune.load] could not rebuild the network: one of its classes is not
                registered ([`register`][retune.register]), or an option is not plain data.
        """
        told, weights = self.describe(), self.state_dict()
        _require_loadable(told, weights)
        _checkpoint.write(path, weights, told, notes)


def _require_loadable(told: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Rebuild the network from its description, and compare the shapes of the weights."""
    with torch.random.fork_rng(devices=[]):
        try:
            again = rebuild(told).state_dict()
        except Exception as error:  # foreign constructors may raise any error
            raise InvalidParameterError(
                f"the network cannot be saved, because it cannot be rebuilt from its description {told}: "
                f"{type(error).__name__}: {error}. Check describe(), or save net.state_dict() and rebuild it in Python"
            ) from error
    shapes = [{k: tuple(v.shape) for k, v in w.items()} for w in (weights, again)]
    differ = sorted(k for k in shapes[0].keys() | shapes[1].keys() if shapes[0].get(k) != shapes[1].get(k))
    if differ:
        raise InvalidParameterError(
            "the network cannot be saved: rebuilt from its description, it has different weights "
            f"({', '.join(differ)}). Check that describe() includes every argument of the constructors, or save "
            "net.state_dict() and rebuild it in Python"
        )


def _warn_if_unsettled(equilibrium: Equilibrium, stop: Stop, depth: int) -> None:
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


def _start(bound: BoundMap, init: Init | None) -> Tensor:
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


def _of_states(images: AdjointMemory, bound: BoundMap) -> AdjointMemory:
    """A memory of images, used for the states of the map. In coefficients of a tight frame, w becomes ``Dᵀ D w``."""

    def recall(v: Tensor) -> tuple[Tensor, Tensor]:
        image, gain = images.recall(v)
        return bound.image_adjoint(image.to(v)), gain.to(v)

    return AdjointMemory(recall, lambda w, gain, left: images.keep(bound.image(w), gain, left))


def _statuses(reached: tuple[Status, ...], finite: Tensor, returns: Tensor) -> tuple[Status, ...]:
    """The statuses of a training step: those of the restarts, updated by the differentiated block."""
    table = torch.stack([finite, returns.to(finite.device)]).tolist()
    found = []
    for status, ok, back in zip(reached, *table, strict=True):
        if status.failed:
            found.append(status)
        else:
            found.append(Status.NOT_FINITE if not ok else Status.OSCILLATES if back else status)
    return tuple(found)


def _equilibrium_of(
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
