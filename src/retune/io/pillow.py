"""What Pillow reads and writes well: JPEG, BMP, and the ordinary PNG."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from retune.errors import InvalidParameterError, ShapeError
from retune.io.coded import Coded

__all__ = ["decode", "encode"]

_GREY = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F")
_lock = threading.Lock()


def decode(content: bytes) -> Coded:
    """Pixels and, for JPEG, what comes with them.

    Raises:
        ShapeError: an alpha channel.
        InvalidParameterError: colours that are not red, green and blue.
    """
    with _any_size(), Image.open(io.BytesIO(content)) as image:
        image.load()
        if image.mode == "P":
            image = image.convert(image.palette.mode if image.palette else "RGB")
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
            raise ShapeError(
                "it has an alpha channel, which cannot be restored; drop the alpha channel first (in ImageMagick: "
                "convert IN -alpha off OUT)"
            )
        if image.mode != "RGB" and image.mode not in _GREY:
            raise InvalidParameterError(f"its colours are {image.mode}; convert it to RGB or grey first")
        wanted = {"dpi", "icc_profile", "exif"}
        metadata = {k: v for k, v in image.info.items() if k in wanted and v}
        return Coded(np.array(image), image.mode == "RGB", metadata)


def encode(coded: Coded, kind: str, factor: float) -> bytes:
    """A JPEG (quality 98, no colour subsampling: the least loss) or BMP file; see ``retune.io.png.encode``."""
    metadata = dict(coded.metadata)
    if "dpi" in metadata:
        metadata["dpi"] = tuple(float(v) * factor for v in metadata["dpi"])
    options = {"quality": 98, "subsampling": 0} | metadata if kind == "JPEG" else {}
    out = io.BytesIO()
    Image.fromarray(coded.array).save(out, format=kind, **options)
    return out.getvalue()


@contextmanager
def _any_size() -> Iterator[None]:
    """Pillow takes large images for an attack; here they are the user's own."""
    with _lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
