"""Detect priors and denoisers that keep a memory between calls, and isolate it if possible."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retune.errors import InvalidParameterError
from retune.priors.origin import is_ours

__all__ = ["has_memory", "is_steady", "snapshot", "steady"]

# Limits on the relative difference of two calls with the same input. Above the first, the state of the module is
# restored after every call. If the difference still exceeds the second, the module is refused.
_ROUNDING, _REFUSED = 16.0, 1e-9
# Cached result per module, for train mode and eval mode: whether its state must be restored.
_found: weakref.WeakKeyDictionary[nn.Module, dict[bool, bool]] = weakref.WeakKeyDictionary()
_BOOKKEEPING = frozenset(vars(nn.Module())) | {"training"}


def steady(
    module: nn.Module, function: Callable[[Tensor], Tensor], shape: Sequence[int], like: Tensor, name: str
) -> Callable[[Tensor], Tensor]:
    """A version of `function`, which calls `module`, that returns the same output for the same input.

    An iteration has an equilibrium only if its layers depend on the state alone. A prox that continues from its last
    call, such as deepinv's ``TVPrior``, violates this. For each module the function is tested once, with three calls on
    two alternating inputs; ReTune's own modules need no test. If the outputs differ, the state of the module
    (attributes, buffers) is restored after each call.

    Args:
        module: the module that may keep a memory.
        function: the function to call; it uses `module`.
        shape: shape of its inputs.
        like: a tensor with their dtype and device.
        name: name of the function in messages.

    Raises:
        InvalidParameterError: the outputs differ although the state of the module was restored.
    """
    if is_ours(module):
        return function
    known = _found.setdefault(module, {})
    mode = module.training
    if mode not in known:
        undo = snapshot(module)
        try:
            restores = _differ(function, shape, like) > _ROUNDING * torch.finfo(like.dtype).eps
        finally:
            undo()
        if restores:
            change = _differ(_isolated(module, function), shape, like)
            if not change <= max(_REFUSED, 100 * torch.finfo(like.dtype).eps):
                raise InvalidParameterError(
                    f"{name} gives a different result for the same image (relative change {change:.1e}): it is "
                    "random, or it keeps a memory outside its attributes and buffers. The iteration would have no "
                    "equilibrium; use a prior or denoiser that depends on its input alone"
                )
        known[mode] = restores
    return _isolated(module, function) if known[mode] else function


def _differ(function: Callable[[Tensor], Tensor], shape: Sequence[int], like: Tensor) -> float:
    """The largest relative difference of two outputs for the same input, with another input in between."""
    generator = torch.Generator().manual_seed(20250616)
    one, other = (torch.rand(tuple(shape), generator=generator, dtype=like.dtype).to(like.device) for _ in range(2))
    with torch.no_grad():
        first = function(one.clone()).detach().clone()
        function(other)
        again = function(one.clone()).detach()
    size = torch.linalg.vector_norm(first).clamp_min(torch.finfo(like.dtype).tiny)
    return float(torch.linalg.vector_norm(again - first) / size)


def _isolated(module: nn.Module, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A version of `function` that leaves the attributes and buffers of `module` unchanged."""

    def call(x: Tensor) -> Tensor:
        undo = snapshot(module)
        try:
            return function(x)
        finally:
            undo()

    return call


def has_memory(module: nn.Module) -> bool:
    """Whether ``steady`` has found a memory in a module, so that its buffers are restored after every call."""
    return any(_found.get(module, {}).values())


def is_steady(module: nn.Module) -> bool:
    """Whether ``steady`` has tested a module in its present mode and found no memory."""
    return is_ours(module) or _found.get(module, {}).get(module.training) is False


def snapshot(module: nn.Module) -> Callable[[], None]:
    """Save the attributes and buffers of a module and its submodules. The returned function restores them."""
    parts: list[tuple[nn.Module, dict[str, Any], dict[str, Tensor | None]]] = []
    contents: list[tuple[Any, Any]] = []
    for part in module.modules():
        own = {name: value for name, value in vars(part).items() if name not in _BOOKKEEPING}
        parts.append((part, own, dict(part._buffers)))
        for value in (*own.values(), *part._buffers.values()):
            _note(value, contents)

    def undo() -> None:
        for part, own, buffers in parts:
            for name in [n for n in vars(part) if n not in _BOOKKEEPING and n not in own]:
                del vars(part)[name]
            vars(part).update(own)
            part._buffers.clear()
            part._buffers.update(buffers)
        for value, kept in contents:
            _refill(value, kept)

    return undo


def _note(value: Any, contents: list[tuple[Any, Any]]) -> None:
    """Copy values that can change in place: tensors, lists and dictionaries, recursively."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        contents.append((value, value.detach().clone()))
    elif isinstance(value, list | dict):
        contents.append((value, value.copy()))
        for item in value.values() if isinstance(value, dict) else value:
            _note(item, contents)


def _refill(value: Any, kept: Any) -> None:
    if isinstance(value, Tensor):
        with torch.inference_mode(value.is_inference()):
            if not torch.equal(value, kept):
                value.detach().copy_(kept)
    elif isinstance(value, list):
        value[:] = kept
    else:
        value.clear()
        value.update(kept)
