"""Training."""

from retune.training.fit import FitResult, evaluate, fit
from retune.training.penalty import JacobianPenalty
from retune.training.warm import WarmStart

__all__ = ["FitResult", "JacobianPenalty", "WarmStart", "evaluate", "fit"]
