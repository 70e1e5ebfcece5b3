"""TIFF: grey or colour, one page or a stack, integers of any number of bits or floats.

Files of ImageJ, OME-TIFF and files of tifffile keep their kind. All files keep the tags that describe the image.
"""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
import tifffile

from retune.errors import InvalidParameterError, ShapeError
from retune.io import ome
from retune.io.coded import Coded
from retune.io.storage import require_all_pixels

__all__ = ["decode", "encode"]

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # damaged files raise errors anyway

_WHITE_IS_ZERO, _PALETTE = 0, 3
#: compressions that are also used for the result, with tifffile's names
_LOSSLESS = {5: "lzw", 8: "zlib", 32946: "zlib", 32773: "packbits", 34925: "lzma", 50000: "zstd"}
#: photometric interpretations whose three samples are not red, green and blue
_OTHER_COLOURS = {5: "CMYK", 8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*"}
#: tags that describe the image independently of its pixels: they are copied byte by byte
_OF_THE_IMAGE = (
    *(269, 271, 272, 274, 285, 305, 306, 315, 316, 33432, 37510),  # document, camera, orientation, page, software, …
    *(301, 318, 319, 700, 33723, 34377, 34735, 34736, 34737, 37724, 42112, 42113, 50838, 50839),
)
#: tags that describe pixel positions: they are valid only for the same number of pixels
_OF_THE_GRID = (286, 287, 33550, 33922, 34264)
_DESCRIPTION = 270
#: what ImageJ says of a file that is written anew, or of the measured image only (the displayed ranges of intensity)
_IMAGEJ_AGAIN = {"ImageJ", "SCIFIO", "images", "channels", "slices", "frames", "hyperstack", "min", "max", "Ranges"}
#: what it says in units of pixels: numbers, and drawings that cannot be rescaled here
_IMAGEJ_PIXELS, _IMAGEJ_GRID = ("xorigin", "yorigin"), ("ROI", "Overlays", "Plot")
_MOST = 2**32 - 1


def decode(content: bytes, *, alpha: bool = False) -> Coded:
    """Pixels (stack …, H, W[, C]) of a TIFF file that holds one series of images.

    White-is-zero integers are inverted. Floats are not, because their largest value is unknown.

    Args:
        content: the file.
        alpha: whether further samples (alpha) are returned as the last channels; if not, they are refused.

    Raises:
        ShapeError: an alpha channel.
        InvalidParameterError: the pages have different sizes, the colours are not red, green and blue, or pixels are
            missing or in other files.
    """
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        if not file.pages:
            raise InvalidParameterError("it contains no image")
        series = file.series[0]
        page: Any = series.keyframe
        _refuse(file, page, alpha)
        require_all_pixels(series, page, len(content))
        metadata = _metadata(file, page, series)
        array = series.asarray()
        axes, colour = series.axes, "S" in series.axes
        if colour:
            array = np.moveaxis(array, axes.index("S"), -1)
            axes = axes.replace("S", "")
        elif axes[-3:-1] == "YX" and array.shape[-1] == 1:  # an axis for a single channel
            colour, axes = True, axes[:-1]
        if "Y" in axes and "X" in axes and axes[-2:] != "YX":
            raise ShapeError(
                f"its axes are {series.axes}; store it with rows and columns last (…YX, or …YXS for colour)"
            )
    if int(page.photometric) == _PALETTE:
        array, colour = _expanded(array, page.colormap), True
    bits = int(page.bitspersample) if isinstance(page.bitspersample, int) else None
    known = array.dtype.kind == "u" and bits is not None and 1 < bits < 8 * array.dtype.itemsize
    bits = bits if known and int(page.photometric) != _PALETTE else None
    metadata["axes"] = axes
    metadata["inverted"] = int(page.photometric) == _WHITE_IS_ZERO
    return Coded(_inverted(array, bits) if metadata["inverted"] else array, colour, metadata, bits)


def encode(coded: Coded, factor: float) -> bytes:
    """A TIFF file; see ``retune.io.png.encode``.

    Raises:
        InvalidParameterError: the resolution times `factor` is too large for TIFF.
    """
    known, array = coded.metadata, coded.array
    rgb = coded.colour and array.shape[-1] == 3
    options: dict[str, Any] = {"photometric": "rgb" if rgb else "minisblack", "software": ""}
    options["extratags"] = _of_size(known["tags"], factor)
    if rgb:
        options["planarconfig"] = "contig"
    elif known["inverted"]:
        options["photometric"], array = "miniswhite", _inverted(array, coded.bits)
    if known["resolution"]:
        options["resolution"] = tuple(_times(fraction, factor) for fraction in known["resolution"])
        options["resolutionunit"] = known["unit"]
    if known["profile"]:
        options["iccprofile"] = known["profile"]
    if coded.bits is not None:
        options["bitspersample"] = coded.bits
    elif known["compression"]:
        options |= {"compression": known["compression"], "predictor": known["predictor"]}
    out = io.BytesIO()
    file = {"byteorder": known["byteorder"], "bigtiff": known["bigtiff"]}
    with tifffile.TiffWriter(out, imagej=known["imagej"] is not None, **file) as writer:
        pages = known["pages"]
        if len(pages) > 1:  # pages with separate descriptions
            for part, (description, tags) in zip(array, pages, strict=True):
                kept = {"extratags": _of_size(tags, factor), "description": description}
                writer.write(part, **options | kept, metadata=None, contiguous=False)
        else:
            writer.write(array, **options, **_description(known, rgb, factor))
    return out.getvalue()


def _description(known: dict[str, Any], rgb: bool, factor: float) -> dict[str, Any]:
    """The kind of the file's description: that of ImageJ, OME or tifffile, or free text."""
    if known["imagej"] is not None:
        told = {k: v for k, v in known["imagej"].items() if not (rgb and k in ("mode", "LUTs"))}
        if factor != 1:
            told = {k: _of_pixels(k, v, factor) for k, v in told.items() if k not in _IMAGEJ_GRID}
        told = {k: _imagej_text(v) if isinstance(v, str) and k != "Info" else v for k, v in told.items()}
        return {"metadata": {**told, "axes": known["axes"] + ("S" if rgb else "")}}
    if known["ome"] is not None:
        told = ome.restored(known["ome"], known["frames"], factor, known["bits"])
        return {"description": told.encode(), "metadata": None}
    return {"description": known["description"], "metadata": known["shaped"]}


def _of_pixels(name: str, value: Any, factor: float) -> Any:
    return value * factor if name in _IMAGEJ_PIXELS and isinstance(value, int | float) else value


def _imagej_text(text: str) -> str:
    """The text as ImageJ writes it into its description, which is ASCII: µm as ``\\u00B5m``."""
    return "".join(c if ord(c) < 128 else f"\\u{ord(c):04X}" for c in text)


def _refuse(file: tifffile.TiffFile, page: Any, alpha: bool) -> None:
    if page.extrasamples and not alpha:
        raise ShapeError(
            "it has an alpha channel, or other samples beside the colours, and ReTune cannot restore them; remove "
            "the alpha channel first (in ImageMagick: convert IN -alpha off OUT)"
        )
    if int(page.photometric) in _OTHER_COLOURS:
        raise InvalidParameterError(
            f"its colours are {_OTHER_COLOURS[int(page.photometric)]}; convert it to RGB or grey first"
        )
    sizes = sorted({tuple(s.shape) for s in file.series})
    if len(sizes) > 1:
        raise InvalidParameterError(f"its pages have different shapes ({sizes}); save them as separate files")
    if len(file.series) > 1:
        raise InvalidParameterError(f"it holds {len(file.series)} separate series; save them as separate files")


def _inverted(array: np.ndarray, bits: int | None) -> np.ndarray:
    """Integers with black and white exchanged; floats and signed integers unchanged."""
    if array.dtype == bool:
        return ~array
    if array.dtype.kind != "u":
        return array
    top = np.iinfo(array.dtype).max if bits is None else 2**bits - 1
    return (top - array).astype(array.dtype)


def _expanded(array: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The colours (…, 3) of palette indices, in 8 bits if that is enough for the palette."""
    colours = np.asarray(palette, np.uint16).T
    if not (colours % 257).any():
        colours = (colours // 257).astype(np.uint8)
    return colours[array]


def _metadata(file: tifffile.TiffFile, page: Any, series: Any) -> dict[str, Any]:
    pages: list[tuple[bytes | None, list]] = []
    kept: dict[str, Any] = {"imagej": None, "ome": None, "shaped": None, "description": None, "pages": pages}
    kept["byteorder"], kept["bigtiff"] = file.byteorder, bool(file.is_bigtiff)
    kept["resolution"], kept["unit"] = _resolution(page)
    kept["profile"] = page.iccprofile or None
    kept["compression"] = _LOSSLESS.get(int(page.compression))
    kept["predictor"] = int(page.predictor) != 1
    kept["tags"] = _copied(file, page)
    kept["frames"] = len(series.pages)
    if file.is_imagej:
        kept["imagej"] = {k: v for k, v in (file.imagej_metadata or {}).items() if k not in _IMAGEJ_AGAIN}
    elif file.is_ome:
        kept["ome"] = page.description
        kept["bits"] = page.dtype == bool
    elif file.is_shaped:
        told = dict((file.shaped_metadata or ({},))[0])
        kept["shaped"] = {k: v for k, v in told.items() if k not in ("shape", "truncated")}
        if not str(page.description).startswith('{"shape":'):
            kept["description"] = _described(file, page)
    elif len(series.pages) == 1 or (series.dataoffset is not None and len(file.pages) == 1):
        kept["description"] = _described(file, page)
    else:
        every = [one.aspage() for one in series.pages]
        pages.extend((_described(file, one), _copied(file, one)) for one in every)
        if all(one == pages[0] for one in pages):
            kept["description"] = pages[0][0]
            del pages[1:]
    return kept


def _resolution(page: Any) -> tuple[tuple[tuple[int, int], tuple[int, int]] | None, int]:
    """Both resolutions as fractions, and their unit; None if they are missing, 0 or 1/0."""
    try:
        found = page.tags[282].value, page.tags[283].value
        (a, b), (c, d) = ((int(n), int(m)) for n, m in found)
    except (KeyError, TypeError, ValueError):
        return None, 1
    if min(a, b, c, d) <= 0:
        return None, 1
    unit = page.tags.valueof(296, default=2)
    return ((a, b), (c, d)), int(unit) if unit in (1, 2, 3, 4, 5) else 1


def _times(fraction: tuple[int, int], factor: float) -> tuple[int, int] | float:
    if factor == 1:
        return fraction
    value = fraction[0] / fraction[1] * factor
    if value > _MOST:
        raise InvalidParameterError(
            f"its resolution of {fraction[0] / fraction[1]:g}, times {factor:g}, is more than a TIFF file can store "
            f"({_MOST}): remove the resolution from the file (its tags 282 and 283)"
        )
    return value


def _raw(file: tifffile.TiffFile, tag: Any) -> bytes:
    file.filehandle.seek(tag.valueoffset)
    return file.filehandle.read(tag.valuebytecount)


def _described(file: tifffile.TiffFile, page: Any) -> bytes | None:
    """The description as bytes, because it may have any encoding."""
    tag = page.tags.get(_DESCRIPTION)
    return None if tag is None else _raw(file, tag).rstrip(b"\0") or None


def _copied(file: tifffile.TiffFile, page: Any) -> list[tuple[int, int, int, bytes, bool]]:
    """The tags to copy, in the form of tifffile: code, type, count, bytes, and whether only for the first page."""
    found = [page.tags.get(code) for code in (*_OF_THE_IMAGE, *_OF_THE_GRID)]
    return [(int(t.code), int(t.dtype), int(t.count), _raw(file, t), t.code != 274) for t in found if t is not None]


def _of_size(tags: list[tuple], factor: float) -> list[tuple]:
    return tags if factor == 1 else [tag for tag in tags if tag[0] not in _OF_THE_GRID]
