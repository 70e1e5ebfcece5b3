"""The difference of two methods on the same images, measurements and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from retune.errors import InvalidParameterError

__all__ = ["Difference", "paired"]


@dataclass(frozen=True)
class Difference:
    """The mean of ``a − b``, with a confidence interval over images.

    Attributes:
        mean: mean difference.
        low, high: 95 % confidence interval of the mean over the population of images, by Student's t. The seeds of an
            image are averaged first. Not finite for a single image.
        seeds: mean difference of each seed.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]

    @property
    def ahead(self) -> bool:
        """Whether a is ahead: the interval lies above 0, and so does the difference of every seed."""
        return self.low > 0 and min(self.seeds) > 0

    @property
    def behind(self) -> bool:
        """Whether a is behind, by the same rule."""
        return self.high < 0 and max(self.seeds) < 0


def paired(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> Difference:
    """The paired difference ``a − b`` of scores, such as the PSNR in dB.

    Images differ by many dB among each other. Both methods see the same images, so their difference varies much less
    than their scores.

    Args:
        a: scores by seed and image, S × N: ``a[s][n]``.
        b: the same seeds and images.

    Raises:
        InvalidParameterError: other seeds or images, or a score that is not finite.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.ndim != 2 or x.shape != y.shape or not x.size:
        raise InvalidParameterError(
            f"both methods need the same seeds and images, as lists seed by seed, got {x.shape} and {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InvalidParameterError("a score is not finite, so there is no mean difference; leave that method out")
    difference = x - y
    images = difference.mean(0)
    mean, count = float(images.mean()), images.size
    half = np.inf
    if count > 1:
        half = float(stats.t.ppf(0.975, count - 1) * images.std(ddof=1) / np.sqrt(count))
    return Difference(mean, mean - half, mean + half, tuple(float(d) for d in difference.mean(1)))
