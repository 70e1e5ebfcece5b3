"""A check that a TIFF file contains every pixel that it declares.

A reader fills missing pixels with zeros, and reserves memory for all declared pixels. So both are checked before
anything is read.
"""

from __future__ import annotations

import math
from typing import Any

from retune.errors import InvalidParameterError

__all__ = ["require_all_pixels"]

#: Maximum number of bytes that one byte can expand to, by compression: none, LZW, two kinds of zlib, PackBits.
_MOST = {1: 1, 5: 4096, 8: 1040, 32946: 1040, 32773: 64}
_MOST_OF_OTHERS = 100_000


def require_all_pixels(series: Any, page: Any, length: int) -> None:
    """Raise unless the pixels of all pages of a series lie within a file of `length` bytes.

    Raises:
        InvalidParameterError: pages are in other files, or pixels are missing or truncated.
    """
    if series.is_multifile or any(p is None for p in series.pages):
        raise InvalidParameterError(
            "it holds only some of the planes that it declares: the others are missing or in other files; save all "
            "planes in one file (in ImageJ: Bio-Formats Importer, then Save As TIFF)"
        )
    bits = page.bitspersample if isinstance(page.bitspersample, int) else 8 * page.dtype.itemsize
    if series.dataoffset is not None:
        _require(series.dataoffset + series.size * bits // 8 <= length)
        return
    _require(math.prod(series.shape) == len(series.pages) * math.prod(page.shape))
    segments = math.prod(page.chunked)
    needed = math.prod(page.shape) * bits // 8
    if not page.is_subsampled:
        most = _MOST.get(int(page.compression), _MOST_OF_OTHERS)
    else:
        most = 2 * _MOST.get(int(page.compression), _MOST_OF_OTHERS)
    for one in series.pages:
        counts, offsets = one.databytecounts, one.dataoffsets
        _require(len(counts) == len(offsets) == segments)
        _require(min(counts) > 0 and min(offsets) > 0)
        _require(max(o + c for o, c in zip(offsets, counts, strict=True)) <= length)
        _require(needed <= most * sum(counts))


def _require(condition: bool) -> None:
    if not condition:
        raise InvalidParameterError(
            "it is truncated, damaged or sparse: it does not contain all the pixels that it declares; copy it again, "
            "or save it with all its pixels"
        )
