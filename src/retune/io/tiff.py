"""TIFF: grey or colour, one page or a stack, 8 or 16 bits or floats; ImageJ's files stay ImageJ's."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
import tifffile

from retune.errors import InvalidParameterError, ShapeError
from retune.io.coded import Coded

__all__ = ["decode", "encode"]

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its remarks on damaged files come as errors anyway

_WHITE_IS_ZERO, _PALETTE = 0, 3
#: compressions that a result is written with again, as tifffile calls them
_LOSSLESS = {5: "lzw", 8: "zlib", 32946: "zlib", 32773: "packbits", 34925: "lzma", 50000: "zstd"}
#: photometric interpretations whose three samples are not red, green and blue
_OTHER_COLOURS = {5: "CMYK", 8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*"}


def decode(content: bytes) -> Coded:
    """Pixels (stack …, H, W[, C]) of the first series of a TIFF file.

    Raises:
        ShapeError: an alpha channel.
        InvalidParameterError: pages of different sizes, colours that are not red, green and blue.
    """
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        series = file.series[0]
        page: Any = series.keyframe
        _refuse(file, page)
        array = series.asarray()
        axes, colour = series.axes, "S" in series.axes
        if colour:
            array = np.moveaxis(array, axes.index("S"), -1)
            axes = axes.replace("S", "")
        if int(page.photometric) == _PALETTE:
            array, colour = _expanded(array, page.colormap), True
        if int(page.photometric) == _WHITE_IS_ZERO and array.dtype.kind == "u":
            array = np.iinfo(array.dtype).max - array
        return Coded(array, colour, _metadata(file, page, axes))


def encode(coded: Coded, factor: float) -> bytes:
    """A TIFF file; see ``retune.io.png.encode``."""
    known = coded.metadata
    options: dict[str, Any] = {"photometric": "rgb" if coded.colour else "minisblack"}
    if coded.colour:
        options["planarconfig"] = "contig"
    if known.get("resolution"):
        options["resolution"] = tuple(float(v) * factor for v in known["resolution"])
        options["resolutionunit"] = known["unit"]
    if known.get("profile"):
        options["iccprofile"] = known["profile"]
    if known.get("imagej") is not None:
        axes = known["axes"] + ("S" if coded.colour else "")
        options |= {"imagej": True, "metadata": {**known["imagej"], "axes": axes}}
    elif known.get("description"):
        options |= {"description": known["description"], "metadata": None}
    else:
        options["metadata"] = None
    if known.get("compression"):
        options |= {"compression": known["compression"], "predictor": known["predictor"]}
    out = io.BytesIO()
    tifffile.imwrite(out, coded.array, **options)
    return out.getvalue()


def _refuse(file: tifffile.TiffFile, page: Any) -> None:
    if page.extrasamples:
        raise ShapeError(
            "it has an alpha channel, or other samples beside the colours, which cannot be restored; drop the alpha "
            "channel first (in ImageMagick: convert IN -alpha off OUT)"
        )
    if int(page.photometric) in _OTHER_COLOURS:
        raise InvalidParameterError(
            f"its colours are {_OTHER_COLOURS[int(page.photometric)]}; convert it to RGB or grey first"
        )
    sizes = sorted({tuple(s.shape) for s in file.series})
    if len(sizes) > 1:
        raise InvalidParameterError(f"its pages have different shapes ({sizes}); save them as files of their own")
    if len(file.series) > 1:
        raise InvalidParameterError(f"it holds {len(file.series)} separate series; save them as files of their own")


def _expanded(array: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Colours (…, 3) of palette indices; in 8 bits, if the palette has no more."""
    colours = np.asarray(palette, np.uint16).T
    if not (colours % 257).any():
        colours = (colours // 257).astype(np.uint8)
    return colours[array]


def _metadata(file: tifffile.TiffFile, page: Any, axes: str) -> dict[str, Any]:
    kept: dict[str, Any] = {"axes": axes}
    if "XResolution" in page.tags and "YResolution" in page.tags:
        kept["resolution"], kept["unit"] = page.resolution, int(page.resolutionunit)
    if page.iccprofile:
        kept["profile"] = page.iccprofile
    kept["compression"] = _LOSSLESS.get(int(page.compression))
    kept["predictor"] = int(page.predictor) != 1
    if file.is_imagej:
        # Ranges and look-up tables of the display describe the measured image, not the restored one.
        told = {"unit", "spacing", "loop", "fps", "finterval", "Info", "Labels"}
        kept["imagej"] = {k: v for k, v in (file.imagej_metadata or {}).items() if k in told}
    elif not file.is_shaped:
        kept["description"] = page.description
    return kept
