"""The candidates of a tuning compete on one estimate of the error; the best is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor, nn
from torch.nn.functional import pad

from retune.jobs.assess import Errors, Scene, error_blocks, estimated_gain, gain_of_errors, settled
from retune.model import Restarted
from retune.priors.capabilities import priors_of
from retune.problems.base import Problem
from retune.records import Competitor, EstimatedGain
from retune.training.unsupervised import ErrorEstimate

__all__ = ["AT_ONCE", "DEFAULT", "EQUAL", "MEASURED", "TUNED", "Contest", "compete", "quantity"]

TUNED, DEFAULT, EQUAL = "tuned strengths", "defaults", "tuned strength with equal weights"
AT_ONCE, MEASURED = "denoiser that ships", "measured image"
#: The measured image wins only if its error is smaller by this many standard errors. The error of a good restoration
#: may be close to that of the measured image.
_CLEARLY = 2.0


@dataclass(frozen=True)
class Contest:
    """The candidates and the winner.

    Attributes:
        net: the best network.
        winner: name of the best candidate. If the measured image wins, `net` is the best of the networks.
        comparison: the best network compared with the defaults. If the defaults win, the tuned strengths are compared.
        measured: the measured image compared with the best network; None if it did not compete.
        rivals: all candidates.
        errors: the errors of the best network.
        how: the basis of the estimate, in words that follow "estimated".
    """

    net: Restarted
    winner: str
    comparison: EstimatedGain
    measured: EstimatedGain | None
    rivals: tuple[Competitor, ...]
    errors: Errors
    how: str


def compete(
    net: Restarted,
    start: dict[str, Tensor],
    scene: Scene,
    problem: Problem,
    estimate: ErrorEstimate,
    seed: int,
    clearly: float = 0.0,
    at_once: Callable[[], Restarted] | None = None,
) -> Contest:
    """Compare the learned parameters with the initial ones, and with candidates that need no training. Keep the best.

    Args:
        net: the network with the learned parameters. Afterwards it has those of the best candidate.
        start: the initial state of the network.
        scene: the measurements from which errors are estimated.
        problem: the problem of these measurements.
        estimate: the estimate of the error. It uses new random draws.
        seed: the seed of these draws, the same for all candidates.
        clearly: a candidate must beat the defaults by this many standard errors.
        at_once: makes a network that needs no tuning.
    """
    of = quantity(problem)
    states = {TUNED: {k: v.clone() for k, v in net.state_dict().items()}, DEFAULT: start}
    equal = _equal_weights(net)
    if equal is not None:
        states[EQUAL] = equal
    errors: dict[str, Errors] = {}
    for name, state in states.items():
        net.load_state_dict(state)
        errors[name] = error_blocks(settled(net), scene, estimate, seed)
    other = None if at_once is None else at_once()
    if other is not None:
        errors[AT_ONCE] = error_blocks(settled(other), scene, estimate, seed)
    found = {name: estimated_gain(errors[DEFAULT], one, clearly, of) for name, one in errors.items() if name != DEFAULT}
    winner = min([DEFAULT, *(n for n, c in found.items() if c.better)], key=lambda n: float(errors[n].ranking.mean()))
    net.load_state_dict(states.get(winner, start))
    best = other if winner == AT_ONCE and other is not None else net
    measured = None
    if _is_image(problem, scene):
        image = error_blocks(_Measured(scene.offset), scene, estimate, seed)
        measured = estimated_gain(errors[winner], image, _CLEARLY, of)
        found[MEASURED] = estimated_gain(errors[DEFAULT], image, _CLEARLY, of)
    kept = errors[winner]
    return Contest(
        best,
        MEASURED if measured is not None and measured.better else winner,
        found[TUNED if winner == DEFAULT else winner],
        measured,
        (
            _rival(DEFAULT, gain_of_errors(errors[DEFAULT].measured, errors[DEFAULT].measured)),
            *(_rival(name, one) for name, one in found.items()),
        ),
        kept,
        "from other pages of the scene" if scene.paged else estimate.words,
    )


def quantity(problem: Problem) -> str:
    """The image whose error is estimated. The estimates see only the image that A lets through, without noise."""
    if problem.only_noise or problem.has_gaps:
        return "the restored image"
    if problem.subsamples:
        return "the small image"
    return "the blurred image" if getattr(problem, "kernel", None) is not None else "the noise-free measurement"


def _rival(name: str, found: EstimatedGain) -> Competitor:
    return Competitor(name=name, psnr=found.after, gain=found.gain, spread=found.spread)


def _equal_weights(net: Restarted) -> dict[str, Tensor] | None:
    """The state with equal weights for all scales, channels and bands; None if no such weights are learned."""
    tables = [p for prior in priors_of(net) for p in prior.tunables().values()]
    tables = [p for p in tables if p.learned and p.logarithmic and p.raw.numel() > 1]
    if not tables:
        return None
    kept = [p.raw.detach().clone() for p in tables]
    with torch.no_grad():
        for p in tables:
            p.raw.copy_(p.raw.mean().expand_as(p.raw))
        state = {k: v.clone() for k, v in net.state_dict().items()}
        for p, raw in zip(tables, kept, strict=True):
            p.raw.copy_(raw)
    return state


def _is_image(problem: Problem, scene: Scene) -> bool:
    """Whether a measurement is an image about as large as the restored one. A blur may reach beyond it."""
    if problem.has_gaps or problem.subsamples:
        return False
    try:
        sizes = [(y.shape, physics.A_adjoint(y).shape) for y, physics in scene]
    except (RuntimeError, ValueError, TypeError):
        return False
    return all(
        len(y) == len(x) == 4 and y[1] == x[1] and all(a <= b < 2 * a for a, b in zip(y[2:], x[2:], strict=True))
        for y, x in sizes
    )


class _Measured(nn.Module):
    """The measured image in place of a restoration. If the image must be larger, its border is repeated."""

    def __init__(self, offset: float):
        super().__init__()
        self._offset = offset

    def forward(self, y: Tensor, physics: LinearPhysics) -> Tensor:
        height, width = (a - b for a, b in zip(physics.A_adjoint(y).shape[-2:], y.shape[-2:], strict=True))
        ends = (width // 2, width - width // 2, height // 2, height - height // 2)
        return pad(y - self._offset, ends, mode="replicate") if max(ends) else y - self._offset
