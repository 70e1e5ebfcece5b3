"""Faults of a measured kernel: a background, a wrong place, inverted or saturated values, even sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from retune.io import SUFFIXES
from retune.problems.base import Problem
from retune.problems.psf import background_of, middle_of_mass, peak_of, step_of, without_noise

__all__ = ["Fault", "faults", "kernel_doubts"]

#: A kernel with a shorter side shows too little to be judged.
_SHORTEST = 5
#: A centre of mass farther from the middle than this, in pixels.
_OFF = 1.0


@dataclass(frozen=True)
class Fault:
    """One fault of a kernel.

    Attributes:
        kind: "background", "inverted", "saturated", "off-centre" or "even".
        found: the finding; it continues a sentence that begins with "the blur kernel".
        harm: its effect on the restoration; it continues the sentence after a comma.
        remedy: how to mend it.
        python: the same in Python; "" if no option mends it.
        numbers: the evidence.
    """

    kind: str
    found: str
    harm: str
    remedy: str
    python: str
    numbers: dict[str, float]


def kernel_doubts(problem: Problem) -> Iterator[str]:
    """A sentence for each fault of the kernel of a problem, with the option of the command that mends it.

    A kernel by name comes from a formula, so only its sides are examined. Before a subsampling they are not: named
    filters have even sides there on purpose.
    """
    taps, spec = getattr(problem, "kernel", None), getattr(problem, "spec", "custom")
    if not isinstance(taps, Tensor):
        return
    measured = not isinstance(spec, str) or spec == "custom" or Path(spec).suffix.lower() in SUFFIXES
    if not measured and problem.subsamples:
        return
    name = f" {Path(spec).name}" if isinstance(spec, str) and measured and spec != "custom" else ""
    name = name if measured else f" {spec}"
    for fault in faults(taps):
        if measured or fault.kind == "even":
            yield f"the blur kernel{name} {fault.found}, {fault.harm}; {fault.remedy}"


def faults(taps: Tensor) -> list[Fault]:
    """The faults of kernels (B, C, h, w). Each kind of fault is listed once, for the first kernel that has it."""
    found: dict[str, Fault] = {}
    for channels in taps.detach().double().cpu():
        inverted = [fault for fault in map(_inverted, channels) if fault is not None]
        others = [] if inverted else [check(c) for c in channels for check in (_background, _saturated)]
        place = None if inverted else _off_centre(without_noise(channels))
        for fault in (*inverted, *others, place):
            if fault is not None:
                found.setdefault(fault.kind, fault)
    height, width = taps.shape[-2:]
    if height % 2 == 0 or width % 2 == 0:
        found["even"] = Fault(
            "even",
            f"is {height}×{width}: with an even side it has no middle pixel",
            "so the restored image is shifted by up to a pixel",
            "--centre-kernel gives it odd sides",
            "centre=True",
            {"height": height, "width": width},
        )
    return list(found.values())


def _inverted(channel: Tensor) -> Fault | None:
    """A dark spot on a bright ground: the border and most of the array are nearly as bright as the maximum."""
    if min(channel.shape) < _SHORTEST:
        return None
    top, bottom = float(channel.max()), float(channel.min())
    border = _border(channel)
    level = float(border.median())
    dark = channel < bottom + 0.5 * (level - bottom)
    share = float(dark.double().mean())
    if top <= 0 or level < 0.6 * top or bottom > 0.6 * level or not 0 < share < 0.4:
        return None
    if float(border.min()) < bottom + 0.5 * (level - bottom):
        return None  # dark parts reach the border: the blur fills its array, like a disc in a square
    return Fault(
        "inverted",
        f"is dark (down to {bottom / top:.0%} of its maximum) on a bright ground: it looks inverted",
        "but a blur is bright where light arrives",
        "invert it, so that 0 is black",
        "",
        {"level": level, "darkest": bottom},
    )


def _background(channel: Tensor) -> Fault | None:
    found = background_of(channel)
    if found is None:
        return None
    return Fault(
        "background",
        f"does not fall to 0 at its border: a background (pedestal) of {found.level / found.height:.1%} of its peak "
        f"makes up {found.share:.0%} of its sum",
        "and counts as haze over the image",
        "--kernel-background auto subtracts it",
        'background="auto"',
        {"level": found.level, "share": found.share},
    )


def _saturated(channel: Tensor) -> Fault | None:
    """A flat top with a skirt: many pixels equal to the maximum, next to some that are much lower but not yet 0.

    A box, a disc or a line also has a flat top. It ends within a pixel or two; a smooth blur has shoulders.
    """
    found = background_of(channel)
    channel = channel if found is None else channel - found.level
    top = float(channel.max())
    if min(channel.shape) < _SHORTEST or top <= 0:
        return None
    flat = channel >= top * (1 - 1e-6)
    blocks = F.avg_pool2d(flat.double()[None, None], 3, 1)
    if float(blocks.max()) < 1 - 1e-9:  # no 3×3 block of equal values
        return None
    spread = int(flat.sum())
    rings, grown = [], flat
    for _ in range(max(channel.shape)):
        larger = F.max_pool2d(grown.double()[None, None], 3, 1, 1)[0, 0] > 0
        ring = channel[larger & ~grown]
        if not ring.numel():
            break
        rings.append(float(ring.median()) / top)
        grown = larger
    step = step_of(channel) / top
    positive = [r for r in rings if r > 1e-9]
    if len(positive) < 2 or not 0.15 < rings[0] < 1 - max(0.08, 3 * min(step, 0.02)):
        return None
    if min(positive) > 0.05 or rings[1] < 0.02 or rings[1] > rings[0]:
        return None
    return Fault(
        "saturated",
        f"has a flat top of {spread} equal pixels with smooth sides: it looks saturated",
        "so the blur is narrower than it says",
        "measure it with a shorter exposure",
        "",
        {"pixels": spread, "next": rings[0]},
    )


def _off_centre(weights: Tensor) -> Fault | None:
    """Neither the centre of mass nor the brightest spot is in the middle: a lopsided blur has one of them there."""
    off = middle_of_mass(weights[None])
    if off is None or max(map(abs, off)) <= _OFF:
        return None
    height, width = weights.shape
    row, col = peak_of(weights)
    if max(abs(row - (height - 1) / 2), abs(col - (width - 1) / 2)) <= _OFF:
        return None
    rows = f"{abs(off[0]):.1f} rows {'down' if off[0] > 0 else 'up'}"
    cols = f"{abs(off[1]):.1f} columns to the {'right' if off[1] > 0 else 'left'}"
    return Fault(
        "off-centre",
        f"has its centre of mass {rows} and {cols}, away from the middle of its array",
        "so the restored image is shifted by as much",
        "--centre-kernel moves it",
        "centre=True",
        {"rows": off[0], "columns": off[1]},
    )


def _border(channel: Tensor) -> Tensor:
    """The outermost pixels of a kernel (h, w)."""
    inside = torch.zeros_like(channel, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    return channel[~inside]
