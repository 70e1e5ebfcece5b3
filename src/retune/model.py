"""The network: a map, a solver, a gradient rule and a stopping rule, as a deepinv ``Reconstructor``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from deepinv.models import Reconstructor
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune import _checkpoint
from retune._iteration import Init, differentiated, equilibrium_of, iterate, warn_if_unsettled
from retune._registry.describe import description
from retune._registry.entries import kind_base, register
from retune._solver_choice import fastest, in_training, in_words, inertia_is_sound
from retune._torch.precision import fast_bfloat16, without_autocast
from retune.auto import OR_AUTO, Auto, Choice, asked, choose, provisional_depth, rehearse
from retune.bound import Bound, Moment, versions_of
from retune.equilibrium import Equilibrium
from retune.errors import InvalidParameterError, require, require_whole, wrong_type
from retune.gradients.base import AdjointMemory, GradientRule
from retune.gradients.truncated import Truncated
from retune.gradients.verify import verify_once
from retune.maps.base import AbstractMap, BoundMap
from retune.operators.data_term import DataTerm
from retune.priors.capabilities import priors_of
from retune.solve import Stop
from retune.solvers.base import AbstractSolver
from retune.solvers.inertial import Inertial
from retune.solvers.picard import Picard

__all__ = ["Bound", "Restarted"]


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
        gradient: the gradient rule; by default ReTune's [`Truncated`][retune.Truncated].
        solver: the solver for the fixed point. By default the network chooses the fastest sound one for its map:
            [`Inertial`][retune.Inertial] for proximal gradient steps on one objective (plain restarts in train mode,
            and where a given number of layers is run), [`QuasiNewton`][retune.QuasiNewton] for an
            [`Energy`][retune.priors.Energy], [`Damped`][retune.Damped] for a map that may expand (a free denoiser),
            and plain restarts, [`Picard`][retune.Picard], for all others. ``repr(net)`` says which. If the problem is
            not convex, nothing is proved of inertial steps; plain ones then still lower the objective.
        stop: the stopping rule of eval mode; by default ``rtol=1e-4`` for rules at the equilibrium, and exactly K
            layers for [`Unrolled`][retune.Unrolled].
        accuracy: for "auto": requested relative error of the gradient and relative distance to the equilibrium, in
            (0, 1).
        memory: for ``depth="auto"``: memory limit of a training step, in bytes or as ``"8 GB"``; None sets no limit.
        coarse_start: whether a solve in eval mode computes denoisers in bfloat16 until K layers change the state by
            4e-3, and then in the precision of `y`, so that the result has the same tolerance. "auto": for images in
            float32 and the networks of this package, if the processor has instructions for bfloat16.

    Attributes:
        auto: None, or the options that are "auto"; ``auto.choice.why`` explains the choice.

    Raises:
        InvalidParameterError: the depth does not fit the cycle, the restarts are negative, or an argument has a wrong
            type.

    Source: arXiv:2506.13239.
    """

    coarse_start: bool | Literal["auto"] = "auto"
    _chosen: AbstractSolver | None = None

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
        coarse_start: bool | Literal["auto"] = "auto",
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
        self.gradient = Truncated() if gradient is None else gradient
        if coarse_start not in (True, False, "auto"):
            raise wrong_type("coarse_start", coarse_start, 'True, False or "auto"')
        self.coarse_start = coarse_start
        self.stop = self.gradient.default_stop(depth) if stop is None else stop
        self.solver = fastest(map, self.gradient, self.stop) if solver is None else solver
        self._chosen = self.solver if solver is None else None

    @property
    def solver_chosen(self) -> bool:
        """Whether the network chose its solvers itself."""
        return self.solver is self._chosen

    @property
    def training_solver(self) -> AbstractSolver:
        """The solver of the restarts in train mode: that of eval mode, without an inertia that nobody asked for."""
        return in_training(self.map) if self.solver_chosen else self.solver

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
            warn_if_unsettled(equilibrium, self.stop if stop is None else stop, self.depth)
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
            trace: record the residuals of the restarts. Such a solve does not start coarsely.
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
                y, physics, init=init, stop=stop, adjoint=adjoint, trace=trace, observe=observe, watch=watch,
                bound=bound,
            )  # fmt: skip
        if bound is None:
            bound = self.bind(y, physics)
        require("bound", bound, Bound, "what net.bind(y, physics) returned", "or leave it out")
        bound.require(y, physics, self.map)
        if self.training:
            verify_once(self.map, bound.data_term, bound.map.init)
            return self._train(bound.map, init, stop, adjoint, trace, observe, watch)
        with torch.no_grad():
            stop = self.stop if stop is None else stop
            solver, finest = self.solver, self.depth * torch.finfo(bound.data_term.dtype).eps
            if self.solver_chosen:
                solver = fastest(self.map, self.gradient, stop, finest)
            coarse = init is None and self._starts_coarsely(bound.data_term)
            solution = iterate(bound.map, init, stop, solver, self.depth, trace, observe, watch, coarse)
            if bound.map.rests_at(solution.u):  # one plain layer was enough
                solver = Picard()
            return replace(equilibrium_of(bound.map.image(solution.u), solution), solver=solver)

    def _starts_coarsely(self, data_term: DataTerm) -> bool:
        if self.coarse_start != "auto":
            return self.coarse_start is True and data_term.dtype == torch.float32
        able = data_term.dtype == torch.float32 and fast_bfloat16(data_term.device)
        return able and any(prior.coarsens for prior in priors_of(self.map))

    def accelerated(self) -> Restarted:
        """The network with [`Inertial`][retune.Inertial] in place of plain restarts that were asked for.

        Both reach an equilibrium of the same map, and the result shares the weights. It is sound if the layers are
        proximal gradient steps on one objective ([`symmetric`][retune.AbstractMap]), and the network runs to a
        tolerance. Every other network, and one with a solver that is not plain, is returned as it is.
        """
        faster = copy.copy(self)
        faster.solver = Inertial()
        return faster if inertia_is_sound(self.solver, self.map, self.gradient, self.stop) else self

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
        solver = self.training_solver
        # The measured functions build the data term and the bound map again, as every training step does.

        def restart(layers: int) -> None:
            iterate(self.map.bind(self.map.data_term(y, physics)), None, Stop(0.0, layers), solver, self.depth)

        def step(depth: int) -> None:
            rehearse(self.map, y, physics, self.gradient, depth)

        with torch.no_grad():
            bound = self.map.bind(self.map.data_term(y, physics))
            choice = choose(bound, auto, self.gradient, solver, self.depth, self.restarts, step, restart)
        self.auto = replace(auto, choice=choice)
        self.depth, self.restarts = choice.depth, choice.restarts
        if self.gradient.fixed_blocks is not None:
            self.gradient = self.gradient.with_blocks(choice.blocks)
        return choice

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
            reached = iterate(bound, init, stop, self.training_solver, self.depth, trace, observe, watch)
        return differentiated(bound, self.gradient, reached, init, adjoint, self.depth, self.stop.rtol or Stop().rtol)

    def describe(self) -> dict:
        """Everything except the weights, as plain data. [`load`][retune.load] rebuilds the network from it."""
        chosen = {} if self.auto is None else {"auto": self.auto.to_dict()}
        chosen |= {} if self.coarse_start == "auto" else {"coarse_start": self.coarse_start}
        return chosen | {
            "type": "Restarted",
            "map": description(self.map),
            "depth": self.depth,
            "restarts": self.restarts,
            "gradient": description(self.gradient),
            "solver": None if self.solver_chosen else description(self.solver),
            "stop": {"rtol": self.stop.rtol, "max_layers": self.stop.max_layers},
        }

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        options = (
            f"depth={self.depth}, restarts={self.restarts}, gradient={self.gradient!r}, "
            f"solver={in_words(self.solver, self.training_solver, self.solver_chosen)}, "
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
        _checkpoint.require_loadable(told, weights)
        _checkpoint.write(path, weights, told, notes)
