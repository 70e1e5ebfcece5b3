"""The precision of torch's arithmetic: its rounding errors, and blocks with full precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = [
    "agree",
    "coarse_networks",
    "fast_bfloat16",
    "full_precision",
    "rounding",
    "sharp",
    "tolerance",
    "wants_coarse_networks",
    "wants_full_precision",
    "without_autocast",
]

P = ParamSpec("P")
T = TypeVar("T")


def sharp(like: Tensor) -> float:
    """The largest error of an adjoint that rounding can explain. Correct adjoints have at most 4e-8 in float32.

    An operator that is wrong in a few of n pixels has an error of about their share of n, so a small error can be real.
    If this limit is exceeded, nothing that depends on the adjoint is called proved.
    """
    eps = rounding(like)
    if like.dtype == torch.float64:
        return 1e-10
    return 1e-4 if eps > torch.finfo(like.dtype).eps else max(1e-6, 8 * eps)


def rounding(like: Tensor) -> float:
    """ε of the arithmetic: that of the dtype, or of TF32 if a GPU may use it for float32 products and convolutions."""
    eps = torch.finfo(like.dtype).eps
    if like.device.type != "cuda" or like.dtype != torch.float32:
        return eps
    try:
        tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # torch refuses to read the older switches after the newer ones were used
        tf32 = True
    return max(eps, 2.0**-10) if tf32 else eps


_full: ContextVar[bool] = ContextVar("full_precision", default=False)


def wants_full_precision() -> bool:
    """Whether ``full_precision`` is active, for code that chooses its own arithmetic."""
    return _full.get()


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch off TF32 and autocast inside: proofs and comparisons assume the precision of the tensors."""
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


_coarse: ContextVar[bool] = ContextVar("coarse_networks", default=False)

#: Names of the instructions for products in bfloat16, as ``torch.cpu.get_capabilities`` has them.
_PRODUCTS = ("amx_bf16", "avx512_bf16", "bf16")


def wants_coarse_networks() -> bool:
    """Whether ``coarse_networks`` is active, for priors that contain a network."""
    return _coarse.get()


@contextmanager
def coarse_networks() -> Iterator[None]:
    """Networks in priors compute in bfloat16 inside; everything else keeps its precision."""
    token = _coarse.set(True)
    try:
        yield
    finally:
        _coarse.reset(token)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the processor has instructions for bfloat16; without them, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    told = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and any(told.get(name, False) for name in _PRODUCTS)


def without_autocast(function: Callable[P, T]) -> Callable[P, T]:
    """`function` with autocast switched off, so that it always computes in the precision of its tensors."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return run


def tolerance(like: Tensor) -> float:
    """Tolerance for two images that should be equal: correct operators agree to 1e-6 in float32."""
    if like.dtype == torch.float64:
        return 1e-8
    eps = rounding(like)
    return 2e-3 if eps > torch.finfo(like.dtype).eps else max(1e-5, 8 * eps)


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether two images are equal up to rounding."""
    if a.shape != b.shape:
        return False
    scale = torch.linalg.vector_norm(b).clamp_min(torch.finfo(b.real.dtype).tiny)
    return bool(torch.linalg.vector_norm(a - b) <= tolerance(b.real) * scale)
