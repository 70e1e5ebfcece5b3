"""Results that go into a part of a tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["write"]


def write(operation: Callable[..., Tensor], a: Tensor, b: Tensor, target: Tensor) -> None:
    """``target ← operation(a, b)``, without a copy unless compiled: ``torch.compile`` takes no part as ``out``."""
    if torch.compiler.is_compiling():
        target.copy_(operation(a, b))
    else:
        operation(a, b, out=target)
