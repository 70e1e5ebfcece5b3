"""Estimate the error of restorations from the measurements alone, and the uncertainty of the estimate.

An estimate uses other random draws than the training. If the measurements are several pages of one scene, one page
judges the restoration of another, and no estimate is needed.
"""

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
from retune.diagnosis.residual import ResidualKind, judge
from retune.model import Restarted
from retune.parameters import scalars
from retune.problems.base import Problem
from retune.problems.measured import Measurements
from retune.records import EstimatedGain
from retune.training.thinned import against
from retune.training.unsupervised import ErrorEstimate

__all__ = [
    "Errors",
    "Scene",
    "error_blocks",
    "estimated_gain",
    "gain_of_errors",
    "indistinguishable",
    "learned",
    "settled",
]

#: Side of the blocks over which errors are averaged. Blocks of this size are nearly independent.
BLOCK = 32
#: More images, or more pixels per side, cost time and hardly reduce the uncertainty.
IMAGES, SIDE = 4, 256
#: Relative change per block at which the error of a restoration can be estimated.
NEAR = 5e-4
#: Factors on the strength. Those whose errors are statistically indistinguishable are reported.
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
        self._others: list[Tensor | None] = []
        self.offset = 0.0 if problem.noise is None else problem.noise.offset
        for i in range(0, len(measured), step):
            y = measured[i]
            large = max(y.shape[-2:]) > side and problem.describe().get("options") is None
            made = Measurements(problem, crops=large)
            part = middle(y, side) if large else ...
            self._parts.append(made.measure(made.pack(y)[None][part]))
            other = _same_scene(problem, measured, i)
            self._others.append(None if other is None else other[part])

    def __iter__(self):
        return iter(self._parts)

    @property
    def paged(self) -> bool:
        """Whether every measurement has another one of the same scene, by which it is judged."""
        return all(other is not None for other in self._others)

    def other(self, i: int) -> Tensor | None:
        """The other measurement of the scene of the i-th one, if all have one."""
        return self._others[i] if self.paged else None


def _same_scene(problem: Problem, measured: Sequence[Tensor], i: int) -> Tensor | None:
    """The next measurement (the one before for the last), if it shows the same: both differ by white noise only."""
    y = measured[i]
    if problem.has_gaps or len(measured) < 2:
        return None
    other = measured[i + 1 if i + 1 < len(measured) else i - 1]
    if other.shape != y.shape or torch.equal(other, y):
        return None
    whole, part = other, middle(y, SIDE)
    y, other = y[part], other[part]
    deviation = (problem.variance(y) + problem.variance(other)).sqrt().clamp_min(1e-12)
    white = (ResidualKind.WHITE, ResidualKind.LARGE, ResidualKind.SMALL)
    if judge(((y - other) / deviation)[0]).kind not in white:
        return None
    plain = judge((y - y.mean())[0], known=False).kind  # pages of noise alone do not show that they have one scene
    return None if plain is ResidualKind.WHITE else whole


def settled(net: Restarted) -> nn.Module:
    """The network in eval mode, in which a solve that fails raises no error."""
    return _Settled(net.eval())


class _Settled(nn.Module):
    """The network in eval mode. A solve that fails raises no error here: it increases the estimated error."""

    def __init__(self, net: Restarted):
        super().__init__()
        self.net = net

    def forward(self, y: Tensor, physics: LinearPhysics) -> Tensor:
        stop = self.net.stop
        near = replace(stop, rtol=max(stop.rtol, NEAR)) if stop.rtol > 0 else stop
        return self.net.solve(y, physics, stop=near).image


@dataclass(frozen=True)
class Errors:
    """Estimated squared errors, shape (n,), one mean per block of the measurements.

    Attributes:
        measured: of the measurement without noise.
        ranking: by which restorations are ranked; see ``ErrorEstimate.maps``.
        again: whether the ranking judges the unmeasured part as well.
    """

    measured: Tensor
    ranking: Tensor
    again: bool = False


def error_blocks(model: nn.Module, scene: Scene, estimate: ErrorEstimate, seed: int) -> Errors:
    """The estimated errors of a restoration ``model(y, physics)``. Equal seeds give equal draws."""
    adapted = model if scene.paged else estimate.adapt_model(model).eval()
    found: list[tuple[Tensor, Tensor]] = []
    for i, (y, physics) in enumerate(scene):
        with torch.no_grad(), seeded(stream(seed, 77, i), y.device):
            x, other = adapted(y, physics), scene.other(i)
            if other is None:
                maps = estimate.maps(x, y, physics, adapted)
            else:
                maps = (against(physics.A(x), y, other, scene.offset),) * 2
        measured = _blocks(maps[0])
        found.append((measured, measured if maps[1] is maps[0] else _blocks(maps[1])))
    measured = torch.cat([m for m, _ in found])
    again = estimate.again and not scene.paged
    return Errors(measured, torch.cat([ranking for _, ranking in found]), again)


def _blocks(errors: Tensor) -> Tensor:
    """The mean of each block, (n,)."""
    errors = errors.mean(1, keepdim=True)
    grid = (max(1, errors.shape[-2] // BLOCK), max(1, errors.shape[-1] // BLOCK))
    return adaptive_avg_pool2d(errors, grid).flatten().double().cpu()


def estimated_gain(before: Errors, after: Errors, clearly: float, of: str) -> EstimatedGain:
    """Compare the estimated errors of two restorations; see ``EstimatedGain``."""
    found = gain_of_errors(before.measured, after.measured)
    less = before.ranking - after.ranking
    better = found.gain is not None and float(less.mean()) > 0
    if clearly > 0:
        better = better and float(less.mean()) > clearly * _standard_error(less)
    ranked = gain_of_errors(before.ranking, after.ranking) if before.again else None
    again, spread = (None, None) if ranked is None else (ranked.gain, ranked.spread)
    return found.model_copy(update={"of": of, "better": better, "again": again, "again_spread": spread})


def gain_of_errors(before: Tensor, after: Tensor, clearly: float = 0.0) -> EstimatedGain:
    """Compare estimated errors block by block; the second is better if it is so by `clearly` standard errors."""
    one, two = float(before.mean()), float(after.mean())
    if min(one, two) <= 0:  # the ratio of the errors is unknown
        return _gain(_psnr(one), _psnr(two), None, None, False, None)
    # d(10 log10 e) = 10/ln 10 · de/e for both. The difference cancels their common part.
    relative = after / two - before / one
    decibel = 10 / math.log(10)
    errors = (decibel * _standard_error(e) for e in (relative, after / two))
    spread, uncertainty = (e if math.isfinite(e) else None for e in errors)
    gain = 10 * math.log10(one / two)
    better = two < one and (clearly <= 0 or (spread is not None and gain > clearly * spread))
    return _gain(_psnr(one), _psnr(two), gain, spread, better, uncertainty)


def _gain(
    before: float | None,
    after: float | None,
    gain: float | None,
    spread: float | None,
    better: bool,
    uncertainty: float | None,
) -> EstimatedGain:
    return EstimatedGain(
        before=before, after=after, gain=gain, spread=spread, better=better, uncertainty=uncertainty,
        of="the noise-free measurement", again=None, again_spread=None,
    )  # fmt: skip


def indistinguishable(
    net: Restarted, scene: Scene, estimate: ErrorEstimate, seed: int, chosen: Errors
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
            worse = error_blocks(settled(net), scene, estimate, seed).measured - chosen.measured
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
