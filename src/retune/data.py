"""Images from folders, arrays, or the photographs inside scikit-image, and random crops of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retune._torch.batch import middle
from retune.errors import InvalidParameterError, RetuneError, ShapeError, one_line, unknown_name
from retune.io import SUFFIXES, list_files, read
from retune.io.arrays import checked, from_array, scaled

__all__ = ["SUFFIXES", "Crop", "as_images", "centres", "draw_crops", "grey", "photograph", "random_crops"]

#: maximum number of faults in one message
_SHOWN = 20
_PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "motorcycle", "rocket")


def as_images(source: Any) -> list[Tensor]:
    """Images as float tensors (C, H, W), integers scaled to [0, 1].

    Args:
        source: a folder or file (PNG, JPEG, TIFF, BMP, NPY), a tensor (N, C, H, W) or (C, H, W), an array
            (N, H, W, C), (H, W, C) or (H, W), or a sequence of files, tensors (C, H, W), or arrays (H, W) or (H, W, C).

    Raises:
        InvalidParameterError: no images, or a file is not an image.
        ShapeError, NotFiniteError: an image cannot be used.
    """
    if isinstance(source, str | Path):
        return read_files(list_files(source), lambda path: read(path)[0])
    if isinstance(source, Tensor):
        if source.ndim not in (3, 4):
            raise ShapeError(f"expected images (N, C, H, W) or (C, H, W), got {tuple(source.shape)}")
        source = list(source) if source.ndim == 4 else [source]
    if isinstance(source, np.ndarray):
        if source.ndim not in (2, 3, 4):
            raise ShapeError(f"expected an array (N, H, W, C), (H, W, C) or (H, W), got {source.shape}")
        source = list(source) if source.ndim == 4 else [source]
    if not isinstance(source, Iterable):
        raise InvalidParameterError(f"cannot take images from a {type(source).__name__}")
    images = [image for i, item in enumerate(source) for image in _of_item(item, f"image {i}")]
    if not images:
        raise InvalidParameterError("no images were given")
    return images


class NamedImages(list[Tensor]):
    """The images (C, H, W) of files, each with a name for error messages: its file and its number in a stack."""

    def __init__(self, images: Iterable[Tensor], names: Iterable[str]):
        super().__init__(images)
        self.names = list(names)


def read_files(files: Sequence[Path], read_one: Callable[[Path], Tensor], crop: int | None = None) -> NamedImages:
    """The images of files. One message reports the faults of all of them.

    Args:
        files: images.
        read_one: function that reads the images (N, C, H, W) of a file.
        crop: side of the crops. They must fit into every image, and all images must be grey or all colour.

    Raises:
        InvalidParameterError, ShapeError, NotFiniteError: a file cannot be used. With several faults, one
            InvalidParameterError names them all.
    """
    images, names, failures = [], [], []
    for file in files:
        try:
            found = list(read_one(file))
        except (RetuneError, OSError) as error:
            failures.append(error)
            continue
        images.extend(found)
        names.extend([str(file)] if len(found) == 1 else [f"{file}, image {i}" for i in range(len(found))])
    if len(failures) == 1 and len(files) == 1:
        raise failures[0]
    faults = [one_line(error) for error in failures]
    if crop is not None:
        faults += _of_other_kinds(names, images) + _too_small(names, images, crop)
    if len(failures) == 1 and len(faults) == 1:
        raise failures[0]
    if faults:
        raise InvalidParameterError(_listed(faults))
    return NamedImages(images, names)


def require_one_kind(named: Sequence[tuple[str, Tensor]], crop: int | None = None) -> None:
    """Raise if named images (C, H, W) differ in their number of channels, or some are smaller than a crop.

    Raises:
        ShapeError: names every image whose number of channels differs from most others.
        InvalidParameterError: names every image that is too small.
    """
    names, images = [name for name, _ in named], [image for _, image in named]
    other, small = _of_other_kinds(names, images), _too_small(names, images, crop)
    if other or small:
        raise (ShapeError if other else InvalidParameterError)(_listed(other + small))


def _listed(faults: Sequence[str]) -> str:
    if len(faults) == 1:
        return faults[0]
    shown = list(faults[:_SHOWN]) + ([f"… and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else [])
    return f"{len(faults)} images cannot be used:\n" + "\n".join(f"  {fault}" for fault in shown)


def _of_other_kinds(names: Sequence[str], images: Sequence[Tensor]) -> list[str]:
    counts = Counter(len(image) for image in images)
    if len(counts) < 2:
        return []
    usual = max(counts, key=lambda c: (counts[c], c))
    every = f"the images have different numbers of channels {sorted(counts)}: train grey and colour separately"
    kinds = {1: "grey", 3: "colour"}
    return [
        f"{name} is {kinds.get(len(x), f'of {len(x)} channels')}, most others are {kinds.get(usual, usual)} ({every})"
        for name, x in zip(names, images, strict=True)
        if len(x) != usual
    ]


def _too_small(names: Sequence[str], images: Sequence[Tensor], crop: int | None) -> list[str]:
    small = [(n, x) for n, x in zip(names, images, strict=True) if crop is not None and min(x.shape[-2:]) < crop]
    return [
        f"{name} has {x.shape[-2]}×{x.shape[-1]} pixels: crop={crop} does not fit: the smallest image side is "
        f"{min(x.shape[-2:])}"
        for name, x in small
    ]


def _of_item(item: Any, name: str) -> Sequence[Tensor]:
    if isinstance(item, tuple | list) and item and isinstance(item[0], Tensor):
        item = item[0]  # a dataset that returns (image, label)
    if isinstance(item, str | Path):
        return list(read(item)[0])  # several images if it is a stack
    if isinstance(item, np.ndarray):
        return [checked(from_array(item, name), name)]
    if isinstance(item, Tensor):
        return [checked(scaled(item, name), name)]
    raise InvalidParameterError(f"{name}: expected a tensor, an array or a file, got {type(item).__name__}")


def photograph(name: str) -> Tensor:
    """A photograph (C, H, W) in [0, 1] that ships inside scikit-image; nothing is downloaded."""
    if name not in _PHOTOGRAPHS:
        raise unknown_name("photograph", name, _PHOTOGRAPHS)
    import skimage.data  # imported here, because nothing else in this file needs scikit-image

    array = skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
    return from_array(np.asarray(array))


def grey(x: Tensor) -> Tensor:
    """Luminance (1, H, W), ITU-R BT.601."""
    if x.shape[0] == 1:
        return x
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)


@dataclass(frozen=True)
class Crop:
    """A part of an image: its image, its position, and its flips.

    Attributes:
        image: index of the image.
        top, left, height, width: the part.
        flips: whether the order of its rows and of its columns is reversed.
    """

    image: int
    top: int
    left: int
    height: int
    width: int
    flips: tuple[bool, bool]

    def _part(self, image: Tensor) -> Tensor:
        return image[:, self.top : self.top + self.height, self.left : self.left + self.width]

    def _flip(self, part: Tensor) -> Tensor:
        return part.flip([d + 1 for d in (0, 1) if self.flips[d]])

    def read(self, image: Tensor) -> Tensor:
        """The crop (C, height, width) of an image (C, H, W)."""
        return self._flip(self._part(image))

    def write(self, image: Tensor, crop: Tensor) -> None:
        """Insert a crop at its place in an image, with its flips undone."""
        self._part(image).copy_(self._flip(crop))


def centres(images: Sequence[Tensor], side: int) -> Tensor:
    """The central part of each image, (N, C, side, side), or smaller if the smallest image requires it."""
    side = min(side, *(n for x in images for n in x.shape[-2:]))
    return torch.stack([x[middle(x, side)] for x in images])


def random_crops(images: Sequence[Tensor], count: int, size: int | None, generator: torch.Generator) -> Tensor:
    """`count` random square crops, flipped at random, as a batch (count, C, size, size).

    Args:
        images: tensors (C, H, W) of one channel count.
        count: crops to draw.
        size: side of the crops; None takes whole images, which must have the same size.
        generator: source of the randomness.
    """
    return draw_crops(images, count, size, generator)[0]


def draw_crops(
    images: Sequence[Tensor], count: int, size: int | None, generator: torch.Generator, *, flips: bool = True
) -> tuple[Tensor, list[Crop]]:
    """Like [`random_crops`][retune.data.random_crops], but also returns each crop's origin; `flips` allows flips."""
    crops = []
    for _ in range(count):
        index = int(torch.randint(len(images), (), generator=generator))
        height, width = images[index].shape[1:]
        top = left = 0
        if size is not None:
            top, left = (int(torch.randint(n - size + 1, (), generator=generator)) for n in (height, width))
            height = width = size
        rows, columns = torch.randint(2, (2,), generator=generator).tolist()
        crops.append(Crop(index, top, left, height, width, (flips and bool(rows), flips and bool(columns))))
    try:
        return torch.stack([c.read(images[c.image]) for c in crops]), crops
    except RuntimeError as error:
        shapes = sorted({(images[c.image].shape[0], c.height, c.width) for c in crops})
        raise ShapeError(f"images of different shapes {shapes} cannot share a batch; give a crop size") from error


def check_crop(images: Sequence[Tensor], size: int | None) -> None:
    """Refuse images that are smaller than the crop, or differ in their channels."""
    if size is not None and size < 1:
        raise InvalidParameterError(f"crop must be a number of pixels, at least 1, got {size}")
    names = getattr(images, "names", None) or [f"image {i}" for i in range(len(images))]
    require_one_kind(list(zip(names, images, strict=True)), size)
