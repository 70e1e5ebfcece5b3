"""A glance at measurements: what makes it unlikely that they are what they are said to be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from retune._torch.batch import middle
from retune.errors import InvalidParameterError, ShapeError
from retune.problems.base import Problem
from retune.problems.noise import estimate_noise

__all__ = ["doubts"]

#: Share of equal values, at the smallest or the largest one, from which on they are taken to be clipped.
_CLIPPED = 0.01
#: Side of what is looked at.
_LOOKED_AT = 512


def doubts(problem: Problem, measured: Sequence[tuple[str, Tensor]]) -> Iterator[str]:
    """What makes it unlikely that the measurements (1, C, h, w), each with its name, are ``A x`` plus noise of σ.

    One sentence about each thing, with the first measurement that shows it. Of a large one the middle is looked at.
    """
    clipped, noise = [], []
    for name, y in measured:
        part = middle(y, _LOOKED_AT)
        try:
            seen = problem.observed(y)
        except (InvalidParameterError, ShapeError):  # it is refused, with the reason, where it is restored
            continue
        values = y = y[part]
        if seen is not None:
            values = y[seen[part]]
            if not len(values):
                continue
        ends = [(float((values == end).float().mean()), float(end)) for end in (values.min(), values.max())]
        if max(ends)[0] > _CLIPPED and len(values.unique()) > 10:
            clipped.append(f"{max(ends)[0]:.0%} of the values of {name} are {max(ends)[1]:.3g} exactly")
        if problem.has_gaps:
            continue
        try:
            seen = np.max(estimate_noise(y))
        except InvalidParameterError:  # an image without any
            continue
        given = np.max(problem.sigma)
        # Fine texture counts as noise, so that less than what is seen is usual, and much more is not.
        if not seen / 30 < given < 3 * seen:
            noise.append(f"σ = {given:.3g} was given, and {name} shows about {seen:.2g}")
    if clipped:
        yield (
            f"{clipped[0]}{_and_others(clipped)}: clipped, or a border or background without noise. y = A x + noise "
            "allows for neither, and what is estimated of the error is then off: keep values below black and above "
            "white, and cut borders off, if you can"
        )
    if noise:
        yield (
            f"{noise[0]}{_and_others(noise)}. The noise level is the standard deviation where 1 is white (levels of 8 "
            "bits divided by 255); --sigma estimate takes it from the images"
        )


def _and_others(found: Sequence[str]) -> str:
    return f" (and so in {len(found) - 1} other image(s))" if len(found) > 1 else ""
