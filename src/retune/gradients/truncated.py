"""K-layer Jacobian-free backpropagation at the equilibrium: ReTune."""

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

__all__ = ["Truncated"]


@register
@dataclass(frozen=True)
class Truncated(GradientRule):
    r"""Restart without graph to ``u_R ≈ u*``, then differentiate one block of K layers started there.

    With ``J = ∂_u T(u*)`` and ``B = ∂_θ T(u*)`` this gives ``Σ_{k<K} J^k B`` in place of ``(I − J)^{-1} B``. For a
    ρ-contraction at u*, the relative error of the adjoint is at most ρ^K. The error of the gradient is at most ``ρ^K
    ‖∂_θ u*‖ ‖∇ℓ‖``; its relative error is larger if large contributions cancel. K = 1 is ordinary Jacobian-free
    backpropagation (Fung et al., *JFB*, AAAI 2022; Bolte, Pauwels, Vaiter, *One-step differentiation*, NeurIPS 2023);
    general K is ReTune (Davy, Briceño-Arias, Pustelnik, arXiv:2506.13239).

    With ``blocks=M`` the same recorded block is pulled back M times: the gradient of K·M layers at the memory of K.
    With ``rtol`` it is pulled back until two estimated errors are below `rtol`: the error of the adjoint, for every
    image, and the error of the gradient of the batch. The report gives the remaining error in both cases.

    Args:
        blocks: M ≥ 1; ignored if `rtol` is given.
        rtol: requested relative error of the adjoint and of the gradient, in (0, 1).
        max_blocks: bound on M when `rtol` decides.
        memory: with `rtol`, number of directions kept to solve the adjoint equation by minimal residuals (truncated
            GCR), two states each. Each block gains at least as much as in the series. 0 sums the series.

    Raises:
        InvalidParameterError: an argument out of range.
    """

    blocks: int = 1
    rtol: float | None = None
    max_blocks: int = 200
    memory: int = 0

    def __post_init__(self):
        for name in ("blocks", "max_blocks", "memory"):
            object.__setattr__(self, name, require_whole(name, getattr(self, name)))
        if self.rtol is not None:
            object.__setattr__(self, "rtol", require_real("rtol", self.rtol))
        if self.blocks < 1 or self.max_blocks < 1:
            raise InvalidParameterError(
                f"blocks and max_blocks must be at least 1, got {self.blocks} and {self.max_blocks}"
            )
        if self.memory < 0:
            raise InvalidParameterError(f"memory must be ≥ 0, got {self.memory}")
        if self.rtol is not None and not 0 < self.rtol < 1:
            raise InvalidParameterError(f"rtol must be None or strictly between 0 and 1, got {self.rtol}")

    @property
    def fixed_blocks(self) -> int | None:
        """M, unless `rtol` decides."""
        return self.blocks if self.rtol is None else None

    def with_blocks(self, blocks: int) -> Truncated:
        """The same rule with M blocks."""
        return replace(self, blocks=blocks)

    def cheap(self) -> Truncated:
        """See [`GradientRule`][retune.GradientRule]."""
        if self.rtol is None:
            return Truncated(min(self.blocks, 3))
        rtol, most = few_blocks(self.rtol, self.max_blocks, self.memory)
        return replace(self, rtol=rtol, max_blocks=most)

    def __call__(
        self, bound: BoundMap, depth: int, solve: Callable[[], Tensor], adjoint: AdjointMemory | None = None
    ) -> tuple[Tensor, GradientReport]:
        """See [`GradientRule`][retune.GradientRule]."""
        report = GradientReport(f"Truncated, K = {depth}", depth=depth)
        blocks = AdjointBlocks(
            report, self.fixed_blocks, self.rtol, self.max_blocks, parameters=True, memory=self.memory, known=adjoint
        )
        u_in = blocks.enter(solve(), bound.sources)
        u_out = bound.block(u_in, depth)
        require_graph(u_out, u_in, self)
        # without a graph, this is inference in train mode
        return (blocks.leave(u_in, u_out) if u_out.requires_grad else u_out), report
