"""Tell oscillation from convergence: watch the last cycle of a block."""

from __future__ import annotations

import torch
from torch import Tensor

from retune._torch.batch import per_image_norm
from retune.maps.base import BoundMap

__all__ = ["Watched"]

#: A block returns to its start if it moves an image by less than this share of the movement of its last cycle.
_RETURNS = 0.1


class Watched(BoundMap):
    """A bound map that remembers the state before the last cycle of its last block."""

    def __init__(self, bound: BoundMap):
        self.bound, self.layers, self.sources = bound, bound.layers, bound.sources
        self._before: Tensor | None = None
        self._size = 0

    def init(self) -> Tensor:
        """See [`BoundMap`][retune.BoundMap]."""
        return self.bound.init()

    def layer(self, u: Tensor, k: int = 0) -> Tensor:
        """See [`BoundMap`][retune.BoundMap]."""
        return self.bound.layer(u, k)

    def image(self, u: Tensor) -> Tensor:
        """See [`BoundMap`][retune.BoundMap]."""
        return self.bound.image(u)

    def state(self, image: Tensor) -> Tensor:
        """See [`BoundMap`][retune.BoundMap]."""
        return self.bound.state(image)

    def image_adjoint(self, image: Tensor) -> Tensor:
        """See [`BoundMap`][retune.BoundMap]."""
        return self.bound.image_adjoint(image)

    def size(self, u: Tensor) -> Tensor:
        """See [`BoundMap`][retune.BoundMap]."""
        return self.bound.size(u)

    def norm(self, u: Tensor) -> Tensor:
        """See [`BoundMap`][retune.BoundMap]."""
        return self.bound.norm(u)

    def visible(self, v: Tensor, u: Tensor) -> Tensor:
        """See [`BoundMap`][retune.BoundMap]."""
        return self.bound.visible(v, u)

    def select(self, index: Tensor) -> BoundMap | None:
        """See [`BoundMap`][retune.BoundMap]."""
        return self.bound.select(index)

    def block(self, u: Tensor, depth: int) -> Tensor:
        """See [`BoundMap`][retune.BoundMap]: the last cycle runs separately, and the state before it is kept."""
        cycle = self.layers if depth % self.layers == 0 else depth
        before = self.bound.block(u, depth - cycle) if depth > cycle else u
        self._before, self._size = before.detach(), depth
        return self.bound.block(before, cycle)

    def change(self, first: Tensor, last: Tensor, depth: int, rtol: float) -> tuple[Tensor, Tensor]:
        """The residual (B,) of the block from `first` to `last`, and whether each image oscillates (B,).

        See [`solve`][retune.solve.solve] for the residual. An image oscillates if the last cycle moved it by more than
        the tolerance, and the whole block moved it by less than a tenth of that.
        """
        size = self.bound.size(last).clamp_min(torch.finfo(last.dtype).tiny)
        block = per_image_norm(last - first) / size
        before, self._before = self._before, None
        if before is None or self._size <= self.layers:
            residual = block * (depth / (self._size or depth))
            return residual, torch.zeros_like(residual, dtype=torch.bool)
        cycle = per_image_norm(last - before) / size
        residual = torch.maximum(block * (depth / self._size), cycle * (depth / self.layers))
        return residual, (cycle * (depth / self.layers) > rtol) & (block < _RETURNS * cycle)
