"""The progress bar of a training run."""

from __future__ import annotations

import math

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from retune.training.records import StepRecord

__all__ = ["TrainingProgress"]


class TrainingProgress:
    """Shows steps, loss, validation PSNR, residual and measured gradient error; silent if not enabled."""

    def __init__(self, steps: int, *, enabled: bool):
        self._psnr = "–"
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            disable=not enabled,
            transient=True,
        )
        self._task = self._progress.add_task("training", total=steps, text="")

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, record: StepRecord) -> None:
        """Update the bar after a training step."""
        residual = f"{record.residual:.0e}" if math.isfinite(record.residual) else "–"
        error = f"{record.gradient_error:.0%}" if math.isfinite(record.gradient_error) else "–"
        text = f"loss {record.loss:.2e}  val {self._psnr} dB  residual {residual}  gradient error {error}"
        self._progress.update(self._task, completed=record.step, text=text)

    def validated(self, psnr: float) -> None:
        """After a validation."""
        self._psnr = f"{psnr:.2f}"
