"""Gaussian noise with one level per channel, which deepinv lacks."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from deepinv.physics import GaussianNoise, NoiseModel
from torch import Tensor

from retune.errors import InvalidParameterError, ShapeError, advice, wrong_type

__all__ = ["ChannelGaussianNoise", "estimate_noise", "gaussian_noise", "noise_levels"]

#: Side of the smallest image from which a noise level is estimated: its finest wavelet coefficients are 2×2 or more.
_SMALLEST = 5


class ChannelGaussianNoise(NoiseModel):
    """``y = z + ε``, with ``ε ~ N(0, σ_c²)`` independent in every pixel of channel c.

    Args:
        sigma: standard deviations, one per channel, in the units of the image.
        rng: generator on the device of the images, for reproducible noise.

    Attributes:
        is_gaussian: that ``sigma`` holds the standard deviations of white Gaussian noise. A noise model of yours may
            say the same.
    """

    is_gaussian = True

    def __init__(self, sigma: Sequence[float], rng: torch.Generator | None = None):
        super().__init__(rng=rng)  # pyright: ignore[reportArgumentType] - None is its default
        self.sigma: Tensor
        self.register_buffer("sigma", torch.as_tensor(sigma, dtype=torch.get_default_dtype()))

    def forward(self, x: Tensor, seed: int | None = None, **kwargs) -> Tensor:
        """Add the noise to a batch (B, C, H, W)."""
        if x.shape[1] != len(self.sigma):
            raise ShapeError(
                f"noise levels for {len(self.sigma)} channels, but the image has shape {tuple(x.shape)}; give one "
                f"level for all channels, e.g. {advice('sigma=0.1', '--sigma 0.1')}"
            )
        self.rng_manual_seed(seed)  # pyright: ignore[reportArgumentType] - None is its default
        return x + self.randn_like(x) * self.sigma.to(x).view(1, -1, 1, 1)


def noise_levels(sigma: float | Sequence[float] | np.ndarray | Tensor) -> float | tuple[float, ...]:
    """One standard deviation, or one per channel, as plain floats.

    Raises:
        InvalidParameterError: not a number, or not a valid standard deviation.
    """
    given = _plain(sigma)
    many = isinstance(given, list | tuple)
    levels = [_plain(s) for s in given] if many else [given]
    if not all(isinstance(s, Real) and not isinstance(s, bool) for s in levels):
        raise wrong_type("sigma", sigma, "one standard deviation, or a sequence of one per channel", "e.g. sigma=0.1")
    if not levels or not all(0 <= s < float("inf") for s in levels):
        raise InvalidParameterError(f"sigma must be one standard deviation ≥ 0, or one per channel, got {sigma!r}")
    return tuple(float(s) for s in levels) if many else float(levels[0])


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value


def gaussian_noise(sigma: float | Sequence[float], device: torch.device | str = "cpu") -> NoiseModel:
    """The noise model, with its own generator, for one level or one level per channel."""
    levels = noise_levels(sigma)
    rng = torch.Generator(device=device)
    return ChannelGaussianNoise(levels, rng=rng) if isinstance(levels, tuple) else GaussianNoise(levels, rng=rng)


def estimate_noise(y: Tensor) -> float | tuple[float, ...]:
    """The standard deviation of white Gaussian noise in images (B, C, H, W), one per channel.

    It comes from the median of the finest diagonal wavelet coefficients (Donoho and Johnstone, *Biometrika* 81(3),
    1994), as in scikit-image, averaged over the batch. Fine texture counts as noise: expect an estimate that is some
    per cent too high on photographs. Do not use it on images with missing pixels, or after resampling or JPEG
    compression: both correlate the noise.

    Raises:
        InvalidParameterError: no visible noise, as in constant images; or an image of a few pixels.
    """
    from skimage.restoration import estimate_sigma

    if min(y.shape[-2:]) < _SMALLEST:
        raise InvalidParameterError(
            f"the noise level cannot be estimated from {y.shape[-2]}×{y.shape[-1]} pixels: at least "
            f"{_SMALLEST}×{_SMALLEST} are needed. Give the level, e.g. {advice('sigma=0.01', '--sigma 0.01')}"
        )
    images = y.detach().cpu().double().permute(0, 2, 3, 1).numpy()
    levels = np.mean([np.atleast_1d(estimate_sigma(one, channel_axis=-1)) for one in images], axis=0)
    if not np.isfinite(levels).all() or levels.min() < 1e-7:
        seen = f" (estimate {' '.join(f'{v:.1e}' for v in levels)})" if np.isfinite(levels).all() else ""
        raise InvalidParameterError(
            f"the noise level cannot be estimated: no noise is visible{seen}. Give the level, e.g. "
            f"{advice('sigma=0.01', '--sigma 0.01')}"
        )
    return float(levels[0]) if len(levels) == 1 else tuple(float(v) for v in levels)
