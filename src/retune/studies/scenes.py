"""The images of a study and their measurements, and the images of its trainings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune.build import training_images
from retune.comparison.images import images_of
from retune.config import Config
from retune.data import centres
from retune.problems.base import Problem

__all__ = ["Scene", "sharp", "training_parts"]


@dataclass(frozen=True)
class Scene:
    """A sharp image (1, C, H, W), its measurement and its operator.

    Attributes:
        name: of the image.
        x: the sharp image.
        y: the measurement.
        physics: the operator.
    """

    name: str
    x: Tensor
    y: Tensor
    physics: LinearPhysics

    @classmethod
    def of(cls, name: str, x: Tensor, problem: Problem, seed: int) -> Scene:
        """Measure an image."""
        return cls(name, x, *problem.measure(x, seed))


def _photographs(run: Config) -> bool:
    return run.data.train == "photographs" and run.data.validation is None


def sharp(run: Config, count: int, side: int) -> Tensor:
    """The images of a study, (N, C, h, w): the middles of the first images that the run does not train on.

    These are its validation images; for a run on shipped photographs, the photographs that ``retune compare`` reports
    on. Without validation images they are the training images.
    """
    if _photographs(run):
        cropped = run.compare.model_copy(update={"crop": side, "every": 1, "test": "photographs"})
        return torch.stack(images_of(run.model_copy(update={"compare": cropped})).test[:count])
    train, validation = training_images(run.data)
    return centres((validation or train)[:count], side)


def training_parts(run: Config, count: int, side: int) -> tuple[list[Tensor], Tensor] | None:
    """The training images, and the middles (N, C, h, w) of validation images; None if the run has no validation."""
    if _photographs(run):
        photographs = run.compare.model_copy(update={"test": "photographs"})
        images = images_of(run.model_copy(update={"compare": photographs}))
        return images.train, centres(list(images.validation[:count]), side)
    train, validation = training_images(run.data)
    return None if validation is None else (train, centres(validation[:count], side))
