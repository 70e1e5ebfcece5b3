"""The records in the folder of a run: its start, its checkpoints, and the choices of ``retune tune``."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, StrictBool

from retune.records.base import Number, Record, Text
from retune.records.certificates import CertifiedImage

__all__ = ["CheckpointFacts", "Competitor", "EstimatedGain", "RunFacts", "TuneFacts", "TuneResult"]


class TuneFacts(Record):
    """The settings at the start of a tuning."""

    images: list[Text]
    """Paths of the usable measurements."""
    white: Number
    """Intensity that counts as 1; None if it was not given."""
    black: Number = None
    """Intensity that counts as 0; None if it was not given."""
    loss: Text
    """The requested loss: auto, sure, r2r or ei."""
    ships: StrictBool = False
    """Whether the denoiser that ships competes: nobody has chosen a prior."""


class RunFacts(Record):
    """``run.json``: the facts at the start of a run."""

    seed: int | None = None
    data: Text | None = None
    """Fingerprint of the images."""
    validation: Text | None = None
    """Fingerprint of the validation images; None without them."""
    files: dict[str, Text] = Field(default_factory=dict)
    """SHA-256 of the kernel and of the mask, if these are files."""
    versions: dict[str, Text] = Field(default_factory=dict)
    """Versions of ReTune and of its numerical libraries."""
    tuned: TuneFacts | None = None
    """Only from ``retune tune``."""


class CheckpointFacts(Record):
    """The facts in ``checkpoint-STEP.safetensors``, stored with the tensors."""

    model_config = ConfigDict(ser_json_inf_nan="constants")  # a setting may be infinite

    step: int
    seconds: float
    settings: dict[str, Any]
    """The settings that decide the course of the run."""
    best: Text
    """The best validation PSNR so far, in the notation of Python; it may be -inf."""
    best_step: int


class EstimatedGain(Record):
    """The estimated errors of two restorations of the same measurements."""

    before: Number
    """Estimated PSNR in dB; None where the estimated error is not positive."""
    after: Number
    gain: Number
    """Gain of the second in dB; None as above."""
    spread: Number
    """Standard error of the gain, from the blocks; None as above, or if there is only one block."""
    better: StrictBool
    """Whether the second has the smaller estimated error. Never without a gain."""
    uncertainty: Number = None
    """Standard error of ``after``, as above. It is larger, because both share much of their error."""
    of: Text | None = None
    """The image that the figures describe, such as "the blurred image"."""
    again: Number = None
    """The gain with the error of restoring the restored image again, if that was asked for. Then it decides."""
    again_spread: Number = None


class Competitor(Record):
    """A candidate of a tuning, by its estimated error."""

    name: Text
    psnr: Number = None
    """Estimated PSNR in dB; None where the estimated error is not positive."""
    gain: Number = None
    """Over the defaults, in dB."""
    spread: Number = None
    """Standard error of the gain."""


class TuneResult(Record):
    """``tune.json``: the choices of a tuning, and their uncertainty."""

    loss: Text
    """The loss of the tuning."""
    sigma: Number | list[Number]
    """Noise level, given or estimated: one number, or one per channel."""
    comparison: EstimatedGain
    factors: tuple[Number, Number] | None = None
    """Range of factors on λ that are indistinguishable from the chosen one; None without a learned λ."""
    parameters: dict[str, list[Number]]
    seconds: Number
    certificate: CertifiedImage
    """The certificate of the first restoration."""
    left_out: dict[str, Text] = Field(default_factory=dict)
    """The reason for each file that could not be used."""
    noise: Text | None = None
    """Noise that grows with the brightness, as ``--noise`` takes it; None for noise of one level."""
    winner: Text | None = None
    """The best of the candidates: "tuned strengths", "defaults", … If it is the measured image, the network is the best
    of the others."""
    estimated: Text | None = None
    """The basis of the estimates, in words that follow "estimated"."""
    white: Number = None
    black: Number = None
    """White and black in the units of the files, if they were given or found."""
    candidates: list[Competitor] = Field(default_factory=list)
    measured: EstimatedGain | None = None
    """The measured image beside the best restoration, if it competed."""
