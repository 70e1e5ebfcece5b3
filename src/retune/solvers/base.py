"""The interface of an algorithm for ``Φ(u) = u``: ``init`` and ``step``. The loop is in ``retune.solve``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from retune._registry.describe import by_arguments, shown
from retune._registry.entries import kind_base

__all__ = ["AbstractSolver", "Objective", "SolverState"]


class SolverState(NamedTuple):
    """The state of a solver: a returned value, not an attribute.

    Attributes:
        u: the current iterate, leading axis B.
        change: ``Φ(z) − z`` at the point z where Φ was last evaluated; its size is the residual.
        memory: further tensors of the algorithm, each with leading axis B.
    """

    u: Tensor
    change: Tensor
    memory: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Objective:
    """The objective of a map, ``F = q + s + h``, as plain functions of the state u with leading axis B.

    Attributes:
        quadratic: ``u ↦ ∇q(u)``, q a quadratic function (the data term of Gaussian noise, ε); zeros without it.
        smooth: ``u ↦ (s(u), ∇s(u))``, the value per image in float64, shape (B,).
        smooth_value: ``u ↦ s(u)``, which may cost less.
        lipschitz: initial value for a search of the Lipschitz constant of ``∇(q + s)``, shape (1,) or (B,).
        backward: ``(v, τ) ↦ prox_{τh}(v)``, τ of shape (B, 1, 1, 1); the identity if h = 0.
        rest: ``u ↦ h(u)`` per image; None if h is 0 for all states that `backward` returns.
        select: the objective of the images of an index (n,); None if it cannot be restricted.
    """

    quadratic: Callable[[Tensor], Tensor]
    smooth: Callable[[Tensor], tuple[Tensor, Tensor]]
    smooth_value: Callable[[Tensor], Tensor]
    lipschitz: Tensor
    backward: Callable[[Tensor, Tensor], Tensor]
    rest: Callable[[Tensor], Tensor] | None = None
    select: Callable[[Tensor], Objective | None] = lambda index: None

    def gradient(self, u: Tensor) -> Tensor:
        """``∇(q + s)(u)``."""
        return self.quadratic(u) + self.smooth(u)[1]

    def parts(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """``s(u)`` and ``h(u)``, per image."""
        smooth = self.smooth_value(u)
        return smooth, torch.zeros_like(smooth) if self.rest is None else self.rest(u).to(smooth)

    def value(self, u: Tensor) -> Tensor:
        """``s(u) + h(u)`` per image: F without its quadratic part, since only differences of that part are needed."""
        smooth, rest = self.parts(u)
        return smooth + rest


@kind_base("solver")
class AbstractSolver(ABC):
    """An algorithm that finds the fixed point of Φ. It holds options only.

    Attributes:
        unit: the meaning of Φ: "block", the K layers of the network, or "cycle", the shortest sequence of layers with
            the same fixed point (one layer if the weights are tied). Acceleration gains most from single cycles.
            Damping needs single cycles: an iteration that alternates between two states looks settled to a block of an
            even number of cycles.
        accelerates: whether a step costs more than a plain restart in order to need fewer steps. If the iteration
            starts near its equilibrium, such a solver takes plain steps in the first block. It may stop within a block.
        monotone: whether the objective of the map never rises.
        plain: whether its iterates are those of Φ itself, so that proofs about them apply.
        converges: whether its iterates converge to a fixed point of every averaged Φ that has one, as plain ones do.
    """

    unit: ClassVar[Literal["block", "cycle"]] = "block"
    accelerates: ClassVar[bool] = False
    plain: ClassVar[bool] = False
    converges: ClassVar[bool] = False
    monotone: ClassVar[bool] = False

    def bind(self, objective: Callable[[], Objective | None]) -> AbstractSolver:
        """The solver for one problem. A solver that does not use the objective of the map returns itself.

        Args:
            objective: returns the objective of the map, or None if it is unknown.

        Raises:
            InvalidParameterError: the solver needs an objective, but the map has none.
        """
        return self

    def select(self, index: Tensor) -> AbstractSolver | None:
        """The solver for the images of an index (n,); None if it cannot be restricted."""
        return self

    @abstractmethod
    def init(self, u: Tensor) -> SolverState:
        """The state before the first step."""

    @abstractmethod
    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        """One step, with one evaluation of `block`, independently for each image of the batch.

        The result may reuse the tensors of ``state.memory``, so use each state for one step only.
        """

    def confirm(self, state: SolverState, settled: Tensor) -> tuple[SolverState, Tensor] | None:
        """Check images again that seem to have converged or have no layers left; None if the solver has no such check.

        It is for solvers whose steps may be short far from a fixed point.

        Args:
            state: the state after the last step.
            settled: (B,), the images to check.

        Returns:
            The state from which to continue, and the change (B,) of a step of full length, 0 for the other images.
        """
        return None

    def describe(self) -> dict:
        """Constructor arguments as plain data: the fields of a dataclass, or attributes of the same names."""
        return by_arguments(self)

    def __repr__(self) -> str:
        return shown(self)
