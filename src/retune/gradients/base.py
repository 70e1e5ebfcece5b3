"""What a gradient rule is: a way to form ``∂u*/∂θ`` that receives the solve as a function."""

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
    """Where the solution of the adjoint equation ``(I − Jᵀ) w = v`` may start, and who is told where it ended.

    It changes the number of products with Jᵀ and nothing else: the equation is solved to the same tolerance.

    Attributes:
        recall: given v, the start (like v; zero for unknown images), and the gain (B,) that an earlier solve has met.
            A solve that begins near its end does not meet the slow modes, and without that gain it would underestimate
            its error. Called by the backward pass.
        keep: called with the solution w, its gain (B,), an estimate of ``‖(I − Jᵀ)⁻¹‖``, and the share ``‖r‖/‖v‖`` (B,)
            of the residual that the start left: 1 if the start did not help.
    """

    recall: Callable[[Tensor], tuple[Tensor, Tensor]]
    keep: Callable[[Tensor, Tensor, Tensor], None]


@kind_base("rule")
class GradientRule(ABC):
    """How the gradient of the equilibrium is formed. Holds options only; never looks inside a solver.

    A rule supplies [`__call__`][retune.GradientRule.__call__]. Whoever works with rules (the choice of "auto",
    [`plan`][retune.plan],
    [`certify`][retune.certify], [`fit`][retune.fit]) asks the attributes and methods below, never the class; their
    defaults
    suit a rule that differentiates one block of K layers at the equilibrium, of which nothing else is known.

    Attributes:
        restarts: whether the rule differentiates at the equilibrium, and so needs the restarts. A rule without restarts
            trains the output at depth K.
        rtol: the relative error of the adjoint that the rule goes on to; None if it does not go by an error.
        max_blocks: with `rtol`, how often the recorded layers are pulled back at most.
    """

    restarts: bool = True
    rtol: float | None = None
    max_blocks: int = 1

    @property
    def solves_adjoint(self) -> bool:
        """Whether the adjoint equation is solved to a tolerance, so that it may start anywhere."""
        return self.rtol is not None

    @property
    def fixed_blocks(self) -> int | None:
        """M, if the gradient is the sum of M pull-backs of a block of K layers, whatever the error; else None.

        At the equilibrium of a ρ-contraction the adjoint then has a relative error of at most ``ρ^{K M}``.
        """
        return None

    def with_blocks(self, blocks: int) -> GradientRule:
        """The same rule with M blocks; asked only of rules with [`fixed_blocks`][retune.GradientRule.fixed_blocks]."""
        return self

    def recorded(self, depth: int, layers: int) -> int:
        """How many layers are recorded for the backward pass: K, unless the rule needs fewer.

        Args:
            depth: K.
            layers: different layers in a cycle of the map.
        """
        return depth

    def cheap(self) -> GradientRule:
        """A rule that needs as much memory in a training step, and little time: [`plan`][retune.plan] measures it."""
        return self

    @abstractmethod
    def __call__(
        self, bound: BoundMap, depth: int, solve: Callable[[], Tensor], adjoint: AdjointMemory | None = None
    ) -> tuple[Tensor, GradientReport]:
        """The differentiable state, and the report that the backward pass will fill in.

        Args:
            bound: the map, bound to the data term.
            depth: K.
            solve: runs the restarts without graph and returns the state reached; for a rule without restarts, the
                first state, with its graph.
            adjoint: where the adjoint may start; given only to a rule that solves for it.
        """

    def default_stop(self, depth: int) -> Stop:
        """When a network trained by this rule stops in eval mode, unless told otherwise."""
        return Stop()

    def describe(self) -> dict:
        """Constructor arguments as plain data: the fields of a dataclass, or attributes of the same names."""
        return by_arguments(self)

    def __repr__(self) -> str:
        return shown(self)


def few_blocks(rtol: float, max_blocks: int, memory: int) -> tuple[float, int]:
    """A tolerance and a bound with which a rule that solves to a tolerance is as large as it gets, and soon done.

    A series has all its memory from the third pull-back on; minimal residuals once all directions are there.
    """
    return (rtol, min(max_blocks, memory + 3)) if memory else (0.5, min(max_blocks, 4))


def require_graph(out: Tensor, start: Tensor, rule: GradientRule) -> None:
    """Refuse a map whose output does not depend, for autograd, on the state it was given."""
    if torch.is_grad_enabled() and not reaches(out, start):
        raise CutGradientError(
            f"{type(rule).__name__} differentiates through the map, but no gradient flows from its output to its "
            "input: a prior or denoiser detaches (.detach(), torch.no_grad(), or a potential gradient without a "
            "graph). Use a differentiable one, or call the network in eval mode"
        )
