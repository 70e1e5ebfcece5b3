"""The figures of a study: errors over depth and restarts, theory beside measurement, PSNR against seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from retune.records import Raced, Study, StudyCell, StudyImage
from retune.records.studies import equal_time
from retune.report.curves import apart, framed
from retune.report.figures import rc, write_figure
from retune.report.numbers import decimal, power
from retune.report.palette import GRID, INK, MUTED, PAPER, Look, looks

__all__ = ["draw", "share_within_two", "write_study_figures"]

#: Light where an error is small.
_HEAT = LinearSegmentedColormap.from_list("errors", ["#f3f7fa", "#9ecae1", "#3787c0", "#0b4a7a", "#072b49"])
#: Errors below this share are drawn as equal to it.
_FLOOR = 1e-8
_MEASURED, _PROVED, _EXPECTED, _REPORTED = "#0072b2", "#1d2733", "#8a939c", "#d55e00"
#: A line for each of these positions among the values of R.
_SHADES = (Look("#8cc0e0", "#3b7ca8", 2.0), Look("#3f93cc", "#2b6f9e", 2.0), Look("#0072b2", "#00558a", 2.0))
_AT_REST = Look("#00304f", "#00304f", 3.0)


def draw(study: Study) -> dict[str, Figure]:
    """The figures that have data, by name."""
    found = {
        "grid": _grid(study),
        "depth": _against_depth(study),
        "distance": _against_layers(study),
        "reported": _reported(study),
        "race": _race(study.races),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def write_study_figures(study: Study, folder: Path) -> dict[str, Path]:
    """Draw every figure into ``folder/figures``; return their paths by name."""
    with style.context(["default", rc()]):
        return {
            name: write_figure(figure, folder / "figures" / f"study-{name}.png") for name, figure in draw(study).items()
        }


def share_within_two(cells: Sequence[StudyCell], key: str = "reported") -> tuple[int, int]:
    """The number of cells whose reported error is within a factor of two of the true one, and that of all with both."""
    pairs = [(c.gradient_error, getattr(c, key)) for c in cells if c.gradient_error and getattr(c, key)]
    return sum(0.5 <= told / true <= 2 for true, told in pairs), len(pairs)


def _grid(study: Study) -> Figure:
    """Both errors over (K, R), with lines of equal cost."""
    figure = Figure(figsize=(11.6, 4.9))
    panels = (
        (0.058, "gradient_error", "Error of the gradient", "relative to implicit differentiation"),
        (0.545, "distance", "Distance to the equilibrium", "of the state after R restarts, relative"),
    )
    for left, key, heading, more in panels:
        axes = figure.add_axes((left, 0.12, 0.44, 0.71))
        figure.text(left - 0.035, 0.945, heading, fontsize=13.5, fontweight="bold", va="center")
        figure.text(left - 0.035, 0.885, more, fontsize=10.5, color=MUTED, va="center")
        _heat(axes, study, key)
    return figure


def _heat(axes: Axes, study: Study, key: str) -> None:
    table = np.array([[_number(getattr(study.mean.at(k, r), key)) for k in study.depths] for r in study.restarts])
    shown = np.clip(table, _FLOOR, 1.0)
    known = shown[np.isfinite(shown)]
    high = float(known.max()) if known.size else 1.0
    low = min(float(known.min()), high / 100) if known.size else _FLOOR
    norm = LogNorm(low, high)
    axes.imshow(shown, norm=norm, cmap=_HEAT, origin="lower", aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        known_here = not math.isnan(value)
        dark = known_here and math.log(max(value, _FLOOR) / low) > 0.5 * math.log(high / low)
        axes.text(
            column, row, _short(value) if known_here else "–", ha="center", va="center", fontsize=9.5,
            color=PAPER if dark else INK, zorder=4,
            path_effects=[withStroke(linewidth=3, foreground=_HEAT(norm(shown[row, column])))] if known_here else [],
        )  # fmt: skip
    _equal_cost(axes, study)
    axes.set_xticks(range(len(study.depths)), [str(k) for k in study.depths])
    axes.set_yticks(range(len(study.restarts)), [str(r) for r in study.restarts])
    axes.set_xlabel("depth K: differentiated layers", fontsize=10.5)
    axes.set_ylabel("restarts R", fontsize=10.5)
    axes.grid(False)


def _equal_cost(axes: Axes, study: Study) -> None:
    """Lines of equal time of a training step, labelled where they leave the table."""
    seconds = np.array(
        [[_number(c.seconds if (c := study.cost(k, r)) else None) for k in study.depths] for r in study.restarts]
    )
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
        x, y, logs, levels=np.log(levels), colors=_REPORTED, linewidths=1.6, linestyles="dashed", zorder=3
    )
    for level, segments in zip(levels, lines.allsegs, strict=True):
        ends = [tuple(segment[i]) for segment in segments if len(segment) for i in (0, -1)]
        top = [e for e in ends if e[1] > rows - 0.51]
        right = [e for e in ends if e[0] > columns - 0.51]
        words: dict = {"fontsize": 9, "color": _REPORTED, "annotation_clip": False, "textcoords": "offset points"}
        if top:
            axes.annotate(_seconds(level), top[0], (0, 3), ha="center", va="bottom", **words)
        elif right:
            axes.annotate(_seconds(level), right[0], (3, 0), ha="left", va="center", **words)


def _to_edges(table: np.ndarray) -> np.ndarray:
    """A table of values at the middles of cells, with the values at the two outer edges of its rows."""
    first, last = table[:1] - (table[1:2] - table[:1]) / 2, table[-1:] + (table[-1:] - table[-2:-1]) / 2
    return np.concatenate([first, table, last])


def _against_depth(study: Study) -> Figure:
    """Error of the gradient against K, for several R and at the equilibrium, with the theory."""
    figure, axes = framed("Depth controls the gradient", "depth K: differentiated layers", "relative error (log scale)")
    mean, depths = study.mean, study.depths
    curves: dict[str, tuple[list[int], list[float | None], Look]] = {}
    chosen = [study.restarts[i] for i in sorted({round(q * (len(study.restarts) - 1)) for q in (0, 0.5, 1)})]
    for shade, r in zip(_SHADES, chosen, strict=False):
        errors = [mean.at(k, r).gradient_error for k in depths]
        curves[f"gradient, R = {r}"] = depths, errors, shade
    rows = mean.depths
    curves["gradient, R = ∞"] = depths, [d.gradient_error for d in rows], _AT_REST
    curves["adjoint, R = ∞"] = depths, [d.adjoint_error for d in rows], Look("#e69f00", "#8f5f00", 2.2, (0, (4, 2)))
    curves["ρᴷ, ρ estimated"] = depths, [d.expected for d in rows], Look(_EXPECTED, MUTED, 1.6, (0, (1.2, 1.4)))
    curves["ρᴷ, ρ proved"] = depths, [d.bound for d in rows], Look(_PROVED, INK, 1.6, (0, (6, 2)))
    _lines(axes, curves)
    return figure


def _against_layers(study: Study) -> Figure:
    """Distance against the layers before the block, with the certificate and the theory."""
    figure, axes = framed("Restarts control the state", "layers of the restarts, K·R", "relative distance (log scale)")
    mean = study.mean
    by_layers = {c.depth * c.restarts: c for c in mean.cells}
    layers = sorted(by_layers)
    cells = [by_layers[n] for n in layers]
    curves: dict[str, tuple[list[int], list[float | None], Look]] = {
        "measured": (layers, [c.distance for c in cells], Look(_MEASURED, "#00558a", 3.4)),
        "certificate": (layers, [c.certified for c in cells], Look(_REPORTED, "#b04a00", 1.8, (0, (4, 2)))),
        "ρⁿ, ρ estimated": (layers, _decay(mean.start, mean.rate_estimated, layers), Look(_EXPECTED, MUTED, 1.6, ":")),
        "ρⁿ, ρ proved": (layers, _decay(mean.start, mean.rate_proved, layers), Look(_PROVED, INK, 1.6, (0, (6, 2)))),
    }
    _lines(axes, curves, 1e-12)
    return figure


def _decay(start: float | None, rate: float | None, layers: Sequence[int]) -> list[float | None]:
    return [None if start is None or rate is None else start * rate**n for n in layers]


def _lines(
    axes: Axes, curves: Mapping[str, tuple[Sequence[int], Sequence[float | None], Look]], floor: float = _FLOOR
) -> None:
    """Lines on a logarithmic axis, labelled at their ends."""
    axes.set_yscale("log")
    ends: dict[str, tuple[float, float, Look]] = {}
    for name, (x, y, look) in curves.items():
        points = [(a, b) for a, b in zip(x, y, strict=True) if b is not None and b >= floor]
        if not points:
            continue
        a, b = zip(*points, strict=True)
        marker = "o" if len(points) < 12 and look.width >= 2 else None
        axes.plot(
            a, b, color=look.colour, linewidth=look.width, linestyle=look.dash, marker=marker, ms=4.5, mec=PAPER
        )  # fmt: skip
        ends[name] = a[-1], b[-1], look
    axes.autoscale_view()
    _ticks(axes.yaxis, *axes.get_ylim())
    _label(axes, ends, lambda name, _: name)


def _ticks(axis: Axis, low: float, high: float) -> None:
    """Ticks of a logarithmic axis: over less than two decades also at 2 and 5."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=9))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: _short(v)))


def _label(axes: Axes, ends: Mapping[str, tuple[float, float, Look]], write: Callable[[str, float], str]) -> None:
    """Names at the right margin, moved apart, each with a thin line from the end of its curve."""
    to_axes = axes.transData + axes.transAxes.inverted()
    at = {name: to_axes.transform((x, y)) for name, (x, y, _) in ends.items()}
    order = sorted(ends, key=lambda n: at[n][1])
    texts = {name: write(name, ends[name][1]) for name in order}
    sizes = [0.015 + 0.06 * len(texts[name].splitlines()) for name in order]
    for name, place in zip(order, apart([float(at[n][1]) for n in order], sizes), strict=True):
        x, y = at[name]
        look = ends[name][2]
        axes.plot(
            [x, max(x, 1.0) + 0.012, 1.04], [y, y, place], transform=axes.transAxes, clip_on=False, color=look.colour,
            linewidth=0.8, alpha=0.7, zorder=2,
        )  # fmt: skip
        axes.text(
            1.05, place, texts[name], transform=axes.transAxes, va="center", fontsize=10, color=look.text,
            linespacing=1.15,
        )  # fmt: skip


def _reported(study: Study) -> Figure | None:
    """The report of each step against the true error, every cell of every image."""
    pairs = {
        r: [
            (c.gradient_error, c.reported)
            for image in study.images
            for c in image.cells
            if c.restarts == r and c.gradient_error and c.reported
        ]
        for r in study.restarts
    }
    values = [v for points in pairs.values() for pair in points for v in pair if v >= _FLOOR]
    if not values:
        return None
    figure, axes = framed("What the step reports", "true relative error of the gradient", "reported error (log scale)")
    low, high = min(values) / 1.6, max(values) * 1.6
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axes.fill_between([low, high], [low / 2, high / 2], [low * 2, high * 2], color=GRID, zorder=1, linewidth=0)
    axes.plot([low, high], [low, high], color=MUTED, linewidth=1.2, zorder=2)
    shades = LinearSegmentedColormap.from_list("restarts", ["#f0a868", "#9ecae1", "#0072b2", "#00304f"])
    for i, (r, points) in enumerate(pairs.items()):
        kept = [p for p in points if min(p) >= _FLOOR]
        colour = shades(i / max(1, len(pairs) - 1))
        axes.plot(
            *(zip(*kept, strict=True) if kept else ([], [])), "o", color=colour, mec=PAPER, mew=0.8, ms=8, zorder=3 + i
        )
        place = 0.97 - 0.075 * i
        axes.plot([1.05], [place], "o", color=colour, ms=8, transform=axes.transAxes, clip_on=False)
        axes.text(1.08, place, f"R = {r}", transform=axes.transAxes, va="center", fontsize=10, color=INK)
    axes.text(
        0.98, 0.03, "grey band: within a factor of 2", transform=axes.transAxes, ha="right", fontsize=9, color=MUTED
    )
    for axis in (axes.xaxis, axes.yaxis):
        _ticks(axis, low, high)
    return figure


def _race(races: Sequence[Raced]) -> Figure | None:
    """PSNR against seconds, as far as all have come: the mean over the seeds, and their range."""
    done = [one for one in races if one.psnr_at(0) is not None]
    end = equal_time(races)
    if not done or not end:
        return None
    figure, axes = framed("PSNR after equal training time", "seconds of training steps", "validation PSNR, dB")
    look = looks(dict.fromkeys(one.key for one in done))
    at, ends = np.linspace(0, end, 100), {}
    for key, kind in look.items():
        curves = np.array([[one.psnr_at(t) for t in at] for one in done if one.key == key], dtype=float)
        mean = curves.mean(0)
        axes.plot(at, mean, color=kind.colour, linewidth=kind.width, linestyle=kind.dash, zorder=kind.layer)
        if len(curves) > 1:
            axes.fill_between(at, curves.min(0), curves.max(0), color=kind.colour, alpha=0.13, linewidth=0, zorder=2)
        ends[key] = end, float(mean[-1]), kind
    labels = {one.key: one.label for one in done}
    axes.set_xlim(0, end)
    axes.autoscale_view(scalex=False)
    _label(axes, ends, lambda key, psnr: f"{labels[key]}\n{decimal(psnr)} dB")
    return figure


def rates(image: StudyImage) -> list[tuple[str, float | None]]:
    """The rates of an image with their names."""
    return [
        ("proved factor of a layer", image.rate_proved),
        ("estimated factor of a layer (power iteration)", image.rate_estimated),
        ("fitted to the distances", image.rate_distance),
        ("fitted to the error of the adjoint", image.rate_gradient),
    ]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _short(value: float) -> str:
    """A share in few characters."""
    if value >= 0.995:
        return f"{value:.2g}" if value < 100 else power(value)
    if value >= 0.0095:
        return f"{100 * value:.0f} %"
    if value >= 0.00095:
        return f"{100 * value:.1f} %"
    exponent = round(math.floor(math.log10(value))) if value > 0 else -99
    return "0" if value < 1e-15 else power(float(f"{value / 10**exponent:.0f}e{exponent}")).replace(".0·", "·")


def _round(value: float) -> float:
    """The nearest of 1, 2 and 5 times a power of ten."""
    scale = 10 ** math.floor(math.log10(value))
    return min((1, 2, 5, 10), key=lambda n: abs(math.log(n * scale / value))) * scale


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 0.1 else f"{1000 * value:.3g} ms"
