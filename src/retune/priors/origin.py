"""Whether an object is exactly what its package made: facts that were proved of a class hold for nothing else."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["definer", "descends_from_ours", "is_as_made", "is_changed", "is_ours", "stated_by_ours"]


def is_ours(module: nn.Module) -> bool:
    """Whether an object is of a class of this package (not of a subclass), none of whose methods were replaced."""
    return _package(type(module)) == "retune" and not is_changed(module)


def is_as_made(module: nn.Module) -> bool:
    """Whether this holds for all its parts, too; those of torch are known as well."""
    return is_ours(module) and all(
        is_ours(m) or (type(m).__module__.startswith("torch.nn.modules.") and not is_changed(m))
        for m in module.modules()
    )


def is_changed(module: nn.Module) -> bool:
    """Whether a method of an object was replaced by another function, or a hook was put on it."""
    replaced = any(callable(value) and hasattr(type(module), name) for name, value in vars(module).items())
    return replaced or bool(module._forward_hooks) or bool(module._forward_pre_hooks)


def definer(instance: Any, name: str) -> int:
    """Where a method comes from: -1 for the object itself, else the place of the class in its order of resolution."""
    if name in vars(instance):
        return -1
    kinds = type(instance).__mro__
    return next((i for i, kind in enumerate(kinds) if name in vars(kind)), len(kinds))


def descends_from_ours(instance: Any, base: type) -> bool:
    """Whether a class of this package other than `base` is among those that an object was made from."""
    kinds = type(instance).__mro__
    return any(k is not base and issubclass(k, base) and _package(k) == "retune" for k in kinds)


def stated_by_ours(instance: Any, name: str) -> bool:
    """Whether a method is inherited from a class of this package."""
    place = definer(instance, name)
    return 0 <= place < len(type(instance).__mro__) and _package(type(instance).__mro__[place]) == "retune"


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]
