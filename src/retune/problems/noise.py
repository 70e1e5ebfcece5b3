"""Noise that deepinv lacks: Gaussian with one level per channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from deepinv.physics import GaussianNoise, NoiseModel
from torch import Tensor

from retune.errors import InvalidParameterError, ShapeError

__all__ = ["ChannelGaussianNoise", "gaussian_noise"]


class ChannelGaussianNoise(NoiseModel):
    """``y = z + ε``, with ``ε ~ N(0, σ_c²)`` independent in every pixel of channel c.

    Args:
        sigma: standard deviations, one per channel, in the units of the image.
        rng: generator on the device of the images, for reproducible noise.
    """

    def __init__(self, sigma: Sequence[float], rng: torch.Generator | None = None):
        super().__init__(rng=rng)  # pyright: ignore[reportArgumentType] - None is its default
        self.sigma: Tensor
        self.register_buffer("sigma", torch.as_tensor(sigma, dtype=torch.get_default_dtype()))

    def forward(self, x: Tensor, seed: int | None = None, **kwargs) -> Tensor:
        """Add the noise to a batch (B, C, H, W)."""
        if x.shape[1] != len(self.sigma):
            raise ShapeError(f"noise levels for {len(self.sigma)} channels, but the image has shape {tuple(x.shape)}")
        self.rng_manual_seed(seed)  # pyright: ignore[reportArgumentType] - None is its default
        return x + self.randn_like(x) * self.sigma.to(x).view(1, -1, 1, 1)


def gaussian_noise(sigma: float | Sequence[float], device: torch.device | str = "cpu") -> NoiseModel:
    """The noise model for one level, or one level per channel, with a generator of its own."""
    levels = [float(sigma)] if isinstance(sigma, int | float) else [float(s) for s in sigma]
    if not levels or not all(0 <= s < float("inf") for s in levels):
        raise InvalidParameterError(f"sigma must be one standard deviation ≥ 0, or one per channel, got {sigma!r}")
    rng = torch.Generator(device=device)
    if isinstance(sigma, int | float):
        return GaussianNoise(float(sigma), rng=rng)
    return ChannelGaussianNoise(levels, rng=rng)
