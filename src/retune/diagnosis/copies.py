"""Copies of a physics, also in another precision. The caller's physics is never changed."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from deepinv.physics import Physics
from torch import Tensor

from retune.operators.images import parts

__all__ = ["cast", "cut_by_torch", "duplicate"]

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def duplicate(physics: Physics) -> Physics:
    """A deep copy. ``copy`` refuses generators and tensors with a graph, so these are copied by hand."""
    memo: dict[int, object] = {}
    for module in physics.modules():
        for value in (*vars(module).values(), *module._buffers.values()):
            if isinstance(value, torch.Generator):
                twin = torch.Generator(value.device)
                twin.set_state(value.get_state())
                memo[id(value)] = twin
            elif isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    twin = copy.deepcopy(physics, memo)
    for module in twin.modules():
        # deepinv keeps an automatic adjoint here, a closure over the original physics.
        if getattr(module, "_auto_grad_adjoint_fn", None) is not None:
            vars(module)["_auto_grad_adjoint_fn"] = None
    return twin


def cast(physics: Physics, dtype: torch.dtype) -> Physics:
    """A copy in another precision: real tensors become `dtype`, complex tensors the matching complex type.

    ``physics.to(dtype)`` would turn complex buffers into real ones and lose their imaginary part.
    """
    twin = duplicate(physics)
    for module in twin.modules():
        stores: tuple[Any, ...] = (module._buffers, vars(module))
        for store in stores:
            for key, value in store.items():
                if isinstance(value, Tensor):
                    store[key] = _cast(value, dtype)
                elif isinstance(value, torch.dtype) and value.is_floating_point:
                    store[key] = dtype
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.data = _cast(parameter.data, dtype)
    return twin


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    if value.is_complex():
        return value.to(_COMPLEX[dtype])
    return value.to(dtype) if value.is_floating_point() else value


def cut_by_torch(physics: Physics, x: Tensor) -> float | None:
    """Relative error of ``physics.to(float64)`` against the physics; None without complex buffers.

    `physics` must be in float64 already, and `x` too.
    """
    tensors = [t for m in physics.modules() for t in m._buffers.values()]
    if not any(t is not None and t.is_complex() for t in tensors):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that it discards the imaginary part; here that loss is measured
        wrong = duplicate(physics).to(torch.float64)
        try:
            found, expected = parts(wrong.A(x)), parts(physics.A(x))
        except (RuntimeError, TypeError):
            return float("inf")
    off = sum(float((p - q).abs().square().sum()) for p, q in zip(found, expected, strict=True))
    return (off / max(sum(float(q.abs().square().sum()) for q in expected), 1e-300)) ** 0.5
