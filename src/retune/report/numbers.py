"""The format of numbers, in the terminal and on the page, and the columns of the tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retune.records import MethodResult, Methods, ProblemResult, Results, Verdict
from retune.records.certificates import Basis
from retune.records.results import finite, horizons, longest

MISSING = "–"

#: A fall by at least this many dB when run longer is marked.
FALL = 0.1

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _special(value: float | None) -> str:
    """Text for a value that is not a finite number."""
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
    """A change in dB: three decimals for small changes, else two."""
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
    """A duration in readable units."""
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


def falls(method: MethodResult) -> bool:
    """Whether the PSNR falls visibly when the method runs longer."""
    moved = method.change
    return moved is not None and not moved >= -FALL


@dataclass(frozen=True)
class Column:
    """A column of the table of methods: its heading, its meaning, and a method's entry as text and as a number."""

    short: str
    long: str
    text: Callable[[MethodResult], str]
    value: Callable[[MethodResult], float | None]
    best: Callable | None = None  # max, min, or None if no value is better
    alarming: Callable[[MethodResult], bool] = lambda method: False  # whether the entry is shown in red


def _certified(method: MethodResult) -> str:
    if method.distance is None:
        return MISSING
    return f"{'≤' if method.distance_kind is Basis.PROVED else '≈'} {power(method.distance)}"


def _column(short: str, long: str, key: str, write: Callable, best: Callable | None = None) -> Column:
    return Column(short, long, lambda method: write(getattr(method, key)), lambda method: getattr(method, key), best)


_RESULT = (
    _column("PSNR", "PSNR of the result, dB", "psnr", decimal, max),
    _column("SSIM", "Structural similarity of the result", "ssim", lambda v: decimal(v, 3), max),
    _column("trained\ndepth", "PSNR at the trained depth, dB", "psnr_trained", decimal),
)
_COST = (
    _column("residual", "Relative residual of the result", "residual", power),
    _column("gradient\nerror", "Relative error of the training gradient", "gradient_error", power),
    Column(
        "distance",
        "Certified relative distance to the equilibrium, largest over the images with a certificate: ≤ proved, ≈ "
        "estimated",
        _certified,
        lambda method: method.distance,
    ),
    _column("time,\ns", "Seconds of training or tuning", "seconds", lambda v: decimal(v, 1)),
    _column("s per\nimage", "Seconds of restoring one test image", "seconds_restoring", lambda v: decimal(v, 2)),
    _column(
        "memory,\nMB",
        "Peak memory of the tensors of a training step, in 10⁶ bytes (without training: of a restoration of the same "
        "crops)",
        "memory",
        lambda v: decimal(None if v is None else v / 1e6, 1),
    ),
)


def columns_of(methods: Sequence[MethodResult]) -> list[Column]:
    """The columns in which at least one method has an entry."""
    columns = [*_RESULT, *_longer(methods), *_COST]
    return [c for c in columns if any(c.value(m) is not None for m in methods)]


def _longer(methods: Sequence[MethodResult]) -> list[Column]:
    """Columns for the PSNR when the methods run longer."""
    columns = [
        Column(
            f"at\n{n}×",
            f"PSNR at {n} times this depth, dB",
            lambda m, n=n: decimal(m.psnr_after(n)),
            lambda m, n=n: m.psnr_after(n),
        )
        for n in horizons(methods)
    ]
    last = longest(methods)
    if last is not None:
        long = f"PSNR at {last} times the trained depth minus PSNR of the output, dB"
        columns.append(
            Column(f"change\nto {last}×", long, lambda m: signed(m.change), lambda m: m.change, alarming=falls)
        )
    return columns


def best_methods(methods: Methods, column: Column) -> set[str]:
    """The methods that share the best printed value of a column; empty if there is nothing to compare."""
    found = {name: column.value(method) for name, method in methods.items()}
    values = {name: value for name, value in found.items() if finite(value) is not None}
    if column.best is None or len(values) < 2:
        return set()
    top = column.best(values, key=values.__getitem__)
    return {name for name in values if column.text(methods[name]) == column.text(methods[top])}


def winners(methods: Methods) -> set[str]:
    """The methods that share the best PSNR. Figures and tables emphasise them."""
    return best_methods(methods, _RESULT[0])


def label(method: MethodResult, name: str) -> str:
    """The label of a method."""
    return method.label or name


def title(problem: ProblemResult, name: str) -> str:
    """The title of a problem."""
    return problem.title or name


def about(results: Results, verdict: Verdict) -> str:
    """The title of the problem of a verdict; empty if the verdict covers all problems."""
    name = verdict.problem
    if name is None:
        return ""
    return title(results.problems[name], name) if name in results.problems else name


def remarks(problem: ProblemResult) -> list[str]:
    """Remarks on single rows: a failed training, or a run that ended before it settled."""
    found = []
    for name, method in problem.methods.items():
        if method.failure:
            found.append(f"{label(method, name)}: the training failed. {method.failure}")
        if method.remark:
            found.append(f"{label(method, name)}: {method.remark}.")
        run = [n for n in method.layers_run or [] if n is not None]
        trained, status = method.layers_trained, method.status
        if not run or trained is None or max(run) <= trained or not status:
            continue
        unsettled = sum(s in ("not settled", "oscillates") for s in status)
        if unsettled:
            which = "" if len(status) == 1 else f" {unsettled} of {len(status)} images"
            found.append(f"{label(method, name)}:{which} not yet settled after {max(run):g} layers.")
    return found
