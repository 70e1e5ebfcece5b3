"""A first rough picture, long before the restoration is at rest. The user sees at once where it leads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retune import weights
from retune.errors import RetuneError
from retune.jobs.inputs import middle
from retune.jobs.instant import InstantModel
from retune.jobs.opened import OpenedModel
from retune.operators.data_prox import QuadraticProx
from retune.operators.data_term import DataTerm
from retune.problems.base import Problem

__all__ = ["first_picture"]

#: Larger measurements are shown by their middle, of this side in pixels.
_SIDE = 512
#: Steps of conjugate gradients. More of them undo more of the blur, and take longer.
_STEPS = 10
#: γ is the variance of the noise times this number: what the steps add stays a fifth of the noise or more.
_DAMPING = 25.0
#: Smallest γ, for a measurement without noise.
_LEAST = 1e-8
#: The steps make the noise about twice as strong.
_GROWN = 2.0
#: Noise levels of the denoiser that ships.
_LEVELS = (2 / 255, 55 / 255)


def first_picture(model: OpenedModel | InstantModel, problem: Problem, y: Tensor) -> Tensor | None:
    """A rough restoration of a measurement (1, C, h, w): ``D(argmin ½‖Ax − y‖² + ½γ‖x − x⁰‖²)``.

    x⁰ is the start of the network, γ is 25 times the variance of the noise, and D is the denoiser that ships. Ten
    steps of conjugate gradients approach the minimum. Only the middle of a large measurement is restored.

    Args:
        model: the network.
        problem: the problem of y.
        y: the measurement.

    Returns:
        The image (1, C, H, W); None if there is no such picture, or if the restoration itself is as fast.
    """
    try:
        problem, y = middle(problem, y, _SIDE)
        opened, problem = model.fitted(problem, y)
        if problem.only_noise and model.denoises_at_once:
            return None
        problem = problem.borderless() if opened.borderless else problem
        physics = problem.operator(y)
        with torch.no_grad():
            bound = opened.net.bind(y, physics).map
            data_term = bound.data_term
            start = bound.image(bound.init())
            noise = float(problem.variance(y).mean().clamp_min(0).sqrt())
            if problem.has_gaps:  # filled in already: a mask has nothing to undo
                return problem.frame(_denoised(start, noise))
            if data_term is None:  # a map of the user's own need not keep it
                return None
            x = _nearer(data_term, start, _DAMPING * noise**2)
            return problem.frame(_denoised(x, noise if problem.only_noise else _GROWN * noise))
    except (RetuneError, RuntimeError, ValueError):  # the restoration has the reason, and says it
        return None


def _nearer(data_term: DataTerm, start: Tensor, damping: float) -> Tensor:
    """``argmin ½‖Ax − y‖² + ½γ‖x − x⁰‖²`` by conjugate gradients from x⁰: a prox for the step 1/γ."""
    step = torch.tensor(1 / max(damping, _LEAST), dtype=start.dtype)
    prox = QuadraticProx(data_term.normal, data_term.adjoint_y, step, torch.ones(1))
    return prox(start, most=_STEPS)


def _denoised(x: Tensor, noise: float) -> Tensor:
    """``D_σ(x)``, on the scale of its training: white is the brightness of almost all pixels."""
    values = x.flatten()[:: max(1, x.numel() // 100_000)]
    white = float(values.abs().quantile(0.995))
    if not (math.isfinite(white) and white > 0 and noise > 0):
        return x
    denoise = weights.load("denoiser-color" if x.shape[1] == 3 else "denoiser-gray")
    images = x if x.shape[1] == 3 else x.reshape(-1, 1, *x.shape[-2:])
    return (white * denoise(images / white, min(max(noise / white, _LEVELS[0]), _LEVELS[1]))).reshape(x.shape)
