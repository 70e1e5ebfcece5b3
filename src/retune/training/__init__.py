"""Training."""

from retune.training.fit import FitResult, evaluate, fit
from retune.training.warm import WarmStart

__all__ = ["FitResult", "WarmStart", "evaluate", "fit"]
