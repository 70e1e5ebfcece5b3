"""The images of a comparison."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retune._torch.batch import window
from retune.build import sharp_images, training_images
from retune.config import Config
from retune.data import grey, photograph
from retune.errors import ConfigError

__all__ = ["Images", "images_of"]

#: photographs for training, for tuning, and for the report
_PHOTOGRAPHS = (("chelsea", "coffee"), ("motorcycle",), ("astronaut", "rocket"))
#: (row, column) of the middle of a crop with detail
_MIDDLES = {"astronaut": (95, 220), "rocket": (190, 320), "motorcycle": (214, 314)}


@dataclass(frozen=True)
class Images:
    """The images of a comparison.

    Attributes:
        train: training images (C, H, W).
        validation: validation crops (B, C, h, w).
        test: test images (C, H, W).
        places: position of each test image among all test images. It decides the noise, so an image gets the same
            noise in a report on fewer images.
    """

    train: list[Tensor]
    validation: Tensor
    test: list[Tensor]
    places: list[int]

    def describe(self) -> str:
        """A sentence with the number of images of each kind."""
        count, side = len(self.validation), self.validation.shape[-1]
        return (
            f"Trained on {_images(len(self.train))}, tuned on {_images(count)} ({side}×{side} pixels of each), "
            f"reported on {_images(len(self.test))}."
        )


@dataclass(frozen=True)
class _Sharp:
    """An image (C, H, W), and the middle (row, column) of its crops; None for the middle of the image."""

    pixels: Tensor
    middle: tuple[int, int] | None = None

    def part(self, side: int, field: str) -> Tensor:
        """A square crop; `field` names the field of the run, for error messages."""
        height, width = self.pixels.shape[-2:]
        if min(height, width) < side:
            raise ConfigError(f"{field} = {side}: an image of {height}×{width} pixels is smaller; lower it")
        at = self.middle or (None, None)
        return self.pixels[:, window(height, side, at[0]), window(width, side, at[1])].clone()


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


def images_of(run: Config) -> Images:
    """The images of a run. If all fields are "photographs", these are three disjoint sets of shipped photographs.

    Raises:
        ConfigError: validation or test images are missing, or an image is smaller than the crops.
    """
    train, validation, test = _sharp(run)
    held_out = [
        x.part(run.compare.validation_crop, "compare.validation_crop")
        for x in validation[:: run.compare.validation_every]
    ]
    side, places = run.compare.crop, list(range(0, len(test), run.compare.every))
    reported = [test[i].pixels if side is None else test[i].part(side, "compare.crop") for i in places]
    return Images([x.pixels for x in train], torch.stack(held_out), reported, places)


def _sharp(run: Config) -> list[list[_Sharp]]:
    """The images for training, for tuning, and for the report."""
    data, test = run.data, run.compare.test
    if data.train == "photographs" and data.validation is None and test == "photographs":
        shade = grey if data.grey else torch.Tensor.contiguous
        return [[_Sharp(shade(photograph(n)), _MIDDLES.get(n)) for n in names] for names in _PHOTOGRAPHS]
    if data.validation is None or test == "photographs":
        raise ConfigError(
            "a comparison needs separate images for training, tuning and testing: set data.validation and "
            "compare.test to folders (or leave these and data.train at their defaults, for shipped photographs)"
        )
    train, validation = training_images(data)
    assert validation is not None
    return [[_Sharp(x) for x in images] for images in (train, validation, sharp_images(test, data))]
