"""Simulated measurements with reproducible randomness, and the score of a network on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from deepinv.loss.metric import PSNR
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune._torch.streams import seeded
from retune.errors import InvalidParameterError
from retune.model import Restarted
from retune.problems.base import Problem

__all__ = ["Measure", "evaluate", "held_out_pairs", "measurer"]

Measure = Callable[[Tensor, int], tuple[Tensor, LinearPhysics]]
Pairs = list[tuple[Tensor, Tensor, LinearPhysics]]


def measurer(problem: Problem | LinearPhysics) -> Measure:
    """The function ``(x, seed) → (y, physics)`` of a problem.

    Raises: InvalidParameterError: `problem` is neither a problem nor a physics.
    """
    if isinstance(problem, Problem):
        return problem.measure
    if not isinstance(problem, LinearPhysics):
        raise InvalidParameterError(
            f"problem must be one of retune.problems or a deepinv LinearPhysics, got {type(problem).__name__}"
        )

    def measure(x: Tensor, seed: int) -> tuple[Tensor, LinearPhysics]:
        # The noise model of the user's physics may use the global generator only.
        with seeded(seed, x.device), torch.no_grad():
            return problem(x), problem

    return measure


def held_out_pairs(images: Iterable[Tensor], measure: Measure, seed: int, device: torch.device) -> Pairs:
    """(x, y, physics) of validation images, each measured once."""
    pairs = []
    for i, image in enumerate(images):
        x = image[None].to(device)
        y, physics = measure(x, seed + 500_009 + i)
        pairs.append((x, y, physics))
    return pairs


def evaluate(net: Restarted, x: Tensor, y: Tensor, physics: LinearPhysics) -> float:
    """Mean PSNR in dB of a network in eval mode, for intensities in [0, 1]."""
    was_training = net.training
    net.eval()
    # Images that have not settled are scored, too: the score shows the problem.
    image = net.solve(y, physics).image
    net.train(was_training)
    return float(PSNR()(image, x).mean())
