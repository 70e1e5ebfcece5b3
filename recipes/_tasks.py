"""Random measurements of crops: noise alone, blurs, and missing pixels, each with its own noise level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from deepinv.physics.generator import MotionBlurGenerator
from torch import Tensor

from retune.data import random_crops
from retune.errors import InvalidParameterError
from retune.operators.holes import fill

__all__ = ["KINDS", "Measured", "draw"]

KINDS = ("denoise", "deblur", "inpaint")
#: Shares of blurs and of missing pixels, among the crops with an operator. Blurs teach more, so they come more often.
_SHARES = (0.7, 0.3)
#: Noise levels, uniform for noise alone, and with uniform logarithms otherwise.
_NOISE = ((2 / 255, 55 / 255), (0.003, 0.08), (0.004, 0.1))
#: The loss leaves out this border of a crop: its blur is periodic, unlike that of a photograph.
_BORDER = 8
_TAPS = 25


@dataclass(frozen=True)
class Measured:
    """Measurements ``y = M (k ∗ x) + noise`` of crops, each with its mask M and its periodic blur k.

    Attributes:
        clean, y: (B, C, h, w).
        start: where to begin the descent: y with its missing pixels filled in.
        kernel: Fourier transform of k, (B, 1, h, w // 2 + 1).
        mask: M, (B, 1, h, w).
        noise: σ_n, (B, 1, 1, 1).
        kind: index into `KINDS`, (B,).
    """

    clean: Tensor
    y: Tensor
    start: Tensor
    kernel: Tensor
    mask: Tensor
    noise: Tensor
    kind: Tensor

    def to(self, device: str | torch.device) -> Measured:
        return Measured(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def normal(self, x: Tensor) -> Tensor:
        """``AᵀA x``."""
        blurred = self._filter(x, self.kernel)
        return self._filter(self.mask * blurred, self.kernel.conj())

    def adjoint(self) -> Tensor:
        """``Aᵀ y``."""
        return self._filter(self.mask * self.y, self.kernel.conj())

    def weight(self) -> Tensor:
        """Weight of the squared error of every pixel, (B, 1, h, w).

        Errors grow with the noise, and a blur causes an error even without noise. The weight keeps easy crops from
        being neglected beside difficult ones.
        """
        extra = torch.tensor([0.0, 0.05, 0.05]).to(self.noise)[self.kind].reshape(self.noise.shape)
        inside = torch.zeros_like(self.mask)
        inside[..., _BORDER:-_BORDER, _BORDER:-_BORDER] = 1
        inside = torch.where((self.kind == 0).reshape(self.noise.shape), torch.ones_like(inside), inside)
        return inside / inside.mean((-2, -1), keepdim=True) / (self.noise + extra) ** 1.5

    @staticmethod
    def _filter(x: Tensor, kernel: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * kernel, s=x.shape[-2:])


def draw(images: Sequence[Tensor], count: int, size: int, seed: int, number: int, noise_alone: float = 0.5) -> Measured:
    """Measurements of random crops, a share `noise_alone` of them without an operator. All follows from (seed, number).

    Raises:
        InvalidParameterError: crops that are smaller than a kernel.
    """
    if size < _TAPS:
        raise InvalidParameterError(f"--crop must be at least {_TAPS}, the side of the kernels, got {size}")
    generator = torch.Generator().manual_seed(seed * 100_000_007 + number)
    clean = random_crops(images, count, size, generator)
    if int(torch.randint(2, (), generator=generator)):
        clean = clean.transpose(-1, -2)
    shares = torch.tensor([noise_alone, *((1 - noise_alone) * s for s in _SHARES)])
    kind = torch.multinomial(shares, count, replacement=True, generator=generator)
    kernel, mask = torch.zeros(count, 1, size, size), torch.ones(count, 1, size, size)
    kernel[..., 0, 0] = 1
    noise = torch.empty(count, 1, 1, 1)
    for i, name in enumerate(KINDS[k] for k in kind.tolist()):
        low, high = _NOISE[KINDS.index(name)]
        t = float(torch.rand((), generator=generator))
        noise[i] = low + (high - low) * t if name == "denoise" else low * (high / low) ** t
        if name == "deblur":
            psf = _kernel(generator)
            centre = psf.shape[-1] // 2
            kernel[i, 0] = 0
            kernel[i, 0, : psf.shape[-1], : psf.shape[-1]] = psf
            kernel[i] = kernel[i].roll((-centre, -centre), (-2, -1))
        elif name == "inpaint":
            kept = 0.2 + 0.6 * float(torch.rand((), generator=generator))
            mask[i] = (torch.rand(1, size, size, generator=generator) < kept).float()
    transform = torch.fft.rfft2(kernel)
    exact = mask * Measured._filter(clean, transform)
    y = exact + mask * noise * torch.randn(clean.shape, generator=generator)
    start = fill(y, (mask == 0).expand_as(y))
    return Measured(clean, y, start, transform, mask, noise, kind)


def _kernel(generator: torch.Generator) -> Tensor:
    """A Gaussian, a disc or a motion, of random size, (25, 25), with sum 1."""
    which, size = (float(t) for t in torch.rand(2, generator=generator))
    if which < 0.4:
        axis = torch.arange(_TAPS, dtype=torch.float32) - _TAPS // 2
        line = torch.exp(-0.5 * (axis / (0.6 + 1.9 * size)) ** 2)
        psf = line[:, None] * line
    elif which < 0.55:
        axis = torch.linspace(-(_TAPS // 2) - 0.4, _TAPS // 2 + 0.4, 5 * _TAPS)
        disc = (axis[:, None] ** 2 + axis**2 <= (1 + 4 * size) ** 2).float()
        psf = disc.reshape(_TAPS, 5, _TAPS, 5).sum((1, 3))
    else:
        motion = MotionBlurGenerator((_TAPS, _TAPS), l=0.1 + 0.5 * size, sigma=0.1 + 0.3 * size)
        seed = int(torch.randint(2**31, (), generator=generator))
        psf = motion.step(1, seed=seed)["filter"][0, 0].float()
    return psf / psf.sum()
