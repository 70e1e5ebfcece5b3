"""Noise that grows with the brightness: the model of photon counts, and its estimate from a measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from deepinv.physics import NoiseModel, PoissonGaussianNoise
from torch import Tensor

from retune.errors import InvalidParameterError
from retune.operators.weighted import NoiseWeighted, variance

__all__ = ["FoundNoise", "PoissonGaussian", "estimate_counts", "parse_noise"]

Values = float | tuple[float, ...]

#: Blocks of 2×2 pixels that a class of brightness needs, and the largest number of classes.
_IN_CLASS, _CLASSES = 150, 24
#: Share of the blocks of a class that is used: those in the smoothest surroundings.
_SMOOTHEST = 0.5
#: Errors of the estimate are trusted to be at least this share of it: texture adds errors that its blocks do not show.
_LEAST = 0.02


@dataclass(frozen=True)
class PoissonGaussian:
    """``y = offset + gain · Poisson(Ax/gain) + N(0, read²)``, with the variance ``gain · Ax + read²``.

    Attributes:
        gain: intensity of one count, on the scale of the image (1 is white); one, or one per channel.
        read: standard deviation of the noise in the dark; one, or one per channel.
        offset: what the camera shows without light.

    Raises:
        InvalidParameterError: a negative number, or neither gain nor read.
    """

    gain: Values
    read: Values = 0.0
    offset: float = 0.0

    def __post_init__(self):
        held = self.fidelity()  # refuses what is no model of noise
        for name in ("gain", "read"):
            value = getattr(held, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)

    def variance(self, y: Tensor) -> Tensor:
        """The variance of the noise at every value of a measurement (B, C, h, w), from its smoothed values."""
        return variance(y, _plain(self.gain), _plain(self.read), self.offset)

    def fidelity(self) -> NoiseWeighted:
        """The data fidelity that fits: least squares, weighted with the inverse variances."""
        return NoiseWeighted(_plain(self.gain), _plain(self.read), self.offset)

    def simulated(self, device: torch.device | str = "cpu") -> NoiseModel:
        """The noise of a simulated measurement, with its own generator."""
        return _Counts(self, torch.Generator(device=device))

    @property
    def grows(self) -> bool:
        """Whether this is more than Gaussian noise of one level per channel."""
        return self.offset != 0 or max(self.gain if isinstance(self.gain, tuple) else (self.gain,)) > 0

    @property
    def level(self) -> Values:
        """The standard deviation of the noise at half of white, one or one per channel: a single number for it."""
        gains, reads = (v if isinstance(v, tuple) else (v,) for v in (self.gain, self.read))
        count = max(len(gains), len(reads))
        each = zip(gains * (count // len(gains)), reads * (count // len(reads)), strict=True)
        found = tuple(math.sqrt(0.5 * g + r**2) for g, r in each)
        return found if count > 1 else max(found)

    def __str__(self) -> str:
        """As it is written on the command line: ``poisson:GAIN,READ,OFFSET``; channels are separated by ``/``."""
        words = ["/".join(f"{v:.6g}" for v in (x if isinstance(x, tuple) else (x,))) for x in (self.gain, self.read)]
        return f"poisson:{','.join(words)}" + (f",{self.offset:.6g}" if self.offset else "")


class _Counts(NoiseModel):
    """deepinv's noise of the same name, with gains and levels per channel, and an offset."""

    def __init__(self, noise: PoissonGaussian, rng: torch.Generator):
        super().__init__(rng=rng)
        self._noise = noise

    def forward(self, x: Tensor, seed: int | None = None, **kwargs: Any) -> Tensor:
        self.rng_manual_seed(seed)  # pyright: ignore[reportArgumentType] - None is its default
        gain, read = (x.new_tensor(v if isinstance(v, tuple) else (v,)).view(1, -1, 1, 1) for v in self._values())
        noisy = x.clamp_min(0)
        if bool((gain > 0).all()):
            made = PoissonGaussianNoise(gain=gain, sigma=read, rng=self.rng)  # pyright: ignore[reportArgumentType]
            return made(noisy) + self._noise.offset
        return noisy + read * self.randn_like(x) + self._noise.offset

    def _values(self) -> tuple[Values, Values]:
        return self._noise.gain, self._noise.read


def parse_noise(text: str) -> PoissonGaussian:
    """The noise of ``poisson:GAIN[,READ[,OFFSET]]`` or ``gaussian:SIGMA``; values per channel are separated by ``/``.

    Raises:
        InvalidParameterError: the text is neither of these.
    """
    kind, _, rest = text.partition(":")
    try:
        fields = [tuple(float(v) for v in field.split("/")) for field in rest.split(",")]
    except ValueError:
        fields = []
    if any(not all(math.isfinite(v) for v in field) for field in fields):
        fields = []
    if kind == "gaussian" and len(fields) == 1:
        return PoissonGaussian(0.0, fields[0])
    if kind == "poisson" and 1 <= len(fields) <= 3 and (len(fields) < 3 or len(fields[2]) == 1):
        read, offset = fields[1] if len(fields) > 1 else (0.0,), fields[2] if len(fields) > 2 else (0.0,)
        return PoissonGaussian(fields[0], read, max(offset))
    raise InvalidParameterError(
        f"{text[:80]!r} is no noise: expected poisson:GAIN, poisson:GAIN,READ or poisson:GAIN,READ,OFFSET (GAIN is the "
        "intensity of one count, READ the standard deviation in the dark, on the scale where 1 is white), or "
        "gaussian:SIGMA"
    )


@dataclass(frozen=True)
class FoundNoise:
    """Estimated noise.

    Attributes:
        gain, read: estimates per channel.
        gain_error, read_error: their standard errors.
        grows: whether the noise clearly grows with the brightness, so that one level does not describe it.
    """

    gain: tuple[float, ...]
    read: tuple[float, ...]
    gain_error: tuple[float, ...]
    read_error: tuple[float, ...]
    grows: bool

    @property
    def noise(self) -> PoissonGaussian:
        """The model with these values."""
        return PoissonGaussian(self.gain, self.read)


def estimate_counts(y: Tensor) -> FoundNoise | None:
    """``gain`` and ``read`` of ``Var = gain · mean + read²`` in images (B, C, H, W); None if there are too few pixels.

    The differences ``(a − b − c + d)/2`` in blocks of 2×2 pixels contain the noise and little of the image. The blocks
    are sorted by their mean into classes. In each class the half in the smoothest surroundings is used, which depends
    on the means of the neighbours only, so that the selection does not bias the differences. A line is fitted to the
    variances of the classes. Clipped values are left out.

    Source of the idea: Foi, Trimeche, Katkovnik, Egiazarian, IEEE TIP 17(10), 2008. Fine texture counts as noise. Do
    not use it on images with missing pixels, or after resampling or JPEG compression.
    """
    fits = [_fit(y[:, c].detach().cpu().double().numpy()) for c in range(y.shape[1])]
    if any(f is None for f in fits):
        return None
    columns = list(zip(*[f for f in fits if f is not None], strict=True))
    return FoundNoise(*(tuple(map(float, c)) for c in columns[:4]), grows=all(columns[4]))


def _fit(images: np.ndarray) -> tuple[float, float, float, float, bool] | None:
    """gain, read, their errors, and whether the noise grows, for images (B, H, W)."""
    found = [_blocks(one) for one in images]
    mean, detail, rough = (np.concatenate(parts) for parts in zip(*found, strict=True))
    classes = min(_CLASSES, len(mean) // _IN_CLASS)
    if classes < 3:
        return None
    levels, variances, counts = [], [], []
    for members in np.array_split(np.argsort(mean), classes):
        chosen = members[np.argsort(rough[members])[: max(1, int(_SMOOTHEST * len(members)))]]
        d = detail[chosen]
        # A robust start, then the variance of what lies within 2.5 standard deviations, made unbiased.
        sigma = np.median(np.abs(d)) / 0.6745
        for _ in range(3):
            inside = np.abs(d) <= 2.5 * sigma if sigma > 0 else np.ones(len(d), bool)
            sigma = math.sqrt(np.mean(d[inside] ** 2) / _KEPT) if inside.any() else 0.0
        levels.append(mean[chosen].mean())
        variances.append(sigma**2)
        counts.append(len(chosen))
    return _line(np.array(levels), np.array(variances), np.array(counts, float))


#: E[z² | |z| ≤ 2.5] of a standard normal z.
_KEPT = 1 - 2 * 2.5 * math.exp(-(2.5**2) / 2) / math.sqrt(2 * math.pi) / math.erf(2.5 / math.sqrt(2))


def _blocks(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, differences and roughness of the surroundings of the 2×2 blocks of an image, without clipped blocks."""
    image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
    a, b, c, d = image[::2, ::2], image[::2, 1::2], image[1::2, ::2], image[1::2, 1::2]
    mean, detail = (a + b + c + d) / 4, (a - b - c + d) / 2
    around = np.pad(mean, 1, mode="edge")
    up, down, left, right = around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]
    rough = np.abs(up - down) + np.abs(left - right) + np.abs(up + down - left - right)
    usable = np.ones(mean.shape, bool)
    for end in (image.min(), image.max()):
        clipped = image == end
        if clipped.mean() > 0.002 and end > 0:
            usable &= ~(clipped[::2, ::2] | clipped[::2, 1::2] | clipped[1::2, ::2] | clipped[1::2, 1::2])
    return mean[usable], detail[usable], rough[usable]


def _line(m: np.ndarray, v: np.ndarray, n: np.ndarray) -> tuple[float, float, float, float, bool] | None:
    """The line ``v = gain · m + read²`` through the variances of classes, reweighted until it does not change."""
    used = np.ones(len(m), bool)
    fit = np.full(len(m), max(float(np.median(v)), 1e-30))
    slope = constant = 0.0
    covariance = np.zeros((2, 2))
    for _ in range(8):
        weight = np.where(used, n / (2 * fit**2), 0.0)
        design = np.stack([m, np.ones_like(m)], 1)
        normal = design.T @ (weight[:, None] * design)
        try:
            covariance = np.linalg.inv(normal)
        except np.linalg.LinAlgError:
            return None
        slope, constant = covariance @ (design.T @ (weight * v))
        if constant < 0:
            slope, constant = float((weight * v * m).sum() / max((weight * m * m).sum(), 1e-300)), 0.0
        if slope < 0:
            slope, constant = 0.0, float((weight * v).sum() / weight.sum())
        fit = np.maximum(slope * m + constant, 1e-3 * float(np.median(v)) + 1e-30)
        deviation = (v - fit) / (fit * np.sqrt(2 / n))
        used = np.abs(deviation) < max(4.0, 3 * float(np.median(np.abs(deviation))))
        if used.sum() < 3:
            used = np.ones(len(m), bool)
    excess = max(1.0, float(np.mean(deviation[used] ** 2)))
    slope_error = math.hypot(math.sqrt(max(covariance[0, 0], 0.0) * excess), _LEAST * slope)
    square_error = math.hypot(math.sqrt(max(covariance[1, 1], 0.0) * excess), 2 * _LEAST * constant)
    read = math.sqrt(max(constant, 0.0))
    read_error = square_error / (2 * read) if read**2 > square_error else math.sqrt(square_error)
    dark, bright = np.quantile(m, [0.05, 0.95])
    grows = slope > 4 * slope_error and slope * (bright - dark) > 0.5 * max(slope * dark + constant, 1e-30)
    return slope, read, slope_error, read_error, bool(grows)


def _plain(value: Values) -> Any:
    return list(value) if isinstance(value, tuple) else value
