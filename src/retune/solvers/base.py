"""The interface of an algorithm for ``Φ(u) = u``: ``init`` and ``step``. The loop is in ``retune.solve``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from retune._registry.describe import by_arguments, shown
from retune._registry.entries import kind_base

__all__ = ["AbstractSolver", "SolverState"]


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
        plain: whether its iterates are those of Φ itself, so that proofs about them apply.
    """

    unit: ClassVar[Literal["block", "cycle"]] = "block"
    accelerates: ClassVar[bool] = False
    plain: ClassVar[bool] = False

    @abstractmethod
    def init(self, u: Tensor) -> SolverState:
        """The state before the first step."""

    @abstractmethod
    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        """One step, with one evaluation of `block`, independently for each image of the batch.

        The result may reuse the tensors of ``state.memory``, so use each state for one step only.
        """

    def describe(self) -> dict:
        """Constructor arguments as plain data: the fields of a dataclass, or attributes of the same names."""
        return by_arguments(self)

    def __repr__(self) -> str:
        return shown(self)
