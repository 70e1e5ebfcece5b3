"""Build objects from a run: the problem, the prior, the map, the network, and the options of the training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from retune._building.network import fidelity_of, map_of, network_of, prior_of, rule_of, solver_of, takes_reg
from retune._building.problem import problem_of
from retune._building.training import loss_of, options_of, sharp_images, training_images
from retune.config import Config
from retune.model import Restarted
from retune.registry import build
from retune.training.data import TrainingData
from retune.training.options import FitOptions

__all__ = [
    "Built",
    "build",
    "built",
    "fidelity_of",
    "loss_of",
    "map_of",
    "network_of",
    "options_of",
    "prior_of",
    "problem_of",
    "rule_of",
    "sharp_images",
    "takes_reg",
    "solver_of",
    "training_images",
]


@dataclass(frozen=True)
class Built:
    """The objects of a run: the arguments of ``fit(net, data, options)``.

    Attributes:
        net: the network, with its initial weights.
        data: training and validation images, and the problem.
        options: the options of the training, without a folder.
    """

    net: Restarted
    data: TrainingData
    options: FitOptions


def built(config: Config) -> Built:
    """The objects that a run describes. This seeds the global generator, from which the initial weights are drawn.

    Raises:
        RetuneError: see [`problem_of`][retune.build.problem_of], [`training_images`][retune.build.training_images] and
            [`network_of`][retune.build.network_of].
    """
    problem = problem_of(config.problem)
    images, validation = training_images(config.data)
    torch.manual_seed(config.seed)
    net = network_of(config, images[0].shape[0])
    return Built(net, TrainingData(images, problem, validation), options_of(config))
