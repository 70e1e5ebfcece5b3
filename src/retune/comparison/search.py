"""Tuning without a gradient: a coarse logarithmic grid, then a finer one around its best point."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Search", "line_search"]


@dataclass(frozen=True)
class Search:
    """What was tried.

    Attributes:
        best: the value of the highest score.
        tried: (value, score), in the order of the values.
    """

    best: float
    tried: list[tuple[float, float]]


def line_search(score: Callable[[float], float], bounds: tuple[float, float], tries: int) -> Search:
    """The value in [low, high] of the best score: half of the tries over all of it, half around the best of these.

    Args:
        score: higher is better.
        bounds: (low, high), both positive and finite.
        tries: how many values may be tried; an odd number is rounded down, fewer than 5 up to 5.
    """
    low, high = (math.log(b) for b in bounds)
    coarse = max(3, tries // 2)
    step = (high - low) / (coarse - 1)
    tried: list[tuple[float, float]] = []

    def attempt(logarithm: float) -> None:
        value = math.exp(logarithm)
        tried.append((value, score(value)))

    for i in range(coarse):
        attempt(low + step * i)
    centre = math.log(max(tried, key=lambda t: t[1])[0])
    below, above = max(low, centre - step), min(high, centre + step)
    fine = 2 * max(1, (tries - coarse) // 2)  # even, so that the centre is not tried again
    for i in range(fine):
        attempt(below + (i + 0.5) / fine * (above - below))
    return Search(max(tried, key=lambda t: t[1])[0], sorted(tried))
