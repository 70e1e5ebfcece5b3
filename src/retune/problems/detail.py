"""How much of the finest detail of an image a measurement keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from retune.errors import InvalidParameterError, ShapeError
from retune.problems.base import Problem

__all__ = ["kept_detail"]

#: Width of the border that is left out: there the operator may assume something about the scene beyond.
_BORDER = 8
#: The share does not depend on the size of the image, so a part of this side suffices.
_SIDE = 256


def kept_detail(problem: Problem, y: Tensor) -> float:
    """Share of the variance of the finest details of a scene that remains in its measurement.

    Details are second differences along both axes, as in ``estimate_counts``. The scene is random, with a Fourier
    amplitude that falls like 1/frequency, as in photographs. For a Gaussian blur of 1 pixel the share is 0.002, of 1.6
    pixels 0.00007.

    Args:
        problem: the problem. Its noise has no influence.
        y: a measurement (B, C, h, w); only its size is used.

    Returns:
        The share. It is 1 if nothing is known: for noise alone, or if the part is too small for the operator.
    """
    y = y[:1, :, :_SIDE, :_SIDE]
    size = problem.image_size((y.shape[1], y.shape[2], y.shape[3]))
    if problem.only_noise or min(*size[1:], *y.shape[-2:]) < 3 * _BORDER:
        return 1.0
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in size[1:])
    frequency = torch.hypot(rows[:, None], columns[None])
    frequency[0, 0] = torch.inf
    noise = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scene = torch.fft.ifft2(torch.fft.fft2(noise) / frequency).real[None].to(y)
    try:
        operator = problem.operator(y)
    except (InvalidParameterError, ShapeError):  # a kernel that is larger than the part
        return 1.0
    with torch.no_grad():
        measured = operator.A(scene)
    return float(_details(measured) / _details(scene).clamp(min=1e-30))


def _details(x: Tensor) -> Tensor:
    twice = x.diff(dim=-1).diff(dim=-1).diff(dim=-2).diff(dim=-2)
    return twice[..., _BORDER:-_BORDER, _BORDER:-_BORDER].square().mean()
