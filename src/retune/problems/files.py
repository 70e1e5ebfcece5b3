"""The files that a problem names: a blur kernel or a mask, which is one image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retune.errors import InvalidParameterError, ShapeError
from retune.io.files import load

__all__ = ["one_image"]


def one_image(path: Path, what: str, expected: str) -> np.ndarray:
    """The channels of the single image in a file, (h, w, 1 to 4), with unscaled numbers.

    Args:
        path: the file.
        what: its name in error messages.
        expected: its allowed shapes, for error messages.

    Raises:
        InvalidParameterError: the numbers are not real.
        ShapeError: the file has several images, or another number of channels.
    """
    coded = load(path, alpha=True)
    array = coded.array
    if array.dtype.kind not in "biuf":
        raise InvalidParameterError(f"{what} {path} holds {array.dtype} numbers; expected real numbers")
    channels = array if coded.colour else array[..., None]
    if channels.ndim == 4 and len(channels) == 1:
        channels = channels[0]
    if channels.ndim == 4:
        raise ShapeError(f"{what} {path} holds {len(channels)} images, expected one")
    if channels.ndim != 3 or channels.shape[-1] > 4 or 0 in channels.shape:
        raise ShapeError(f"{what} {path} must be one image {expected}, got shape {array.shape}")
    return channels
