"""Noise that grows with the brightness: the model of photon counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from deepinv.physics import NoiseModel
from torch import Tensor

from retune.errors import InvalidParameterError
from retune.operators.weighted import NoiseWeighted, variance

__all__ = ["PoissonGaussian", "parse_noise"]

Values = float | tuple[float, ...]


@dataclass(frozen=True)
class PoissonGaussian:
    """``y = offset + gain · Poisson(Ax/gain) + N(0, read²)``, with the variance ``gain · Ax + read²``.

    Attributes:
        gain: intensity of one count, on the scale of the image (1 is white); one, or one per channel.
        read: standard deviation of the noise in the dark; one, or one per channel.
        offset: value of the camera without light.

    Raises:
        InvalidParameterError: a negative number, neither gain nor read, or values for different numbers of channels.
    """

    gain: Values
    read: Values = 0.0
    offset: float = 0.0

    def __post_init__(self):
        held = self.fidelity()  # refuses numbers that are no noise
        for name in ("gain", "read"):
            value = getattr(held, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        object.__setattr__(self, "offset", held.offset)
        channels = {len(v) for v in (self.gain, self.read) if isinstance(v, tuple)}
        if len(channels) > 1:
            raise InvalidParameterError(
                f"gain = {self.gain} and read = {self.read} are for different numbers of channels: give each one, "
                "or one per channel"
            )

    def variance(self, y: Tensor) -> Tensor:
        """The variance of the noise at every value of a measurement (B, C, h, w), from its smoothed values."""
        return variance(y, _plain(self.gain), _plain(self.read), self.offset)

    def fidelity(self) -> NoiseWeighted:
        """The data fidelity that fits: least squares, weighted with the inverse variances."""
        return NoiseWeighted(_plain(self.gain), _plain(self.read), self.offset)

    def simulated(self, device: torch.device | str = "cpu") -> NoiseModel:
        """The noise of a simulated measurement, with its own generator."""
        return _Counts(self, torch.Generator(device=device))

    def values(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """gain and read as tensors (1, 1 or C, 1, 1) with the dtype and device of `like`."""
        gain, read = (v if isinstance(v, tuple) else (v,) for v in (self.gain, self.read))
        return like.new_tensor(gain).view(1, -1, 1, 1), like.new_tensor(read).view(1, -1, 1, 1)

    @property
    def grows(self) -> bool:
        """Whether it differs from Gaussian noise with one level per channel."""
        return self.offset != 0 or max(self.gain if isinstance(self.gain, tuple) else (self.gain,)) > 0

    @property
    def level(self) -> Values:
        """The standard deviation of the noise at half of white, one number or one per channel."""
        gains, reads = (v if isinstance(v, tuple) else (v,) for v in (self.gain, self.read))
        count = max(len(gains), len(reads))
        each = zip(gains * (count // len(gains)), reads * (count // len(reads)), strict=True)
        found = tuple(math.sqrt(0.5 * g + r**2) for g, r in each)
        return found if count > 1 else max(found)

    def __str__(self) -> str:
        """The form of the command line: ``poisson:GAIN,READ,OFFSET``. Channels are separated by ``/``."""
        words = ["/".join(f"{v:.6g}" for v in (x if isinstance(x, tuple) else (x,))) for x in (self.gain, self.read)]
        return f"poisson:{','.join(words)}" + (f",{self.offset:.6g}" if self.offset else "")


class _Counts(NoiseModel):
    """deepinv's noise of the same name, with gains and levels per channel, and an offset."""

    def __init__(self, noise: PoissonGaussian, rng: torch.Generator):
        super().__init__(rng=rng)
        self._noise = noise

    def forward(self, x: Tensor, seed: int | None = None, **kwargs: Any) -> Tensor:
        self.rng_manual_seed(seed)  # pyright: ignore[reportArgumentType] - None is its default
        gain, read = self._noise.values(x)
        light = x.clamp_min(0)
        counts = gain * torch.poisson(light / torch.where(gain > 0, gain, 1.0), generator=self.rng)
        return torch.where(gain > 0, counts, light) + read * self.randn_like(x) + self._noise.offset


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


def _plain(value: Values) -> Any:
    return list(value) if isinstance(value, tuple) else value
