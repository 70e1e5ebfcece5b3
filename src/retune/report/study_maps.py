"""Tables of a study in colour over depth and restarts, with lines of equal cost."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure

from retune.records import Study, StudyCell
from retune.report.numbers import MISSING, power
from retune.report.palette import INK, MUTED, PAPER
from retune.report.study_words import above, angle, separates, ten

__all__ = ["direction_map", "distance_map", "gradient_map"]

#: Light where an error is small; several hues, so that factors of two differ.
_HEAT = ListedColormap(colormaps["YlGnBu"](np.linspace(0.0, 0.97, 256)), "errors")
_LINES = "#e0560a"
#: Angles below this many degrees are rounding of the cosine.
_SMALLEST_ANGLE = 1e-4


def gradient_map(study: Study) -> Figure:
    """The error of the gradient over (K, R)."""
    least = study.mean.exact_error
    heading = "Depth controls the gradient" if separates(study) else "Error of the gradient"
    return _map(
        study, heading, "relative error of the gradient, against implicit differentiation",
        lambda cell: cell.gradient_error, lambda v: above(v, least), least or 1e-8,
    )  # fmt: skip


def distance_map(study: Study) -> Figure:
    """The distance to the equilibrium over (K, R)."""
    least = study.mean.reference_error
    heading = "Restarts control the state" if separates(study) else "Distance to the equilibrium"
    return _map(
        study, heading, "relative distance to the equilibrium, after K·R layers",
        lambda cell: cell.distance, lambda v: above(v, least), least or 1e-13,
    )  # fmt: skip


def direction_map(study: Study) -> Figure | None:
    """The angle between the gradient and the exact one over (K, R); None for a single parameter, or without data."""
    if study.parameters == 1 or all(cell.cosine is None for cell in study.mean.cells):
        return None
    k, r = study.depths[0], study.restarts[-1]
    there = angle(study.mean.at(k, r).cosine)
    heading = "Direction of the gradient" if there is None else f"K = {k}, R = {r}: direction off by {_degrees(there)}"
    return _map(
        study, heading, "angle between the gradient and the exact one",
        lambda cell: angle(cell.cosine), _degrees, _SMALLEST_ANGLE,
    )  # fmt: skip


def _degrees(value: float) -> str:
    if value < _SMALLEST_ANGLE:
        return f"< {ten(_SMALLEST_ANGLE)}°"
    return f"{power(value)}°" if value < 0.01 else f"{value:.0f}°" if value >= 9.95 else f"{value:#.2g}°"


def _map(
    study: Study,
    heading: str,
    what: str,
    value_of: Callable[[StudyCell], float | None],
    write: Callable[[float], str],
    least: float,
) -> Figure:
    """A figure of one table; colours are logarithmic from `least` on."""
    figure = Figure(figsize=(7.0, 5.3))
    axes = figure.add_axes((0.095, 0.115, 0.855, 0.715))
    figure.text(0.03, 0.955, heading, fontsize=15, fontweight="bold", va="center")
    figure.text(0.03, 0.9, what, fontsize=11.5, color=MUTED, va="center")
    found = [[value_of(study.mean.at(k, r)) for k in study.depths] for r in study.restarts]
    table = np.array([[math.nan if v is None else v for v in row] for row in found], dtype=float)
    shown = np.maximum(table, least)
    known = shown[np.isfinite(shown)]
    high = float(known.max()) if known.size else 1.0
    low = min(float(known.min()), high / 100) if known.size else least
    norm = LogNorm(low, high)
    axes.imshow(shown, norm=norm, cmap=_HEAT, origin="lower", aspect="auto")
    _equal_cost(axes, study)
    for (row, column), value in np.ndenumerate(table):
        known_here = math.isfinite(value)
        back = _HEAT(norm(shown[row, column])) if known_here else PAPER
        dark = known_here and _luminance(back) < 0.45
        axes.text(
            column, row, write(float(value)) if known_here else MISSING, ha="center", va="center", fontsize=11,
            color=PAPER if dark else INK, zorder=4,
            bbox={"boxstyle": "square,pad=0.12", "facecolor": back, "edgecolor": "none"},
        )  # fmt: skip
    axes.set_xticks(range(len(study.depths)), [str(k) for k in study.depths], fontsize=11)
    axes.set_yticks(range(len(study.restarts)), [str(r) for r in study.restarts], fontsize=11)
    axes.set_xlabel("depth K: differentiated layers", fontsize=11.5)
    axes.set_ylabel("restarts R", fontsize=11.5)
    axes.grid(False)
    return figure


def _luminance(colour: object) -> float:
    red, green, blue, *_ = np.asarray(colour, dtype=float)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _equal_cost(axes: Axes, study: Study) -> None:
    """Lines of equal time of a training step, labelled where they leave the table."""
    costs = [[study.cost(k, r) for k in study.depths] for r in study.restarts]
    seconds = np.array([[math.nan if c is None or c.seconds is None else c.seconds for c in row] for row in costs])
    if min(seconds.shape) < 2 or not np.isfinite(seconds).all() or seconds.min() <= 0:
        return
    logs = _to_edges(_to_edges(np.log(seconds)).T).T
    low, high = np.log(seconds.min()), np.log(seconds.max())
    levels = sorted({_round(math.exp(low + (high - low) * share)) for share in (0.3, 0.5, 0.7, 0.88)})
    levels = [level for level in levels if logs.min() < math.log(level) < logs.max()]
    if not levels:
        return
    rows, columns = seconds.shape
    x, y = ([-0.5, *range(n), n - 0.5] for n in (columns, rows))
    lines = axes.contour(
        x, y, logs, levels=np.log(levels), colors=_LINES, linewidths=1.7, linestyles="dashed", zorder=3
    )
    for level, segments in zip(levels, lines.allsegs, strict=True):
        ends = [tuple(segment[i]) for segment in segments if len(segment) for i in (0, -1)]
        top = [e for e in ends if e[1] > rows - 0.51]
        right = [e for e in ends if e[0] > columns - 0.51]
        words: dict = {"fontsize": 10, "color": _LINES, "annotation_clip": False, "textcoords": "offset points"}
        if top:
            axes.annotate(_seconds(level), top[0], (0, 3), ha="center", va="bottom", **words)
        elif right:
            axes.annotate(_seconds(level), right[0], (3, 0), ha="left", va="center", **words)


def _to_edges(table: np.ndarray) -> np.ndarray:
    """A table of values at the middles of cells, with the values at the two outer edges of its rows."""
    first, last = table[:1] - (table[1:2] - table[:1]) / 2, table[-1:] + (table[-1:] - table[-2:-1]) / 2
    return np.concatenate([first, table, last])


def _round(value: float) -> float:
    """The nearest of 1, 2 and 5 times a power of ten."""
    scale = 10 ** math.floor(math.log10(value))
    return min((1, 2, 5, 10), key=lambda n: abs(math.log(n * scale / value))) * scale


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 0.1 else f"{1000 * value:.3g} ms"
