"""Large images in overlapping tiles.

A tile starts at a multiple of ``2**levels``, so that its wavelets are those of the whole image. Each tile is restored
with a margin. A part of the margin is discarded, because artificial borders cause errors there. Neighbours are blended
over the rest of the overlap. With a circular boundary, the margin wraps around. Only the outer border differs from an
image that is restored at once: there the wavelets of the whole image (without a margin) reach around to the opposite
side, and the wavelets of a tile do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from retune._torch.precision import full_precision
from retune.bound import Moment
from retune.certificate import ImageCertificate
from retune.certificate.quick import certificate_of
from retune.equilibrium import Status
from retune.errors import InvalidParameterError, ShapeError
from retune.model import Restarted
from retune.priors.capabilities import priors_of
from retune.problems.base import Problem

__all__ = ["Outcome", "restore_image"]

_ORDER = tuple(Status)  # from the best to the worst


@dataclass(frozen=True)
class Outcome:
    """The end of a restoration; of several tiles, the worst.

    Attributes:
        status: status of the solve.
        residual: relative change over the last block of layers.
        layers: number of layers run.
        tiles: number of tiles of the image.
        certificates: one per tile, if requested and if the tile did not fail.
        solver: the algorithm, in words.
    """

    status: Status
    residual: float
    layers: int
    tiles: int = 1
    certificates: tuple[ImageCertificate, ...] = ()
    solver: str = ""

    def worse(self, other: Outcome) -> Outcome:
        """The worse of both, field by field."""
        return Outcome(
            max(self.status, other.status, key=_ORDER.index),
            max(self.residual, other.residual),
            max(self.layers, other.layers),
            self.tiles + other.tiles,
            self.certificates + other.certificates,
            self.solver,
        )


def restore_image(
    net: Restarted,
    problem: Problem,
    y: Tensor,
    *,
    tile: int | None = None,
    overlap: int = 96,
    certify: bool = False,
    note: Callable[[int, int], None] = lambda done, total: None,
    watch: Callable[[Moment], None] | None = None,
) -> tuple[Tensor, Outcome]:
    """Restore one measurement (1, C, h, w), whole or in tiles.

    Args:
        net: the network, in eval mode.
        problem: the problem of y; [`part`][retune.problems.Problem.part] gives the problem of a tile.
        y: the measurement.
        tile: side of a tile without margins, in pixels of the measurement; None restores the image at once.
        overlap: margin around a tile, on each side.
        certify: whether to certify every tile; this takes about an eighth of the layers of its restoration.
        note: called with (tiles done, number of tiles).
        watch: called at the checks of each solve; see [`solve`][retune.Restarted.solve].

    Returns:
        The image (1, C, H, W), and the end of its restoration.
    """
    net.eval()
    if tile is None or (tile >= y.shape[-2] and tile >= y.shape[-1]):
        image, outcome = _solve(net, problem, y, certify, watch)
        note(1, 1)
        return image, outcome
    if tile < 1 or overlap < 1:
        raise InvalidParameterError(f"tile and overlap must be at least 1, got {tile} and {overlap}")
    step = _alignment(net)
    rows, cols = (_spans(n, tile, overlap, step, problem.wraps) for n in y.shape[-2:])
    total: Tensor | None = None
    worst: Outcome | None = None
    for i, (row, col) in enumerate((r, c) for r in rows for c in cols):
        part = problem.part(row.seen, col.seen)
        seen = y[..., row.seen, :][..., col.seen]
        try:
            image, outcome = _solve(net, part, seen, certify, watch)
        except ShapeError as error:  # its message says "image", but the tile is the cause
            size = "×".join(map(str, seen.shape[-2:]))
            raise ShapeError(
                f"in a tile of {size} pixels, with its margins: {error}. Use larger tiles, or none (--tile 0)"
            ) from error
        worst = outcome if worst is None else worst.worse(outcome)
        factor = image.shape[-1] // len(col.seen)
        if total is None:
            total = image.new_zeros(*image.shape[:2], y.shape[-2] * factor, y.shape[-1] * factor)
        kept = image[..., row.within(factor), col.within(factor)]
        ramp = row.ramp(factor).to(image)[:, None] * col.ramp(factor).to(image)
        total[..., row.kept(factor), col.kept(factor)] += kept * ramp
        note(i + 1, len(rows) * len(cols))
    assert total is not None
    assert worst is not None
    return total, worst


def _solve(
    net: Restarted, problem: Problem, y: Tensor, certify: bool, watch: Callable[[Moment], None] | None
) -> tuple[Tensor, Outcome]:
    physics = problem.operator(y)
    with torch.no_grad(), full_precision():  # the certificate is for this data term
        bound = net.bind(y, physics)
    found = net.solve(y, physics, watch=watch, bound=bound)
    outcome = Outcome(found.status[0], float(found.residual[0]), int(found.layers[0]), solver=repr(found.solver))
    if certify and not outcome.status.failed:
        outcome = replace(outcome, certificates=(certificate_of(net, y, physics, found, bound),))
    return problem.frame(found.image), outcome


@dataclass(frozen=True)
class _Span:
    """A tile along one axis: the pixels from which it is restored, and the pixels that are kept.

    The tile itself is [start, stop). The kept pixels reach `blend` beyond it, where the neighbour is blended in.
    """

    seen: Tensor
    first: int  # position of seen[0]
    start: int
    stop: int
    blend: int
    length: int  # length of the image

    @property
    def _ends(self) -> tuple[int, int]:
        return max(0, self.start - self.blend), min(self.length, self.stop + self.blend)

    def kept(self, factor: int) -> slice:
        """The kept pixels in the restored image."""
        low, high = self._ends
        return slice(low * factor, high * factor)

    def within(self, factor: int) -> slice:
        """The kept pixels in the restored tile."""
        low, high = self._ends
        return slice((low - self.first) * factor, (high - self.first) * factor)

    def ramp(self, factor: int) -> Tensor:
        """Weights of the kept pixels. The weights of all tiles add up to 1."""
        low, high = self._ends
        at = torch.arange(low * factor, high * factor) + 0.5
        width, weight = 2 * self.blend * factor, torch.ones_like(at)
        if self.start > 0:
            weight = ((at - (self.start - self.blend) * factor) / width).clamp(0, 1)
        if self.stop < self.length:
            weight = weight * (((self.stop + self.blend) * factor - at) / width).clamp(0, 1)
        return weight


def _spans(length: int, tile: int, overlap: int, step: int, wraps: bool) -> list[_Span]:
    blend = step
    margin = max(step, -(-(overlap - blend) // step) * step)
    tile = max(2 * blend, -(-tile // step) * step)  # so no more than two tiles overlap anywhere
    starts = list(range(0, length, tile))
    if len(starts) > 1 and length - starts[-1] < 2 * blend:
        starts.pop()  # too narrow to blend: the tile before covers it, too
    spans = []
    for i, start in enumerate(starts):
        stop = starts[i + 1] if i + 1 < len(starts) else length
        first, last = start - blend - margin, stop + blend + margin
        if not wraps or len(starts) == 1:
            first, last = max(0, first), min(length, last)
        spans.append(_Span(torch.arange(first, last) % length, first, start, stop, blend, length))
    return spans


def _alignment(net: Restarted) -> int:
    """Tiles start at multiples of this number, like the coarsest wavelets of the whole image, for every prior."""
    return math.lcm(8, *(p.alignment for p in priors_of(net)))
