"""Healthy problems and broken parts for the tests of ``retune.doctor``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from deepinv.physics import Blur, BlurFFT, Downsampling, LinearPhysics
from skimage import data

from retune import problems
from retune.diagnosis import Finding, Severity

OK, NOTE, WARNING, PROBLEM = Severity.OK, Severity.NOTE, Severity.WARNING, Severity.PROBLEM


def one(diagnosis, check) -> Finding:
    (finding,) = diagnosis.of(check)
    return finding


def photo(side=64, channels=1, top=100, left=80):
    grey = torch.tensor(data.camera()[top : top + side, left : left + side] / 255, dtype=torch.float32)
    return grey.expand(1, channels, side, side).clone()


def lopsided():
    """An asymmetric kernel, centred in mass to a third of a pixel, of sum 1; unlike any turned copy of itself."""
    k = torch.zeros(5, 5)
    k[0, 2], k[1, 2], k[2, 2], k[3, 3], k[4, 1], k[2, 4] = 0.1, 0.2, 0.3, 0.2, 0.15, 0.05
    return k[None, None]


HEALTHY = {
    "denoise": lambda: problems.denoise(0.1),
    "denoise by channel": lambda: problems.denoise((0.1, 0.25, 0.5)),
    "inpaint": lambda: problems.inpaint(0.5, 0.05),
    "deblur": lambda: problems.deblur("gaussian:1.2"),
    "deblur by channel": lambda: problems.deblur("three-motions"),
    "deblur circular": lambda: problems.deblur("gaussian:1.2", "circular"),
    "superres": lambda: problems.superres(2),
    "superres circular": lambda: problems.superres(4, boundary="circular"),
}


def correlation(kernel, gain=1.0):
    """PyTorch's conv2d, which correlates, with zeros outside."""
    p = kernel.shape[-1] // 2
    return LinearPhysics(
        A=lambda x, **_: gain * F.conv2d(x, kernel.to(x), padding=p),
        A_adjoint=lambda y, **_: gain * F.conv_transpose2d(y, kernel.to(y), padding=p),
    )


def blurs(kernel):
    size = (1, 32, 32)
    return {
        "reflect": Blur(kernel, padding="reflect"),
        "valid": Blur(kernel, padding="valid"),
        "fft": BlurFFT(size, kernel),
        "subsampled": Downsampling(size, filter=kernel, factor=2, padding="reflect"),
        "subsampled valid": Downsampling(size, filter=kernel, factor=3, padding="valid"),
    }
