"""Weighted least squares: the data fidelity of noise that grows with the brightness, as photon counts have."""

from __future__ import annotations

import weakref
from numbers import Real
from typing import Any

import torch
from deepinv.optim.data_fidelity import DataFidelity
from torch import Tensor
from torch.nn.functional import conv2d, pad

from retune._registry.describe import by_arguments
from retune._registry.entries import register
from retune.errors import InvalidParameterError, ShapeError
from retune.operators.fidelity import EVERYWHERE, FidelityFacts, checked_by_us

__all__ = ["NoiseWeighted", "smoothed", "variance"]

#: Standard deviation in pixels, and reach, of the Gaussian that smooths a measurement before its variances are read.
WIDTH, REACH = 1.5, 4
#: The smallest variance of an image is at least this share of its largest. A smaller one would depend on the read noise
#: alone, which is the least certain number, and would slow down the iteration.
FLOOR = 0.01
#: Gains and noise levels beyond this, and below its inverse, are refused: the squares of others overflow or vanish.
_FARTHEST = 1e12
#: Number of pixels that the Gaussian averages, ``4π · 1.5²``. Less than one count among them is not visible.
AVERAGED = 28


@checked_by_us
@register
class NoiseWeighted(DataFidelity):
    r"""``d(u, y) = ½ Σ_p (u_p + o − y_p)²/v_p`` with the variances ``v = gain · max(ȳ − o, 0) + read²`` of the noise.

    This is the negative log-likelihood of ``y = o + gain · Poisson(u/gain) + N(0, read²)``, with the Poisson noise
    taken as Gaussian of the same variance. ȳ is the measurement, smoothed by a Gaussian of 1.5 pixels: it stands for
    the unknown mean of y. So the variances are constants of the iteration, and d is convex and quadratic in u. A
    variance below a hundredth of the largest one of its image is raised to that value. A variance below that of one
    count per 28 pixels, the least that the Gaussian can see, is raised in the same way.

    Source of the model: Foi, Trimeche, Katkovnik, Egiazarian, *Practical Poissonian-Gaussian noise modeling and fitting
    for single-image raw-data*, IEEE TIP 17(10), 2008.

    Args:
        gain: intensity of one count (of one photon or electron), on the scale of the image; one, or one per channel.
            0 for noise that does not depend on the brightness.
        read: standard deviation of the noise in the dark, on the scale of the image; one, or one per channel.
        offset: o, the value that the camera shows without light.

    Raises:
        InvalidParameterError: a negative number, or gain and read are both 0.
    """

    def __init__(self, gain: float | list[float], read: float | list[float] = 0.0, offset: float = 0.0):
        super().__init__()
        self.gain, self.read = _levels("gain", gain), _levels("read", read)
        if not isinstance(offset, Real) or not abs(float(offset)) < float("inf"):
            raise InvalidParameterError(f"offset must be a finite number, got {offset!r}")
        self.offset = float(offset)
        if max(_many(self.gain)) <= 0 and max(_many(self.read)) <= 0:
            raise InvalidParameterError("gain and read are both 0, so there is no noise: give one of them")
        self._last: tuple[weakref.ref[Tensor], int, Tensor] | None = None

    describe = by_arguments

    def __getstate__(self) -> dict[str, Any]:
        """The state without the weights of the last measurement, which are computed again when needed."""
        return {**self.__dict__, "_last": None}

    def fn(self, x: Tensor, y: Tensor, physics: Any, *args: Any, **kwargs: Any) -> Tensor:
        """``d(Ax, y)`` per image, shape (B,)."""
        return self._value(physics.A(x), y)

    def grad(self, x: Tensor, y: Tensor, physics: Any, *args: Any, **kwargs: Any) -> Tensor:
        """``Aᵀ(w ⊙ (Ax + o − y))``, shape of x."""
        residual = physics.A(x) - (y - self.offset if self.offset else y)
        return physics.A_adjoint(residual * self.weights(y))

    def _value(self, u: Tensor, y: Tensor) -> Tensor:
        residual = u - (y - self.offset if self.offset else y)
        return 0.5 * (residual.square() * self.weights(y)).flatten(1).sum(1)

    def weights(self, y: Tensor) -> Tensor:
        """``1/v``, shape of y. The weights of the last measurement are kept."""
        # Weights with a graph are used only once, and torch does not count the changes of an inference tensor.
        if y.requires_grad or y.is_inference():
            return 1 / variance(y, self.gain, self.read, self.offset)
        if self._last is None or self._last[0]() is not y or self._last[1] != y._version:
            self._last = weakref.ref(y), y._version, 1 / variance(y, self.gain, self.read, self.offset)
        return self._last[2]

    def facts(self, y: Tensor) -> FidelityFacts:
        """The constants: the largest weight of each image, and the smallest of all."""
        weights = self.weights(y).detach()
        return FidelityFacts(
            lipschitz=weights.flatten(1).amax(1),
            convex=True,
            strong=float(weights.min()),
            domain=EVERYWHERE,
            how="the largest of the weights 1/v",
            value=self._value,
            affine=True,
        )


def variance(y: Tensor, gain: float | list[float], read: float | list[float], offset: float = 0.0) -> Tensor:
    """The variance of the noise at every value of a measurement (B, C, h, w): see ``NoiseWeighted``.

    Raises:
        ShapeError: not a batch of images.
        InvalidParameterError: not as many channels as values.
    """
    if y.ndim != 4:
        raise ShapeError(f"the noise of counts is known for measurements (B, C, h, w), got shape {tuple(y.shape)}")
    if offset and float(y.detach().amax()) < offset:
        raise InvalidParameterError(
            f"the offset {offset:g} of the noise is above every value of the measurement (at most "
            f"{float(y.detach().amax()):.4g}), so no light is left: give it on the scale where 1 is white"
        )
    mean = smoothed(y - offset).clamp_min(0)
    found = _per_channel(gain, y) * mean + _per_channel(read, y).square()
    largest = found.flatten(1).amax(1).view(-1, 1, 1, 1)
    return torch.maximum(found, FLOOR * largest).clamp_min(max(_many(gain)) ** 2 / AVERAGED)


def smoothed(y: Tensor) -> Tensor:
    """A measurement (B, C, h, w) after a Gaussian of 1.5 pixels; the border is repeated."""
    taps = torch.exp(-torch.arange(-REACH, REACH + 1, dtype=y.dtype, device=y.device).square() / (2 * WIDTH**2))
    taps = taps / taps.sum()
    z = pad(y, (REACH,) * 4, mode="replicate").flatten(0, 1)[:, None]
    z = conv2d(conv2d(z, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))
    return z.view(y.shape)


def _per_channel(values: float | list[float], y: Tensor) -> Tensor:
    levels = _many(values)
    if len(levels) not in (1, y.shape[1]):
        raise InvalidParameterError(
            f"the noise has values for {len(levels)} channels, but the measurement has {y.shape[1]}"
        )
    return y.new_tensor(levels).view(1, -1, 1, 1)


def _levels(name: str, value: Any) -> float | list[float]:
    plain = value.tolist() if callable(getattr(value, "tolist", None)) else value
    many = list(plain) if isinstance(plain, list | tuple) else [plain]
    numbers = [float(v) for v in many if isinstance(v, Real) and not isinstance(v, bool)]
    if not many or len(numbers) < len(many) or not all(v == 0 or 1 / _FARTHEST <= v <= _FARTHEST for v in numbers):
        raise InvalidParameterError(
            f"{name} must be 0 or a number from {1 / _FARTHEST:g} to {_FARTHEST:g}, or one per channel, got {value!r}"
        )
    return numbers if len(numbers) > 1 else numbers[0]


def _many(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]
