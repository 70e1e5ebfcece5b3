"""A denoiser for photon counts and for different noise levels of the channels: a transform makes the noise even."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from retune._registry.entries import register

__all__ = ["Stabilised"]

#: Below this value of the transform, its unbiased inverse is 0 counts.
_DARK = 2 * math.sqrt(3 / 8)


@register
class Stabilised(nn.Module):
    """``D̃ = T⁻¹ ∘ D_σ ∘ T`` for noise of variance ``gain · x + read²``.

    ``T(x) = 2 (√(gain x + c) − √c)/gain`` with ``c = ⅜ gain² + read²`` gives the noise the standard deviation 1
    (Anscombe's generalised transform). It is ``x/read`` for gain = 0. T(x) is divided by its brightness before
    D_σ, because denoisers are trained for images from 0 to 1. ``T⁻¹`` is the inverse without bias, in closed form.

    Source: Mäkitalo, Foi, *Optimal inversion of the generalized Anscombe transformation for Poisson-Gaussian noise*,
    IEEE TIP 22(1), 2013.

    Args:
        denoiser: called as ``denoiser(x, sigma)``.
        gain: growth of the variance of the noise with the brightness, one value or one per channel.
        read: standard deviation of the noise in the dark, one value or one per channel.
        offset: value of the camera without light.
        white: brightness of the image, in its own unit.
        levels: smallest and largest σ of the denoiser's training.
        each_channel: whether the denoiser gets each channel as a separate image.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        gain: tuple[float, ...],
        read: tuple[float, ...],
        *,
        offset: float = 0.0,
        white: float = 1.0,
        levels: tuple[float, float],
        each_channel: bool = False,
    ):
        super().__init__()
        self.denoiser, self.offset, self.each_channel = denoiser, offset, each_channel
        self.gain, self.read, self.white, self.levels = tuple(gain), tuple(read), white, tuple(levels)
        self.register_buffer("_gain", torch.tensor(self.gain).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("_read", torch.tensor(self.read).view(1, -1, 1, 1), persistent=False)
        top = float(self._even(torch.tensor(white), *self._constants()).max())
        self.sigma = min(max(1 / max(top, 1e-6), levels[0]), levels[1])

    def forward(self, x: Tensor) -> Tensor:
        """The denoised image without the offset, for x (B, C, h, w)."""
        gain, root = self._constants()
        z = self._even(x - self.offset, gain, root) * self.sigma
        images = z.reshape(-1, 1, *z.shape[-2:]) if self.each_channel else z
        d = self.denoiser(images, self.sigma).reshape(z.shape) / self.sigma
        counts = torch.clamp(d + 2 * root / gain.clamp_min(1e-12), min=_DARK)  # Anscombe's transform, without its shift
        wide = math.sqrt(1.5)
        bias = 0.25 + wide / (4 * counts) - 11 / (8 * counts**2) + 5 * wide / (8 * counts**3)
        return gain * d.square() / 4 + root * d + gain * bias

    def _constants(self) -> tuple[Tensor, Tensor]:
        gain, read = self.get_buffer("_gain"), self.get_buffer("_read")
        return gain, (0.375 * gain.square() + read.square()).sqrt()

    @staticmethod
    def _even(x: Tensor, gain: Tensor, root: Tensor) -> Tensor:
        return 2 * x / ((gain * x + root.square()).clamp_min(0).sqrt() + root)
