"""The records of a training run, and the choice of the kept weights."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field

import torch
from torch import Tensor, nn

__all__ = ["FitResult", "Keeper", "StepRecord", "Validation"]


@dataclass(frozen=True)
class StepRecord:
    """One training step: its loss, residual and gradient error (means over the batch)."""

    step: int
    loss: float
    residual: float
    gradient_error: float


@dataclass(frozen=True)
class Validation:
    """A validation after some steps: PSNR in dB, mean over the images."""

    step: int
    psnr: float
    seconds: float


@dataclass
class FitResult:
    """The record of a training run.

    Attributes:
        steps: one record per training step.
        validation: PSNR during the run, starting with the untrained network; empty without validation images.
        best_step: the step of the network's final weights (the last step without validation).
        seconds: wall-clock time including validation, over all parts of a continued run.
    """

    steps: list[StepRecord] = field(default_factory=list)
    validation: list[Validation] = field(default_factory=list)
    best_step: int = 0
    seconds: float = 0.0

    @property
    def best_psnr(self) -> float | None:
        """Validation PSNR of the kept weights, or None without validation images."""
        return max((v.psnr for v in self.validation), default=None)

    def tables(self) -> dict[str, Tensor]:
        """Steps (n, 4) and validations (m, 3) as float64 tables, for saving."""
        steps = torch.tensor([astuple(s) for s in self.steps], dtype=torch.float64).reshape(-1, 4)
        validation = torch.tensor([astuple(v) for v in self.validation], dtype=torch.float64).reshape(-1, 3)
        return {"steps": steps, "validation": validation}

    def take(self, tables: dict[str, Tensor]) -> None:
        """The inverse of [`tables`][retune.FitResult.tables]."""
        self.steps = [StepRecord(int(s), *rest) for s, *rest in tables["steps"].tolist()]
        self.validation = [Validation(int(s), *rest) for s, *rest in tables["validation"].tolist()]


class Keeper:
    """A copy of the best weights so far."""

    def __init__(self, net: nn.Module):
        self._net, self.best, self.step = net, float("-inf"), 0
        self.weights = self._copy()

    def _copy(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self._net.state_dict().items()}

    def offer(self, score: float, step: int) -> None:
        """Keep the current weights if `score` is the best so far."""
        if score > self.best:
            self.best, self.step, self.weights = score, step, self._copy()

    def restore(self) -> int:
        """Restore the best weights, in eval mode. Returns their step."""
        self._net.load_state_dict(self.weights)
        self._net.eval()
        return self.step
