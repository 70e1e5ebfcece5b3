"""What keeps an extrapolation honest: every image remembers its best point, and goes back to it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retune._torch.batch import pick

__all__ = ["Safeguard"]

#: More plain steps than anyone runs.
LONGEST_PAUSE = 2**20


class Safeguard(NamedTuple):
    """Per image: Φ of the best point so far, its residual, and how many plain steps are still to be taken.

    An extrapolation fails when the residual exceeds `growth` times the least one, or when over `patience` evaluations
    the least one did not fall (with `compare`: no more than at the rate of the last plain steps).
    Then the image goes back to Φ of its best point and takes plain steps: `pause` where the extrapolations up to then
    gained more than plain steps would have, else twice as many as after the failure before. So n evaluations hold at
    most about log₂ n excursions in a row that don't pay, of at most `patience` evaluations each, however Φ behaves.

    Attributes:
        best: Φ of the point with the least residual.
        least: (B,) that residual.
        last: (B,) residual of the point that the next one is Φ of, if it is a plain step.
        rate: (B,) factor by which the last plain step changed the residual.
        start: (B,) least residual when the extrapolations that are on trial began.
        age: (B,) how many they are.
        waits: (B,) plain steps still to be taken.
        pause: (B,) plain steps after the next failure.
    """

    best: Tensor
    least: Tensor
    last: Tensor
    rate: Tensor
    start: Tensor
    age: Tensor
    waits: Tensor
    pause: Tensor

    @classmethod
    def begin(cls, u: Tensor, pause: int) -> Safeguard:
        """Before the first evaluation; the second one is a plain step, too."""
        unknown = u.new_full((u.shape[0],), torch.inf)
        zeros = u.new_zeros(u.shape[0], dtype=torch.long)
        return cls(u, unknown, unknown, torch.ones_like(unknown), unknown, zeros, zeros + 2, zeros + pause)

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
            compare: whether gains are held against the rate of plain steps; else any gain will do.
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
        return Safeguard(
            best=pick(better, image, self.best),
            least=least,
            last=torch.where(failed, least, residual),
            rate=rate,
            start=torch.where(fresh, least, self.start),
            age=torch.where(fresh, 0, age),
            waits=torch.where(failed, wait, (self.waits - 1).clamp_min(0)),
            pause=torch.where(failed, (2 * wait).clamp_max(LONGEST_PAUSE), torch.where(over, wait, self.pause)),
        ), failed
