"""What a gradient rule is: a way to form ``∂u*/∂θ`` that receives the solve as a function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from retune._autograd import reaches
from retune.equilibrium import GradientReport
from retune.errors import CutGradientError
from retune.maps.base import BoundMap
from retune.solve import Stop

__all__ = ["GradientRule"]


class GradientRule(ABC):
    """How the gradient of the equilibrium is formed. Holds options only; never looks inside a solver."""

    #: whether the rule differentiates at the equilibrium (and so needs the restarts)
    restarts: bool = True

    @abstractmethod
    def __call__(self, bound: BoundMap, depth: int, solve: Callable[[], Tensor]) -> tuple[Tensor, GradientReport]:
        """The differentiable state, and the report that the backward pass will fill in.

        Args:
            bound: the map, bound to the problem.
            depth: K.
            solve: runs the restarts without graph and returns the state reached; for a rule without restarts, the
                first state, with its graph.
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
