"""The solver of a network that was given none: the fastest one that is sound for its map and task."""

from __future__ import annotations

from dataclasses import dataclass

from retune.gradients import GradientRule
from retune.maps.base import AbstractMap
from retune.solve import Stop
from retune.solvers.base import AbstractSolver
from retune.solvers.damped import Damped
from retune.solvers.inertial import Inertial
from retune.solvers.picard import Picard
from retune.solvers.quasi_newton import QuasiNewton

__all__ = ["SolverChoice", "in_words", "inertia_is_sound"]


@dataclass(frozen=True)
class SolverChoice:
    """The solvers of a network: the one it was given, or the ones that suit its map.

    | map and task | solver |
    |---|---|
    | layers that search their own step size (energies) | `QuasiNewton` |
    | layers that may expand (denoisers without a bound) | `Damped` |
    | proximal gradient steps on one objective, to a tolerance | `Inertial` |
    | anything else | `Picard`, plain restarts |

    Training uses plain restarts in place of `Inertial`: with a fixed number of restarts, inertia takes 1.2 to 2 times
    as long a step, and the image is not better (benchmarks/training_solver.py).

    Attributes:
        given: the solver that the user named; None if none was.
    """

    given: AbstractSolver | None = None

    def in_training(self, map: AbstractMap) -> AbstractSolver:
        """The solver of the restarts in a training step, and of a given number of layers."""
        if self.given is not None:
            return self.given
        return QuasiNewton() if map.backtracks else Picard() if map.nonexpansive else Damped()

    def to_tolerance(self, map: AbstractMap, gradient: GradientRule, stop: Stop) -> AbstractSolver:
        """The solver that finds the equilibrium with a stopping rule."""
        solver = self.in_training(map)
        return Inertial() if self.given is None and inertia_is_sound(solver, map, gradient, stop) else solver


def inertia_is_sound(solver: AbstractSolver, map: AbstractMap, gradient: GradientRule, stop: Stop) -> bool:
    """Whether `Inertial` reaches the equilibrium of these plain restarts.

    A network that is cut after K layers, or after a given number, has none: its image is that of plain layers.
    """
    return solver.plain and map.symmetric and gradient.restarts and stop.rtol > 0


def in_words(solver: AbstractSolver, training: AbstractSolver, chosen: bool) -> str:
    """The solvers of a network, for its ``repr`` and for the command line."""
    if not chosen:
        return repr(solver)
    return f"{solver!r} (chosen{'' if type(solver) is type(training) else f'; {training!r} in training'})"
