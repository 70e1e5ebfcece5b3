"""Measured kernels: their background, and where their middle is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from retune.errors import InvalidParameterError

__all__ = [
    "Background",
    "background_of",
    "centred",
    "middle_of_mass",
    "peak_of",
    "step_of",
    "without_background",
    "without_noise",
]

#: Share of the pixels, those farthest from the brightest spot, whose median is the level of the background.
_FAR = 0.1
#: A kernel with a shorter side shows too little of its border to be judged.
_SHORTEST = 7
#: A background below this share of the peak, or of the sum, changes too little.
_LEAST, _LEAST_SUM = 2e-3, 0.03
#: Above this share of the peak, a flat border is part of the blur, as in a box.
_MOST = 0.5


@dataclass(frozen=True)
class Background:
    """A floor under a kernel, as the offset of a camera leaves it.

    Attributes:
        level: of the floor, in the units of the kernel.
        height: of the peak above it.
        share: of the sum of the kernel that is due to the floor.
    """

    level: float
    height: float
    share: float


def background_of(channel: Tensor) -> Background | None:
    """The background of a kernel (h, w): far from the brightest spot, the values are flat, above 0, and below the peak.

    None if there is no background, or if the array ends inside the blur, so that its tail looks like one.
    """
    channel = channel.detach().double()
    if min(channel.shape) < _SHORTEST or float(channel.max()) <= 0:
        return None
    spot = peak_of(channel)
    values, distances = far_from(channel, spot)
    count, top, total = values.numel(), float(channel.max()), float(channel.sum())
    level, noise = float(values[: round(_FAR * count)].median()), roughness(channel, spot)
    shares = (_FAR, 0.25) if noise < 0.1 * level else (0.15, 0.4)  # more pixels where each tells less
    first, second = (round(share * count) for share in shares)
    share = level * count / total if total > 0 else 0.0
    least = max(_LEAST * (top - level), 5 * noise / first**0.5, 3.5 * step_of(channel))
    if not least <= level <= _MOST * top or share < _LEAST_SUM:
        return None
    if float((values < 0.7 * level - 2 * noise).double().mean()) > 0.02:
        return None  # something is darker: the rings of a diffraction pattern
    if float(values[:second].quantile(0.1)) + 1.5 * noise < 0.7 * level:
        return None
    inside, _ = far_from(channel[1:-1, 1:-1], (spot[0] - 1, spot[1] - 1))
    if float(inside[: max(1, round(0.1 * inside.numel()))].median()) > 1.5 * level + noise:
        return None  # only the outermost pixels: the side of a box that fills its array
    if _falls(values, distances, first, second, noise, 1.0 if level < 0.1 * top else 0.5):
        return None
    return Background(level, top - level, share)


def _falls(values: Tensor, distances: Tensor, first: int, second: int, noise: float, power: float) -> bool:
    """Whether the values r^−p of a kernel fall with p above `power`, or rise, from its first to its second pixels.

    For the wings of every usual point spread function p is 2 or more, and larger where these are low; for a floor it
    is near 0.

    Args:
        values: the pixels, the farthest first.
        distances: r of these pixels.
        first: number of the outer pixels.
        second: number of the outer and the next pixels.
        noise: of a pixel. What may be due to it does not count as a fall.
        power: see above.
    """
    outer, inner = float(values[:first].median()), float(values[first:second].median())
    error, error_inner = noise / first**0.5, noise / (second - first) ** 0.5
    if inner + 3 * error_inner < 0.8 * outer:
        return True
    lever = math.log(float(distances[:first].median() / distances[first:second].median()))
    return inner + 2 * error_inner > (outer - 2 * error) * math.exp(power * lever)


def without_background(taps: Tensor, background: float | str, name: str = "the blur kernel") -> Tensor:
    """A kernel without its background: ``max(k − b, 0)``, divided by its sum in each channel.

    Args:
        taps: (1, C, h, w).
        background: b in the units of the kernel; or "auto" for the median of the tenth of the pixels that are farthest
            from the brightest spot, in each channel that has a background, see ``background_of``. "auto" also sets to
            0 what exceeds b by less than twice the noise of the farthest pixels: noise clipped at 0 would be a
            background again.
        name: how an error calls the kernel.

    Raises:
        InvalidParameterError: nothing is left of a channel.
    """
    exact = taps.double()
    if isinstance(background, str):
        left = torch.stack([_cleared(channel) for channel in exact[0]])[None]
    else:
        left = (exact - background).clamp_min(0)
    total = left.sum((-2, -1), keepdim=True)
    if not bool((total > 0).all()):
        raise InvalidParameterError(
            f"without a background of {background}, {name} is zero everywhere: its largest value is "
            f"{float(exact.amax((-2, -1)).min()):.4g}; give the level of its border in the units of the kernel"
        )
    return (left / total).to(taps)


def _cleared(channel: Tensor) -> Tensor:
    found = background_of(channel)
    if found is None:
        return channel
    left = channel - found.level
    return torch.where(left > 2 * roughness(channel, peak_of(channel)), left, 0.0).clamp_min(0)


def without_noise(channels: Tensor) -> Tensor:
    """The mean (h, w) of the channels (C, h, w) of a kernel, without background and probable noise."""
    kept = []
    for channel in channels.detach().double():
        found = background_of(channel)
        left = channel if found is None else channel - found.level
        kept.append(torch.where(left.abs() > 3 * roughness(channel, peak_of(channel)), left, 0.0))
    return torch.stack(kept).mean(0)


def centred(taps: Tensor) -> Tensor:
    """A kernel moved by whole pixels, so that its centre of mass is less than a pixel from the middle of its array.

    The result is the smallest array of odd sides around the centre of mass that contains all values other than 0.
    Every channel is moved by the same amount, so shifts between colours stay.

    Args:
        taps: (1, C, h, w), not negative on the whole.
    """
    weights = without_noise(taps[0])
    off = middle_of_mass(weights[None])
    if off is None:
        return taps
    held = (taps != 0).any(0).any(0)
    for axis, moved in enumerate(off):
        side = weights.shape[axis]
        centre = round((side - 1) / 2 + moved)
        centre = min(max(centre, 0), side - 1)
        used = held.any(1 - axis).nonzero().flatten()
        reach = max(centre - int(used[0]), int(used[-1]) - centre, 0)
        before, after = reach - centre, reach - (side - 1 - centre)  # negative: cropped
        dim = axis - 2
        taps = taps.narrow(dim, max(-before, 0), side - max(-before, 0) - max(-after, 0))
        pad = (max(before, 0), max(after, 0))
        taps = F.pad(taps, (0, 0, *pad) if axis == 0 else pad)
    return taps.contiguous()


def middle_of_mass(weights: Tensor) -> list[float] | None:
    """Rows and columns from the middle of the array to the centre of mass, for the channel with the largest offset.

    Args:
        weights: (C, h, w).

    Returns:
        None if the positive and negative values of a channel cancel.
    """
    weights = weights.double()
    total = weights.sum((-2, -1))
    if bool((total.abs() <= 1e-3 * weights.abs().sum((-2, -1))).any()):
        return None
    rows = torch.arange(weights.shape[-2], dtype=torch.float64, device=weights.device) - (weights.shape[-2] - 1) / 2
    cols = torch.arange(weights.shape[-1], dtype=torch.float64, device=weights.device) - (weights.shape[-1] - 1) / 2
    off = torch.stack([(weights.sum(-1) * rows).sum(-1) / total, (weights.sum(-2) * cols).sum(-1) / total], 1)
    return [float(v) for v in off[int(off.abs().amax(1).argmax())]]


def peak_of(channel: Tensor) -> tuple[float, float]:
    """Row and column of the brightest spot of a kernel (h, w): the mean of all values close to the maximum."""
    smooth = F.avg_pool2d(channel.double()[None, None], 3, 1, 1, count_include_pad=True)[0, 0]
    rows, cols = (smooth >= smooth.max() - 0.02 * (smooth.max() - smooth.min())).nonzero(as_tuple=True)
    return float(rows.double().mean()), float(cols.double().mean())


def far_from(channel: Tensor, spot: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The values of a kernel (h, w), the farthest from a spot first, and their distances in pixels."""
    height, width = channel.shape
    rows = torch.arange(height, dtype=torch.float64, device=channel.device) - spot[0]
    cols = torch.arange(width, dtype=torch.float64, device=channel.device) - spot[1]
    distances = (rows[:, None].square() + cols.square()).sqrt().flatten()
    order = distances.argsort(descending=True, stable=True)
    return channel.flatten()[order], distances[order]


def roughness(channel: Tensor, spot: tuple[float, float], share: float = 0.25) -> float:
    """The noise (standard deviation) of the pixels of a kernel (h, w) that are farthest from a spot.

    It is estimated from second differences of neighbours, which a smooth slope hardly changes.
    """
    height, width = channel.shape
    pairs = []
    for axis, size in enumerate((height, width)):
        if size < 3:
            continue
        before, here, after = (channel.narrow(axis, start, size - 2) for start in range(3))
        moved = (spot[0] - (axis == 0), spot[1] - (axis == 1))
        values, _ = far_from((before - 2 * here + after).abs(), moved)
        pairs.append(values[: max(1, round(share * values.numel()))])
    if not pairs:
        return 0.0
    return float(1.4826 * torch.cat(pairs).median() / 6**0.5)


def step_of(channel: Tensor) -> float:
    """The step between the values of a kernel that was stored in whole numbers; 0 for any other.

    Wings below a step or two of the file are rounded to flat values.
    """
    gaps = channel.unique().diff()
    if not gaps.numel():
        return 0.0
    step = float(gaps.min())
    steps = channel / step
    return step if float((steps - steps.round()).abs().max()) < 0.05 else 0.0
