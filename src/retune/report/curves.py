"""Curves against the number of layers or the training step, labelled at their ends instead of in a legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from retune.records import Methods, ProblemResult
from retune.report.numbers import decimal, label, winners
from retune.report.palette import MUTED, PAPER, Look, looks

_SIZE = (7.4, 4.5)

#: The axis ends this many dB below the best curve, so that tenths of a dB stay visible.
_DEPTH_OF_VIEW = 7.0


def fitting(text: str, length: int) -> str:
    """Text from a user for a figure: cut to `length`, and never interpreted as a formula."""
    text = text if len(text) <= length else text[: length - 1].rstrip() + "…"
    return text.replace("$", r"\$")


def psnr_figure(problem: ProblemResult, heading: str) -> Figure | None:
    """PSNR against the number of layers, far past the depths of training; None without data."""
    curves = _curves(problem.methods, "psnr")
    if not curves:
        return None
    figure, axes = framed(f"{fitting(heading, 36)}: PSNR when run longer", "layers (log scale)", "PSNR, dB")
    axes.set_xscale("log")
    ends = {name: float(values[-1]) for name, (_, values) in curves.items()}
    anchors = [*ends.values(), *(float(values.max()) for _, values in curves.values())]
    top = max(anchors)
    bottom = max(min(anchors), top - _DEPTH_OF_VIEW)
    pad = max(0.12 * (top - bottom), 0.1)
    axes.set_ylim(bottom - pad, top + pad)
    measured = problem.psnr_measurement
    if measured is not None and bottom - pad < measured < top:
        axes.axhline(measured, color=MUTED, linewidth=1, linestyle=(0, (1, 3)))
        axes.annotate(
            "measurement", (0, measured), (4, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
            color=MUTED, fontsize=9,
        )  # fmt: skip
    _draw(axes, curves, problem.methods, lambda value: f"{decimal(value)} dB")
    return figure


def residual_figure(problem: ProblemResult, heading: str) -> Figure | None:
    """Relative residual against the number of layers; None without data."""
    curves = _curves(problem.methods, "residual", positive=True)
    if not curves:
        return None
    figure, axes = framed(
        f"{fitting(heading, 36)}: how far from settled", "layers (log scale)", "relative residual (log scale)"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    _draw(axes, curves, problem.methods, lambda value: "")
    return figure


def training_figure(problem: ProblemResult, heading: str) -> Figure | None:
    """Training loss against the step; None without data."""
    curves = {}
    for name, method in problem.methods.items():
        loss = np.array(method.training.loss if method.training else [], dtype=float)
        if len(loss) > 1 and (loss > 0).all() and np.isfinite(loss).all():
            width = max(1, len(loss) // 8)  # a running mean, because each step sees different crops
            curves[name] = np.arange(width, len(loss) + 1), np.convolve(loss, np.ones(width) / width, "valid")
    if not curves:
        return None
    figure, axes = framed(
        f"{fitting(heading, 36)}: loss while training", "training step", "mean squared error (running mean)"
    )
    axes.set_yscale("log")
    _draw(axes, curves, {}, lambda value: "", labels=problem.methods)
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 5 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    return figure


def _curves(methods: Methods, key: str, positive: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The finite points of each method that has at least two."""
    curves = {}
    for name, method in methods.items():
        layers, values = (np.array(getattr(method.curve, k, []), dtype=float) for k in ("layers", key))
        if len(layers) != len(values):
            continue
        keep = np.isfinite(layers) & np.isfinite(values) & (layers > 0)
        if positive:
            keep &= values > 0
        if keep.sum() > 1:
            curves[name] = layers[keep], values[keep]
    return curves


def framed(heading: str, x: str, y: str) -> tuple[Figure, Axes]:
    """A figure with a heading, and room for labels at its right."""
    figure = Figure(figsize=_SIZE)
    axes = figure.add_axes((0.105, 0.125, 0.605, 0.70))
    figure.text(0.025, 0.945, heading, fontsize=13.5, fontweight="bold", va="center")
    axes.set_xlabel(x, fontsize=10.5)
    figure.text(0.045, 0.885, y, fontsize=10.5, color=MUTED, va="center")
    return figure, axes


def _draw(
    axes: Axes,
    curves: dict,
    methods: Methods,
    value: Callable[[float], str],
    labels: Methods | None = None,
) -> None:
    """The curves, their trained depths, and a label at the end of each curve."""
    labels = methods if labels is None else labels
    look = looks(labels)
    right = max(float(x[-1]) for x, _ in curves.values())
    depths: dict[float, None] = {}
    for name, (x, y) in curves.items():
        kind = look[name]
        axes.plot(x, y, color=kind.colour, linewidth=kind.width, linestyle=kind.dash, zorder=kind.layer)
        trained = methods[name].layers_trained if name in methods else None
        if trained and x[0] <= trained <= x[-1]:
            depths[trained] = None
            at = float(np.interp(math.log(trained), np.log(x), y))
            axes.plot(trained, at, "o", color=PAPER, mec=kind.colour, mew=1.8, ms=6.5, zorder=kind.layer + 3)
    for group in _neighbours(sorted(depths)):
        for depth in group:
            axes.axvline(depth, color=MUTED, linewidth=1, linestyle=":", zorder=1)
        middle = math.prod(group) ** (1 / len(group))
        axes.annotate(
            f"trained at {', '.join(f'{depth:g}' for depth in group)}", (middle, 1), (0, 3), fontsize=9, color=MUTED,
            xycoords=("data", "axes fraction"), textcoords="offset points", ha="center", va="bottom",
        )  # fmt: skip
    if axes.get_xscale() == "log":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}".replace(",", "\u2009")))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(right=right)
    _label_ends(axes, curves, look, labels, value)


def _neighbours(depths: list[float], ratio: float = 3.0) -> list[list[float]]:
    """Groups of depths that are too close on the axis for separate labels."""
    groups: list[list[float]] = []
    for depth in depths:
        if groups and depth < ratio * groups[-1][-1]:
            groups[-1].append(depth)
        else:
            groups.append([depth])
    return groups


def _label_ends(
    axes: Axes, curves: dict, look: dict[str, Look], methods: Methods, value: Callable[[float], str]
) -> None:
    """Names at the right margin. They are moved apart if curves end close together; a thin line leads to each end."""
    axes.autoscale_view()
    texts = {
        name: "\n".join(filter(None, (fitting(label(methods[name], name), 26), value(float(y[-1])))))
        for name, (_, y) in curves.items()
    }
    to_axes = axes.transScale.transform  # log or linear
    low, high = sorted(to_axes([(1, v) for v in axes.get_ylim()])[:, 1])
    ends = {n: (float(to_axes((1, float(y[-1])))[1]) - low) / (high - low) for n, (_, y) in curves.items()}
    order = sorted(ends, key=ends.__getitem__)
    sizes = [0.062 * (1 + texts[name].count("\n")) + 0.02 for name in order]
    winning = winners(methods)
    places = apart([ends[name] for name in order], sizes)
    left, right = axes.get_xlim()
    for name, place in zip(order, places, strict=True):
        end_x = _fraction(axes, float(curves[name][0][-1]), left, right)
        end = min(max(ends[name], 0.0), 1.0)
        kind = look[name]
        axes.plot(
            [end_x, max(end_x, 1.0) + 0.012, 1.04], [end, end, place], transform=axes.transAxes, clip_on=False,
            color=kind.colour, linewidth=0.9, alpha=0.8, zorder=2,
        )  # fmt: skip
        below = "↓ " if ends[name] < 0 else ""
        axes.text(
            1.05, place, below + texts[name], transform=axes.transAxes, va="center", fontsize=10, color=kind.text,
            fontweight="bold" if name in winning else "normal", linespacing=1.15,
        )  # fmt: skip


def _fraction(axes: Axes, x: float, left: float, right: float) -> float:
    if axes.get_xscale() == "log":
        return math.log(x / left) / math.log(right / left)
    return (x - left) / (right - left)


def apart(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Positions in [0, 1] near the wanted ones (ascending) that do not overlap: neighbours are merged into blocks."""
    blocks: list[tuple[float, list[int]]] = []
    for i, place in enumerate(wanted):
        blocks.append((place, [i]))
        while True:
            centre, members = blocks[-1]
            extent = sum(sizes[j] for j in members)
            centre = min(max(centre, extent / 2), max(1 - extent / 2, extent / 2))
            blocks[-1] = centre, members
            if len(blocks) < 2:
                break
            before, others = blocks[-2]
            if before + sum(sizes[j] for j in others) / 2 <= centre - extent / 2 + 1e-9:
                break
            merged = others + members
            blocks[-2:] = [(sum(wanted[j] for j in merged) / len(merged), merged)]
    places = []
    for centre, members in blocks:
        edge = centre - sum(sizes[j] for j in members) / 2
        for j in members:
            places.append(edge + sizes[j] / 2)
            edge += sizes[j]
    return places
