"""The methods of a comparison: the parameters that each of them chooses, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from retune._solver_choice import in_training
from retune.build import fidelity_of, rule_of
from retune.config import Config, FidelityConfig, MapConfig, PriorConfig
from retune.gradients import GradientRule, Implicit, Truncated, Unrolled
from retune.maps.base import AbstractMap
from retune.model import Restarted
from retune.operators.fidelity import lacks_constant
from retune.solve import Stop
from retune.solvers import AbstractSolver, Picard

__all__ = ["METHODS", "PNP", "Method", "methods_of", "network", "run_of_pnp", "run_of_variational"]


def run_of_variational(run: Config) -> Config:
    """The run with a prior that has a value: its own, or the wavelet norm in place of a denoiser."""
    return _with_prior(run, PriorConfig()) if run.prior.type in ("denoiser", "red") else run


def run_of_pnp(run: Config) -> Config:
    """The run with a frozen denoiser: its own, or the shipped one."""
    own = run.prior.weights if run.prior.type in ("denoiser", "red") else None
    return _with_prior(run, PriorConfig(type="denoiser", weights=own))


def _with_prior(run: Config, prior: PriorConfig) -> Config:
    """The run with another prior and its map; with squares (weighted by the noise) where that map needs a constant."""
    changed = {"prior": prior, "map": MapConfig(), "model": run.model.model_copy(update={"layers": 1})}
    return run.model_copy(update=changed | ({"data_fidelity": FidelityConfig()} if _takes_squares(run) else {}))


def _takes_squares(run: Config) -> bool:
    """Whether the fidelity of the run has a gradient without Lipschitz constant, as that of counts at 0."""
    fidelity = fidelity_of(run.data_fidelity)
    if fidelity is None:
        return False
    try:
        return lacks_constant(fidelity, torch.ones(1, 1, 1, 1))
    except Exception:  # your own facts(y) may raise anything for a y that is not a measurement of this run
        return False


def _same(run: Config) -> Config:
    return run


def _no_limits(layers: int) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Method:
    """A way to choose the parameters of the map.

    Attributes:
        key: name in result files.
        label: name in tables and figures.
        how: one sentence about the method.
        rule: the gradient rule; None for the grid search.
        single_layer: differentiate one layer (JFB) and restart K(R + 1) times instead.
        of_the_run: if the gradient rule of the run has the class `rule`, use it with its options.
        limits: the arguments of `rule` that follow from the number of layers of a training step.
        run_of: the run that the method tunes: the given one, or one with another prior.
    """

    key: str
    label: str
    how: str
    rule: type[GradientRule] | None
    single_layer: bool = False
    of_the_run: bool = False
    limits: Callable[[int], dict[str, Any]] = _no_limits
    run_of: Callable[[Config], Config] = _same

    def rule_for(self, layers: int, of_run: GradientRule | None = None) -> GradientRule:
        """The gradient rule of a training step with this number of layers.

        Args:
            layers: the number of layers, K(R + 1).
            of_run: the gradient rule of the run; None if it names none.
        """
        if of_run is not None and self.of_the_run and type(of_run) is self.rule:
            return of_run
        return Truncated() if self.rule is None else self.rule(**self.limits(layers))


METHODS = (
    Method(
        "variational",
        "Variational, best single λ",
        "grid search of one λ, all weights equal",
        None,
        run_of=run_of_variational,
    ),
    Method("unrolled", "Unrolled, K layers", "K layers with shared weights, trained end to end, no restart", Unrolled),
    Method("jfb", "JFB (K = 1)", "at the equilibrium, one layer differentiated", Truncated, single_layer=True),
    Method(
        "implicit",
        "Implicit gradient (DEQ)",
        "at the equilibrium, adjoint system solved to 1 % or to the budget",
        Implicit,
        # The same budget backward as forward: at most as many products as there are layers.
        limits=lambda layers: {"rtol": 1e-2, "max_blocks": layers},
    ),
    Method("retune", "ReTune", "at the equilibrium, K layers differentiated", Truncated, of_the_run=True),
)

_SQUARES = "squares, weighted by the noise, are its data term, because that of the run has no Lipschitz constant"

#: an additional method of every comparison; its denoiser is that of the run, or a shipped one
PNP = Method(
    "pnp",
    "Plug-and-Play, tuned",
    "a frozen denoiser, its noise level and the step size by grid search",
    None,
    run_of=run_of_pnp,
)


def methods_of(run: Config) -> dict[str, Method]:
    """The methods for the comparison of a run, by key: those above, and the rule of the run if it is another one."""
    found = {m.key: m for m in (METHODS[0], PNP, *METHODS[1:])}
    if _takes_squares(run):
        found[PNP.key] = replace(PNP, label=f"{PNP.label}, squares", how=f"{PNP.how}; {_SQUARES}")
    of_run = rule_of(run.gradient)
    if of_run is not None and all(type(of_run) is not m.rule for m in METHODS):
        rule = type(of_run)
        key = run.gradient.rule
        found[key] = Method(key, rule.__name__, "the gradient rule of the run", rule, of_the_run=True)
    return found


def network(
    method: Method,
    map: AbstractMap,
    depth: int,
    restarts: int,
    *,
    rtol: float,
    longest: int,
    rule: GradientRule | None = None,
    solver: AbstractSolver | None = None,
) -> Restarted:
    """The network of a method, with the budget of ``depth (restarts + 1)`` layers in a training step.

    Args:
        method: the method.
        map: the map to iterate.
        depth: K, number of differentiated layers.
        restarts: R.
        rtol: relative change per K layers below which a restoration is settled.
        longest: a restoration that has not settled after this number of layers is stopped.
        rule: the gradient rule of the run; see [`Method`][retune.comparison.Method].
        solver: the solver for the equilibrium; by default the training solver of the map
            ([`Restarted`][retune.Restarted]), so that curves are over plain layers where these are safe. An unrolled
            network consists of K plain layers, also in longer runs.
    """
    total = depth * (restarts + 1)
    if method.single_layer:
        depth, restarts = map.layers, total // map.layers - 1
    chosen = method.rule_for(total, rule)
    if not chosen.restarts:
        return Restarted(map, depth, restarts, chosen, Picard())
    solver = in_training(map) if solver is None else solver
    return Restarted(map, depth, restarts, chosen, solver, Stop(rtol, longest))
