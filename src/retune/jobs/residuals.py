"""The residual of a restored image: its judgement and its picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from retune._torch.batch import window
from retune._torch.precision import full_precision
from retune.config import ProblemConfig
from retune.diagnosis.residual import judge
from retune.errors import InvalidParameterError
from retune.io import Layout
from retune.io.intensity import Unit
from retune.jobs.pixels import by, eight, encode
from retune.problems.base import Problem
from retune.problems.noise import estimate_noise
from retune.records.pictured import PicturedResidual

__all__ = ["MIDDLE", "picture_residual"]

#: Side of the part that is shown pixel by pixel.
MIDDLE = 512
#: The residual of a larger image (in pixels) is that of its middle, of this side.
WHOLE, PART = 1536 * 1536, 1024
#: Side of the neighbourhood of a clipped value that is not judged.
_NEAR = 7
#: Standard deviations of the noise that are black and white in the picture of the residual.
_RANGE = 4.0


def picture_residual(
    problem: Problem,
    config: ProblemConfig,
    y: Tensor,
    restored: Tensor,
    unit: Unit,
    layout: Layout | None,
    rounded: bool,
    detailed: bool,
) -> PicturedResidual:
    """``(y − A x̂)/σ``, judged.

    Raises:
        RetuneError, RuntimeError, ValueError: it cannot be computed.
    """
    notes: list[str] = []
    ratio = restored.shape[-1] / y.shape[-1]
    margin = 0
    if y.shape[-2] * y.shape[-1] > WHOLE and problem.has_parts:
        rows, cols = (torch.arange(n)[window(n, PART)] for n in y.shape[-2:])
        problem = problem.part(rows, cols)
        y = y[..., rows, :][..., cols]
        top, left, height, width = (round(float(n) * ratio) for n in (rows[0], cols[0], len(rows), len(cols)))
        restored = restored[..., top : top + height, left : left + width]
        taps = getattr(problem, "kernel", None)
        # Light from beyond the part was blurred into its border.
        margin = max(taps.shape[-2:]) if isinstance(taps, Tensor) else 0
        notes.append(f"It is computed on the middle {by(y)} pixels.")
    levels = _levels(config, problem, y, notes)
    physics = problem.operator(y)
    image, border = _framed(problem, y, restored)
    if problem.noise is not None:
        y = y - problem.noise.offset
    with torch.no_grad(), full_precision():
        difference = y - physics.A(image)
    seen = problem.observed(y)
    inside = torch.ones_like(y, dtype=torch.bool) if seen is None else seen.expand_as(y).clone()
    for axis, (first, last) in zip((-2, -1), border, strict=True):
        at = torch.arange(y.shape[axis])
        keep = (at >= first + margin) & (at < y.shape[axis] - last - margin)
        inside &= keep[:, None] if axis == -2 else keep
    steps = 0.0
    if layout is not None and layout.top is not None:
        inside &= ~_clipped(unit.stored(y), inside, notes)
        steps = (1 + rounded) * (unit.scale / layout.top) ** 2 / 12  # variance of rounding to whole numbers
    if levels is not None:
        difference = difference / (levels.square() + steps).sqrt()
    found = judge(difference[0], inside[0], known=levels is not None)
    picture = None
    if detailed and found.histogram:
        size = found.size if levels is not None else float(difference[inside].square().mean().sqrt())
        # The mean over the channels, times the root of their number, has the unit of the noise again.
        shown = torch.where(inside, difference, 0.0)[0].mean(0, keepdim=True) * difference.shape[1] ** 0.5
        shown = shown / (1.0 if levels is not None else size or 1.0)
        part = shown[..., window(shown.shape[-2], MIDDLE), :][..., window(shown.shape[-1], MIDDLE)]
        picture = encode(eight(part, -_RANGE, _RANGE))
        notes.append(
            f"Grey is 0, black −{_RANGE:g} and white +{_RANGE:g} standard deviations"
            + (f"; the middle {by(part)} pixels." if part.shape != shown.shape else ".")
        )
    return PicturedResidual(
        kind=found.kind.value,
        sentence=found.sentence,
        size=found.size,
        beyond=found.beyond,
        histogram=list(found.histogram),
        spectrum=list(found.spectrum),
        notes=notes,
        picture=picture,
    )


def _levels(config: ProblemConfig, problem: Problem, y: Tensor, notes: list[str]) -> Tensor | None:
    """The standard deviation of the noise, broadcastable to y; None if it is not known."""
    if problem.noise is not None:
        notes.append("The noise grows with the brightness; each pixel is divided by its own standard deviation.")
        return problem.variance(y).sqrt()
    sigma = problem.sigma
    if config.sigma == "estimate":
        try:
            sigma = estimate_noise(y)
        except InvalidParameterError:
            sigma = 0.0
        notes.append("The noise level was estimated from this image.")
    levels = torch.as_tensor(sigma, dtype=y.dtype).reshape(1, -1, 1, 1)
    if float(levels.min()) <= 0:
        notes.append("The noise level is unknown: the residual is divided by its own size.")
        return None
    return levels


def _framed(problem: Problem, y: Tensor, restored: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """An image of the size that the operator takes, and the number of measured pixels at each border that depend on the
    added part.

    A blur with a valid boundary takes a larger image than the part that is shown; its border is repeated.
    """
    size = problem.image_size((y.shape[1], y.shape[2], y.shape[3]))
    if tuple(restored.shape[1:]) == tuple(size):
        return restored, [(0, 0), (0, 0)]
    borders = []
    for axis in (1, 2):
        grid = torch.arange(size[axis], dtype=torch.float64)
        grid = grid[:, None].expand(size[1:]) if axis == 1 else grid.expand(size[1:])
        shown = problem.frame(grid[None, None])
        borders.append((int(shown.min()), size[axis] - 1 - int(shown.max())))
    (top, bottom), (left, right) = borders
    image = pad(restored, (left, right, top, bottom), mode="replicate")
    return image, borders


def _clipped(stored: Tensor, inside: Tensor, notes: list[str]) -> Tensor:
    """The pixels where a file of whole numbers is at the ends of its range: the noise is cut off there.

    Their neighbours are biased, because only the noise away from the end is visible; they are left out, too.
    """
    clipped = ((stored <= 0) | (stored >= 1)) & inside
    share = float(clipped.float().mean())
    if share > 0.9:  # a picture of two levels
        return torch.zeros_like(clipped)
    near = max_pool2d(clipped.float(), _NEAR, stride=1, padding=_NEAR // 2) > 0
    if int((inside & ~near).sum()) > 0.2 * int(inside.sum()):
        clipped = near
    if share > 0.001:
        left_out = float((clipped & inside).float().mean())
        notes.append(
            f"{share:.1%} of the values are at the ends of the range of the file. They and their "
            f"neighbours are left out ({left_out:.0%})."
        )
    return clipped
