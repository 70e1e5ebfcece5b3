"""Between images and the states of a map: where a solve starts, and what is told of where it ended."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retune.equilibrium import Equilibrium, GradientReport
from retune.gradients.base import AdjointMemory
from retune.maps.base import BoundMap
from retune.solve import Solution

__all__ = ["Init", "equilibrium_of", "of_states", "relative_change", "start"]

#: An image to start from, or a function of the usual start.
Init = Tensor | Callable[[Tensor], Tensor]


def start(bound: BoundMap, init: Init | None) -> Tensor:
    """The first state: the map's own, or that of an image."""
    if init is None:
        return bound.init()
    return bound.state(init if isinstance(init, Tensor) else init(bound.image(bound.init()))).clone()


def of_states(images: AdjointMemory, bound: BoundMap) -> AdjointMemory:
    """What is remembered as images, for the states of the map: in coefficients of a tight frame, ``Dᵀ D w``."""

    def recall(v: Tensor) -> tuple[Tensor, Tensor]:
        image, gain = images.recall(v)
        return bound.image_adjoint(image.to(v)), gain.to(v)

    return AdjointMemory(recall, lambda w, gain, left: images.keep(bound.image(w), gain, left))


def relative_change(before: Tensor, after: Tensor) -> Tensor:
    """``‖after − before‖ / ‖after‖`` per image, (B,)."""
    change = torch.linalg.vector_norm((after - before).flatten(1), dim=1)
    return change / torch.linalg.vector_norm(after.flatten(1), dim=1).clamp_min(torch.finfo(after.dtype).tiny)


def equilibrium_of(
    image: Tensor,
    solution: Solution,
    u: Tensor | None = None,
    residual: Tensor | None = None,
    report: GradientReport | None = None,
) -> Equilibrium:
    """The result for the user; what a gradient rule made of the solution takes its place."""
    return Equilibrium(
        image=image,
        state=solution.u if u is None else u,
        residual=solution.residual if residual is None else residual,
        status=solution.status,
        layers=solution.layers,
        trace=solution.trace,
        gradient=report,
    )
