"""The states after n layers, each computed once, and the state far beyond them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from retune.errors import InvalidParameterError
from retune.maps.base import BoundMap
from retune.model import Restarted
from retune.solve import Solution, Stop, solve

__all__ = ["beyond", "states"]

#: The reference is at rest if a block of K layers changes it by less than this share.
_REST = 1e-12


def states(net: Restarted, bound: BoundMap, wanted: Iterable[int]) -> dict[int, Tensor]:
    """The state after n layers for each wanted n, in one pass of the network's solver.

    A solver that steps by single cycles visits the same states for every depth, so cells (K, R) of equal K·R share
    one state.

    Raises:
        InvalidParameterError: the iterates of the solver depend on the depth.
    """
    solver = net.training_solver.bind(bound.objective)
    if solver.unit == "block" and not solver.plain:
        raise InvalidParameterError(
            f"a study shares its iterates between depths, but those of {solver!r} depend on the depth: choose a "
            "solver of single cycles, for example --set model.solver=picard"
        )
    wanted, found = sorted(set(wanted)), {}
    with torch.no_grad():
        state = solver.init(bound.init())
        for n in range(0, wanted[-1] + bound.layers, bound.layers):
            if n in wanted:
                found[n] = state.u.clone()
            if n < wanted[-1]:
                state = solver.step(lambda u: bound.block(u, bound.layers), state)
    return found


def beyond(net: Restarted, bound: BoundMap, u: Tensor, most: int) -> Solution:
    """Continue from a state until rest, at most `most` layers."""
    with torch.no_grad():
        return solve(
            bound.layer,
            u,
            solver=net.training_solver.bind(bound.objective),
            depth=net.depth,
            stop=Stop(_REST, -(-most // net.depth) * net.depth),
            cycle=bound.layers,
            size_of=bound.size,
        )
