"""What keeps an extrapolation honest: every image remembers its best point, and goes back to it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Safeguard", "norm", "pick"]

#: Plain steps after a fall-back are doubled at most up to this many.
LONGEST_PAUSE = 64


class Safeguard(NamedTuple):
    """Per image: Φ of the best point so far, its residual, and how many plain steps are still to be taken.

    An extrapolation fails when the residual exceeds `growth` times the least one, or when `patience` evaluations
    brought no new least one. Then the image goes back to Φ of its best point and takes plain steps: `pause` the first
    time, twice as many with every further failure, `pause` again after an extrapolation that paid. So n evaluations
    hold at most about log₂ n excursions of at most `patience` evaluations each, however badly Φ behaves.

    Attributes:
        best: Φ of the point with the least residual.
        least: (B,) that residual.
        since: (B,) evaluations since then.
        waits: (B,) plain steps still to be taken.
        pause: (B,) plain steps after the next failure.
    """

    best: Tensor
    least: Tensor
    since: Tensor
    waits: Tensor
    pause: Tensor

    @classmethod
    def begin(cls, u: Tensor, pause: int) -> Safeguard:
        """Before the first evaluation."""
        zeros = u.new_zeros(u.shape[0], dtype=torch.long)
        return cls(u, u.new_full((u.shape[0],), torch.inf), zeros, zeros, zeros + pause)

    def watch(
        self, image: Tensor, residual: Tensor, *, growth: float, patience: int, pause: int
    ) -> tuple[Safeguard, Tensor]:
        """The safeguard after an evaluation, and which images failed (B,).

        Args:
            image: Φ of the point evaluated.
            residual: (B,) size of its change.
            growth: see the class.
            patience: see the class.
            pause: see the class.
        """
        better = residual < self.least  # never true for NaN, which the loop handles
        free = self.waits == 0
        failed = free & ((residual > growth * self.least) | (~better & (self.since + 1 >= patience)))
        longer = (2 * self.pause).clamp_max(max(LONGEST_PAUSE, pause))
        return Safeguard(
            best=pick(better, image, self.best),
            least=torch.where(better, residual, self.least),
            since=torch.where(better | failed, 0, self.since + 1),
            waits=torch.where(failed, self.pause, (self.waits - 1).clamp_min(0)),
            pause=torch.where(failed, longer, torch.where(better & free, pause, self.pause)),
        ), failed


def norm(u: Tensor) -> Tensor:
    """‖u‖ per image."""
    return torch.linalg.vector_norm(u.flatten(1), dim=1)


def pick(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`yes` for the images of the mask, else `no`."""
    return torch.where(mask.view(-1, *[1] * (yes.ndim - 1)), yes, no)
