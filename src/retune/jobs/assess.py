"""How well a restoration does, estimated from its measurements alone, and how sure that is."""

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

#: Side of the blocks over which errors are averaged; far enough apart in an image, they are nearly independent.
BLOCK = 32
#: More images, or pixels a side, than these add time and little certainty.
IMAGES, SIDE = 4, 256
#: Relative change per block at which a restoration is good enough to have its error estimated.
NEAR = 5e-4
#: Factors by which the strength is varied, to find the statistically indistinguishable ones.
FACTORS = (0.5, 0.71, 1.41, 2.0)


class Scene:
    """The measurements that the errors are estimated on: some images, whole or by their middle.

    Args:
        problem: what was measured.
        measured: (1, C, h, w) each.
        side: pixels a side of the middle that is taken of larger ones.
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
    """The network as it is used, whatever became of the solve: its trouble shows in the figure."""

    def __init__(self, net: Restarted):
        super().__init__()
        self.net = net

    def forward(self, y: Tensor, physics: LinearPhysics) -> Tensor:
        stop = self.net.stop
        near = replace(stop, rtol=max(stop.rtol, NEAR)) if stop.rtol > 0 else stop
        return self.net.solve(y, physics, stop=near).image


def error_blocks(net: Restarted, scene: Scene, estimate: ErrorEstimate, seed: int) -> Tensor:
    """Estimated squared errors (n,), means over blocks of the measurements; the same seed gives the same draws."""
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
    """Two restorations of the same measurements by their estimated errors.

    Attributes:
        before, after: estimated PSNR in dB; None where the estimated error is not positive.
        gain: of the second, in dB; None as above.
        spread: standard error of the gain, from the blocks; None as above, and where there is one block only.
        uncertainty: standard error of `after`, as above; larger, since both have much of their error in common.
        better: whether the second has the smaller estimated error.
    """

    before: float | None
    after: float | None
    gain: float | None
    spread: float | None
    better: bool
    uncertainty: float | None


def compare_errors(before: Tensor, after: Tensor) -> Comparison:
    """Compare blocks of estimated errors, pair by pair."""
    one, two = float(before.mean()), float(after.mean())
    if min(one, two) <= 0:
        return Comparison(_psnr(one), _psnr(two), None, None, two < one, None)
    # d(10 log10 e) = 10/ln 10 · de/e, for both, with their common part left out.
    relative = after / two - before / one
    decibel = 10 / math.log(10)
    errors = (decibel * _standard_error(e) for e in (relative, after / two))
    spread, uncertainty = (e if math.isfinite(e) else None for e in errors)
    return Comparison(_psnr(one), _psnr(two), 10 * math.log10(one / two), spread, two < one, uncertainty)


def indistinguishable(
    net: Restarted, scene: Scene, estimate: ErrorEstimate, seed: int, chosen: Tensor
) -> tuple[float, float] | None:
    """The range of factors on the strength λ whose estimated error is within two standard errors of the chosen one.

    None for maps without a strength that is learned.
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
    """The values of all parameters on a constrained scale, by name."""
    return {name: p.value.flatten().tolist() for name, p in scalars(net.map).items() if p.learned}


def _standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.inf


def _psnr(error: float) -> float | None:
    return -10 * math.log10(error) if error > 0 else None
