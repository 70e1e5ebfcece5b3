"""The methods of a comparison: the parameters that each of them chooses, and how."""

from __future__ import annotations

from dataclasses import dataclass

from retune.build import rule_of
from retune.config import Config
from retune.gradients import GradientRule, Implicit, Truncated, Unrolled
from retune.maps.base import AbstractMap
from retune.model import Restarted
from retune.solve import Stop
from retune.solvers import AbstractSolver, Picard

__all__ = ["METHODS", "PNP", "Method", "methods_of", "network"]


@dataclass(frozen=True)
class Method:
    """A way to choose the parameters of the map.

    Attributes:
        key, label, how: name in result files, name for people, one sentence.
        rule: the gradient rule; None for the grid search.
        single_layer: differentiate one layer (JFB) and restart K(R + 1) times instead.
        of_the_run: use the gradient rule of the run, with its options.
    """

    key: str
    label: str
    how: str
    rule: type[GradientRule] | None
    single_layer: bool = False
    of_the_run: bool = False


METHODS = (
    Method("variational", "Variational, best single λ", "grid search of one λ, all weights equal", None),
    Method("unrolled", "Unrolled, K layers", "K layers with shared weights, trained end to end, no restart", Unrolled),
    Method("jfb", "JFB (K = 1)", "at the equilibrium, one layer differentiated", Truncated, single_layer=True),
    Method(
        "implicit",
        "Implicit gradient (DEQ)",
        "at the equilibrium, adjoint system solved to 1 % or to the budget",
        Implicit,
    ),
    Method("retune", "ReTune", "at the equilibrium, K layers differentiated", Truncated),
)

#: an additional method of every comparison; its denoiser is that of the run, or a shipped one
PNP = Method("pnp", "Plug-and-Play, tuned", "a frozen denoiser, its noise level and the step size by grid search", None)


def methods_of(run: Config) -> dict[str, Method]:
    """The methods for the comparison of a run, by key: those above, and the rule of the run if it is another one."""
    found = {m.key: m for m in (METHODS[0], PNP, *METHODS[1:])}
    rule = type(rule_of(run.gradient))
    if all(rule is not m.rule for m in METHODS):
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
        map: what is iterated.
        depth: K, number of differentiated layers.
        restarts: R.
        rtol: relative change per K layers below which a restoration is settled.
        longest: a restoration that has not settled after this number of layers is stopped.
        rule: the rule of the run, used for ReTune; ``Truncated()`` by default.
        solver: how the equilibrium is reached; see [`Restarted`][retune.Restarted]. An unrolled network is K plain
        layers,
            and goes on as such.
    """
    total = depth * (restarts + 1)
    if method.single_layer:
        depth, restarts = map.layers, total // map.layers - 1
    if method.rule is Implicit:  # the same budget backward as forward: at most as many products as there are layers
        chosen: GradientRule = Implicit(rtol=1e-2, max_blocks=total)
    elif rule is not None and (method.of_the_run or method.key == "retune"):
        chosen = rule
    else:
        chosen = Truncated() if method.rule is None else method.rule()
    if not chosen.restarts:
        return Restarted(map, depth, restarts, chosen, Picard())
    return Restarted(map, depth, restarts, chosen, solver, Stop(rtol, longest))
