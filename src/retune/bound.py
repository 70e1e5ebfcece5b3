"""A network bound to one measurement."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from deepinv.physics import LinearPhysics
from torch import Tensor

from retune.errors import InvalidParameterError
from retune.maps.base import AbstractMap, BoundMap
from retune.operators.data_term import DataTerm
from retune.operators.images import parts
from retune.priors.memory import has_memory

__all__ = ["Bound", "Moment", "versions_of"]

_UNCOUNTED = -1


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
                "bound belongs to another network: give the result of bind(y, physics) of this network, or leave it out"
            )
        if y is not self.y or physics is not self.data_term.physics:
            raise InvalidParameterError(
                "bound belongs to another measurement: give the result of net.bind(y, physics) for these two objects, "
                "or leave it out"
            )
        now = versions_of(y, owner)
        if any(a not in (b, _UNCOUNTED) for a, b in zip(now, self.versions, strict=True)):
            raise InvalidParameterError(
                "y or the weights were changed after bind(y, physics): bind again, or leave bound out"
            )


@dataclass(frozen=True)
class Moment:
    """A solve at one of its checks, for whoever watches it. Image and objective are computed when they are asked for.

    Attributes:
        layers: number of layers run.
        residual: (B,) relative change over K layers.
        depth: K.
        state: the iterate (B, …). It belongs to the solve: do not change it.
        map: the map, bound to the measurement.
        rtol: the residual below which an image has converged.
    """

    layers: int
    residual: Tensor
    depth: int
    state: Tensor
    map: BoundMap
    rtol: float = 0.0

    @property
    def settled(self) -> bool:
        """Whether every image has converged."""
        return bool((self.residual <= self.rtol).all())

    @property
    def change(self) -> Tensor:
        """(B,) relative change per layer: the residual divided by K."""
        return self.residual / self.depth

    @cached_property
    def image(self) -> Tensor:
        """(B, C, H, W), the image of the state."""
        return self.map.image(self.state)

    @cached_property
    def objective(self) -> Tensor | None:
        """(B,) the objective that the map minimises, up to a constant; None if it is unknown.

        The constant is the value at 0 of its quadratic part q: ``q(u) − q(0) = ½⟨u, ∇q(u) + ∇q(0)⟩``.
        """
        known = self.map.objective()
        if known is None:
            return None
        u = self.state
        slopes = known.quadratic(u) + known.quadratic(u.new_zeros(u.shape))
        return known.value(u).double() + 0.5 * (u * slopes).flatten(1).sum(1).double()


def versions_of(y: Tensor, owner: AbstractMap) -> tuple[int, ...]:
    """The number of in-place changes of y and of the weights; -1 where changes do not count.

    Torch does not count them in inference mode. A network with a memory changes its buffers at every call, and they are
    restored after it.
    """
    restored = {id(buffer) for module in owner.modules() if has_memory(module) for buffer in module.buffers()}
    state = [*parts(y), *owner.parameters(), *owner.buffers()]
    return tuple(_UNCOUNTED if t.is_inference() or id(t) in restored else t._version for t in state)
