"""``progress.json``: the results that a comparison has already computed."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from retune.records.base import Number, Record, Text
from retune.records.results import Scores, Training

__all__ = ["ImageScores", "Progress", "Searched", "Trained"]


class Searched(Record):
    """A grid search."""

    best: dict[str, Any]
    """The fields of the best point: reg, step_size and sigma."""
    tried: list[dict[str, float]]
    """Values by name, with the validation PSNR in dB, for each point."""
    seconds: float


class Trained(Record):
    """A training at one learning rate."""

    lr: float
    failure: Text | None = None
    """The reason for a failure, if it failed."""
    psnr_validation: float
    seconds: float
    gradient_error: Number = None
    best_step: int | None = None
    training: Training | None = None
    steps: int | None = None
    """Number of steps, if a time was given instead."""


class ImageScores(Scores):
    """One test image restored by one method."""

    image: Text | None = None
    """File of the restored image, relative to the folder of the results."""


class Progress(Record):
    """``progress.json``: the finished computations of a comparison, by name."""

    format: int | None = None
    """None in a file of version 0.1.0."""
    settings: dict[str, Any]
    """The settings that decide the results."""
    entries: dict[str, Any] = Field(default_factory=dict)
