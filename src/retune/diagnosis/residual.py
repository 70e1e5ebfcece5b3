"""Judge a residual ``y − A x̂`` in units of the noise: is it noise alone, or does it contain a part of the image?"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

__all__ = ["EDGES", "Judgement", "ResidualKind", "judge"]

#: Edges of the histogram, in standard deviations of the noise.
EDGES = np.linspace(-5, 5, 41)
#: With fewer measured values, there is no judgement.
_FEWEST = 400
#: Bands of the spectrum between the frequencies 0 and 0.5 cycles per pixel; the corners of the plane are one more.
_BANDS = 16
#: Independent frequencies that a band needs; sparser bands are merged with their neighbours.
_PER_BAND = 10
#: A band is structure if its power is this many standard errors, and by this share, above that of the noise.
_ERRORS, _SHARE = 5.0, 0.2
#: Side of the blocks whose power is compared, and the ratio to the mean above which one stands out: 6 standard errors.
_BLOCK, _OUTSTANDING = 16, 1.55
#: The share of outstanding blocks above which structure is left in places.
_PLACES = 0.02
#: Sizes between these (root mean square, in standard deviations) are typical. A good restoration keeps some noise.
_SMALL, _LARGE = 0.5, 1.12


class ResidualKind(enum.Enum):
    """The kinds of residual."""

    WHITE = "white"
    STRUCTURE = "structure"
    PLACES = "structure in places"
    LARGE = "larger than the noise"
    SMALL = "smaller than the noise"
    UNKNOWN = "not judged"


@dataclass(frozen=True)
class Judgement:
    """A residual in units of the noise.

    Attributes:
        kind: its kind.
        sentence: the judgement in one or two sentences.
        size: root mean square, in standard deviations of the noise; None if the noise level is unknown.
        beyond: share of the values beyond 3 standard deviations; 0.0027 for normal noise.
        histogram: density between neighbouring ``EDGES``.
        spectrum: (frequency in cycles per pixel, power) of each band; white noise of the model has power 1.
        places: share of the blocks of 16×16 pixels that stand out.
    """

    kind: ResidualKind
    sentence: str
    size: float | None
    beyond: float
    histogram: tuple[float, ...]
    spectrum: tuple[tuple[float, float], ...]
    places: float


def judge(residual: Tensor, seen: Tensor | None = None, known: bool = True) -> Judgement:
    """Judge a residual that was divided by the standard deviation of the noise, pixel by pixel.

    White noise of the model has the same power at every frequency and in every place. Power above it, in a band of
    frequencies or in some blocks, is structure: a part of the image that the restoration does not explain. Power
    below it is usual, because every restoration keeps some of the noise.

    Args:
        residual: (C, h, w), in standard deviations.
        seen: booleans of the same shape, False where nothing was measured; None if everything was.
        known: whether the noise level is known. If not, the residual is divided by its own size first.
    """
    values = residual.detach().cpu().double()
    inside = torch.ones_like(values, dtype=torch.bool) if seen is None else seen.detach().cpu().expand_as(values)
    inside = inside & values.isfinite()
    values = torch.where(inside, values, 0.0)
    count = int(inside.sum())
    size = float((values.square().sum() / max(1, count)).sqrt())
    if count < _FEWEST or size == 0:
        why = "it is 0 everywhere" if count >= _FEWEST else f"{count} measured values are too few"
        return Judgement(ResidualKind.UNKNOWN, f"Not judged: {why}.", size if known else None, 0.0, (), (), 0.0)
    if not known:
        values = values / size
    bands = _spectrum(values, inside)
    places = _outstanding(values, inside)
    kind, sentence = _judged(bands, places, size if known else None)
    found = values[inside].numpy()
    density = np.histogram(found.clip(EDGES[0], EDGES[-1]), EDGES, density=True)[0]
    return Judgement(
        kind,
        sentence,
        size if known else None,
        float((np.abs(found) > 3).mean()),
        tuple(density.tolist()),
        tuple((f, p) for f, p, _ in bands),
        places,
    )


def _spectrum(values: Tensor, inside: Tensor) -> list[tuple[float, float, int]]:
    """(frequency, power, independent values) of each band; the mean brightness is left out."""
    height, width = values.shape[-2:]
    # With missing pixels, white noise stays white: its power is the number of pixels that were measured.
    power = torch.fft.fft2(values).abs().square().mean(0) / inside.sum((-2, -1)).double().mean().clamp_min(1)
    rows, cols = torch.fft.fftfreq(height).abs()[:, None], torch.fft.fftfreq(width).abs()
    radius = (rows.square() + cols.square()).sqrt().flatten().double()
    band = (radius / 0.5 * _BANDS).long().clamp_max(_BANDS)
    keep = radius > 0
    totals, counts, sums = (
        torch.zeros(_BANDS + 1, dtype=torch.float64).index_add_(0, band[keep], v[keep])
        for v in (power.flatten(), torch.ones_like(radius), radius)
    )
    merged: list[list[float]] = []
    for total, n, place in zip(totals.tolist(), counts.tolist(), sums.tolist(), strict=True):
        if merged and merged[-1][1] / 2 * len(values) < _PER_BAND:
            merged[-1] = [merged[-1][0] + total, merged[-1][1] + n, merged[-1][2] + place]
        else:
            merged.append([total, n, place])
    # A frequency and its negative hold the same value.
    return [(place / n, total / n, max(1, int(n / 2 * len(values)))) for total, n, place in merged if n]


def _outstanding(values: Tensor, inside: Tensor) -> float:
    """The share of the blocks whose power is well above that of the others."""
    if min(values.shape[-2:]) < 4 * _BLOCK:
        return 0.0
    power, seen = (avg_pool2d(v.double()[None], _BLOCK)[0] for v in (values.square(), inside.double()))
    whole = seen > 0.9  # blocks with few pixels stand out by chance
    if int(whole.sum()) < 16:
        return 0.0
    ratios = power[whole] / seen[whole]
    return float((ratios > _OUTSTANDING * ratios.mean()).double().mean())


def _judged(bands: list[tuple[float, float, int]], places: float, size: float | None) -> tuple[ResidualKind, str]:
    # A residual that is larger than the noise at all frequencies is white noise of another level.
    level = 1.0 if size is None else max(1.0, size**2)
    above = [(power / level, f) for f, power, n in bands if power / level > 1 + max(_SHARE, _ERRORS / math.sqrt(n))]
    told = "" if size is None else f" Its size is {size:.2f} times that of the noise."
    if above:
        ratio, frequency = max(above)
        what = "coarse" if frequency < 0.08 else "medium" if frequency < 0.2 else "fine"
        return ResidualKind.STRUCTURE, (
            f"Structure is left: its {what} details have {ratio:.2g} times the power of the noise. The restoration is "
            f"too smooth, or the assumed kernel, boundary or white level is wrong.{told}"
        )
    if places > _PLACES:
        return ResidualKind.PLACES, (
            f"Structure is left in places: {places:.0%} of the blocks of {_BLOCK}×{_BLOCK} pixels are well above the "
            "others. Edges or texture were smoothed away there, or the noise is not the same everywhere (it may grow "
            f"with brightness).{told}"
        )
    if size is not None and size > _LARGE:
        return ResidualKind.LARGE, (
            f"White, but {size:.2f} times as large as the noise that was assumed: the noise level is probably larger."
        )
    if size is not None and size < _SMALL:
        return ResidualKind.SMALL, (
            f"White, but only {size:.2f} times as large as the noise that was assumed: the restoration keeps part of "
            "the noise, or the noise level is smaller."
        )
    return ResidualKind.WHITE, f"White: nothing of the image is left in it.{told}"
