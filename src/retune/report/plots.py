"""Small plots for the pages, as SVG in the colour of the text around them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from retune.diagnosis.residual import EDGES

__all__ = ["at", "frame", "histogram", "line", "short", "spectrum", "ticks"]

_W, _H, _LEFT, _TOP = 320, 210, 34, 10
#: Width and height of the axes.
_WIDE, _HIGH = _W - _LEFT - 8, _H - _TOP - 32


def at(x: float, y: float) -> str:
    """The position in a plot of a point, given as shares of the axes."""
    return f"{_LEFT + _WIDE * x:.1f},{_TOP + _HIGH * (1 - y):.1f}"


def frame(inner: str, label: str, x: list[tuple[float, str]], y: list[tuple[float, str]], below: str) -> Markup:
    """A small plot; positions are shares of the axes. Every text and number in it is ours."""
    bottom = _TOP + _HIGH
    ticks = [
        f'<text x="{_LEFT + _WIDE * at:.1f}" y="{bottom + 13}" text-anchor="middle">{text}</text>' for at, text in x
    ]
    ticks += [
        f'<text x="{_LEFT - 5}" y="{bottom - _HIGH * at + 4:.1f}" text-anchor="end">{text}</text>' for at, text in y
    ]
    return Markup(
        f'<svg viewBox="0 0 {_W} {_H}" role="img" aria-label="{label}" font-size="10" fill="currentColor">{inner}'
        f'<path d="M{_LEFT} {_TOP}v{_HIGH}h{_WIDE}" fill="none" stroke="currentColor" opacity=".5"/>{"".join(ticks)}'
        f'<text x="{_LEFT + _WIDE / 2}" y="{_H - 4}" text-anchor="middle">{below}</text></svg>'
    )


def line(points: Sequence[tuple[float, float]], look: str) -> str:
    """A line through points; positions are shares of the axes."""
    return f'<polyline points="{" ".join(at(x, y) for x, y in points)}" fill="none" {look}/>'


def ticks(low: float, high: float, most: int = 4) -> list[tuple[float, str]]:
    """Round numbers between the ends of an axis, with their places as shares of it; none of them at the right end."""
    wide = (high - low) or 1.0
    places = [v for v in MaxNLocator(most).tick_values(low, high) if low <= v <= high - 0.04 * wide]
    return [((v - low) / wide, short(float(v))) for v in places]


def short(value: float) -> str:
    """A number in few characters."""
    plain = value == 0 or 0.01 <= abs(value) < 10_000
    return (f"{value:.3g}" if plain else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")).replace("-", "−")


def histogram(density: Sequence[float]) -> Markup | str:
    """Bars of the density, with the standard normal one as a line."""
    if len(density) != len(EDGES) - 1 or not all(math.isfinite(d) and d >= 0 for d in density):
        return ""
    low, high = float(EDGES[0]), float(EDGES[-1])
    top = 1.08 * max(0.4, *density)
    step = 1 / len(density)
    bars = "".join(
        f'<rect x="{_LEFT + _WIDE * i * step:.1f}" y="{_TOP + _HIGH * (1 - d / top):.1f}" '
        f'width="{0.9 * _WIDE * step:.1f}" height="{_HIGH * d / top:.1f}" fill="#56b4e9"/>'
        for i, d in enumerate(density)
    )
    places = [low + (high - low) * i / 100 for i in range(101)]
    normal = [math.exp(-(v**2) / 2) / math.sqrt(2 * math.pi) for v in places]
    normal_line = line([(i / 100, d / top) for i, d in enumerate(normal)], 'stroke="currentColor" stroke-width="1.5"')
    x = [((v - low) / (high - low), f"{v:g}".replace("-", "−")) for v in (-4, -2, 0, 2, 4)]
    return frame(
        bars + normal_line, "Histogram of the residual", x, [(0, "0"), (0.4 / top, "0.4")], "standard deviations"
    )


def spectrum(spectrum: Sequence[tuple[float, float]]) -> Markup | str:
    """The power against the frequency, in a logarithmic scale, with the flat line of white noise."""
    points = [(f, p) for f, p in spectrum if math.isfinite(f) and math.isfinite(p) and 0 < f < 1]
    if len(points) < 2:
        return ""
    low, high = 0.02, 10 ** math.ceil(math.log10(max(4.0, *(p for _, p in points))))
    right = 0.5 * math.sqrt(2)

    def up(power: float) -> float:
        return math.log(max(power, low) / low) / math.log(high / low)

    flat = line([(0, up(1.0)), (1, up(1.0))], 'stroke="currentColor" stroke-dasharray="4 3"')
    curve = line([(f / right, up(p)) for f, p in points], 'stroke="#d55e00" stroke-width="2.2"')
    y = [(up(10.0**k), f"{10.0**k:g}") for k in range(-1, round(math.log10(high)) + 1)]
    x = [(v / right, f"{v:g}") for v in (0.1, 0.2, 0.3, 0.4, 0.5)]
    return frame(flat + curve, "Power spectrum of the residual", x, y, "frequency, cycles per pixel")
