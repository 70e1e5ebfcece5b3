"""Image files by their suffix."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retune._files import write_atomically
from retune.errors import InvalidParameterError, RetuneError, ShapeError
from retune.io import pillow, png, tiff
from retune.io.arrays import checked, from_array, to_array
from retune.io.coded import Coded

__all__ = ["SUFFIXES", "Layout", "list_files", "read", "write"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy")


@dataclass(frozen=True)
class Layout:
    """How an image was stored, so that another can be stored the same way.

    Attributes:
        suffix: of the file, in lower case, with its dot.
        dtype: of the pixels; integers are scaled to [0, 1] by the largest of their type, floats are left alone.
        stack: lengths of the stacked axes, () for a single image.
        size: (H, W) of the image.
        metadata: what goes back into the file beside the pixels: resolution, colour profile, …
    """

    suffix: str
    dtype: np.dtype
    stack: tuple[int, ...]
    size: tuple[int, int]
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)


def read(path: str | Path) -> tuple[Tensor, Layout]:
    """The images (N, C, H, W) of a file, integers scaled to [0, 1], and how they were stored.

    N is 1, but for stacks (multi-page TIFF, NPY of shape (N, H, W, C)). Palettes are expanded to colours.

    Raises:
        InvalidParameterError: no such file, empty, truncated, not an image, an unknown suffix, an alpha channel,
            numbers whose range is not known. Nothing is ever unpickled.
        ShapeError: an array that is not an image.
        NotFiniteError: NaN or Inf.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidParameterError(f"{path} is not an image of a known kind ({', '.join(SUFFIXES)})")
    if path.is_dir():
        raise InvalidParameterError(f"{path} is a folder, not an image")
    if not path.exists():
        raise InvalidParameterError(f"there is no file {path}")
    content = path.read_bytes()  # readers that are handed a path leave it open when they fail
    if not content:
        raise InvalidParameterError(f"{path} is empty (0 bytes)")
    try:
        coded = _decode(content, suffix)
    except RetuneError as error:
        raise type(error)(f"{path}: {error}") from error
    except Exception as error:  # each reader has exceptions of its own
        raise InvalidParameterError(f"{path} cannot be read as an image: «{_first_line(error)}»") from error
    return _batch(coded, path, suffix)


def _decode(content: bytes, suffix: str) -> Coded:
    if suffix == ".png":
        return png.decode(content)
    if suffix in (".tif", ".tiff"):
        return tiff.decode(content)
    if suffix == ".npy":
        array = np.load(io.BytesIO(content), allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise InvalidParameterError("it holds several arrays; save the image alone, with numpy.save")
        return Coded(array, array.ndim >= 3)
    return pillow.decode(content)


def _batch(coded: Coded, path: Path, suffix: str) -> tuple[Tensor, Layout]:
    array, name = coded.array, str(path)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    last = 3 if coded.colour else 2
    if array.ndim <= last:  # one image; from_array says what is wrong with another shape
        images = checked(from_array(array, name), name)[None]
    else:
        stack = array.reshape(-1, *array.shape[-last:])
        if not len(stack):
            raise ShapeError(f"{path} is an empty stack, of shape {array.shape}")
        numbered = ((f"{name}, image {i}", a) for i, a in enumerate(stack))
        images = torch.stack([checked(from_array(a, n), n) for n, a in numbered])
    size = (images.shape[-2], images.shape[-1])
    leading = tuple(int(n) for n in array.shape[:-last]) if array.ndim > last else ()
    return images, Layout(suffix, array.dtype.newbyteorder("="), leading, size, coded.metadata)


def write(path: str | Path, images: Tensor, layout: Layout) -> None:
    """Write images (N, C, H, W) the way `layout` says, atomically: an existing file stays as it was if this fails.

    JPEG loses a little (quality 98). A resolution is rescaled if the size is another.

    Raises:
        ShapeError: not as many images as the layout has, or not grey or colour.
        NotFiniteError: NaN or Inf for a file of integers.
        OSError: the file cannot be written (full disk, no permission).
    """
    path = Path(path)
    count = math.prod(layout.stack)
    if images.ndim != 4 or images.shape[0] != count or images.shape[1] not in (1, 3):
        raise ShapeError(f"expected {count} image(s) (N, 1 or 3, H, W) for {path}, got {tuple(images.shape)}")
    colour = images.shape[1] == 3
    arrays = [to_array(image, layout.dtype) for image in images]
    array = np.stack(arrays).reshape(*layout.stack, *arrays[0].shape) if layout.stack else arrays[0]
    coded = Coded(array, colour, layout.metadata)
    factor = images.shape[-1] / layout.size[1]
    write_atomically(path, _encode(coded, path.suffix.lower(), factor))


def _encode(coded: Coded, suffix: str, factor: float) -> bytes:
    if suffix == ".png":
        return png.encode(coded, factor)
    if suffix in (".tif", ".tiff"):
        return tiff.encode(coded, factor)
    if suffix in (".jpg", ".jpeg", ".bmp"):
        return pillow.encode(coded, "BMP" if suffix == ".bmp" else "JPEG", factor)
    if suffix == ".npy":
        out = io.BytesIO()
        np.save(out, coded.array, allow_pickle=False)
        return out.getvalue()
    raise InvalidParameterError(f"cannot write {suffix!r} files; use one of {', '.join(SUFFIXES)}")


def list_files(path: str | Path) -> Sequence[Path]:
    """The image files of a folder, sorted by name; or the file itself.

    Raises:
        InvalidParameterError: nothing there.
    """
    path = Path(path)
    if path.is_dir():
        shown = (p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        found = sorted(p for p in shown if not p.is_dir())
        if not found:
            raise InvalidParameterError(f"the folder {path} holds no image ({', '.join(SUFFIXES)})")
        return found
    if not path.exists():
        raise InvalidParameterError(f"there is no file or folder {path}")
    return [path]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
