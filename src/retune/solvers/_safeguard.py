"""The safeguard of extrapolations: every image keeps its best point and returns to it after a failure."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retune._torch.batch import pick

__all__ = ["Safeguard"]

#: A number of plain steps that is never reached.
LONGEST_PAUSE = 2**20
#: After so many failures an image takes plain steps for ever, so that its jumps to earlier points are finitely many.
MOST_FAILURES = 10_000


class Safeguard(NamedTuple):
    """For each image: Φ of the best point so far, its residual, and the number of plain steps to come.

    An extrapolation fails if the residual exceeds `growth` times the smallest one, or if the smallest one did not fall
    over `patience` evaluations (with `compare`: not faster than at the rate of the last plain steps). The image then
    returns to Φ of its best point and takes plain steps: `pause` of them if the extrapolations gained more than plain
    steps would have, else twice as many as after the previous failure. So n evaluations contain at most about log₂ n
    consecutive useless excursions, of at most `patience` evaluations each, for any Φ.

    Attributes:
        best: Φ of the point with the smallest residual.
        least: (B,) that residual.
        last: (B,) if the next point is a plain step, the residual of the current point.
        rate: (B,) factor by which the last plain step changed the residual.
        start: (B,) smallest residual at the beginning of the current extrapolations.
        age: (B,) number of the current extrapolations.
        waits: (B,) number of plain steps to come.
        pause: (B,) plain steps after the next failure.
        failures: (B,) number of failures.
    """

    best: Tensor
    least: Tensor
    last: Tensor
    rate: Tensor
    start: Tensor
    age: Tensor
    waits: Tensor
    pause: Tensor
    failures: Tensor

    @classmethod
    def begin(cls, u: Tensor, pause: int) -> Safeguard:
        """The safeguard before the first evaluation. The second evaluation is a plain step, too."""
        unknown = u.new_full((u.shape[0],), torch.inf)
        zeros = u.new_zeros(u.shape[0], dtype=torch.long)
        return cls(u, unknown, unknown, torch.ones_like(unknown), unknown, zeros, zeros + 2, zeros + pause, zeros)

    def watch(
        self, image: Tensor, residual: Tensor, *, growth: float, patience: int, pause: int, compare: bool
    ) -> tuple[Safeguard, Tensor]:
        """The safeguard after an evaluation, and which images failed (B,).

        Args:
            image: Φ of the point evaluated.
            residual: (B,) size of its change.
            growth: see the class.
            patience: see the class.
            pause: see the class.
            compare: whether a gain must exceed that of plain steps; if not, any gain counts.
        """
        better = residual < self.least  # never true for NaN, which the loop handles
        least = torch.where(better, residual, self.least)
        free = self.waits == 0
        measured = ~free & torch.isfinite(self.last) & compare
        tiny = torch.finfo(residual.dtype).tiny
        rate = torch.where(measured, (residual / self.last.clamp_min(tiny)).clamp_max(1.0), self.rate)
        age = torch.where(free, self.age + 1, 0)
        over = age >= patience
        paid = least < self.start * rate**age
        slow = over & ~paid
        failed = free & ((residual > growth * self.least) | slow)
        fresh = ~free | over | failed
        wait = torch.where(paid, pause, self.pause)
        failures = self.failures + failed
        left = torch.where(self.waits < LONGEST_PAUSE, (self.waits - 1).clamp_min(0), self.waits)
        return Safeguard(
            best=pick(better, image, self.best),
            least=least,
            last=torch.where(failed, least, residual),
            rate=rate,
            start=torch.where(fresh, least, self.start),
            age=torch.where(fresh, 0, age),
            waits=torch.where(failed, torch.where(failures < MOST_FAILURES, wait, LONGEST_PAUSE), left),
            pause=torch.where(failed, (2 * wait).clamp_max(LONGEST_PAUSE), torch.where(over, wait, self.pause)),
            failures=failures,
        ), failed
