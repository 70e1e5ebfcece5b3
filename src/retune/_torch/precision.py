"""The arithmetic that torch computes in: its rounding, and blocks of code that ask for all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["agree", "full_precision", "rounding", "sharp", "tolerance", "wants_full_precision", "without_autocast"]

P = ParamSpec("P")
T = TypeVar("T")


def sharp(like: Tensor) -> float:
    """How far an adjoint may be off by rounding alone; right ones are found at 4e-8 in float32 at most.

    An operator that is wrong in a few pixels of n is off by about their share of n, so this is not zero in meaning
    either: where it is exceeded, nothing is called proved that rests on the adjoint.
    """
    eps = rounding(like)
    if like.dtype == torch.float64:
        return 1e-10
    return 1e-4 if eps > torch.finfo(like.dtype).eps else max(1e-6, 8 * eps)


def rounding(like: Tensor) -> float:
    """ε of the arithmetic: that of the dtype, or of TF32, in which a GPU may multiply and convolve float32."""
    eps = torch.finfo(like.dtype).eps
    if like.device.type != "cuda" or like.dtype != torch.float32:
        return eps
    try:
        tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # torch's newer switches were used, and it refuses to answer by the older ones
        tf32 = True
    return max(eps, 2.0**-10) if tf32 else eps


_full: ContextVar[bool] = ContextVar("full_precision", default=False)


def wants_full_precision() -> bool:
    """Whether the call is within ``full_precision``: for code that chooses its arithmetic itself."""
    return _full.get()


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 and no autocast within: what is proved or compared is meant for the precision of the tensors."""
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    try:
        before = cudnn.allow_tf32, matmul.allow_tf32
        cudnn.allow_tf32 = matmul.allow_tf32 = False
    except RuntimeError:  # see `rounding`, which then allows for TF32
        before = None
    token = _full.set(True)
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        _full.reset(token)
        if before is not None:
            cudnn.allow_tf32, matmul.allow_tf32 = before


def without_autocast(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, computed in the precision of its tensors wherever it is called: autocast is switched off within."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return run


def tolerance(like: Tensor) -> float:
    """Of two images that should be the same: right operators agree to 1e-6 in float32."""
    if like.dtype == torch.float64:
        return 1e-8
    eps = rounding(like)
    return 2e-3 if eps > torch.finfo(like.dtype).eps else max(1e-5, 8 * eps)


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether two images that should be the same are, up to rounding."""
    if a.shape != b.shape:
        return False
    scale = torch.linalg.vector_norm(b).clamp_min(torch.finfo(b.real.dtype).tiny)
    return bool(torch.linalg.vector_norm(a - b) <= tolerance(b.real) * scale)
