"""The sentences, titles and numbers of a study. Every statement is computed from its results."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from retune.records import Raced, Study, StudyCell
from retune.records.studies import equal_time
from retune.report.numbers import MISSING, decimal, power

__all__ = [
    "above",
    "angle",
    "factor",
    "race_title",
    "separates",
    "share",
    "share_within_two",
    "summary",
    "ten",
    "title_of",
]

#: Restarts that change the error of the gradient by less than this factor do not control it.
_SAME = 1.5


def summary(study: Study) -> list[str]:
    """The findings in a few sentences; every number comes from the study."""
    k, r = study.depths, study.restarts
    corner = [study.mean.at(a, b) for a, b in ((k[0], r[-1]), (k[-1], r[0]), (k[-1], r[-1]))]
    told = []
    if all(c.gradient_error is not None for c in corner):
        one, two, best = (share(c.gradient_error) for c in corner)
        told.append(
            f"The error of the gradient is {one} with K = {k[0]} and R = {r[-1]}, {two} with K = {k[-1]} and "
            f"R = {r[0]}, and {best} with K = {k[-1]} and R = {r[-1]}."
        )
    told += [*_rates_told(study), *_reports_told(study), *_races_told(study)]
    return told


def _rates_told(study: Study) -> list[str]:
    mean = study.mean
    if mean.rate_estimated is None or mean.rate_distance is None:
        return []
    kind = mean.rate_kind or "proved"
    proved = "proves no rate" if mean.rate_proved is None else f"proves {factor(mean.rate_proved)}"
    condition = "" if mean.rate_proved is None or kind == "proved" else f" ({kind})"
    return [
        f"A layer multiplies the distance to the equilibrium by {factor(mean.rate_distance)}; the certificate "
        f"estimates {factor(mean.rate_estimated)} and {proved}{condition}."
    ]


def _reports_told(study: Study) -> list[str]:
    r = study.restarts[-1]
    cells = [c for image in study.images for c in image.cells]
    within, count = share_within_two(cells)
    settled, last = share_within_two([c for c in cells if c.restarts == r])
    if not count:
        return []
    return [
        f"The gradient error that a step reports is within a factor of 2 of the true error in {within} of {count} "
        f"steps, with R = {r} in {settled} of {last}."
    ]


def _races_told(study: Study) -> list[str]:
    order, end = _ranking(study.races), equal_time(study.races)
    if not order or end is None:
        return []
    label, scores = order[0]
    labels = {one.label: one.key for one in study.races}
    how = " at its own K layers" if labels[label] == "unrolled" else ""
    told = f"After {decimal(end, 1)} s of training, “{label}” has the highest mean PSNR, {_mean(scores)} dB{how}"
    own = [f"“{name}” has {_mean(scores)} dB" for name, scores in order[1:] if labels[name] == "retune"]
    seeds = max(len(psnr) for _, psnr in order)
    doubt = "the ranges over the seeds overlap" if seeds > 1 else "there is only one seed"
    open_ = [] if _leads(order) else [doubt]
    return ["; ".join([told, *own, *open_]) + "."]


def share_within_two(cells: Sequence[StudyCell], key: str = "reported") -> tuple[int, int]:
    """The number of cells whose reported error is within a factor of two of the true one, and that of all with both."""
    pairs = [(c.gradient_error, getattr(c, key)) for c in cells if c.gradient_error and getattr(c, key)]
    return sum(0.5 <= told / true <= 2 for true, told in pairs), len(pairs)


def separates(study: Study) -> bool:
    """Whether the study shows that depth controls the gradient, and restarts the state.

    At the largest R the error of the gradient must fall at least by half over the depths, and the last two values of R
    must have the same error at every K; at the smallest K the distance must fall at least by half over the restarts.
    """
    at, k, r = study.mean.at, study.depths, study.restarts
    if len(k) < 2 or len(r) < 2:
        return False
    late = [at(n, some).gradient_error for n in k for some in r[-2:]]
    ends = [at(k[0], r[0]).distance, at(k[0], r[-1]).distance]
    if not all(late) or None in ends:
        return False
    errors = np.array(late, dtype=float).reshape(len(k), 2)
    near, far = (float(d or 0) for d in ends)
    same = np.abs(np.log(errors[:, 0] / errors[:, 1])).max() <= math.log(_SAME)
    return bool(same and errors[-1, 1] <= errors[0, 1] / 2 and far <= near / 2)


def title_of(study: Study) -> str:
    """The title of the page: the finding, if the study shows it."""
    if separates(study):
        return "Depth controls the gradient, restarts control the state"
    return "Errors of gradient and state over depth and restarts"


def race_title(races: Sequence[Raced]) -> str:
    """Who leads after equal time, if its range over the seeds lies above all others."""
    order, end = _ranking(races), equal_time(races)
    if len(order) < 2 or end is None:
        return "PSNR after equal training time"
    if _leads(order):
        return f"Highest PSNR after {decimal(end, 1)} s: {order[0][0]}"
    verdict = "no clear lead" if max(len(scores) for _, scores in order) > 1 else "a single seed"
    return f"PSNR after {decimal(end, 1)} s of training: {verdict}"


def _leads(order: Sequence[tuple[str, list[float]]]) -> bool:
    """Whether every seed of the first is above every seed of the others."""
    best = order[0][1]
    return len(best) > 1 and all(min(best) > max(scores) for _, scores in order[1:])


def _ranking(races: Sequence[Raced]) -> list[tuple[str, list[float]]]:
    """Labels with the PSNR of each seed at the time that all have reached, best mean first."""
    end = equal_time(races) or 0.0
    found: dict[str, list[float]] = {}
    for one in races:
        psnr = one.psnr_at(end)
        if psnr is not None:
            found.setdefault(one.label, []).append(psnr)
    return sorted(found.items(), key=lambda pair: -math.fsum(pair[1]) / len(pair[1]))


def _mean(scores: Sequence[float]) -> str:
    return decimal(math.fsum(scores) / len(scores))


def factor(value: float | None) -> str:
    """A factor per layer; close to 1, its distance from 1."""
    if value is None:
        return MISSING
    return f"1 − {power(1 - value)}" if 0.995 <= value < 1 else f"{value:.4g}"


def share(value: float | None) -> str:
    """A relative error with two digits: in per cent, below 0.1 % as a power of ten."""
    if value is None:
        return MISSING
    if not 0.00095 <= value < 100:
        return power(value)
    return f"{100 * value:.0f} %" if value >= 0.0995 else f"{100 * value:#.2g} %"


def above(value: float | None, resolution: float | None) -> str:
    """A relative error; below the error of its own reference, only that."""
    if value is None or resolution is None or value > resolution:
        return share(value)
    return f"< {ten(resolution)}"


def ten(value: float) -> str:
    """The power of ten at or above a value below 0.01: 10⁻¹³."""
    return power(10.0 ** math.ceil(math.log10(value) - 1e-9)).replace("1.0·", "")


def angle(cosine: float | None) -> float | None:
    """The angle of a cosine in degrees."""
    return None if cosine is None else math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
