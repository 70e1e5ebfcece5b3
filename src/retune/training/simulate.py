"""Simulated measurements with reproducible randomness, and the score of a network on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from deepinv.loss.metric import PSNR
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune.model import Restarted

__all__ = ["Measure", "evaluate", "held_out_pairs"]

Measure = Callable[[Tensor, int], tuple[Tensor, LinearPhysics]]
Pairs = list[tuple[Tensor, Tensor, LinearPhysics]]


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
