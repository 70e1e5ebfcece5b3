"""Solvers for the fixed point; one algorithm per file."""

from retune.solvers.anderson import Anderson
from retune.solvers.base import AbstractSolver, Objective, SolverState
from retune.solvers.damped import Damped
from retune.solvers.descent import Descent
from retune.solvers.inertial import Inertial
from retune.solvers.picard import Picard
from retune.solvers.quasi_newton import QuasiNewton

__all__ = [
    "AbstractSolver",
    "Anderson",
    "Damped",
    "Descent",
    "Inertial",
    "Objective",
    "Picard",
    "QuasiNewton",
    "SolverState",
]
