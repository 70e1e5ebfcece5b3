"""Colours and lines of the methods, the same in every figure and on the page.

The colours follow Okabe and Ito's palette, which stays distinguishable under all common colour-vision deficiencies.
Lines also differ in width and dash, so that both of two coinciding curves are visible, and a grey print is readable.

"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

INK, MUTED, GRID, PAPER = "#1d2733", "#5c6874", "#e4e8ec", "#ffffff"


@dataclass(frozen=True)
class Look:
    """The line style of a method.

    Attributes:
        colour: colour of the line.
        text: a darker shade, readable as text on white.
        width: width of the line, in points.
        dash: a matplotlib line style.
        layer: higher layers are drawn on top.
    """

    colour: str
    text: str
    width: float = 1.8
    dash: object = "-"
    layer: float = 3


_KNOWN = {
    # if the theory holds, implicit gradient and ReTune coincide: a thin dashed line over a thick one shows both
    "retune": Look("#0072b2", "#00558a", 3.8, "-", 4),
    "implicit": Look("#e69f00", "#8f5f00", 1.9, (0, (4, 2)), 5),
    "unrolled": Look("#d55e00", "#b04a00", 2.0),
    "jfb": Look("#cc79a7", "#a0487a", 1.9, (0, (5, 1.4, 1.2, 1.4)), 3.5),
    "pnp": Look("#009e73", "#00734f", 1.9, (0, (6, 1.5))),
    "variational": Look("#6d7782", "#56606b", 1.8, (0, (1.2, 1.4))),
}
_OTHERS = (
    Look("#009e73", "#00734f"),
    Look("#56b4e9", "#1f78ab"),
    Look("#3b3b98", "#3b3b98"),
    Look("#8a6d3b", "#6e562d"),
)


def looks(methods: Mapping[str, object]) -> dict[str, Look]:
    """The line style of each method. Unknown methods take further colours in turn."""
    unknown = [name for name in methods if name not in _KNOWN]
    further = {name: _OTHERS[i % len(_OTHERS)] for i, name in enumerate(unknown)}
    return {name: _KNOWN.get(name) or further[name] for name in methods}
