"""The description of an OME-TIFF file, https://docs.openmicroscopy.org/ome-model."""

from __future__ import annotations

import re

__all__ = ["restored"]

_DATA = re.compile(r"<(\w+:)?TiffData\b(?:[^>]*/>|.*?</(?:\w+:)?TiffData\s*>)", re.DOTALL)


def restored(xml: str, frames: int, factor: float, bits: bool = False) -> str:
    """The description of an image with `factor` times as many pixels per side and its pages in the order of its axes.

    Everything else stays unchanged: channels, exposure times, units, annotations. An image of single bits (`bits`)
    becomes one of bytes.
    """
    if bits:
        xml = re.sub(r"""(<(?:\w+:)?Pixels\b[^>]*?\sType\s*=\s*)(["'])bit\2""", r"\1\2uint8\2", xml)
        xml = _changed(xml, "SignificantBits", lambda v: "8")
    found = list(_DATA.finditer(xml))
    if found:
        prefix = found[0].group(1) or ""
        where = f'<{prefix}TiffData IFD="0" PlaneCount="{frames}"/>'
        xml = xml[: found[0].start()] + where + _DATA.sub("", xml[found[0].end() :])
    if factor != 1:
        xml = _changed(xml, r"Size[XY]", lambda v: str(round(int(v) * factor)))
        xml = _changed(xml, r"PhysicalSize[XY]", lambda v: repr(float(v) / factor))
    return xml


def _changed(xml: str, name: str, change) -> str:
    pattern = re.compile(rf"""(\s{name}\s*=\s*)(["'])([^"']*)\2""")
    return pattern.sub(lambda m: f"{m[1]}{m[2]}{change(m[3])}{m[2]}", xml)
