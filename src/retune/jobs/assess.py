"""Estimate the error of restorations from the measurements alone, and the uncertainty of the estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from retune._torch.batch import middle
from retune._torch.streams import seeded, stream
from retune.model import Restarted
from retune.parameters import scalars
from retune.problems.base import Problem
from retune.problems.measured import Measurements
from retune.training.unsupervised import ErrorEstimate

__all__ = ["Comparison", "Scene", "compare_errors", "error_blocks", "indistinguishable", "learned"]

#: Side of the blocks over which errors are averaged. Blocks of this size are nearly independent.
BLOCK = 32
#: More images, or more pixels per side, cost time and hardly reduce the uncertainty.
IMAGES, SIDE = 4, 256
#: Relative change per block at which the error of a restoration can be estimated.
NEAR = 5e-4
#: Factors on the strength among which the statistically indistinguishable ones are found.
FACTORS = (0.5, 0.71, 1.41, 2.0)


class Scene:
    """The measurements on which errors are estimated: a few images, the large ones cropped to their middle.

    Args:
        problem: the problem of the measurements.
        measured: the measurements, (1, C, h, w) each.
        side: larger measurements are cropped to this many pixels per side.
    """

    def __init__(self, problem: Problem, measured: Sequence[Tensor], side: int = SIDE):
        step = max(1, math.ceil(len(measured) / IMAGES))
        self._parts: list[tuple[Tensor, LinearPhysics]] = []
        for y in measured[::step]:
            large = max(y.shape[-2:]) > side and problem.describe().get("options") is None
            made = Measurements(problem, crops=large)
            packed = made.pack(y)[None]
            if large:
                packed = packed[middle(y, side)]
            self._parts.append(made.measure(packed))

    def __iter__(self):
        return iter(self._parts)


class _Settled(nn.Module):
    """The network in use. A solve that fails raises no error here: it increases the estimated error."""

    def __init__(self, net: Restarted):
        super().__init__()
        self.net = net

    def forward(self, y: Tensor, physics: LinearPhysics) -> Tensor:
        stop = self.net.stop
        near = replace(stop, rtol=max(stop.rtol, NEAR)) if stop.rtol > 0 else stop
        return self.net.solve(y, physics, stop=near).image


def error_blocks(net: Restarted, scene: Scene, estimate: ErrorEstimate, seed: int) -> Tensor:
    """Estimated squared errors, shape (n,), one mean per block of the measurements. Equal seeds give equal draws."""
    net.eval()
    device = next(net.parameters()).device
    model = estimate.adapt_model(_Settled(net)).eval()
    blocks = []
    for i, (y, physics) in enumerate(scene):
        with torch.no_grad(), seeded(stream(seed, 77, i), device):
            errors = estimate.map(model(y, physics), y, physics, model).mean(1, keepdim=True)
        grid = (max(1, errors.shape[-2] // BLOCK), max(1, errors.shape[-1] // BLOCK))
        blocks.append(adaptive_avg_pool2d(errors, grid).flatten())
    return torch.cat(blocks).double().cpu()


@dataclass(frozen=True)
class Comparison:
    """The estimated errors of two restorations of the same measurements.

    Attributes:
        before, after: estimated PSNR in dB; None where the estimated error is not positive.
        gain: gain of the second in dB; None as above.
        spread: standard error of the gain, from the blocks; None as above, or if there is only one block.
        uncertainty: standard error of `after`, as above. It is larger, because both share much of their error.
        better: whether the second has the smaller estimated error.
    """

    before: float | None
    after: float | None
    gain: float | None
    spread: float | None
    better: bool
    uncertainty: float | None


def compare_errors(before: Tensor, after: Tensor, clearly: float = 0.0) -> Comparison:
    """Compare estimated errors block by block."""
    one, two = float(before.mean()), float(after.mean())
    if min(one, two) <= 0:
        return Comparison(_psnr(one), _psnr(two), None, None, two < one, None)
    # d(10 log10 e) = 10/ln 10 · de/e for both. The difference cancels their common part.
    relative = after / two - before / one
    decibel = 10 / math.log(10)
    errors = (decibel * _standard_error(e) for e in (relative, after / two))
    spread, uncertainty = (e if math.isfinite(e) else None for e in errors)
    gain = 10 * math.log10(one / two)
    better = two < one and (clearly <= 0 or (spread is not None and gain > clearly * spread))
    return Comparison(_psnr(one), _psnr(two), gain, spread, better, uncertainty)


def indistinguishable(
    net: Restarted, scene: Scene, estimate: ErrorEstimate, seed: int, chosen: Tensor
) -> tuple[float, float] | None:
    """The range of factors on the strength λ whose estimated error is within two standard errors of the chosen one.

    None for maps without a learned strength.
    """
    reg = scalars(net.map).get("reg")
    if reg is None or not reg.learned or not reg.logarithmic:
        return None
    kept = reg.raw.detach().clone()
    as_good = [1.0]
    try:
        for factor in FACTORS:
            with torch.no_grad():
                reg.raw.copy_(kept + math.log(factor))
            worse = error_blocks(net, scene, estimate, seed) - chosen
            if float(worse.mean()) <= 2 * _standard_error(worse):
                as_good.append(factor)
    finally:
        with torch.no_grad():
            reg.raw.copy_(kept)
    return min(as_good), max(as_good)


def learned(net: Restarted) -> dict[str, list[float]]:
    """The values of all learned parameters on a constrained scale, by name."""
    return {name: p.value.flatten().tolist() for name, p in scalars(net.map).items() if p.learned}


def _standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.inf


def _psnr(error: float) -> float | None:
    return -10 * math.log10(error) if error > 0 else None
