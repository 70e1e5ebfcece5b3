"""A quick look at measurements before restoration: clipping, correlated noise, a noise level that does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from retune._torch.batch import middle
from retune.diagnosis.correlation import ALIKE, REMEDY, correlation
from retune.errors import InvalidParameterError, ShapeError
from retune.problems.base import Problem
from retune.problems.noise import estimate_noise

__all__ = ["doubts"]

#: An image counts as clipped if this share of its values equals its minimum or its maximum.
_CLIPPED = 0.01
#: Side of the central part that is examined.
_LOOKED_AT = 512


def doubts(problem: Problem, measured: Sequence[tuple[str, Tensor]], *, level_given: bool = True) -> Iterator[str]:
    """Reasons to doubt that the named measurements (1, C, h, w) are ``A x`` plus noise of level σ.

    One sentence for each kind of doubt; it names the first measurement that shows it. Only the central part of a large
    measurement is examined.

    Args:
        problem: the problem.
        measured: names and measurements.
        level_given: whether σ was given. If it was estimated from these measurements, they cannot contradict it.
    """
    clipped, noise, alike = [], [], []
    for name, y in measured:
        part = middle(y, _LOOKED_AT)
        try:
            seen = problem.observed(y)
        except (InvalidParameterError, ShapeError):  # the restoration refuses this file, and gives the reason
            continue
        values = y = y[part]
        if seen is not None:
            values = y[seen[part]]
            if not len(values):
                continue
        ends = [(float((values == end).float().mean()), float(end)) for end in (values.min(), values.max())]
        if max(ends)[0] > _CLIPPED and len(values.unique()) > 10:
            clipped.append(f"{max(ends)[0]:.0%} of the values of {name} are {max(ends)[1]:.3g} exactly")
        if not problem.has_gaps and correlation(y) is not None:
            alike.append(name)
        if problem.has_gaps or problem.noise is not None or not level_given:
            continue
        try:
            seen = np.max(estimate_noise(y))
        except InvalidParameterError:  # an image without noise
            continue
        given = np.max(problem.sigma)
        # Fine texture counts as noise: a given σ below the estimate is usual, one far above it is not.
        if not seen / 30 < given < 3 * seen:
            noise.append(f"σ = {given:.3g} was given, but {name} shows about {seen:.2g}")
    if clipped:
        yield (
            f"{clipped[0]}{_and_others(clipped)}: the image is clipped, or has a border or background without noise. "
            "Neither fits y = A x + noise, so error estimates will be wrong. If you can, keep values below black and "
            "above white, and crop borders"
        )
    if alike:
        yield f"{alike[0]}{_and_others(alike)} {ALIKE}. {REMEDY}"
    if noise:
        yield (
            f"{noise[0]}{_and_others(noise)}. Give σ as a standard deviation on the scale where 1 is white (for 8-bit "
            "levels, divide by 255), or estimate it from the images: --sigma estimate"
        )


def _and_others(found: Sequence[str]) -> str:
    return f" (and similarly in {len(found) - 1} other image(s))" if len(found) > 1 else ""
