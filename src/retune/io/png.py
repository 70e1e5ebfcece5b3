"""PNG of 8 and 16 bits, grey or colour.

A damaged file must not reach a decoder written in C. So the checksum of every chunk and the length of the inflated
pixels are checked first. The decoder then gets a new file made of the checked parts: header, palette and pixels. Pillow
decodes everything except 16-bit colour, because it would drop half of the bits.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from retune.errors import InvalidParameterError, ShapeError
from retune.io.coded import HAS_ALPHA, Coded
from retune.io.pillow import decode as decode_with_pillow

__all__ = ["decode", "encode"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Chunks that describe the image and stay true for a restored one, in the order of writing.
_KEPT = (
    *(b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"mDCV", b"cLLI", b"sBIT", b"bKGD"),
    *(b"pHYs", b"oFFs", b"pCAL", b"sCAL", b"eXIf", b"tEXt", b"zTXt", b"iTXt"),
)
#: Chunks that depend on the type of the pixels. They are kept only if the type is the same.
_OF_THE_TYPE = (b"sBIT", b"bKGD")
_GREY, _COLOUR, _PALETTE = 0, 2, 3
_CHANNELS = {_GREY: 1, _COLOUR: 3, _PALETTE: 1, 4: 2, 6: 4}
_DEPTHS = {_GREY: (1, 2, 4, 8, 16), _COLOUR: (8, 16), _PALETTE: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
#: Adam7: first column, first row, and their steps, for each of the seven passes.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE = 1 << 20
_MOST = 2**32 - 1


def decode(content: bytes, *, alpha: bool = False) -> Coded:
    """Pixels of a PNG file; palettes are expanded.

    Args:
        content: the file.
        alpha: whether an alpha channel is returned as the last channel; if not, it is refused.

    Raises:
        ShapeError: an alpha channel, or transparency in a palette.
        InvalidParameterError: an animation.
        ValueError: a damaged file.
    """
    chunks = list(_chunks(content))
    kinds = [kind for kind, _ in chunks]
    if not kinds or kinds[0] != b"IHDR" or b"IEND" not in kinds or len(chunks[0][1]) != 13:
        raise ValueError("the file is truncated or damaged")
    header = chunks[0][1]
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if depth not in _DEPTHS.get(colour, ()) or interlaced > 1 or not width or not height or header[10:12] != b"\0\0":
        raise ValueError("its header is damaged")
    if b"acTL" in kinds:
        raise InvalidParameterError("it is an animation with several images; save them as separate files")
    if b"tRNS" in kinds and not alpha:
        raise ShapeError("it has transparent pixels; remove the transparency first")
    packed = b"".join(data for kind, data in chunks if kind == b"IDAT")
    _check_pixels(packed, _rows(width, height, depth * _CHANNELS[colour], bool(interlaced)))
    needed = [(k, data) for k, data in chunks if k == b"PLTE" or (k == b"tRNS" and alpha)]
    if colour == _PALETTE and not (needed and needed[0][0] == b"PLTE" and 3 <= len(needed[0][1]) <= 768):
        raise ValueError("its palette is missing or damaged")
    if colour in (_GREY, 4):
        needed = [(k, data) for k, data in needed if k != b"PLTE"]
    checked = _file([(b"IHDR", header), *needed, (b"IDAT", packed), (b"IEND", b"")])
    same_type = depth >= 8 and colour in (_GREY, _COLOUR)
    kept = [c for c in chunks if _is_kept(*c) and (same_type or c[0] not in _OF_THE_TYPE)]
    metadata = {"chunks": kept}
    if depth == 16 and colour in (_COLOUR, 6):
        if colour == 6 and not alpha:
            raise ShapeError(HAS_ALPHA)
        from imagecodecs import png_decode

        return Coded(png_decode(checked), True, metadata)
    plain = decode_with_pillow(checked, "PNG", alpha=alpha)
    if depth == 16 and plain.array.dtype != np.uint16 and colour == _GREY:
        # Older versions of Pillow read 16-bit grey as 32-bit integers.
        plain = Coded(plain.array.astype(np.uint16), plain.colour)
    # The profile of a palette is a colour profile, and stays valid for the expanded colours.
    return Coded(plain.array, plain.colour, metadata)


def encode(coded: Coded, factor: float) -> bytes:
    """A PNG file of 8 or 16 bits; `factor` is the number of pixels per side for each pixel of the original file.

    Raises:
        InvalidParameterError: the resolution times `factor` is too large for PNG.
    """
    array = coded.array
    height, width = array.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8 * array.dtype.itemsize, _COLOUR if coded.colour else 0, 0, 0, 0)
    kept = [(kind, _rescaled(kind, data, factor)) for kind, data in coded.metadata["chunks"]]
    kept.sort(key=lambda chunk: _KEPT.index(chunk[0]) if chunk[0] in _KEPT else len(_KEPT))
    rows = array.astype(array.dtype.newbyteorder(">")).reshape(height, -1).view(np.uint8).reshape(height, -1)
    step = array.dtype.itemsize * (3 if coded.colour else 1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 1  # "sub": the difference to the left neighbour; photographs compress best with it
    filtered[:, 1 : 1 + step] = rows[:, :step]
    np.subtract(rows[:, step:], rows[:, :-step], out=filtered[:, 1 + step :])
    # gAMA, cHRM, iCCP and sRGB must precede the pixels; the other chunks may.
    return _file([(b"IHDR", header), *kept, (b"IDAT", zlib.compress(filtered.tobytes(), 4)), (b"IEND", b"")])


def _file(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    out = io.BytesIO()
    out.write(_SIGNATURE)
    for kind, data in chunks:
        out.write(struct.pack(">I", len(data)) + kind)
        out.write(data)
        out.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))
    return out.getvalue()


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and data of each chunk up to the end mark. The checksums are verified."""
    if content[:8] != _SIGNATURE:
        raise ValueError("it does not begin like a PNG file")
    at = 8
    while at + 12 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        check = content[at + 8 + length : at + 12 + length]
        if len(data) < length or len(check) < 4:
            raise ValueError("the file is truncated or damaged")
        if struct.unpack(">I", check)[0] != zlib.crc32(data, zlib.crc32(kind)):
            name = kind.decode("ascii", "backslashreplace")
            raise ValueError(f"the file is damaged: the checksum of its chunk {name} is wrong")
        yield kind, data
        if kind == b"IEND":
            return
        at += 12 + length


def _rows(width: int, height: int, bits: int, interlaced: bool) -> list[tuple[int, int]]:
    """(rows, bytes per row) of each pass; each row begins with the number of its filter."""
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(height - top) // down), -(-(width - left) // across)) for left, top, across, down in passes]
    return [(rows, 1 + (columns * bits + 7) // 8) for rows, columns in sizes if rows > 0 and columns > 0]


def _check_pixels(packed: bytes, rows: list[tuple[int, int]]) -> None:
    """Raise unless the pixels inflate to exactly these rows. Only a piece is in memory at a time."""
    inflate, found, expected = zlib.decompressobj(), 0, sum(n * length for n, length in rows)
    ends, start = [], 0
    for n, length in rows:
        ends.append((start, start + n * length, length))
        start += n * length
    rest = packed
    while rest and not inflate.eof:
        piece = inflate.decompress(rest, _PIECE)
        rest = inflate.unconsumed_tail
        for low, high, length in ends:
            first = max(low, found + (low - found) % length)  # position of the first row that begins in this piece
            filters = piece[first - found : max(0, high - found) : length]
            if filters and max(filters) > 4:
                raise ValueError("the file is damaged: a row of pixels has an unknown filter")
        found += len(piece)
        if found > expected or (not piece and not rest):
            break
    if found != expected or not inflate.eof:
        raise ValueError(f"the file is truncated or damaged: it has {found} bytes of pixels, not {expected}")


def _is_kept(kind: bytes, data: bytes) -> bool:
    """Whether to write a chunk again: it is known and valid, or its fourth letter marks it as safe to copy."""
    if kind == b"pHYs":  # readers ignore a damaged chunk of this kind, so it is dropped here, too
        return len(data) == 9
    if kind in _KEPT:
        return True
    return len(kind) == 4 and kind.isalpha() and kind[:1].islower() and kind[3:].islower() and kind != b"tIME"


def _rescaled(kind: bytes, data: bytes, factor: float) -> bytes:
    if kind != b"pHYs" or factor == 1:
        return data
    across, down, unit = struct.unpack(">IIB", data)
    wanted = [round(v * factor) for v in (across, down)]
    if max(wanted) > _MOST:
        raise InvalidParameterError(
            f"its resolution of {across}×{down} pixels per metre, times {factor:g}, is more than a PNG file can store "
            f"({_MOST}): remove the resolution from the file (its chunk pHYs), or save it as TIFF"
        )
    return struct.pack(">IIB", *wanted, unit)
