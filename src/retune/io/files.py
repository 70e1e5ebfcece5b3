"""Reading and writing image files; the suffix decides the format."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retune import _files
from retune._files import write_atomically
from retune.errors import InvalidParameterError, RetuneError, ShapeError
from retune.io import pillow, png, tiff
from retune.io.arrays import checked, from_array, to_array
from retune.io.coded import Coded

__all__ = ["SUFFIXES", "Layout", "list_files", "load", "read", "require_file", "write"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy")


@dataclass(frozen=True)
class Layout:
    """How an image was stored, so that another image can be stored in the same way.

    Attributes:
        suffix: suffix of the file, in lower case, with its dot.
        dtype: type of the pixels.
        stack: lengths of the stacked axes, () for a single image.
        size: (H, W) of the image.
        metadata: data written to the file beside the pixels: resolution, colour profile, orientation, …
        bits: bits of each sample, if fewer than the type has (12 bits, packed).
        single: whether a grey image has a channel axis, (H, W, 1).
    """

    suffix: str
    dtype: np.dtype
    stack: tuple[int, ...]
    size: tuple[int, int]
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)
    bits: int | None = None
    single: bool = False

    @property
    def top(self) -> int | None:
        """The intensity that is read as 1: the largest value of up to 16 bits; None for other integers and floats."""
        if self.bits is not None:
            return 2**self.bits - 1
        return int(np.iinfo(self.dtype).max) if self.dtype.kind == "u" and self.dtype.itemsize <= 2 else None


def read(path: str | Path, *, any_integers: bool = False, finite: bool = True) -> tuple[Tensor, Layout]:
    """The images (N, C, H, W) of a file, integers scaled to [0, 1], and how they were stored.

    N is 1, except for stacks (multi-page TIFF, NPY of shape (N, H, W, C)). Palettes are expanded to colours.

    Args:
        path: the file. Its suffix decides the format, and only this format is read.
        any_integers: whether to read integers with an unknown range of intensities (int16, uint32, …), too. They are
            not scaled, and ``Layout.top`` is None.
        finite: whether NaN and Inf are refused.

    Raises:
        InvalidParameterError: the file is missing, empty, truncated, or not an image; it has an unknown suffix, an
            alpha channel, or numbers with an unknown range. Nothing is ever unpickled.
        ShapeError: the array is not an image.
        NotFiniteError: NaN or Inf.
    """
    path = Path(path)
    return _batch(load(path), path, any_integers, finite)


def load(path: str | Path, *, alpha: bool = False) -> Coded:
    """The unscaled content of an image file.

    Args:
        path: the file. Its suffix decides the format, and only this format is read.
        alpha: whether an alpha channel is returned as the last channel; if not, it is refused.

    Raises:
        InvalidParameterError, ShapeError: see ``read``.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidParameterError(f"{path} is not an image of a supported format ({', '.join(SUFFIXES)})")
    require_file(path)
    content = path.read_bytes()  # readers that get a path do not close the file if they fail
    if not content:
        raise InvalidParameterError(f"{path} is empty (0 bytes)")
    try:
        return _decode(content, suffix, alpha)
    except RetuneError as error:
        raise type(error)(f"{path}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # each reader has its own exceptions
        raise InvalidParameterError(f"{path} cannot be read as an image: «{_first_line(error)}»") from error


def require_file(path: Path) -> None:
    """Raise unless there is an ordinary file: reading a pipe or a device may never end."""
    _files.require_file(path, "an image")


def _decode(content: bytes, suffix: str, alpha: bool) -> Coded:
    if suffix == ".png":
        return png.decode(content, alpha=alpha)
    if suffix in (".tif", ".tiff"):
        return tiff.decode(content, alpha=alpha)
    if suffix == ".npy":
        return _array(content)
    return pillow.decode(content, "BMP" if suffix == ".bmp" else "JPEG", alpha=alpha)


def _array(content: bytes) -> Coded:
    """The array of an NPY file. Its size is checked first, so that a false header cannot reserve memory."""
    file = io.BytesIO(content)
    if content[:6] == np.lib.format.MAGIC_PREFIX:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        try:
            shape, _, dtype = header(file)
        except MemoryError as error:  # Python's parser gives up on thousands of nested signs
            raise ValueError("its header is damaged") from error
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize > len(content) - file.tell():
            raise ValueError(f"the file is truncated or damaged: it does not contain an array of shape {shape}")
        file.seek(0)
    array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise InvalidParameterError("it holds several arrays; save only the image, with numpy.save")
    columns = array.flags.f_contiguous and not array.flags.c_contiguous
    return Coded(array, array.ndim >= 3, {"byteorder": array.dtype.byteorder, "columns": columns})


def _batch(coded: Coded, path: Path, any_integers: bool, finite: bool) -> tuple[Tensor, Layout]:
    array, name = coded.array, str(path)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    last = 3 if coded.colour else 2
    leading = tuple(int(n) for n in array.shape[:-last]) if array.ndim > last else ()
    single = coded.colour and array.shape[-1] == 1
    layout = Layout(
        path.suffix.lower(), array.dtype.newbyteorder("="), leading, (0, 0), coded.metadata, coded.bits, single
    )
    top = 1 if layout.top is None and any_integers else layout.top
    if array.ndim <= last:  # one image; from_array reports a wrong shape
        images = checked(from_array(array, name, top), name, finite=finite)[None]
    else:
        stack = array.reshape(math.prod(leading), *array.shape[-last:])
        if not len(stack):
            raise ShapeError(f"{path} is an empty stack, of shape {array.shape}")
        numbered = ((f"{name}, image {i}", a) for i, a in enumerate(stack))
        images = torch.stack([checked(from_array(a, n, top), n, finite=finite) for n, a in numbered])
    return images, replace(layout, size=(images.shape[-2], images.shape[-1]))


def write(path: str | Path, images: Tensor, layout: Layout) -> None:
    """Write images (N, C, H, W) as `layout` tells. If this fails, an existing file stays unchanged.

    JPEG is slightly lossy (quality 98). The resolution is rescaled if the image size differs from the layout's.

    Raises:
        ShapeError: the number of images differs from the layout's, or the images are not grey or colour.
        NotFiniteError: NaN or Inf for a file of integers.
        InvalidParameterError: the metadata cannot be written, for example a too large resolution.
        OSError: the file cannot be written (full disk, no permission).
    """
    path = Path(path)
    count = math.prod(layout.stack)
    if images.ndim != 4 or images.shape[0] != count or images.shape[1] not in (1, 3):
        raise ShapeError(f"expected {count} image(s) (N, 1 or 3, H, W) for {path}, got {tuple(images.shape)}")
    colour = images.shape[1] == 3 or layout.single
    top = 1 if layout.top is None else layout.top
    arrays = [to_array(image, layout.dtype, top, single=layout.single) for image in images]
    array = np.stack(arrays).reshape(*layout.stack, *arrays[0].shape) if layout.stack else arrays[0]
    factor = images.shape[-1] / layout.size[1]
    try:
        content = _encode(Coded(array, colour, layout.metadata, layout.bits), path.suffix.lower(), factor)
    except RetuneError as error:
        raise type(error)(f"{path}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # each writer has its own exceptions
        raise InvalidParameterError(
            f"{path} cannot be written with the metadata of the measured file: «{_first_line(error)}»"
        ) from error
    write_atomically(path, content)


def _encode(coded: Coded, suffix: str, factor: float) -> bytes:
    if suffix == ".png":
        return png.encode(coded, factor)
    if suffix in (".tif", ".tiff"):
        return tiff.encode(coded, factor)
    if suffix in (".jpg", ".jpeg", ".bmp"):
        return pillow.encode(coded, "BMP" if suffix == ".bmp" else "JPEG", factor)
    if suffix == ".npy":
        out = io.BytesIO()
        order = coded.metadata.get("byteorder", "=")
        array = coded.array.astype(coded.array.dtype.newbyteorder(order), copy=False)
        array = np.asfortranarray(array) if coded.metadata.get("columns") else array
        np.save(out, array, allow_pickle=False)
        return out.getvalue()
    raise InvalidParameterError(f"cannot write {suffix!r} files; use one of {', '.join(SUFFIXES)}")


def list_files(path: str | Path) -> Sequence[Path]:
    """The image files of a folder, sorted by name; or the file itself.

    Raises: InvalidParameterError: no such file or folder, or no image in it.
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
