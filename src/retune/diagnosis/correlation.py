"""Whether the noise of a measurement is white. JPEG, interpolation and demosaicing correlate neighbouring pixels."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from retune._torch.batch import middle

__all__ = ["ALIKE", "REMEDY", "correlation"]

#: The finding, and the advice.
ALIKE = "has noise that is alike in neighbouring pixels"
REMEDY = (
    "JPEG compression, interpolation (resizing, rotation, registration) and demosaicing do that. Restorations and "
    "estimates of errors assume independent noise in every pixel: use the raw data, from before these steps"
)
#: Side of the central part that is examined, and the smallest number of pixels that suffices.
_LOOKED_AT, _FEWEST = 512, 2000
#: Share of the pixels that is used. They have the smoothest surroundings.
_SMOOTHEST = 0.15
#: Noise is correlated if its differences grow by more than the first factor from distance 1 to 2, and by less than the
#: second from 2 to 4. After an enlargement, the third and the fourth factor apply. Differences of texture grow with
#: every distance. Differences of white noise do not grow.
_GROWS, _ENDS, _GROWS_MUCH, _ENDS_LATER = 1.9, 1.3, 4.5, 2.4
#: Differences below this share of the range of the image do not count as noise.
_VISIBLE = 0.006
#: The quantile of |N(0, 1)| at 1. Edges and the steps of 8-bit values hardly change this level.
_QUANTILE = 0.6827


def correlation(y: Tensor) -> float | None:
    """The factor by which the variance of differences grows from distance 1 to 2; None if the noise looks white.

    The differences are ``(a − b − c + d)/2`` over squares of sides 1, 2 and 4, in the smoothest parts of the image.
    White noise of levels 0.01 to 0.1 on 16 photographs caused no alarm. Noise that was enlarged, rotated or compressed
    (quality 60) caused an alarm on most of them.

    Args:
        y: a measurement (1, C, h, w).
    """
    planes = y[middle(y, _LOOKED_AT)][0].detach().cpu().double().numpy()
    found = [_grown(plane) for plane in planes]
    grown = sorted(f for f in found if f is not None)
    return None if 2 * len(grown) < len(found) or not grown else grown[len(grown) // 2]


def _grown(plane: np.ndarray) -> float | None:
    if min(plane.shape) < 32:
        return None
    levels, spread = _levels(plane)
    if levels is None or levels[1] < _VISIBLE * spread:
        return None
    one, two, four = (level**2 for level in levels)
    grows, later = two / max(one, 1e-6 * two), four / two
    white = not (grows > _GROWS and later < _ENDS) and not (grows > _GROWS_MUCH and later < _ENDS_LATER)
    return None if white else grows


def _levels(plane: np.ndarray) -> tuple[tuple[float, ...] | None, float]:
    """The levels of the differences over squares of sides 1, 2 and 4, and the range of the image."""
    differences = [_differences(plane, k) for k in (1, 2, 4)]
    height, width = differences[-1].shape
    # The centres of all three agree up to half a pixel.
    aligned = [d[2 - k // 2 :, 2 - k // 2 :][:height, :width] for d, k in zip(differences, (1, 2, 4), strict=True)]
    usable = np.ones((height, width), bool)
    low, high = float(plane.min()), float(plane.max())
    for end in (low, high):  # clipped values have no noise
        clipped = plane == end
        if clipped.mean() > 0.002:
            usable &= _mean(clipped.astype(float), 5)[2 : 2 + height, 2 : 2 + width] <= 1e-9
    if usable.sum() < _FEWEST:
        return None, high - low
    rough = _roughness(plane)[2 : 2 + height, 2 : 2 + width]
    chosen = usable & (rough <= np.quantile(rough[usable], _SMOOTHEST))
    levels = tuple(float(np.quantile(np.abs(d[chosen]), _QUANTILE)) for d in aligned)
    return levels, float(np.subtract(*np.quantile(plane, (0.99, 0.01))))


def _differences(plane: np.ndarray, k: int) -> np.ndarray:
    return (plane[:-k, :-k] - plane[:-k, k:] - plane[k:, :-k] + plane[k:, k:]) / 2


def _roughness(plane: np.ndarray) -> np.ndarray:
    """First and second differences of means at a distance of 6 pixels. Correlated noise hardly changes them."""
    mean = _mean(plane, 5)
    around = np.pad(mean, 6, mode="edge")
    up, down, left, right = around[:-12, 6:-6], around[12:, 6:-6], around[6:-6, :-12], around[6:-6, 12:]
    rough = np.abs(up - down) + np.abs(left - right) + np.abs(up + down - 2 * mean) + np.abs(left + right - 2 * mean)
    return _mean(rough, 3)


def _mean(plane: np.ndarray, side: int) -> np.ndarray:
    """The mean over squares; the border is repeated."""
    padded = np.pad(plane, ((side // 2 + 1, side // 2),) * 2, mode="edge")
    total = padded.cumsum(0).cumsum(1)
    return (total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]) / side**2
