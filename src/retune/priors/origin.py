"""Tests whether an object is unmodified: the proved facts of a class hold only then."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["definer", "descends_from_ours", "is_as_made", "is_changed", "is_ours", "stated_by_ours"]


def is_ours(module: Any) -> bool:
    """Whether an object is of a class of this package (not of a subclass) and has no replaced method."""
    return _package(type(module)) == "retune" and not is_changed(module)


def is_as_made(module: nn.Module) -> bool:
    """Whether this also holds for all submodules; modules of torch are accepted, too."""
    return is_ours(module) and all(
        is_ours(m) or (type(m).__module__.startswith("torch.nn.modules.") and not is_changed(m))
        for m in module.modules()
    )


def is_changed(module: Any) -> bool:
    """Whether a method of an object was replaced, or has a hook."""
    replaced = any(callable(value) and hasattr(type(module), name) for name, value in vars(module).items())
    return replaced or any(getattr(module, hooks, None) for hooks in ("_forward_hooks", "_forward_pre_hooks"))


def definer(instance: Any, name: str) -> int:
    """The origin of a method: -1 for the object itself, else the index of its class in the resolution order."""
    if name in vars(instance):
        return -1
    kinds = type(instance).__mro__
    return next((i for i, kind in enumerate(kinds) if name in vars(kind)), len(kinds))


def descends_from_ours(instance: Any, base: type) -> bool:
    """Whether an object's base classes include a class of this package other than `base`."""
    kinds = type(instance).__mro__
    return any(k is not base and issubclass(k, base) and _package(k) == "retune" for k in kinds)


def stated_by_ours(instance: Any, name: str) -> bool:
    """Whether a method is inherited from a class of this package."""
    place = definer(instance, name)
    return 0 <= place < len(type(instance).__mro__) and _package(type(instance).__mro__[place]) == "retune"


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]
