"""The solver of a network that was given none: the fastest one that is sound for its map and task."""

from __future__ import annotations

from retune.gradients import GradientRule
from retune.maps.base import AbstractMap
from retune.solve import Stop
from retune.solvers.base import AbstractSolver
from retune.solvers.damped import Damped
from retune.solvers.inertial import Inertial
from retune.solvers.picard import Picard
from retune.solvers.quasi_newton import QuasiNewton

__all__ = ["fastest", "in_words", "in_training", "inertia_is_sound"]


def in_training(map: AbstractMap) -> AbstractSolver:
    """The solver of the restarts in a training step, and of a given number of layers.

    Layers that search their own step size (energies) need `QuasiNewton`, and layers that may expand (denoisers without
    a bound) `Damped`. For all others plain restarts are safe. With a fixed number of restarts, inertia takes 1.2 to 2
    times as long a step, and the image is not better (benchmarks/training_solver.py).
    """
    return QuasiNewton() if map.backtracks else Picard() if map.nonexpansive else Damped()


def fastest(map: AbstractMap, gradient: GradientRule, stop: Stop, finest: float = 0.0) -> AbstractSolver:
    """The solver that finds the equilibrium with a stopping rule: inertia where it is sound, else that of training.

    Args:
        map: the map.
        gradient: the gradient rule of the network.
        stop: the stopping rule.
        finest: a tolerance up to which rounding can hide rest: the change of one layer, taken K times, may stay above.
    """
    solver = in_training(map)
    return Inertial() if stop.rtol > finest and inertia_is_sound(solver, map, gradient, stop) else solver


def inertia_is_sound(solver: AbstractSolver, map: AbstractMap, gradient: GradientRule, stop: Stop) -> bool:
    """Whether `Inertial` finds the equilibrium of these plain restarts (of a convex problem; else an equilibrium).

    A network that is cut after K layers, or after a given number, has none: its image is that of plain layers.
    """
    return solver.plain and map.symmetric and gradient.restarts and stop.rtol > 0


def in_words(solver: AbstractSolver, training: AbstractSolver, chosen: bool) -> str:
    """The solvers of a network, for its ``repr`` and for the command line."""
    if not chosen:
        return repr(solver)
    return f"{solver!r} (chosen{'' if type(solver) is type(training) else f'; {training!r} in training'})"
