"""Ordinary unrolling: K layers from the start, differentiated end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from retune._registry.entries import register
from retune.equilibrium import GradientReport
from retune.gradients.base import AdjointMemory, GradientRule, require_graph
from retune.maps.base import BoundMap
from retune.solve import Stop

__all__ = ["Unrolled"]


@register
@dataclass(frozen=True)
class Unrolled(GradientRule):
    """The K-layer network itself: no restart, and the exact gradient of its output.

    The learned parameters belong to the depth: in eval mode the network stops after K layers, as in training. Running
    it longer has no meaning (Gregor and LeCun, *Learning fast approximations of sparse coding*, ICML 2010; Monga, Li,
    Eldar, *Algorithm unrolling*, IEEE SPM 2021).
    """

    restarts = False

    def __call__(
        self, bound: BoundMap, depth: int, solve: Callable[[], Tensor], adjoint: AdjointMemory | None = None
    ) -> tuple[Tensor, GradientReport]:
        """See [`GradientRule`][retune.GradientRule]."""
        start = solve()
        if not start.requires_grad:
            start = start.detach().requires_grad_()  # only to detect a cut graph
        u = bound.block(start, depth)
        require_graph(u, start, self)
        zero = u.new_zeros(u.shape[0])
        report = GradientReport("Unrolled", f"output at depth {depth}", zero, zero, blocks=1, depth=depth)
        return u, report

    def default_stop(self, depth: int) -> Stop:
        """Exactly the trained depth."""
        return Stop(rtol=0.0, max_layers=depth)
