"""Figures: pictures side by side, PSNR and residual against the number of layers, training loss.

They are drawn on ``Figure`` objects, not through pyplot: the caller's backend, open figures and rcParams stay
unchanged.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from retune._files import write_atomically
from retune.records import Methods, Results
from retune.report.curves import fitting, psnr_figure, residual_figure, training_figure
from retune.report.numbers import title, winners
from retune.report.palette import GRID, INK, MUTED, PAPER, looks
from retune.report.pictures import Row, read_rows

DPI = 130

# Sizes of the pictures, in inches.
_CELL, _GAP, _MARGIN, _TOP, _CAPTION = 1.95, 0.06, 0.2, 0.98, 0.30

_FONTS = ("Inter", "Source Sans 3", "Source Sans Pro", "Open Sans", "Noto Sans", "Helvetica Neue", "Liberation Sans")


def write_figures(results: Results, folder: str | Path) -> dict[str, Path]:
    """Draw every figure of `results` into ``folder/figures``.

    Args:
        results: the results.
        folder: the folder of their images.

    Returns:
        Paths by name: ``<problem>-images``, ``-psnr``, ``-residual`` and ``-training``; figures without data are left
        out.

    Raises: InvalidParameterError: a named image is missing.
    """
    folder = Path(folder)
    written = {}
    with style.context(["default", rc()]):
        for name, problem in results.problems.items():
            heading = title(problem, name)
            drawn = {
                "images": _pictures(read_rows(problem, folder), heading, problem.methods),
                "psnr": psnr_figure(problem, heading),
                "residual": residual_figure(problem, heading),
                "training": training_figure(problem, heading),
            }
            for kind, figure in drawn.items():
                if figure is not None:
                    written[f"{name}-{kind}"] = write_figure(figure, folder / "figures" / f"{name}-{kind}.png")
    return written


def rc() -> dict:
    """The settings of matplotlib for every figure."""
    installed = set(font_manager.fontManager.get_font_names())
    family = [name for name in _FONTS if name in installed][:1]
    return {
        "font.family": [*family, "DejaVu Sans"],
        "font.size": 11,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": "#aab3bc",
        "axes.facecolor": PAPER,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "figure.facecolor": PAPER,
        "grid.color": GRID,
        "grid.linewidth": 1.0,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "ytick.major.size": 0,
        "lines.solid_capstyle": "round",
    }


def write_figure(figure: Figure, path: Path, dpi: int = DPI) -> Path:
    """Write a figure as PNG, atomically; return its path."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())
    return path


def _pictures(rows: list[Row], heading: str, methods: Methods) -> Figure | None:
    """One column per method. For each photograph: the pictures, the enlarged part below, then the PSNR."""
    look, winning = looks(methods), winners(methods)
    rows = [row for row in rows if row.pictures]
    if not rows:
        return None
    columns = max(len(row.pictures) for row in rows)
    width = 2 * _MARGIN + columns * _CELL + (columns - 1) * _GAP
    height = _TOP + sum(_ratio(row.pictures[0].pixels) + _zoom_ratio(row) for row in rows) * _CELL
    height += len(rows) * (2 * _GAP + _CAPTION)
    figure = Figure(figsize=(width, height))
    # A single set of axes, in inches from the top left corner: thirty sets would take seconds.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.text(_MARGIN, 0.34, fitting(heading, 80), fontsize=15, fontweight="bold", va="center")
    y = _TOP
    for r, row in enumerate(rows):
        for c, picture in enumerate(row.pictures):
            x = _MARGIN + c * (_CELL + _GAP)
            main = picture.key in winning
            words: dict[str, Any] = {"ha": "center", "color": look[picture.key].text if picture.key in look else INK}
            words["fontweight"] = "bold" if main else "normal"
            if r == 0:
                axes.text(x + _CELL / 2, y - 0.07, fitting(_wrap(picture.title), 50), fontsize=10, va="bottom", **words)
            bottom = _paste(axes, x, y, picture.pixels)
            if row.window:
                w, scale = row.window, _CELL / picture.pixels.shape[1]
                box = (x + w.left * scale, y + w.top * scale), w.width * scale, w.height * scale
                axes.add_patch(Rectangle(*box, fill=False, edgecolor="white", linewidth=2.2))
                axes.add_patch(Rectangle(*box, fill=False, edgecolor=INK, linewidth=0.9))
                bottom = _paste(axes, x, bottom + _GAP, w.of(picture.pixels))
            if main:
                colour = look[picture.key].colour
                axes.add_patch(Rectangle((x, y), _CELL, bottom - y, fill=False, edgecolor=colour, linewidth=2.5))
            note = picture.note or (fitting(row.name, 26) if c == 0 else "")
            axes.text(x + _CELL / 2, bottom + 0.05, note, fontsize=10.5, va="top", **words)
        y += (_ratio(row.pictures[0].pixels) + _zoom_ratio(row)) * _CELL + 2 * _GAP + _CAPTION
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    axes.set_axis_off()
    return figure


def _ratio(pixels: np.ndarray) -> float:
    return pixels.shape[0] / pixels.shape[1]


def _zoom_ratio(row: Row) -> float:
    return row.window.height / row.window.width if row.window else 0.0


def _paste(axes: Axes, x: float, y: float, pixels: np.ndarray) -> float:
    """Draw a picture as wide as a column; return where it ends."""
    bottom = y + _ratio(pixels) * _CELL
    sharp = pixels.shape[1] < 2 * _CELL * DPI  # enlarged pixels stay sharp
    axes.imshow(pixels, extent=(x, x + _CELL, bottom, y), interpolation="nearest" if sharp else "antialiased")
    return bottom


def _wrap(text: str, width: int = 22) -> str:
    """The title of a column of pictures, in at most two lines."""
    if len(text) <= width:
        return text
    cut = text.rfind(" ", 0, width + 1)
    first, rest = (text[:cut], text[cut + 1 :]) if cut > 0 else (text[:width], text[width:])
    return f"{first}\n{rest if len(rest) <= width else rest[: width - 1] + '…'}"
