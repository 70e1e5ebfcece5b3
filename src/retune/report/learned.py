"""The learned parameters of each method as a table: λ, step size, weights per channel and band, weights per scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from retune.records import ProblemResult
from retune.report.numbers import MISSING, label

_BANDS = ("H", "V", "D")


@dataclass(frozen=True)
class Cell:
    """A number, and a tint for its distance from 1."""

    text: str
    tint: str = ""


@dataclass(frozen=True)
class Learned:
    """The table: groups of columns (heading, names of its columns), and the rows (key, method, cells)."""

    groups: list[tuple[str, list[str]]]
    rows: list[tuple[str, str, list[Cell]]]


def learned_table(problem: ProblemResult) -> Learned | None:
    """The parameters of all methods that report them; None if no method does.

    Weights are (channels, 3) or (channels, wavelets, 3), scale weights (levels,) or (wavelets, levels); several
    wavelets become several columns. If a parameter differs between layers, its range is shown.
    """
    found = {
        name: {key: _array(value) for key, value in (method.learned or {}).items()}
        for name, method in problem.methods.items()
    }
    found = {name: entry for name, entry in found.items() if any(v is not None for v in entry.values())}
    if not found:
        return None
    weights = {name: _weights(entry.get("weights")) for name, entry in found.items()}
    scales = {name: _scales(entry.get("scale_weights")) for name, entry in found.items()}
    channels, wavelets = _most(weights, 0), _most(weights, 1)
    bases, levels = _most(scales, 0), _most(scales, 1)
    groups: list[tuple[str, list[str]]] = [("", ["λ", "step"])]
    for c in range(channels):
        for m in range(wavelets):
            groups.append((_channel(c, channels) + (f", wavelet {m + 1}" if wavelets > 1 else ""), list(_BANDS)))
    for m in range(bases):
        name = "scale, fine to coarse" + (f", wavelet {m + 1}" if bases > 1 else "")
        groups.append((name, [str(j + 1) for j in range(levels)]))
    rows = []
    for name, entry in found.items():
        cells = [Cell(_range(entry.get("reg"))), Cell(_range(entry.get("step_size")))]
        cells += _cells(weights[name], (channels, wavelets, 3)) + _cells(scales[name], (bases, levels))
        rows.append((name, label(problem.methods[name], name), cells))
    return Learned(groups, rows)


def _array(value: object) -> np.ndarray | None:
    try:
        array = np.array(value, dtype=float)
    except (TypeError, ValueError):
        return None
    return array if value is not None and array.size else None


def _weights(array: np.ndarray | None) -> np.ndarray | None:
    if array is None or array.shape[-1:] != (3,) or array.ndim not in (2, 3):
        return None
    return array[:, None] if array.ndim == 2 else array


def _scales(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None or array.ndim not in (1, 2) else np.atleast_2d(array)


def _most(arrays: dict[str, np.ndarray | None], axis: int) -> int:
    return max((a.shape[axis] for a in arrays.values() if a is not None), default=0)


def _channel(index: int, channels: int) -> str:
    if channels == 1:
        return "all channels"
    return ("red", "green", "blue")[index] if channels == 3 else f"channel {index + 1}"


def _range(array: np.ndarray | None) -> str:
    if array is None:
        return MISSING
    low, high = f"{array.min():.3g}", f"{array.max():.3g}"
    return low if low == high else f"{low} … {high}"


def _cells(array: np.ndarray | None, shape: tuple[int, ...]) -> list[Cell]:
    """One cell per column; weights shared by the channels are repeated."""
    if array is None:
        return [Cell(MISSING)] * math.prod(shape)
    try:
        array = np.broadcast_to(array, shape)
    except ValueError:
        padded = np.full(shape, np.nan)
        padded[tuple(slice(n) for n in array.shape)] = array
        array = padded
    return [Cell(MISSING if math.isnan(v) else f"{v:.2f}", _tint(v)) for v in array.ravel().tolist()]


def _tint(value: float) -> str:
    """Blue above 1 (penalised more), orange below 1, stronger with the distance; readable on light and dark pages."""
    if not value > 0 or math.isinf(value):
        return ""
    strength = min(abs(math.log2(value)) / 2, 1) * 0.45
    rgb = "0, 114, 178" if value > 1 else "230, 159, 0"
    return f"rgba({rgb}, {strength:.2f})" if strength >= 0.01 else ""
