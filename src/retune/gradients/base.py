"""The interface of gradient rules. A rule forms ``∂u*/∂θ`` and receives the solve as a function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retune._registry.describe import by_arguments, shown
from retune._registry.entries import kind_base
from retune._torch.graph import reaches
from retune.equilibrium import GradientReport
from retune.errors import CutGradientError
from retune.maps.base import BoundMap
from retune.solve import Stop

__all__ = ["AdjointMemory", "GradientRule"]


@dataclass(frozen=True)
class AdjointMemory:
    """A warm start for the adjoint equation ``(I − Jᵀ) w = v``, and a place to store its solution.

    It changes only the number of products with Jᵀ: the equation is solved to the same tolerance.

    Attributes:
        recall: function of v that returns the start (shaped like v; zero for unknown images) and the gain (B,) of an
            earlier solve. A solve that starts near its solution does not see the slow modes; without the earlier gain
            it would underestimate its error. The backward pass calls this function.
        keep: called with the solution w, its gain (B,), an estimate of ``‖(I − Jᵀ)⁻¹‖``, and the share ``‖r‖/‖v‖`` (B,)
            of the residual after the start (1 if the start did not help).
    """

    recall: Callable[[Tensor], tuple[Tensor, Tensor]]
    keep: Callable[[Tensor, Tensor, Tensor], None]


@kind_base("rule")
class GradientRule(ABC):
    """A rule for the gradient of the equilibrium. It holds options only, and never looks inside a solver.

    A rule supplies [`__call__`][retune.GradientRule.__call__]. The users of rules (the choice of "auto",
    [`plan`][retune.plan], [`certify`][retune.certify], [`fit`][retune.fit]) ask the attributes and methods below, never
    the class. The defaults fit a rule that differentiates one block of K layers at the equilibrium and states nothing
    else.

    Attributes:
        restarts: whether the rule differentiates at the equilibrium and so needs restarts. A rule without restarts
            trains the output at depth K.
        rtol: the relative error of the adjoint at which the rule stops; None if the rule has no tolerance.
        max_blocks: with `rtol`, the maximum number of pull-backs through the recorded layers.
    """

    restarts: bool = True
    rtol: float | None = None
    max_blocks: int = 1

    @property
    def solves_adjoint(self) -> bool:
        """Whether the rule solves the adjoint equation to a tolerance, so that any start is allowed."""
        return self.rtol is not None

    @property
    def fixed_blocks(self) -> int | None:
        """M, if the gradient is always the sum of M pull-backs of a block of K layers; else None.

        At the equilibrium of a ρ-contraction the adjoint then has a relative error of at most ``ρ^{K M}``.
        """
        return None

    def with_blocks(self, blocks: int) -> GradientRule:
        """The same rule with M blocks, only for rules with [`fixed_blocks`][retune.GradientRule.fixed_blocks]."""
        return self

    def recorded(self, depth: int, layers: int) -> int:
        """Number of layers recorded for the backward pass: K, unless the rule needs fewer.

        Args:
            depth: K.
            layers: number of different layers in a cycle of the map.
        """
        return depth

    def cheap(self) -> GradientRule:
        """A quick rule with the same memory in a training step; [`plan`][retune.plan] measures it instead."""
        return self

    @abstractmethod
    def __call__(
        self, bound: BoundMap, depth: int, solve: Callable[[], Tensor], adjoint: AdjointMemory | None = None
    ) -> tuple[Tensor, GradientReport]:
        """The differentiable state, and the report that the backward pass will fill in.

        Args:
            bound: the map, bound to the data term.
            depth: K.
            solve: runs the restarts without graph and returns the final state; for a rule without restarts it returns
                the first state, with its graph.
            adjoint: a warm start for the adjoint; only for a rule that solves for the adjoint.
        """

    def default_stop(self, depth: int) -> Stop:
        """The default stopping rule, in eval mode, of a network trained with this rule."""
        return Stop()

    def describe(self) -> dict:
        """Constructor arguments as plain data: the fields of a dataclass, or attributes of the same names."""
        return by_arguments(self)

    def __repr__(self) -> str:
        return shown(self)


def few_blocks(rtol: float, max_blocks: int, memory: int) -> tuple[float, int]:
    """A tolerance and a bound that make a rule reach its full memory quickly.

    A series uses its full memory from the third pull-back on, minimal residuals once all directions are stored.
    """
    return (rtol, min(max_blocks, memory + 3)) if memory else (0.5, min(max_blocks, 4))


def require_graph(out: Tensor, start: Tensor, rule: GradientRule) -> None:
    """Refuse a map whose output, for autograd, does not depend on its input state."""
    if torch.is_grad_enabled() and not reaches(out, start):
        raise CutGradientError(
            f"{type(rule).__name__} differentiates through the map, but no gradient flows from its output to its "
            "input: a prior or denoiser detaches (.detach(), torch.no_grad(), or a potential gradient without a "
            "graph). Use a differentiable one, or call the network in eval mode"
        )
