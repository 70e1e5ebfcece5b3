"""Filter banks under stress: random training, and the image to which they respond most."""

from __future__ import annotations

import math

import torch

from retune.priors.filters import FilterBank


def trained(filters: FilterBank, steps: int = 5, lr: float = 3.0) -> FilterBank:
    """After a few steps along random directions, far larger than training takes."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _ in range(steps):
            for w in filters.parameters():
                w += lr * torch.randn(w.shape, generator=generator).to(w)
    return filters


def wave(kernels: torch.Tensor, side: int) -> torch.Tensor:
    """The plane wave and colour to which the filters respond most, on a square image."""
    grid = 96
    spectrum = torch.fft.fft2(kernels.double(), s=(grid, grid)).flatten(2)
    gram = torch.einsum("ncf,ndf->fcd", spectrum.conj(), spectrum)
    values, vectors = torch.linalg.eigh(gram)
    at = int(values[:, -1].argmax())
    row, column = divmod(at, grid)
    t = torch.arange(side, dtype=torch.float64)
    phase = 2 * math.pi / grid * (row * t[:, None] + column * t[None, :])
    colour = vectors[at, :, -1].conj()
    return (torch.polar(torch.ones_like(phase), phase) * colour[:, None, None]).real[None]
