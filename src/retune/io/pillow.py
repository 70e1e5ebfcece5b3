"""The formats that Pillow reads and writes well: JPEG, BMP, and ordinary PNG."""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from retune.errors import InvalidParameterError, ShapeError
from retune.io.coded import HAS_ALPHA, Coded

__all__ = ["decode", "encode"]

_GREY = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F")
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_MOST = 65535
#: Maximum number of pixels per byte of JPEG or BMP: a block of 8×8 pixels takes at least a bit. A false header cannot
#: reserve memory.
_PIXELS_A_BYTE = 1024
#: Markers of JPEG: comment, start of the pixels, and segments of programs that depend on the pixels.
_COMMENT, _SCAN, _JUMBF, _ADOBE = 0xFE, 0xDA, 0xEB, 0xEE
_lock = threading.Lock()


def decode(content: bytes, kind: str, *, alpha: bool = False) -> Coded:
    """Pixels and, for JPEG and BMP, their metadata.

    Args:
        content: the file.
        kind: Pillow's name of the format; only this decoder reads the content.
        alpha: whether an alpha channel is returned as the last channel; if not, it is refused.

    Raises:
        ShapeError: an alpha channel.
        InvalidParameterError: the colours are not red, green and blue, or there are several images.
    """
    with _any_size(), Image.open(io.BytesIO(content), formats=[kind]) as image:
        metadata = _metadata(image, kind, content)
        if kind != "PNG" and image.width * image.height > _PIXELS_A_BYTE * len(content):
            raise ValueError("the file is truncated or damaged: it is too short for its number of pixels")
        image.load()
        if image.mode == "P":
            image = image.convert(image.palette.mode if image.palette else "RGB")
        if alpha and "transparency" in image.info and image.mode in ("1", "L", "RGB"):
            image = image.convert("RGBA" if image.mode == "RGB" else "LA")
        if image.mode in _ALPHA and alpha:
            image = image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
            return Coded(np.array(image), True, metadata)
        if image.mode in _ALPHA:
            raise ShapeError(HAS_ALPHA)
        if image.mode != "RGB" and image.mode not in _GREY:
            raise InvalidParameterError(f"its colours are {image.mode}; convert it to RGB or grey first")
        return Coded(np.array(image), image.mode == "RGB", metadata)


def encode(coded: Coded, kind: str, factor: float) -> bytes:
    """A JPEG (quality 98, without colour subsampling, for the smallest loss) or BMP file; see ``retune.io.png.encode``.

    Raises:
        InvalidParameterError: the resolution times `factor` is too large for the format.
    """
    metadata = dict(coded.metadata)
    density, segments = metadata.pop("density", None), metadata.pop("segments", ())
    if "dpi" in metadata:
        metadata["dpi"] = tuple(float(v) * factor for v in metadata["dpi"])
        if max(metadata["dpi"]) > _MOST:
            raise InvalidParameterError(
                f"a resolution of {max(metadata['dpi']):g} pixels per inch is more than a {kind} file can store "
                f"({_MOST}): remove the resolution from the file, or save it as TIFF"
            )
    options: dict[str, Any] = {"dpi": metadata["dpi"]} if "dpi" in metadata else {}
    if kind == "JPEG":
        options = {"quality": 98, "subsampling": 0} | metadata
    out = io.BytesIO()
    Image.fromarray(coded.array).save(out, format=kind, **options)
    content = out.getvalue()
    if density is not None:
        content = _with_density(content, density[0], density[1], factor)
    return _with_segments(content, segments) if segments else content


def _metadata(image: Image.Image, kind: str, content: bytes) -> dict[str, Any]:
    info = image.info
    if kind == "PNG":
        return {}
    if kind == "BMP":
        return {"dpi": info["dpi"]} if "dpi" in info and all(v > 0 for v in info["dpi"]) else {}
    kept: dict[str, Any] = {"segments": tuple(_segments(content))}
    if info.get("progressive"):
        kept["progressive"] = True
    if "jfif_density" in info:
        kept["density"] = (int(info["jfif_unit"]), tuple(map(int, info["jfif_density"])))
    return kept


def _segments(content: bytes) -> Iterator[bytes]:
    """The segments of a JPEG file that describe the image and stay true for a restored one, with their markers.

    These are EXIF, XMP, IPTC, colour profiles, comments, and others of programs. Left out are the header of JFIF, the
    colour transform of Adobe, the index of further images, and signatures of the pixels (JUMBF).
    """
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != _SCAN:
        if content[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        marker, (length,) = content[at + 1], struct.unpack(">H", content[at + 2 : at + 4])
        data = content[at + 4 : at + 2 + length]
        known = marker == _COMMENT or (0xE1 <= marker <= 0xEF and marker not in (_JUMBF, _ADOBE))
        if known and length >= 2 and not data.startswith(b"MPF\0"):
            yield content[at : at + 2 + length]
        at += 2 + max(length, 2)


def _with_segments(content: bytes, segments: Sequence[bytes]) -> bytes:
    """The JPEG file with further segments after its header, which must be first."""
    at = 4 + struct.unpack(">H", content[4:6])[0] if content[2:4] == b"\xff\xe0" else 2
    return content[:at] + b"".join(segments) + content[at:]


def _with_density(content: bytes, unit: int, density: tuple[int, int], factor: float) -> bytes:
    """The JPEG file with the pixel density set in its header. Pillow rounds it, and supports no ratio without unit."""
    if content[2:4] != b"\xff\xe0" or content[6:11] != b"JFIF\0":
        return content
    wanted = [round(v * factor) for v in density] if unit else list(density)
    if max(wanted) > _MOST:
        raise InvalidParameterError(
            f"its resolution of {density[0]}×{density[1]}, times {factor:g}, is more than a JPEG file can store "
            f"({_MOST}): remove the resolution from the file, or save it as TIFF"
        )
    return content[:13] + struct.pack(">BHH", unit, *wanted) + content[18:]


@contextmanager
def _any_size() -> Iterator[None]:
    """Switch off Pillow's size limit against attacks: the images are the user's own."""
    with _lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
