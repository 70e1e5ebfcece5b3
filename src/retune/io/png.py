"""PNG. Pillow drops half the bits of 16-bit colour, and cannot write it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import torch

from retune.errors import ShapeError
from retune.io.coded import Coded
from retune.io.pillow import decode as decode_with_pillow

__all__ = ["decode", "encode"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEPT = (b"cHRM", b"gAMA", b"iCCP", b"sRGB", b"pHYs", b"eXIf", b"tEXt", b"zTXt", b"iTXt")
_PALETTE, _COLOUR = 3, 2


def decode(content: bytes) -> Coded:
    """Pixels of a PNG file; palettes are expanded.

    Raises:
        ShapeError: an alpha channel, or transparency in a palette.
    """
    chunks = list(_chunks(content))
    kinds = [kind for kind, _ in chunks]
    if not kinds or kinds[0] != b"IHDR" or b"IEND" not in kinds:
        raise ValueError("the file is cut off, or damaged")
    depth, colour = chunks[0][1][8:10]
    if b"tRNS" in kinds:
        raise ShapeError("it has transparent pixels; remove the transparency first")
    metadata = {"chunks": [(kind, data) for kind, data in chunks if kind in _KEPT]}
    if depth == 16 and colour == _COLOUR:
        from torchvision.io import ImageReadMode, decode_image  # slow to import, and seldom needed

        coded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        array = decode_image(coded, mode=ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
        return Coded(array, True, metadata)
    plain = decode_with_pillow(content)
    if depth == 16 and plain.array.dtype != np.uint16:  # older versions of Pillow read 16-bit grey as 32-bit
        plain = Coded(plain.array.astype(np.uint16), plain.colour)
    # The profile of a palette is one of colours; that of what it was expanded to is the same.
    return Coded(plain.array, plain.colour, metadata)


def encode(coded: Coded, factor: float) -> bytes:
    """A PNG file of 8 or 16 bits; `factor` is how many pixels there are for one of the file that was read."""
    array = coded.array
    height, width = array.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8 * array.dtype.itemsize, _COLOUR if coded.colour else 0, 0, 0, 0)
    kept = [(kind, _rescaled(data, factor) if kind == b"pHYs" else data) for kind, data in coded.metadata["chunks"]]
    rows = array.astype(array.dtype.newbyteorder(">")).reshape(height, -1).view(np.uint8).reshape(height, -1)
    step = array.dtype.itemsize * (3 if coded.colour else 1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 1  # "sub": each sample less the one to its left, which is what photographs compress best with
    filtered[:, 1 : 1 + step] = rows[:, :step]
    np.subtract(rows[:, step:], rows[:, :-step], out=filtered[:, 1 + step :])
    out = io.BytesIO()
    out.write(_SIGNATURE)
    # gAMA, cHRM, iCCP and sRGB must come before the pixels; the others may.
    for kind, data in [(b"IHDR", header), *kept, (b"IDAT", zlib.compress(filtered.tobytes(), 4)), (b"IEND", b"")]:
        out.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))
    return out.getvalue()


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    if content[:8] != _SIGNATURE:
        raise ValueError("it does not begin as a PNG file does")
    at = 8
    while at + 8 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        if len(data) < length:
            raise ValueError("the file is cut off, or damaged")
        yield kind, data
        at += 12 + length


def _rescaled(data: bytes, factor: float) -> bytes:
    across, down, unit = struct.unpack(">IIB", data)
    return struct.pack(">IIB", round(across * factor), round(down * factor), unit)
