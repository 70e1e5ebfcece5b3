"""What an algorithm for ``Φ(u) = u`` supplies: ``init`` and ``step``. The loop is in ``retune.solve``."""

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
    """The state of a solver: a returned value, never an attribute.

    Attributes:
        u: the current iterate, leading axis B.
        change: ``Φ(z) − z`` at the point z where Φ was last evaluated; its size is the residual.
        memory: tensors that the algorithm carries along, each with leading axis B.
    """

    u: Tensor
    change: Tensor
    memory: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Objective:
    """What a map minimises, ``F = q + s + h``, as plain functions of the state u with leading axis B.

    Attributes:
        quadratic: ``u ↦ ∇q(u)``, q a quadratic form (the data term of Gaussian noise); zeros where there is none.
        smooth: ``u ↦ (s(u), ∇s(u))``, the value per image in float64, shape (B,).
        smooth_value: ``u ↦ s(u)``, which may cost less.
        lipschitz: where a search for the Lipschitz constant of ``∇(q + s)`` may begin, shape (1,) or (B,).
        backward: ``(v, τ) ↦ prox_{τh}(v)``, τ of shape (B, 1, 1, 1); the identity where there is no h.
        rest: ``u ↦ h(u)`` per image; None where h is 0 for all states that `backward` returns.
        select: the objective of the images of an index (n,); None where that cannot be told.
    """

    quadratic: Callable[[Tensor], Tensor]
    smooth: Callable[[Tensor], tuple[Tensor, Tensor]]
    smooth_value: Callable[[Tensor], Tensor]
    lipschitz: Tensor
    backward: Callable[[Tensor, Tensor], Tensor]
    rest: Callable[[Tensor], Tensor] | None = None
    select: Callable[[Tensor], Objective | None] = lambda index: None

    def parts(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """``s(u)`` and ``h(u)``, per image."""
        smooth = self.smooth_value(u)
        return smooth, torch.zeros_like(smooth) if self.rest is None else self.rest(u).to(smooth)

    def value(self, u: Tensor) -> Tensor:
        """``s(u) + h(u)`` per image: F but for its quadratic part, of which only differences are needed."""
        smooth, rest = self.parts(u)
        return smooth + rest


@kind_base("solver")
class AbstractSolver(ABC):
    """An algorithm that finds the fixed point of Φ. Holds options only.

    Attributes:
        unit: what Φ is: "block", the K layers of the network, or "cycle", the shortest run of layers with the same
            fixed point (one layer if the weights are tied). Acceleration gains most from single cycles. Damping needs
            them: what jumps to and fro between two states is at rest for a block of an even number of cycles.
        accelerates: whether its steps cost more than those of plain restarts, to save some of them. Such a solver
            leaves the first block to plain steps where the iteration begins near its end, and may stop within a block.
        monotone: whether it keeps the objective of the map from rising.
        plain: whether its iterates are those of Φ itself, so that what is proved of those holds for them.
    """

    unit: ClassVar[Literal["block", "cycle"]] = "block"
    accelerates: ClassVar[bool] = False
    plain: ClassVar[bool] = False
    monotone: ClassVar[bool] = False

    def bind(self, objective: Callable[[], Objective | None]) -> AbstractSolver:
        """The solver for one problem: itself, unless it needs what the map minimises.

        Args:
            objective: gives that, or None for a map that minimises nothing that is known.

        Raises:
            InvalidParameterError: it needs an objective, and there is none.
        """
        return self

    def select(self, index: Tensor) -> AbstractSolver | None:
        """The solver for the images of an index (n,); None if it can't be told."""
        return self

    @abstractmethod
    def init(self, u: Tensor) -> SolverState:
        """The state before the first step."""

    @abstractmethod
    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        """One step, with one evaluation of `block`, independently for each image of the batch.

        The tensors of ``state.memory`` may be reused for the result: a state serves for one step.
        """

    def describe(self) -> dict:
        """Constructor arguments as plain data: the fields of a dataclass, or attributes of the same names."""
        return by_arguments(self)

    def __repr__(self) -> str:
        return shown(self)
