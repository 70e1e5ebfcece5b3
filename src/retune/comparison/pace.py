"""The time of a training step, by which methods are trained for the same time."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from deepinv.loss import Loss, SupLoss
from deepinv.loss.metric import MSE
from torch import Tensor, nn

__all__ = ["TRIAL", "Clocked"]

#: Steps by which the time of a step is measured before a training.
TRIAL = 5


class Clocked(Loss):
    """A loss that notes when it is called: once in every training step.

    Args:
        loss: the loss of the training; None for the mean squared error.
        clock: a clock in seconds.
    """

    def __init__(self, loss: Loss | None, clock: Callable[[], float]):
        super().__init__()
        self.clock = clock
        self.loss = SupLoss(metric=MSE()) if loss is None else loss
        self.at: list[float] = []

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss."""
        self.at.append(self.clock())
        return self.loss(*args, **kwargs)

    def adapt_model(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """See ``deepinv.loss.Loss``."""
        return self.loss.adapt_model(model, **kwargs)

    @property
    def step(self) -> float:
        """Median time between two steps, which leaves validations out."""
        return statistics.median(b - a for a, b in zip(self.at, self.at[1:], strict=False))

    def steps_in(self, seconds: float) -> int:
        """The number of steps that take that long, at least 2."""
        return max(2, round(seconds / self.step))
