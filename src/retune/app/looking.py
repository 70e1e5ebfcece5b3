"""Facts about an image before its restoration: its file, its noise, and the doctor's findings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retune import io
from retune.app.settings import Settings
from retune.build import problem_of
from retune.config import Config, ProblemConfig, from_dict
from retune.diagnosis.findings import Finding, Severity
from retune.diagnosis.measurement import noise_level
from retune.diagnosis.psf import faults
from retune.errors import InvalidParameterError, RetuneError
from retune.instant import noise_of
from retune.io.intensity import Unit
from retune.jobs.doctor import examine_one
from retune.jobs.inputs import known_noise, unit_of, without_gaps
from retune.problems.base import Problem
from retune.problems.detail import kept_detail
from retune.problems.found_noise import FoundNoise, estimate_counts

__all__ = ["Curve", "Measured", "Mend", "Noise", "examined", "measured", "noise_in"]

#: Side of the middle that the doctor examines, so that the findings appear at once.
_EXAMINED = 256
#: The remedy for pixels that are no numbers.
_NO_NUMBERS = "These pixels become missing pixels: “Treat them as missing”."


@dataclass(frozen=True)
class Measured:
    """A page of a file, as the restoration takes it.

    Attributes:
        y: the measurement (1, C, h, w), where 1 is white.
        unit: of its values.
        layout: how the file is stored.
        pages: number of images in the file.
        holes: pixels that are NaN or Inf, (h, w); None if there are none.
    """

    y: Tensor
    unit: Unit
    layout: io.Layout
    pages: int
    holes: np.ndarray | None = None


@dataclass(frozen=True)
class Curve:
    """Variance against brightness in one channel: points, and the line ``gain · brightness + read²``."""

    points: tuple[tuple[float, float], ...]
    gain: float
    square: float


@dataclass(frozen=True)
class Noise:
    """The noise of an image.

    Attributes:
        said: the noise in the form of the settings.
        sentence: the noise in words.
        curves: one per channel.
    """

    said: str
    sentence: str
    curves: tuple[Curve, ...] = ()


@dataclass(frozen=True)
class Mend:
    """A correction that a button makes.

    Attributes:
        key: name of the change.
        label: of the button.
    """

    key: str
    label: str


@dataclass(frozen=True)
class Findings:
    """The doctor's findings, most serious first, and the possible corrections."""

    found: Sequence[Finding]
    mends: Sequence[Mend] = field(default_factory=tuple)
    part: tuple[int, int] | None = None


def measured(file: Path, settings: Settings, page: int, most: int) -> Measured:
    """One page of a file.

    Args:
        file: the image.
        settings: white, black and the mask.
        page: number of the page, from 0.
        most: the largest number of values (pixels times channels, of all pages).

    Raises:
        RetuneError: the file cannot be read, or is too large.
    """
    images, layout = io.read(file, any_integers=True, finite=False)
    if images.numel() > most:
        raise InvalidParameterError(
            f"{file.name} has {images.numel() / 1e6:.0f} million values; this page takes {most / 1e6:.0f} million. "
            "Crop the image, or use the command line: retune restore"
        )
    white, black = settings.levels()
    config = ProblemConfig(name=settings.problem, mask=settings.mask or None)
    unit = unit_of(file, images, layout, config, white, black)
    at = min(max(page, 0), len(images) - 1)
    y = unit.scaled(images[at : at + 1]).to(torch.get_default_dtype())
    bad = ~y.isfinite().all(1)[0]
    return Measured(y, unit, layout, len(images), bad.numpy() if bool(bad.any()) else None)


def noise_in(seen: Measured, settings: Settings, folder: Path) -> Noise:
    """The noise that the user states, or that is estimated; "0" if none is visible."""
    y = torch.where(seen.y.isfinite(), seen.y, torch.zeros_like(seen.y))
    gaps = _observed(seen, settings, folder)
    config = _of_noise(settings, folder)
    found = None
    if gaps is None:
        found = estimate_counts(y, detail=kept_detail(problem_of(known_noise(config)), y))
    if settings.noise:
        problem = problem_of(ProblemConfig(name="denoise").model_copy(update=settings.noise_fields()))
        return Noise(settings.noise, f"As you say: {_in_words(problem)}.", _curves(problem, found, y.shape[1]))
    try:
        problem = _estimated(y, gaps, config)
    except InvalidParameterError:
        words = "No noise is visible. The restoration assumes noise of 0.2 % of white, and changes little."
        return Noise("0", words)
    said = problem.noise_words
    said = said if said.startswith("poisson") else said.removeprefix("gaussian:").replace("/", ",")
    return Noise(said, f"Estimated: {_in_words(problem)}.", _curves(problem, found, y.shape[1]))


def _curves(problem: Problem, found: FoundNoise | None, channels: int) -> tuple[Curve, ...]:
    """Per channel, the classes of brightness if there are any, and the line of the problem."""
    points = ((),) * channels if found is None or not found.points else found.points
    return tuple(Curve(p, g, r**2) for p, g, r in zip(points, *_many(problem, channels), strict=False))


def _observed(seen: Measured, settings: Settings, folder: Path) -> Tensor | None:
    """Where pixels were measured; None if everywhere."""
    if seen.holes is not None:
        return torch.from_numpy(~seen.holes)[None, None].expand_as(seen.y)
    if settings.problem != "inpaint" or not settings.mask:
        return None
    fields = settings.fields(folder) | {"sigma": 0.0}
    return problem_of(from_dict({"problem": fields}, (), "the image").problem).observed(seen.y)


def _of_noise(settings: Settings, folder: Path) -> ProblemConfig:
    """The problem whose noise is estimated: a known blur tells noise from texture."""
    told = replace(settings, noise="", network="")
    try:
        fields = told.fields(folder) if settings.problem in ("deblur", "superres") else {"name": "denoise"}
    except RetuneError:  # the blur is not known yet
        fields = {"name": "denoise"}
    return from_dict({"problem": fields | {"sigma": "estimate"}}, (), "the image").problem


def _estimated(y: Tensor, gaps: Tensor | None, config: ProblemConfig) -> Problem:
    if gaps is None:
        return noise_of(config, y)
    levels, _ = noise_level(y, gaps)
    if levels is None or float(levels.max()) <= 0:
        raise InvalidParameterError("no noise is visible between the missing pixels")
    told = [float(f"{v:.6g}") for v in levels[0]]
    return problem_of(ProblemConfig(name="denoise", sigma=told[0] if len(told) == 1 else told))


def _many(problem: Problem, channels: int) -> tuple[list[float], list[float]]:
    """gain and read, each one per channel."""
    gain, read = (0.0, problem.sigma) if problem.noise is None else (problem.noise.gain, problem.noise.read)
    each = [list(v) if isinstance(v, tuple) else [v] for v in (gain, read)]
    return tuple(v if len(v) == channels else v[:1] * channels for v in each)  # pyright: ignore[reportReturnType]


def _in_words(problem: Problem) -> str:
    if problem.noise is not None:
        gain, read = _many(problem, 1)
        return (
            f"noise that grows with the brightness, as photons make it. One photon is about {100 * gain[0]:.2g} % of "
            f"white, and the noise in the dark {100 * read[0]:.2g} %"
        )
    levels = problem.sigma if isinstance(problem.sigma, tuple) else (problem.sigma,)
    told = ", ".join(dict.fromkeys(f"{100 * v:.2g}" for v in levels))
    return f"every pixel is off by about {told} % of white (standard deviation)"


def examined(seen: Measured, settings: Settings, folder: Path) -> Findings:
    """The doctor's findings about an image and what happened to it.

    Raises:
        RetuneError: the settings cannot be used.
    """
    if seen.holes is not None and settings.problem != "inpaint":
        share = float(seen.holes.mean())
        found = Finding(
            "finite", Severity.PROBLEM, f"{share:.2%} of the pixels are no numbers (NaN or Inf)", _NO_NUMBERS
        )
        return Findings([found], [Mend("gaps", "Treat them as missing")])
    fields = settings.fields(folder)
    # Missing pixels have no estimate of their own; the page has made one before.
    config = from_dict({"problem": fields}, (), "the image")
    problem = problem_of(config.problem)
    y = without_gaps(problem, seen.y, "the image")
    known = problem.observed(y)
    if known is not None:  # of a whole picture on which somebody has painted
        y = torch.where(known, y, torch.zeros_like(y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the findings say the same
        told = examine_one(Config(problem=config.problem), "the image", y, _EXAMINED)
    if told.diagnosis is None:
        raise InvalidParameterError(told.failure)
    found = sorted(told.diagnosis.findings, key=lambda f: -f.severity.rank)
    return Findings(found, list(_mends(found, problem, settings)), told.part)


def _mends(found: Sequence[Finding], problem: Problem, settings: Settings):
    taps = getattr(problem, "kernel", None)
    if isinstance(taps, Tensor) and "." in settings.kernel and ":" not in settings.kernel:
        kinds = {fault.kind for fault in faults(taps)}
        if "background" in kinds:
            yield Mend("background", "Subtract the pedestal")
        if kinds & {"off-centre", "even"}:
            yield Mend("centre", "Centre the blur")
    bad = {f.check for f in found if f.severity.rank >= Severity.WARNING.rank}
    if "range" in bad and not (settings.white or settings.mask):
        yield Mend("levels", "Find black and white in the image")
    if "noise" in bad and settings.noise:
        yield Mend("noise", "Use the estimated noise")
