"""Simulated measurements, all of whose randomness follows from numbers, and the score of a network on some."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from deepinv.loss.metric import PSNR
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune.errors import InvalidParameterError
from retune.model import Restarted
from retune.problems.base import Restoration

__all__ = ["Measure", "evaluate", "held_out_pairs", "measurer", "seeded", "stream"]

Measure = Callable[[Tensor, int], tuple[Tensor, LinearPhysics]]
Pairs = list[tuple[Tensor, Tensor, LinearPhysics]]


def stream(*numbers: int) -> int:
    """A seed below 2**63 that follows from the numbers alone; other numbers give an unrelated one."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators start from `seed` inside, and are as they were afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def measurer(problem: Restoration | LinearPhysics) -> Measure:
    """``(x, seed) → (y, physics)``.

    Raises:
        InvalidParameterError: neither a problem nor a physics.
    """
    if isinstance(problem, Restoration):
        return problem.measure
    if not isinstance(problem, LinearPhysics):
        raise InvalidParameterError(
            f"problem must be one of retune.problems or a deepinv LinearPhysics, got {type(problem).__name__}"
        )

    def measure(x: Tensor, seed: int) -> tuple[Tensor, LinearPhysics]:
        # The physics of the user has a noise model of its own, which may only know the global generator.
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
    # A network that has not settled is scored as it is: its trouble shows in the figure.
    image = net.solve(y, physics).image
    net.train(was_training)
    return float(PSNR()(image, x).mean())
