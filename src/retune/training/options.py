"""The options of ``fit``, checked at their construction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from deepinv.loss import Loss

from retune.errors import InvalidParameterError, require_real, require_whole
from retune.solve import Stop
from retune.training.records import StepRecord
from retune.training.warm import WarmStart

__all__ = ["FitKeywords", "FitOptions"]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The options of [`fit`][retune.fit]. They are frozen; ``dataclasses.replace(options, steps=500)`` makes new ones.

    Raises:
        InvalidParameterError: an option has the wrong type or is out of range, or `resume` has no folder.
    """

    steps: int = 200
    """Training steps."""
    batch_size: int = 4
    """Crops per step."""
    crop: int | None = 128
    """Side of the square crops in pixels; None takes whole images."""
    lr: float = 0.05
    """Learning rate of step sizes, strengths and weights (on a log or logistic scale)."""
    lr_network: float = 1e-4
    """Learning rate of all other parameters."""
    loss: Loss | None = None
    """A deepinv ``Loss``; mean squared error by default. ``SupLoss(SNR(train_loss=True))`` gives decibels, so that easy
    and difficult crops have the same weight."""
    seed: int = 0
    """Seed of crops, operators and noise. The global generator stays unchanged."""
    device: str = "auto"
    """The device: "auto", "cpu", "cuda", "cuda:1", …"""
    validate_every: int | None = None
    """Steps between validations; a fifth of `steps` by default."""
    progress: bool = True
    """Whether to show a progress bar with loss, validation PSNR, residual and measured gradient error."""
    warm_start: bool | WarmStart = False
    """Let every training image remember its equilibrium, and restart to a tolerance. Then ``restarts`` is the maximum
    number of restarts. True takes the defaults of [`WarmStart`][retune.WarmStart]."""
    folder: str | Path | None = None
    """Folder for checkpoints and ``log.csv``; by default nothing is written. With a folder, Ctrl-C (and SIGTERM)
    finishes the step, saves, and then raises [`Interrupted`][retune.errors.Interrupted], a KeyboardInterrupt."""
    checkpoint_every: int = 20
    """Steps between checkpoints, and so the maximum number of lost steps."""
    resume: bool = False
    """Whether to continue from the newest checkpoint in `folder`, if there is one."""
    flips: bool = True
    """Whether crops are flipped at random. Choose False for measurements whose operator has a direction."""
    stop: Stop | None = None
    """The stopping rule for the restarts of a training step, in place of R blocks."""
    note: Callable[[StepRecord], None] | None = None
    """Called after every step with its record, for a display of the progress."""

    def __post_init__(self):
        for name in ("steps", "batch_size", "checkpoint_every", "seed"):
            require_whole(name, getattr(self, name))
        for name in ("crop", "validate_every"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), "or None")
        lr, lr_network = require_real("lr", self.lr), require_real("lr_network", self.lr_network)
        if min(self.steps, self.batch_size, self.validation_interval, self.checkpoint_every) < 1:
            raise InvalidParameterError(
                "steps, batch_size, validate_every and checkpoint_every must be at least 1, got "
                f"{self.steps}, {self.batch_size}, {self.validation_interval} and {self.checkpoint_every}"
            )
        if not (0 < lr < math.inf and 0 < lr_network < math.inf):
            raise InvalidParameterError(
                f"learning rates must be positive, got lr={self.lr} and lr_network={self.lr_network}"
            )
        if self.resume and self.folder is None:
            raise InvalidParameterError("resume=True needs the folder of the run: folder=...")

    @property
    def validation_interval(self) -> int:
        """Steps between validations."""
        return max(1, self.steps // 5) if self.validate_every is None else self.validate_every


class FitKeywords(TypedDict, total=False):
    """The fields of [`FitOptions`][retune.FitOptions] as keywords, for type checkers."""

    steps: int
    batch_size: int
    crop: int | None
    lr: float
    lr_network: float
    loss: Loss | None
    seed: int
    device: str
    validate_every: int | None
    progress: bool
    warm_start: bool | WarmStart
    folder: str | Path | None
    checkpoint_every: int
    resume: bool
    flips: bool
    stop: Stop | None
    note: Callable[[StepRecord], None] | None
