"""What the folder of a run tells of it: how it was begun, its checkpoints, and what ``retune tune`` chose."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, StrictBool

from retune.records.base import Number, Record, Text
from retune.records.certificates import CertifiedImage

__all__ = ["CheckpointFacts", "EstimatedGain", "RunFacts", "TuneFacts", "TuneResult"]


class TuneFacts(Record):
    """What a tuning was begun with."""

    images: list[Text]
    """Paths of the measurements that could be used."""
    white: Number
    """Intensity that counts as 1; None if none was named."""
    loss: Text
    """What was asked for: auto, sure, r2r or ei."""


class RunFacts(Record):
    """``run.json``: what a run was begun with."""

    seed: int | None = None
    data: Text | None = None
    """Fingerprint of the images."""
    validation: Text | None = None
    """Fingerprint of the validation images; None without them."""
    files: dict[str, Text] = Field(default_factory=dict)
    """SHA-256 of the kernel and of the mask, where these are files."""
    versions: dict[str, Text] = Field(default_factory=dict)
    """Versions of ReTune and of what it computes with."""
    tuned: TuneFacts | None = None
    """Only of ``retune tune``."""


class CheckpointFacts(Record):
    """The facts in ``checkpoint-STEP.safetensors``, beside the tensors."""

    model_config = ConfigDict(ser_json_inf_nan="constants")  # a setting may be infinite

    step: int
    seconds: float
    settings: dict[str, Any]
    """What decides the course of the run."""
    best: Text
    """The best validation PSNR so far, as Python writes it: it may be -inf."""
    best_step: int


class EstimatedGain(Record):
    """Two restorations of the same measurements by their estimated errors."""

    before: Number
    """Estimated PSNR in dB; None where the estimated error is not positive."""
    after: Number
    gain: Number
    spread: Number
    """Standard error of the gain."""
    better: StrictBool
    uncertainty: Number = None
    """Standard error of ``after``."""


class TuneResult(Record):
    """``tune.json``: what was chosen, and how sure that is."""

    loss: Text
    """What it was learned with."""
    sigma: Number | list[Number]
    """Noise level, given or estimated; or one per channel."""
    comparison: EstimatedGain
    factors: tuple[Number, Number] | None = None
    """Range of factors on λ that are indistinguishable from the chosen one; None without a learned λ."""
    parameters: dict[str, list[Number]]
    seconds: Number
    certificate: CertifiedImage
    """Of the restoration of the first measurement."""
    left_out: dict[str, Text] = Field(default_factory=dict)
    """Why, by file, for those that could not be used."""
