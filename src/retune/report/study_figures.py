"""The figures of a study: errors over depth and restarts, theory beside measurement, PSNR against seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from retune.records import Raced, Study, StudyImage
from retune.records.studies import equal_time
from retune.report.curves import apart
from retune.report.figures import rc, write_figure
from retune.report.numbers import decimal, power
from retune.report.palette import GRID, INK, MUTED, PAPER, Look, looks
from retune.report.study_maps import direction_map, distance_map, gradient_map
from retune.report.study_words import factor, race_title, share_within_two

__all__ = ["draw", "rates", "write_study_figures"]

#: Errors below these are rounding, or the error of the reference.
_FLOOR, _DISTANCE_FLOOR = 1e-8, 1e-12
#: Room below the last values of the trainings, as a multiple of their spread.
_BELOW = 1.5
_DPI = 180


@dataclass(frozen=True)
class _Line:
    """A curve: its points, and its look. Theory lies behind as a broad band, so that both are seen if they agree."""

    x: Sequence[int]
    y: Sequence[float | None]
    colour: str
    width: float = 1.8
    dash: object = "-"
    marker: str | None = None
    size: float = 0
    filled: bool = True
    layer: float = 3


def draw(study: Study) -> dict[str, Figure]:
    """The figures that have data, by name."""
    found = {
        "gradient": gradient_map(study),
        "state": distance_map(study),
        "direction": direction_map(study),
        "reported": _reported(study),
        "depth": _against_depth(study),
        "distance": _against_layers(study),
        "race": _race(study.races),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def write_study_figures(study: Study, folder: Path) -> dict[str, Path]:
    """Draw every figure into ``folder/figures``; return their paths by name."""
    with style.context(["default", rc()]):
        return {
            name: write_figure(figure, folder / "figures" / f"study-{name}.png", _DPI)
            for name, figure in draw(study).items()
        }


def _framed(heading: str, x: str, y: str) -> tuple[Figure, Axes]:
    """A figure with a heading, and room for a key at its right."""
    figure = Figure(figsize=(7.0, 4.9))
    axes = figure.add_axes((0.105, 0.125, 0.545, 0.695))
    figure.text(0.03, 0.95, heading, fontsize=15, fontweight="bold", va="center")
    figure.text(0.03, 0.885, y, fontsize=11.5, color=MUTED, va="center")
    axes.set_xlabel(x, fontsize=11.5)
    axes.tick_params(labelsize=11)
    return figure, axes


def _against_depth(study: Study) -> Figure:
    """Error of the gradient against K, for several R and at the equilibrium, with the theory."""
    mean, depths, rows = study.mean, study.depths, study.mean.depths
    rate = mean.rate_gradient
    heading = "Error of the gradient" if rate is None else f"Adjoint error × {factor(rate)} per differentiated layer"
    figure, axes = _framed(heading, "depth K: differentiated layers (K = 1: JFB)", "relative error, log scale")
    name = "ρᴷ" if study.blocks == 1 else f"ρ^({study.blocks}·K)"
    curves = {
        f"bound {name}, ρ = {factor(mean.rate_proved)}": _Line(depths, [d.bound for d in rows], "#d3d9df", 9),
        f"{name}, estimated ρ = {factor(mean.rate_estimated)}": _Line(
            depths, [d.expected for d in rows], INK, 1.4, (0, (1, 2.5)), layer=6
        ),
        "adjoint, R = ∞": _Line(depths, [d.adjoint_error for d in rows], "#009e73", 1.6, "-", "D", 8, False),
        "gradient, R = ∞": _Line(depths, [d.gradient_error for d in rows], "#00304f", 0, "-", "s", 3.5, layer=5),
    }
    chosen = [study.restarts[i] for i in sorted({round(q * (len(study.restarts) - 1)) for q in (0, 0.5, 1)})]
    kinds = zip(
        chosen, ("#d55e00", "#e69f00", "#56b4e9"), ("o", "^", "v"), (6.5, 10, 6), (True, False, True), strict=False
    )
    for r, colour, marker, size, filled in kinds:
        errors = [mean.at(k, r).gradient_error for k in depths]
        curves[f"gradient, R = {r}"] = _Line(depths, errors, colour, 1.6 if filled else 0, "-", marker, size, filled)
    _lines(axes, curves, _FLOOR)
    return figure


def _against_layers(study: Study) -> Figure:
    """Distance against the layers before the block, with the certificate and the theory."""
    mean = study.mean
    rate = mean.rate_distance
    heading = "Distance to the equilibrium" if rate is None else f"Distance × {factor(rate)} per layer of the restarts"
    figure, axes = _framed(heading, "layers of the restarts, K·R", "relative distance of the state, log scale")
    by_layers = {c.depth * c.restarts: c for c in mean.cells}
    layers = sorted(by_layers)
    cells = [by_layers[n] for n in layers]
    kinds = {c.certified_kind or "" for c in cells}
    kind = "bound" if all(k.startswith("proved") for k in kinds) else "estimate" if "estimated" in kinds else "value"
    curves = {
        f"bound ρᴷᴿ, ρ = {factor(mean.rate_proved)}": _Line(layers, [c.distance_bound for c in cells], "#d3d9df", 9),
        f"ρᴷᴿ, estimated ρ = {factor(mean.rate_estimated)}": _Line(
            layers, [c.distance_expected for c in cells], INK, 1.4, (0, (1, 2.5)), layer=6
        ),
        f"certificate ({kind})": _Line(layers, [c.certified for c in cells], "#d55e00", 0, "-", "o", 10, False),
        "measured": _Line(layers, [c.distance for c in cells], "#0072b2", 1.6, "-", "o", 4.5),
    }
    _lines(axes, curves, max(_DISTANCE_FLOOR, 3 * (mean.reference_error or 0)))
    return figure


def _lines(axes: Axes, curves: Mapping[str, _Line], floor: float) -> None:
    """Curves on a logarithmic axis, and their key at the right."""
    axes.set_yscale("log")
    for name, line in curves.items():
        points = [(a, b) for a, b in zip(line.x, line.y, strict=True) if b is not None and b >= floor]
        if not points:
            continue
        axes.plot(
            *zip(*points, strict=True), label=name, color=line.colour, linewidth=line.width or 0,
            linestyle=line.dash if line.width else "none", marker=line.marker, ms=line.size, mew=1.6,
            mfc=line.colour if line.filled else "none", mec=line.colour, zorder=line.layer,
        )  # fmt: skip
    axes.autoscale_view()
    _ticks(axes.yaxis, *axes.get_ylim())
    _key(axes)


def _key(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=10.5, labelcolor=INK,
            handlelength=1.9, labelspacing=0.75, borderaxespad=0,
        )  # fmt: skip


def _ticks(axis: Axis, low: float, high: float) -> None:
    """Ticks of a logarithmic axis: over less than two decades also at 2 and 5."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=9))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: _tick(v)))


def _tick(value: float) -> str:
    """1, 0.1, 0.01, then 10⁻³."""
    return f"{value:g}" if value >= 0.0095 else power(value).replace(".0·", "·").removeprefix("1·")


def _reported(study: Study) -> Figure | None:
    """The report of each step against the true error, every cell of every image."""
    cells = [c for image in study.images for c in image.cells]
    pairs = {
        r: [(c.gradient_error, c.reported) for c in cells if c.restarts == r and c.gradient_error and c.reported]
        for r in study.restarts
    }
    values = [v for points in pairs.values() for pair in points for v in pair if v >= _FLOOR]
    if not values:
        return None
    within, count = share_within_two(cells)
    figure, axes = _framed(
        f"Reports within a factor of 2: {within} of {count} steps", "true relative error of the gradient, log scale",
        "error that the step reports, log scale",
    )  # fmt: skip
    low, high = min(values) / 1.8, max(values) * 1.8
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axes.fill_between(
        [low, high], [low / 2, high / 2], [low * 2, high * 2], color=GRID, zorder=1, linewidth=0,
        label="within a factor of 2",
    )  # fmt: skip
    axes.plot([low, high], [low, high], color=MUTED, linewidth=1.2, zorder=2, label="reported = true")
    shades = LinearSegmentedColormap.from_list("restarts", ["#d55e00", "#f0c05a", "#56b4e9", "#0072b2", "#00243d"])
    for i, (r, points) in enumerate(pairs.items()):
        kept = [p for p in points if min(p) >= _FLOOR]
        part = i / max(1, len(pairs) - 1)
        axes.plot(  # points that coincide are seen as rings
            *(zip(*kept, strict=True) if kept else ([], [])), "o", color=shades(part), mec=PAPER, mew=0.5,
            ms=12 - 8 * part, zorder=3 + i, label=f"R = {r}", linestyle="none",
        )  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        _ticks(axis, low, high)
    _key(axes)
    return figure


def _race(races: Sequence[Raced]) -> Figure | None:
    """PSNR against seconds, as far as all have come: the mean over the seeds, and their range."""
    done = [one for one in races if one.psnr_at(0) is not None]
    end = equal_time(races)
    if not done or not end:
        return None
    figure, axes = _framed(race_title(races), "seconds of training steps", "validation PSNR, dB")
    look = looks(dict.fromkeys(one.key for one in done))
    at, ends = np.linspace(0, end, 100), {}
    for key, kind in look.items():
        curves = np.array([[one.psnr_at(t) for t in at] for one in done if one.key == key], dtype=float)
        mean = curves.mean(0)
        axes.plot(at, mean, color=kind.colour, linewidth=kind.width + 0.4, linestyle=kind.dash, zorder=kind.layer)
        if len(curves) > 1:
            axes.fill_between(at, curves.min(0), curves.max(0), color=kind.colour, alpha=0.13, linewidth=0, zorder=2)
        ends[key] = end, float(mean[-1]), kind
    labels = {one.key: one.label for one in done}
    axes.set_xlim(0, end)
    axes.autoscale_view(scalex=False)
    _near_the_end(axes, [psnr for _, psnr, _ in ends.values()])
    _label(axes, ends, lambda key, psnr: f"{labels[key]}: {decimal(psnr)}")
    return figure


def _near_the_end(axes: Axes, last: Sequence[float]) -> None:
    """Leave out the first rise, if the differences at the end would be lost beside it."""
    bottom, top = axes.get_ylim()
    spread = max(max(last) - min(last), 0.5)
    axes.set_ylim(max(bottom, min(last) - _BELOW * spread), top)


def _label(axes: Axes, ends: Mapping[str, tuple[float, float, Look]], write: Callable[[str, float], str]) -> None:
    """Names at the right margin, moved apart, each with a thin line from the end of its curve."""
    to_axes = axes.transData + axes.transAxes.inverted()
    at = {name: to_axes.transform((x, y)) for name, (x, y, _) in ends.items()}
    order = sorted(ends, key=lambda n: at[n][1])
    for name, place in zip(order, apart([float(at[n][1]) for n in order], [0.065] * len(order)), strict=True):
        x, y = at[name]
        look = ends[name][2]
        axes.plot(
            [x, 1.012, 1.035], [y, y, place], transform=axes.transAxes, clip_on=False, color=look.colour,
            linewidth=0.9, alpha=0.8, zorder=2,
        )  # fmt: skip
        axes.text(
            1.04, place, write(name, ends[name][1]), transform=axes.transAxes, va="center", fontsize=10.5,
            color=look.text,
        )  # fmt: skip


def rates(image: StudyImage) -> list[tuple[str, float | None]]:
    """The rates of an image with their names."""
    return [
        ("proved factor of a layer", image.rate_proved),
        ("estimated factor of a layer (power iteration)", image.rate_estimated),
        ("fitted to the distances", image.rate_distance),
        ("fitted to the error of the adjoint", image.rate_gradient),
    ]
