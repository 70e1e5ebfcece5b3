"""A network bound to one measurement."""

from __future__ import annotations

from dataclasses import dataclass

from deepinv.physics import LinearPhysics
from torch import Tensor

from retune.errors import InvalidParameterError
from retune.maps.base import AbstractMap, BoundMap
from retune.operators.data_term import DataTerm
from retune.operators.images import parts

__all__ = ["Bound", "versions_of"]


@dataclass(frozen=True)
class Bound:
    """A network bound to one measurement: everything that is constant over the iterations, for reuse.

    It uses the weights of the moment of binding: bind again after a training step.

    Attributes:
        y: the measurement.
        data_term: the data term.
        map: the map, bound to it.
        owner: the map that was bound.
        versions: the counts of in-place changes that torch keeps for y and for the weights.
    """

    y: Tensor
    data_term: DataTerm
    map: BoundMap
    owner: AbstractMap
    versions: tuple[int, ...]

    def require(self, y: Tensor, physics: LinearPhysics, owner: AbstractMap) -> None:
        """Refuse another measurement, another network, and changed weights.

        Raises:
            InvalidParameterError: the tensor, the physics or the map is another object, or was changed.
        """
        if owner is not self.owner:
            raise InvalidParameterError(
                "bound is what another network was bound to: give what bind(y, physics) of this network returned, or "
                "leave it out"
            )
        if y is not self.y or physics is not self.data_term.physics:
            raise InvalidParameterError(
                "bound is what another measurement was bound to: give what net.bind(y, physics) returned for these "
                "two objects, or leave it out"
            )
        if self.versions != versions_of(y, owner):
            raise InvalidParameterError(
                "y or the weights were changed after bind(y, physics): bind again, or leave bound out"
            )


def versions_of(y: Tensor, owner: AbstractMap) -> tuple[int, ...]:
    """The number of in-place changes of y and of the weights. Torch does not count them in inference mode: -1."""
    state = [*parts(y), *owner.parameters(), *owner.buffers()]
    return tuple(-1 if t.is_inference() else t._version for t in state)
