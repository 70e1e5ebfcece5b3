"""What an algorithm for ``Φ(u) = u`` supplies: ``init`` and ``step``. The loop is in ``retune.solve``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from retune._registry.describe import by_arguments, shown
from retune._registry.entries import kind_base

__all__ = ["AbstractSolver", "SolverState"]


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


@kind_base("solver")
class AbstractSolver(ABC):
    """An algorithm that finds the fixed point of Φ. Holds options only.

    Attributes:
        unit: what Φ is: "block", the K layers of the network, or "cycle", the shortest run of layers with the same
            fixed point (one layer if the weights are tied). Acceleration gains most from single cycles. Damping needs
            them: what jumps to and fro between two states is at rest for a block of an even number of cycles.
        accelerates: whether its steps cost more than those of plain restarts, to save some of them. Such a solver
            leaves the first block to plain steps where the iteration begins near its end, and may stop within a block.
        plain: whether its iterates are those of Φ itself, so that what is proved of those holds for them.
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

        The tensors of ``state.memory`` may be reused for the result: a state serves for one step.
        """

    def describe(self) -> dict:
        """Constructor arguments as plain data: the fields of a dataclass, or attributes of the same names."""
        return by_arguments(self)

    def __repr__(self) -> str:
        return shown(self)
