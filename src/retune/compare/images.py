"""The images that a comparison is made on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retune.build import training_images
from retune.config import Config
from retune.data import as_images, grey, photograph
from retune.errors import ConfigError

__all__ = ["Images", "images_of"]

#: to train on, to tune on, to report on
_PHOTOGRAPHS = (("chelsea", "coffee"), ("motorcycle",), ("astronaut", "rocket"))


@dataclass(frozen=True)
class Images:
    """What a comparison is made on: training images, validation crops (B, C, h, w), test images."""

    train: list[Tensor]
    validation: Tensor
    test: list[Tensor]


def images_of(run: Config) -> Images:
    """The images of a run; with "photographs" for all, three sets of those that ship.

    Raises:
        ConfigError: no validation or test images, or images that do not fit the crops.
    """
    if run.data.train == "photographs" and run.data.validation is None and run.compare.test == "photographs":
        sets = [
            [photograph(n) for n in names]
            for names in (("chelsea", "coffee"), ("motorcycle",), ("astronaut", "rocket"))
        ]
        train, validation, test = ([grey(x) for x in s] if run.data.grey else s for s in sets)
    else:
        if run.data.validation is None or run.compare.test == "photographs":
            raise ConfigError(
                "a comparison tunes on images of its own and reports on others: set data.validation and compare.test "
                "to folders (or leave these and data.train as they are, for photographs that ship)"
            )
        train, validation = training_images(run.data)
        test = as_images(run.compare.test)
        test = [grey(x) for x in test] if run.data.grey else test
    assert validation is not None
    side = run.compare.validation_crop
    held_out = torch.stack(
        [_centre(x, side, "compare.validation_crop") for x in validation[:: run.compare.validation_every]]
    )
    test = test[:: run.compare.every]
    if run.compare.crop is not None:
        test = [_centre(x, run.compare.crop, "compare.crop") for x in test]
    return Images(train, held_out, test)


def _centre(x: Tensor, side: int, name: str) -> Tensor:
    height, width = x.shape[-2:]
    if min(height, width) < side:
        raise ConfigError(f"{name} = {side}: an image of {height}×{width} pixels is smaller; lower it")
    top, left = (height - side) // 2, (width - side) // 2
    return x[:, top : top + side, left : left + side].clone()
