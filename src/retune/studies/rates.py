"""Rates fitted to measured errors, and means of errors over images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["fitted_rate", "geometric_mean"]


def fitted_rate(errors: Mapping[int, float | None], floor: float) -> float | None:
    """The asymptotic factor per layer of errors by their number of layers; None if fewer than two can be used.

    It is the slope of a line through the logarithms by least squares. Errors up to `floor` are rounding. Only those
    from half of the largest usable number of layers on count (at least the last two): faster modes have died there.
    """
    usable = sorted((n, e) for n, e in errors.items() if e is not None and floor < e < math.inf)
    if len(usable) < 2:
        return None
    late = [(n, e) for n, e in usable if n >= usable[-1][0] / 2]
    n, e = np.array(late if len(late) > 1 else usable[-2:]).T
    return float(np.exp(np.polyfit(n, np.log(e), 1)[0]))


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """The geometric mean; 0 if a value is 0, None if a value is unknown or negative."""
    known = [v for v in values if v is not None and v >= 0]
    if len(known) < len(values) or not known:
        return None
    return 0.0 if 0 in known else math.exp(sum(map(math.log, known)) / len(known))
