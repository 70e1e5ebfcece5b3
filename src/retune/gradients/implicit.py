"""Implicit differentiation at the equilibrium (deep equilibrium models)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from retune._registry.entries import register
from retune.equilibrium import GradientReport
from retune.errors import InvalidParameterError, require_real, require_whole
from retune.gradients._adjoint import AdjointBlocks
from retune.gradients.base import AdjointMemory, GradientRule, few_blocks, require_graph
from retune.maps.base import BoundMap

__all__ = ["Implicit"]


@register
@dataclass(frozen=True)
class Implicit(GradientRule):
    r"""The implicit function theorem: ``Bᵀ (I − J)^{-T} v``, with the linear system solved to `rtol`.

    One cycle of the map is recorded (one layer if the weights are tied), and pulled back until the estimated error is
    below `rtol` for every image (Bai, Kolter, Koltun, *Deep equilibrium models*, NeurIPS 2019). Minimal residuals
    (truncated GCR) solve the system; each step gains at least as much as a term of the Neumann series.

    Args:
        rtol: relative error of the adjoint, in (0, 1).
        max_blocks: bound on the number of pull-backs; if it is reached, the report gives the remaining error.
        memory: number of directions kept by the truncated GCR, two states each; 0 sums the Neumann series instead.

    Raises:
        InvalidParameterError: an argument out of range.
    """

    rtol: float = 1e-4
    max_blocks: int = 1000
    memory: int = 3

    def __post_init__(self):
        object.__setattr__(self, "rtol", require_real("rtol", self.rtol))
        for name in ("max_blocks", "memory"):
            object.__setattr__(self, name, require_whole(name, getattr(self, name)))
        if not 0 < self.rtol < 1 or self.max_blocks < 1 or self.memory < 0:
            raise InvalidParameterError(
                f"Implicit needs 0 < rtol < 1, max_blocks ≥ 1 and memory ≥ 0, got rtol={self.rtol}, "
                f"max_blocks={self.max_blocks}, memory={self.memory}"
            )

    def recorded(self, depth: int, layers: int) -> int:
        """One cycle, for any depth."""
        return layers

    def cheap(self) -> Implicit:
        """See [`GradientRule`][retune.GradientRule]."""
        rtol, most = few_blocks(self.rtol, self.max_blocks, self.memory)
        return replace(self, rtol=rtol, max_blocks=most)

    def __call__(
        self, bound: BoundMap, depth: int, solve: Callable[[], Tensor], adjoint: AdjointMemory | None = None
    ) -> tuple[Tensor, GradientReport]:
        """See [`GradientRule`][retune.GradientRule]."""
        report = GradientReport("Implicit", depth=bound.layers)
        blocks = AdjointBlocks(report, None, self.rtol, self.max_blocks, memory=self.memory, known=adjoint)
        u_in = blocks.enter(solve(), bound.sources)
        u_out = bound.block(u_in, self.recorded(depth, bound.layers))
        require_graph(u_out, u_in, self)
        # without a graph, this is inference in train mode
        return (blocks.leave(u_in, u_out) if u_out.requires_grad else u_out), report
