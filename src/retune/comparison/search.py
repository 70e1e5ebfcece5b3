"""Tuning without a gradient: a coarse logarithmic grid, then a finer one around its best point."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Search", "line_search"]


@dataclass(frozen=True)
class Search:
    """The result of a search.

    Attributes:
        best: the value with the highest score.
        tried: all pairs (value, score), sorted by value.
    """

    best: float
    tried: list[tuple[float, float]]


def line_search(score: Callable[[float], float], bounds: tuple[float, float], tries: int) -> Search:
    """The value in [low, high] with the best score: half of the tries cover the range, half surround the best of these.

    Args:
        score: higher is better.
        bounds: (low, high), both positive and finite.
        tries: number of tried values. An odd number is rounded down; fewer than 5 become 5.
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
