"""Queries of autograd's graph."""

from __future__ import annotations

from torch import Tensor

__all__ = ["reaches"]


def reaches(out: Tensor, start: Tensor) -> bool:
    """Whether the graph of `out` contains `start`. It visits a few nodes per layer and computes nothing."""
    if out is start:
        return True
    seen, waiting = set(), [out.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node is start.grad_fn or getattr(node, "variable", None) is start:
            return True
        seen.add(node)
        waiting.extend(parent for parent, _ in node.next_functions)
    return False
