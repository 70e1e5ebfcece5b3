"""What a gradient rule is: a way to form ``∂u*/∂θ`` that receives the solve as a function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retune._registry.entries import kind_base
from retune._torch.graph import reaches
from retune.equilibrium import GradientReport
from retune.errors import CutGradientError
from retune.maps.base import BoundMap
from retune.solve import Stop

__all__ = ["AdjointMemory", "GradientRule"]


@dataclass(frozen=True)
class AdjointMemory:
    """Where the solution of the adjoint equation ``(I − Jᵀ) w = v`` may start from, and who is told where it ended.

    It changes the number of products with Jᵀ and nothing else: the equation is solved to the same tolerance.

    Attributes:
        recall: given v, the start (like v; zero for images of which nothing is known), and the gain (B,) that an
            earlier solve has met: a solve that begins near the end would not meet the slow modes that are left, and
            would think too well of itself. Called by the backward pass.
        keep: called with the solution w, its gain (B,), an estimate of ``‖(I − Jᵀ)⁻¹‖``, and the share ``‖r‖/‖v‖`` (B,)
            of the residual that the start left: 1 where it was of no use.
    """

    recall: Callable[[Tensor], tuple[Tensor, Tensor]]
    keep: Callable[[Tensor, Tensor, Tensor], None]


@kind_base("rule")
class GradientRule(ABC):
    """How the gradient of the equilibrium is formed. Holds options only; never looks inside a solver."""

    #: whether the rule differentiates at the equilibrium (and so needs the restarts)
    restarts: bool = True

    @property
    def solves_adjoint(self) -> bool:
        """Whether the adjoint equation is solved to a tolerance, so that it may start anywhere."""
        return False

    @abstractmethod
    def __call__(
        self, bound: BoundMap, depth: int, solve: Callable[[], Tensor], adjoint: AdjointMemory | None = None
    ) -> tuple[Tensor, GradientReport]:
        """The differentiable state, and the report that the backward pass will fill in.

        Args:
            bound: the map, bound to the problem.
            depth: K.
            solve: runs the restarts without graph and returns the state reached; for a rule without restarts, the
                first state, with its graph.
            adjoint: where the adjoint may start; given only to a rule that solves for it.
        """

    def default_stop(self, depth: int) -> Stop:
        """When a network trained by this rule stops in eval mode, unless told otherwise."""
        return Stop()

    def describe(self) -> dict:
        """Constructor arguments as plain data."""
        return {"type": type(self).__name__}

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self.describe().items() if k != "type")
        return f"{type(self).__name__}({options})"


def require_graph(out: Tensor, start: Tensor, rule: GradientRule) -> None:
    """Refuse a map whose output does not depend, for autograd, on the state it was given."""
    if torch.is_grad_enabled() and not reaches(out, start):
        raise CutGradientError(
            f"{type(rule).__name__} differentiates through the map, but no gradient flows from its output to its "
            "input: a prior or denoiser detaches (.detach(), torch.no_grad(), or a potential gradient without a "
            "graph). Use a differentiable one, or call the network in eval mode"
        )
