"""Restricting the facts about an operator to some images of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from retune._torch.batch import over_images

__all__ = ["DiagonalNormal", "Restrictable", "rows"]


@runtime_checkable
class Restrictable(Protocol):
    """A normal operator that can be restricted to some of its images."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """``AᵀA x``."""
        ...

    def select(self, index: Tensor, batch: int) -> Callable[[Tensor], Tensor]:
        """The operator for the images `index` (n,) of a batch of `batch`."""
        ...


class DiagonalNormal:
    """``x ↦ V |m|² Vᵀ x``, with V orthonormal and the same for all images; the identity if not given.

    Args:
        power: ``|m|²``, broadcastable, or with one entry per image.
        change: (V, Vᵀ), or None.
    """

    def __init__(self, power: Tensor, change: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None):
        self._power, self._change = power, change

    def __call__(self, x: Tensor) -> Tensor:
        """``AᵀA x``."""
        if self._change is None:
            return self._power * x
        forward, back = self._change
        return forward(self._power * back(x))

    def resolve(self, shift: Tensor) -> Callable[[Tensor], Tensor]:
        """``r ↦ (I + shift · AᵀA)⁻¹ r``: division by ``1 + shift |m|²`` where A is diagonal.

        Args:
            shift: ≥ 0, shape () or (1 or B, 1, 1, 1).
        """
        if shift.ndim:
            shift = over_images(shift, max(self._power.ndim, 4))
        scale = 1 / (1 + shift * self._power)
        if self._change is None:
            return lambda r: scale * r
        forward, back = self._change
        return lambda r: forward(scale * back(r))

    def select(self, index: Tensor, batch: int) -> DiagonalNormal:
        """See ``Restrictable``."""
        return DiagonalNormal(rows(self._power, index, batch), self._change)


def rows(constant: Tensor, index: Tensor, batch: int) -> Tensor:
    """The entries for the images `index`, if a constant has one entry per image of the batch."""
    return constant[index] if batch > 1 and constant.ndim >= 4 and constant.shape[0] == batch else constant
