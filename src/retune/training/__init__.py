"""Training."""

from retune.training.fit import FitResult, evaluate, fit

__all__ = ["FitResult", "evaluate", "fit"]
