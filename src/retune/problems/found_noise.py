"""Noise that grows with the brightness: its estimate from a measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from retune.problems.counts import PoissonGaussian

__all__ = ["FoundNoise", "estimate_counts"]

#: Number of blocks that a class of brightness needs, and maximum number of classes.
_IN_CLASS, _CLASSES = 150, 24
#: Shares of the blocks of a class, those in the smoothest surroundings. The largest share is used whose estimate agrees
#: with that of the next share within this number of standard errors. A larger difference comes from texture.
_SHARES, _ALIKE = (0.9, 0.4, 0.15, 0.06), 1.5
#: The error of an estimate contains two differences, times these factors: to the next share, and between the largest
#: and the smallest share (less its statistical error). Both show how much of the estimate may be texture.
_NEXT, _ENDS = 1.5, 2.0
#: Noise grows if the gain exceeds its error by this factor. The factor is small, since the error allows generously for
#: texture, and since a wrong constant level does more harm: it would be read off the dark background.
_SURE = 1.5
#: A class is used if at most this share of its blocks has a value that was cut off at black.
_CUT = 0.02
#: The error is at least this share of the estimate, because texture adds errors that the blocks do not show.
_LEAST = 0.02
#: A measurement has no texture if the operator leaves less than this share of the variance of the finest details.
_REMOVED = 3e-3
#: Values are cut off from a continuous noise if the smallest value above black is below this share of the spread of the
#: darkest class.
_NEAR = 0.25
#: A class is left out if its mean lies further below black than this, in standard deviations: most of it is hidden.
_HIDDEN = -0.5
#: Width of the border in which the surroundings of a block are incomplete.
_BORDER = 4


@dataclass(frozen=True)
class FoundNoise:
    """Estimated noise.

    Attributes:
        gain, read: estimates per channel.
        gain_error, read_error: their standard errors.
        grows: whether the noise of a channel clearly grows with the brightness, so that one level does not describe it.
        points: for each channel, the mean and the variance of the classes of brightness to which the line was fitted.
    """

    gain: tuple[float, ...]
    read: tuple[float, ...]
    gain_error: tuple[float, ...]
    read_error: tuple[float, ...]
    grows: bool
    points: tuple[tuple[tuple[float, float], ...], ...] = ()

    @property
    def noise(self) -> PoissonGaussian:
        """The model with these values."""
        return PoissonGaussian(self.gain, self.read)


def estimate_counts(y: Tensor, *, detail: float = 1.0) -> FoundNoise | None:
    """``gain`` and ``read`` of ``Var = gain · mean + read²`` in images (B, C, H, W); None if there are too few pixels.

    Second differences along both axes, in blocks of 3×3 pixels, contain the noise and very little of the image (J.
    Immerkær, *Comput. Vis. Image Underst.* 64(2), 1996). The blocks are sorted into classes by the mean of their
    neighbours. From each class, the blocks in the smoothest surroundings are used: nearly all, or fewer if there is
    texture. Class and surroundings depend on the neighbours only, so the selection biases neither the means nor the
    differences. A line is fitted to the variances of the classes. Clipped values are left out.

    Source of the idea: Foi, Trimeche, Katkovnik, Egiazarian, IEEE TIP 17(10), 2008. Fine texture counts as noise. Do
    not use it on images with missing pixels, or after resampling or JPEG compression. `benchmarks/noise.py` measures
    its accuracy.

    Args:
        y: the images.
        detail: share of the variance of such differences that the operator leaves of an image
            (``kept_detail``). If a blur has removed nearly all, the differences are noise, and no error is added
            for texture.
    """
    smooth = detail < _REMOVED
    fits = [_fit(y[:, c].detach().cpu().double().numpy(), smooth) for c in range(y.shape[1])]
    if any(f is None for f in fits):
        return None
    columns = list(zip(*[f for f in fits if f is not None], strict=True))
    return FoundNoise(*(tuple(map(float, c)) for c in columns[:4]), grows=any(columns[4]), points=tuple(columns[5]))


_Points = tuple[tuple[float, float], ...]


def _fit(images: np.ndarray, smooth: bool) -> tuple[float, float, float, float, bool, _Points] | None:
    """gain, read, their errors, whether the noise grows, and the fitted points, for images (B, H, W).

    Args:
        images: the images.
        smooth: whether they have no texture.
    """
    found = [_blocks(one) for one in images if min(one.shape) > 2 * _BORDER]
    if not found:
        return None
    mean, detail, near, rough, dark = (np.concatenate(parts) for parts in zip(*found, strict=True))
    classes = min(_CLASSES, len(mean) // (4 * _IN_CLASS))
    if classes < 3:
        return None
    if not detail.any():
        return 0.0, 0.0, 0.0, 0.0, False, ()
    members = np.array_split(np.argsort(near), classes)
    black = images.min()
    least = np.min(images, where=images > black, initial=np.inf) - black
    # Values that were cut off at black have too small a variance, which is put right. Counts of 0 have not: no value
    # lies between them and the first count. There the other classes suffice.
    whole = [one for one in members if dark[one].mean() <= _CUT]
    spread = math.sqrt(np.mean(detail[members[0]] ** 2))
    continuous = least < _NEAR * spread
    cut = len(whole) < 3 and not continuous
    members = members if cut or continuous else whole
    variances = [_variances(mean, detail, rough, members, share) for share in _SHARES]
    if continuous and len(whole) < len(members):
        hidden = np.array([dark[one].mean() > _CUT for one in members])
        variances = [_uncut(*v, hidden, black) for v in variances]
    lines = [None if len(v[0]) < 3 else _line(*v) for v in variances]
    known = [line for line in lines if line is not None]
    if len(known) < len(lines):
        return None
    chosen, other = _smoothest(known)
    first, last = known[0], known[-1]
    if smooth:
        chosen = other = last = first
    gain, read, gain_error, square_error, grows = chosen
    levels, spreads, _ = variances[known.index(chosen)]
    points = tuple(zip(levels.tolist(), spreads.tolist(), strict=True))
    # A change with the selection comes from texture. The statistics of the blocks do not show it.
    gain_ends = max(0.0, (first[0] - last[0]) ** 2 - last[2] ** 2)
    square_ends = max(0.0, (first[1] ** 2 - last[1] ** 2) ** 2 - last[3] ** 2)
    gain_error = math.hypot(gain_error, _NEXT * (gain - other[0]), _ENDS * math.sqrt(gain_ends))
    square_error = math.hypot(square_error, _NEXT * (read**2 - other[1] ** 2), _ENDS * math.sqrt(square_ends))
    read_error = square_error / (2 * read) if read**2 > square_error else math.sqrt(square_error)
    # If values are cut off everywhere, one of two signs is needed. The values are counts: none lies between 0 and 1
    # count. Or the variance grows more than that of constant noise, whose lower half is cut off in the dark: there it
    # has 0.34 of its variance.
    low, high = (gain * q + read**2 for q in np.quantile(mean, [0.05, 0.95]))
    if cut and high < 5 * low and least < 0.5 * gain:
        grows = False
    return gain, read, gain_error, read_error, grows and gain > _SURE * gain_error, points


_Line = tuple[float, float, float, float, bool]


def _smoothest(lines: list[_Line]) -> tuple[_Line, _Line]:
    """The line of the largest share that the next share confirms, and the line of that next share.

    If no line is confirmed, the two smallest shares are taken.
    """
    for one, other in pairwise(lines):
        if abs(one[0] - other[0]) <= _ALIKE * other[2] and abs(one[1] ** 2 - other[1] ** 2) <= _ALIKE * other[3]:
            return one, other
    return lines[-1], lines[-2]


def _variances(
    mean: np.ndarray, detail: np.ndarray, rough: np.ndarray, members: list[np.ndarray], share: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance and number of blocks of each class, from the share of blocks in the smoothest surroundings."""
    levels, variances, counts = [], [], []
    for one in members:
        chosen = one[np.argsort(rough[one])[: max(1, int(share * len(one)))]]
        d = detail[chosen]
        # Blocks beyond some standard deviations lie on edges and are left out. The factor corrects the bias of this.
        sigma = math.sqrt(np.mean(d**2))
        for _ in range(5):
            inside = np.abs(d) <= _TRIM * sigma if sigma > 0 else np.ones(len(d), bool)
            sigma = math.sqrt(np.mean(d[inside] ** 2) / _KEPT) if inside.any() else 0.0
        levels.append(mean[chosen].mean())
        variances.append(sigma**2)
        # As many normal values would determine the variance equally well. Counts have heavier tails.
        spread = np.mean(d[inside] ** 4) / max(np.mean(d[inside] ** 2) ** 2, 1e-300) if inside.any() else 3.0
        counts.append(len(chosen) / _OVERLAP * 2 / max(spread - 1, 2.0))
    return np.array(levels), np.array(variances), np.array(counts, float)


def _uncut(
    means: np.ndarray, variances: np.ndarray, counts: np.ndarray, hidden: np.ndarray, black: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance and number of the classes as they were before the values below black were cut off.

    If ``z ~ N(μ, σ²)``, then ``max(z, 0)`` has the mean ``μΦ + σφ`` and the second moment ``(μ² + σ²)Φ + μσφ``, with Φ
    and φ at μ/σ. The ratio of squared mean and variance determines μ/σ.
    """
    t = np.linspace(-3, 6, 901)
    density = np.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in t])
    mean = t * below + density
    variance = (t**2 + 1) * below + t * density - mean**2
    ratio = (means - black) ** 2 / np.maximum(variances, 1e-300)
    at = np.interp(ratio, mean**2 / variance, t)
    before = variances / np.interp(at, t, variance)
    level = black + np.maximum(at, 0) * np.sqrt(before)
    means, variances = np.where(hidden, level, means), np.where(hidden, before, variances)
    seen = ~hidden | (at > _HIDDEN)
    return means[seen], variances[seen], counts[seen]


#: This many overlapping blocks determine the variance as well as one independent block. It is the sum of the squared
#: correlations of a difference with its neighbours.
_OVERLAP = (1 + 2 * (4 / 6) ** 2 + 2 * (1 / 6) ** 2) ** 2
#: A block beyond this many standard deviations counts as an edge. The second number is E[z² | |z| ≤ the first] of a
#: standard normal z. Counts have heavier tails, so a smaller limit would make the estimate too small.
_TRIM = 4.0
_KEPT = 1 - 2 * _TRIM * math.exp(-(_TRIM**2) / 2) / math.sqrt(2 * math.pi) / math.erf(_TRIM / math.sqrt(2))


def _blocks(image: np.ndarray) -> tuple[np.ndarray, ...]:
    """Means, differences, means and roughness of the surroundings, and values at black, of the blocks of 3×3 pixels.

    Blocks near the border are left out, and blocks with values at white.
    """
    detail = np.zeros_like(image)
    second = image[:-2] - 2 * image[1:-1] + image[2:]
    detail[1:-1, 1:-1] = (second[:, :-2] - 2 * second[:, 1:-1] + second[:, 2:]) / 6
    mean = _squares(image, 3)
    near = (49 * _squares(image, 7) - 9 * mean) / 40
    up, down, left, right = (np.roll(mean, by, (0, 1)) for by in ((3, 0), (-3, 0), (0, 3), (0, -3)))
    rough = np.abs(up - down) + np.abs(left - right) + np.abs(up + down - left - right)
    usable, dark = np.zeros(image.shape, bool), np.zeros(image.shape, bool)
    usable[_BORDER:-_BORDER, _BORDER:-_BORDER] = True
    for end in (image.min(), image.max()):
        clipped = image == end
        if clipped.mean() > 0.002:
            touched = _squares(clipped.astype(float), 3) > 0.05
            if end == image.min():
                dark |= touched
            else:
                usable &= ~touched
    return mean[usable], detail[usable], near[usable], rough[usable], dark[usable]


def _squares(image: np.ndarray, side: int) -> np.ndarray:
    """The mean over squares; the border is repeated."""
    total = np.pad(image, ((side // 2 + 1, side // 2),) * 2, mode="edge").cumsum(0).cumsum(1)
    return (total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]) / side**2


def _line(m: np.ndarray, v: np.ndarray, n: np.ndarray) -> _Line | None:
    """The line ``v = gain · m + read²`` through the variances of classes, by reweighted least squares.

    Returns gain, read, the errors of gain and of read², and whether the line rises clearly.
    """
    used = np.ones(len(m), bool)
    fit = np.full(len(m), max(float(np.median(v)), 1e-30))
    slope = constant = 0.0
    covariance = np.zeros((2, 2))
    for _ in range(8):
        weight = np.where(used, n / (2 * fit**2), 0.0)
        design = np.stack([m, np.ones_like(m)], 1)
        normal = design.T @ (weight[:, None] * design)
        try:
            covariance = np.linalg.inv(normal)
        except np.linalg.LinAlgError:
            return None
        slope, constant = covariance @ (design.T @ (weight * v))
        if constant < 0:
            slope, constant = float((weight * v * m).sum() / max((weight * m * m).sum(), 1e-300)), 0.0
        if slope < 0:
            slope, constant = 0.0, float((weight * v).sum() / weight.sum())
        fit = np.maximum(slope * m + constant, 1e-3 * float(np.median(v)) + 1e-30)
        deviation = (v - fit) / (fit * np.sqrt(2 / n))
        used = np.abs(deviation) < max(4.0, 3 * float(np.median(np.abs(deviation))))
        if used.sum() < 3:
            used = np.ones(len(m), bool)
    excess = max(1.0, float(np.mean(deviation[used] ** 2)))
    slope_error = math.hypot(math.sqrt(max(covariance[0, 0], 0.0) * excess), _LEAST * slope)
    square_error = math.hypot(math.sqrt(max(covariance[1, 1], 0.0) * excess), 2 * _LEAST * constant)
    dark, bright = np.quantile(m, [0.05, 0.95])
    grows = slope > 3 * slope_error and slope * (bright - dark) > 0.5 * max(slope * dark + constant, 1e-30)
    return slope, math.sqrt(max(constant, 0.0)), slope_error, square_error, bool(grows)
