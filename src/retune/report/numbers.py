"""How numbers are written, in the terminal and on the page alike, and the columns of the tables."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MISSING = "–"

#: A fall by this many dB when run longer is marked as one.
FALL = 0.1

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _special(value: float | None) -> str:
    """What is not a finite number."""
    if value is None:
        return MISSING
    if math.isnan(value):
        return "NaN"
    return "∞" if value > 0 else "−∞"


def decimal(value: float | None, digits: int = 2) -> str:
    """A plain decimal number with a true minus sign."""
    if value is None or not math.isfinite(value):
        return _special(value)
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def signed(value: float | None) -> str:
    """A change in dB: three decimals where they matter, two where they don't."""
    if value is None or not math.isfinite(value):
        return _special(value)
    text = decimal(value, 3 if abs(value) < 0.1 else 2)
    return f"+{text}" if value > 0 and float(text) > 0 else text


def power(value: float | None) -> str:
    """Two significant digits with a power of ten: 3.1·10⁻⁵."""
    if value is None or not math.isfinite(value):
        return _special(value)
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.2g}".replace("-", "−")
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPTS)}".replace("-", "−")


def duration(value: float | None) -> str:
    """Seconds as a person says them."""
    if value is None or not math.isfinite(value):
        return _special(value)
    if value < 100:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds:02d} s"


def plain(value: object) -> str:
    """Any setting as readable text."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} = {plain(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return str(value)


def horizons(methods: Iterable[dict]) -> list[int]:
    """How many times longer than trained the methods were run, where their PSNR was taken: ``psnr_10x``, …"""
    keys = (re.fullmatch(r"psnr_([1-9]\d*)x", key) for method in methods for key in method)
    return sorted({int(key[1]) for key in keys if key})


def longest(methods: Iterable[dict]) -> int | None:
    """The largest of ``horizons`` at which some method has a PSNR."""
    methods = list(methods)
    return max((f for f in horizons(methods) if any(m.get(f"psnr_{f}x") is not None for m in methods)), default=None)


def change(method: dict) -> float | None:
    """PSNR when run as much longer than trained as was tried, less PSNR of the output."""
    output, later = method.get("psnr"), method.get(f"psnr_{longest([method])}x")
    return None if output is None or later is None else later - output


def falls(method: dict) -> bool:
    """Whether running longer does visible harm."""
    moved = change(method)
    return moved is not None and not moved >= -FALL


@dataclass(frozen=True)
class Column:
    """A column of the table of methods: its heading, what it means, a method's entry as text and as a number."""

    short: str
    long: str
    text: Callable[[dict], str]
    value: Callable[[dict], float | None]
    best: Callable | None = None  # max, min, or None where there is no better


def _certified(method: dict) -> str:
    value = method.get("distance")
    if value is None:
        return MISSING
    return f"{'≤' if method.get('distance_kind') == 'proved' else '≈'} {power(value)}"


def _signed_change(method: dict) -> str:
    return signed(change(method))


def _column(short: str, long: str, key: str, write: Callable, best: Callable | None = None) -> Column:
    return Column(short, long, lambda method: write(method.get(key)), lambda method: method.get(key), best)


_RESULT = (
    _column("PSNR", "PSNR of the result, dB", "psnr", decimal, max),
    _column("SSIM", "Structural similarity of the result", "ssim", lambda v: decimal(v, 3), max),
    _column("trained\ndepth", "PSNR at the depth it was trained for, dB", "psnr_trained", decimal),
)
_COST = (
    _column("residual", "Relative residual of the result", "residual", power),
    _column("gradient\nerror", "Relative error of the training gradient", "gradient_error", power),
    Column(
        "distance",
        "Certified distance to the equilibrium, relative, the largest of the images that have a certificate: "
        "≤ proved, ≈ estimated",
        _certified,
        lambda method: method.get("distance"),
    ),
    _column("time,\ns", "Seconds of training or tuning", "seconds", lambda v: decimal(v, 1)),
    _column("s per\nimage", "Seconds of restoring one test image", "seconds_restoring", lambda v: decimal(v, 2)),
    _column(
        "memory,\nMB",
        "Peak memory of the tensors of a training step, in 10⁶ bytes (of a restoration of the same crops, if nothing "
        "is trained)",
        "memory",
        lambda v: decimal(None if v is None else v / 1e6, 1),
    ),
)


def columns_of(problems: Iterable[dict]) -> list[Column]:
    """The columns in which some method of some problem has an entry."""
    methods = [method for problem in problems for method in problem["methods"].values()]
    columns = [*_RESULT, *_longer(methods), *_COST]
    return [c for c in columns if any(c.value(m) is not None for m in methods)]


def _longer(methods: list[dict]) -> list[Column]:
    """What became of the PSNR when the methods were run on."""
    columns = [
        _column(f"at\n{f}×", f"PSNR at {f} times this depth, dB", f"psnr_{f}x", decimal) for f in horizons(methods)
    ]
    last = longest(methods)
    if last is not None:
        long = f"PSNR at {last} times the trained depth less PSNR of the output, dB"
        columns.append(Column(f"change\nto {last}×", long, _signed_change, change))
    return columns


def best_methods(methods: dict[str, dict], column: Column) -> set[str]:
    """The methods that share the best value of a column, as it is written; none where there is no contest."""
    found = {name: column.value(method) for name, method in methods.items()}
    values = {name: value for name, value in found.items() if value is not None and math.isfinite(value)}
    if column.best is None or len(values) < 2:
        return set()
    top = column.best(values, key=values.__getitem__)
    return {name for name in values if column.text(methods[name]) == column.text(methods[top])}


def label(method: dict, name: str) -> str:
    """How a method is called."""
    return str(method.get("label") or name)


def title(problem: dict, name: str) -> str:
    """How a problem is called."""
    return str(problem.get("title") or name)


def about(results: dict, verdict: dict) -> str:
    """The title of the problem that a verdict is about; empty if it is about all of them."""
    name = verdict.get("problem")
    return "" if name is None else title(results["problems"].get(name, {}), str(name))


def remarks(problem: dict) -> list[str]:
    """What a reader must know of single rows: a training that failed, a run that ended before it had settled."""
    found = []
    for name, method in problem["methods"].items():
        if method.get("failure"):
            found.append(f"{label(method, name)}: the training failed. {method['failure']}")
        if method.get("remark"):
            found.append(f"{label(method, name)}: {method['remark']}.")
        run, trained, status = (method.get(k) for k in ("layers_run", "layers_trained", "status"))
        if not run or trained is None or max(run) <= trained or not status:
            continue
        unsettled = sum(s in ("not settled", "oscillates") for s in status)
        if unsettled:
            which = "" if len(status) == 1 else f" {unsettled} of {len(status)} images"
            found.append(f"{label(method, name)}:{which} not yet settled after {max(run)} layers.")
    return found
