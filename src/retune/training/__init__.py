"""Training."""

from retune.training.data import TrainingData
from retune.training.fit import FitResult, evaluate, fit
from retune.training.options import FitOptions
from retune.training.penalty import JacobianPenalty
from retune.training.warm import WarmStart

__all__ = ["FitOptions", "FitResult", "JacobianPenalty", "TrainingData", "WarmStart", "evaluate", "fit"]
