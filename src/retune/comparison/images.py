"""The images that a comparison is made on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retune.build import sharp_images, training_images
from retune.config import Config
from retune.data import grey, photograph
from retune.errors import ConfigError

__all__ = ["Images", "images_of"]

#: to train on, to tune on, to report on
_PHOTOGRAPHS = (("chelsea", "coffee"), ("motorcycle",), ("astronaut", "rocket"))


@dataclass(frozen=True)
class Images:
    """What a comparison is made on.

    Attributes:
        train: training images (C, H, W).
        validation: validation crops (B, C, h, w).
        test: test images (C, H, W).
        places: where each test image stands among all of them, which decides its noise: so an image is the same task,
            however many others are reported on.
    """

    train: list[Tensor]
    validation: Tensor
    test: list[Tensor]
    places: list[int]

    def describe(self) -> str:
        """How many of each, in a sentence."""
        count, side = len(self.validation), self.validation.shape[-1]
        return (
            f"Trained on {_images(len(self.train))}, tuned on {_images(count)} (the middle {side}×{side} of each), "
            f"reported on {_images(len(self.test))}."
        )


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


def images_of(run: Config) -> Images:
    """The images of a run; with "photographs" for all, three sets of those that ship.

    Raises:
        ConfigError: no validation or test images, or images that do not fit the crops.
    """
    if run.data.train == "photographs" and run.data.validation is None and run.compare.test == "photographs":
        sets = [[photograph(n) for n in names] for names in _PHOTOGRAPHS]
        train, validation, test = ([grey(x) for x in s] if run.data.grey else s for s in sets)
    else:
        if run.data.validation is None or run.compare.test == "photographs":
            raise ConfigError(
                "a comparison tunes on images of its own and reports on others: set data.validation and compare.test "
                "to folders (or leave these and data.train as they are, for photographs that ship)"
            )
        train, validation = training_images(run.data)
        test = sharp_images(run.compare.test, run.data)
    assert validation is not None
    side = run.compare.validation_crop
    held_out = torch.stack(
        [_centre(x, side, "compare.validation_crop") for x in validation[:: run.compare.validation_every]]
    )
    places = list(range(0, len(test), run.compare.every))
    test = [test[i] for i in places]
    if run.compare.crop is not None:
        test = [_centre(x, run.compare.crop, "compare.crop") for x in test]
    return Images(train, held_out, test, places)


def _centre(x: Tensor, side: int, name: str) -> Tensor:
    height, width = x.shape[-2:]
    if min(height, width) < side:
        raise ConfigError(f"{name} = {side}: an image of {height}×{width} pixels is smaller; lower it")
    top, left = (height - side) // 2, (width - side) // 2
    return x[:, top : top + side, left : left + side].clone()
