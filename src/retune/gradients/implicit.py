"""Implicit differentiation at the equilibrium (deep equilibrium models)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from retune._registry.entries import register
from retune.equilibrium import GradientReport
from retune.errors import InvalidParameterError, require_real, require_whole
from retune.gradients._adjoint import AdjointBlocks
from retune.gradients.base import AdjointMemory, GradientRule, require_graph
from retune.maps.base import BoundMap

__all__ = ["Implicit"]


@register
class Implicit(GradientRule):
    r"""The implicit function theorem: ``Bᵀ (I − J)^{-T} v``, the linear system solved to `rtol`.

    One cycle of the map is recorded (one layer if the weights are tied), and pulled back until the estimated error is
    below `rtol` for every image (Bai, Kolter, Koltun, *Deep equilibrium models*, NeurIPS 2019). The system is solved by
    minimal residuals (truncated GCR), each step of which gains at least what a term of the Neumann series would.

    Args:
        rtol: relative error of the adjoint, in (0, 1).
        max_blocks: bound on the number of pull-backs; if it is met, the report says what error was left.
        memory: directions kept by the truncated GCR, each two states; 0 sums the Neumann series instead.
    """

    def __init__(self, rtol: float = 1e-4, max_blocks: int = 1000, memory: int = 3):
        rtol, max_blocks = require_real("rtol", rtol), require_whole("max_blocks", max_blocks)
        memory = require_whole("memory", memory)
        if not 0 < rtol < 1 or max_blocks < 1 or memory < 0:
            raise InvalidParameterError(
                f"Implicit needs 0 < rtol < 1, max_blocks ≥ 1 and memory ≥ 0, got rtol={rtol}, "
                f"max_blocks={max_blocks}, memory={memory}"
            )
        self.rtol, self.max_blocks, self.memory = rtol, max_blocks, memory

    @property
    def solves_adjoint(self) -> bool:
        """See :class:`~retune.gradients.base.GradientRule`."""
        return True

    def __call__(
        self, bound: BoundMap, depth: int, solve: Callable[[], Tensor], adjoint: AdjointMemory | None = None
    ) -> tuple[Tensor, GradientReport]:
        """See :class:`~retune.gradients.base.GradientRule`."""
        report = GradientReport("Implicit", depth=bound.layers)
        blocks = AdjointBlocks(report, None, self.rtol, self.max_blocks, memory=self.memory, known=adjoint)
        u_in = blocks.enter(solve(), bound.sources)
        u_out = bound.block(u_in, bound.layers)
        require_graph(u_out, u_in, self)
        # without a graph this is inference within train mode
        return (blocks.leave(u_in, u_out) if u_out.requires_grad else u_out), report

    def describe(self) -> dict:
        """Constructor arguments as plain data."""
        return {"type": "Implicit", "rtol": self.rtol, "max_blocks": self.max_blocks, "memory": self.memory}
