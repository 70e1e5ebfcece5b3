"""Conversion of objects to plain data and back, by the constructor arguments of registered classes."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from pathlib import Path
from typing import Any

from retune._registry.entries import base_of, entry_of, find, kind_of
from retune.errors import InvalidParameterError

__all__ = ["by_arguments", "description", "made", "parameters_of", "rebuild", "shown"]

#: Larger tables of numbers belong in the state dict, which does not store them as text.
_LARGEST = 10_000

_MISSING = object()


def description(thing: Any) -> dict[str, Any]:
    """A registered object as plain data. ``rebuild`` makes an equal object from it, without its weights.

    Raises:
        InvalidParameterError: the class of the object, or of a part of it, is not registered, or an argument is
            unknown.
    """
    cls = type(thing)
    entry = entry_of(cls)
    if entry is None:
        raise InvalidParameterError(
            f"a checkpoint cannot describe the {kind_of(cls) or 'object'} {cls.__name__}, because the class is not "
            "registered: retune.load could not rebuild the object. Write @retune.register above the class where it "
            "is defined "
            f"(or call retune.register({cls.__name__})); or save net.state_dict() and rebuild the network in Python"
        )
    if entry.describe is not None:
        told = entry.describe(thing)
    elif callable(getattr(thing, "describe", None)):
        told = thing.describe()
        _require_all(thing, told)
    else:
        told = by_arguments(thing)
    return {"type": entry.name} | {k: _plain(v, f"{cls.__name__}.{k}") for k, v in told.items() if k != "type"}


def by_arguments(thing: Any, without: Collection[str] = (), later: Collection[str] = (), **kept: Any) -> dict[str, Any]:
    """The name of the class, and the arguments of its constructor, read from attributes of the same names.

    An argument ``learn_x`` needs no attribute if ``x`` is a constrained parameter, which knows whether it is trained.
    A class may declare `without` and `later` as ``in_state_dict`` and ``added_later``.

    Args:
        thing: the object.
        without: arguments that are left out, because the state dict holds their values.
        later: arguments that did not exist in an earlier version. They are left out at their default, so that the
            descriptions of that version do not change.
        kept: values of arguments without such an attribute.

    Raises:
        InvalidParameterError: an attribute is missing, or its value is not plain data.
    """
    cls = type(thing)
    entry = entry_of(cls)
    without, later = (*without, *_declared(thing, "in_state_dict")), (*later, *_declared(thing, "added_later"))
    told: dict[str, Any] = {"type": cls.__name__ if entry is None else entry.name}
    for name, argument in parameters_of(cls, told_by_name=True).items():
        if name in without:
            continue
        value = kept[name] if name in kept else _attribute(thing, name)
        if name in later and value == argument.default:
            continue
        if value is _MISSING:
            raise InvalidParameterError(
                f"{cls.__name__} takes the argument {name} but has no attribute of that name, so it cannot be "
                "described: write "
                f"self.{name} = {name} in its constructor, or give the class a method describe()"
            )
        told[name] = _plain(value, f"{cls.__name__}.{name}")
    return told


def _declared(thing: Any, name: str) -> tuple[str, ...]:
    return getattr(type(thing), name, ())


def _attribute(thing: Any, name: str) -> Any:
    if hasattr(thing, name) or not name.startswith("learn_"):
        return getattr(thing, name, _MISSING)
    learned = getattr(getattr(thing, name.removeprefix("learn_"), None), "learned", None)
    return learned if isinstance(learned, bool) else _MISSING


def shown(thing: Any) -> str:
    """The object as text, for ``repr``: its class and the arguments that it stores."""
    known = [n for n in parameters_of(type(thing)) if hasattr(thing, n)]
    return f"{type(thing).__name__}({', '.join(f'{n}={getattr(thing, n)!r}' for n in known)})"


def parameters_of(cls: type, told_by_name: bool = False) -> dict[str, inspect.Parameter]:
    """The arguments of a constructor by name, without those of the base class of its kind.

    Raises:
        InvalidParameterError: with `told_by_name`, the constructor takes arguments without names.
    """
    base = base_of(cls)
    above = () if base is None else base.__mro__
    if next(c for c in cls.__mro__ if "__init__" in vars(c)) in above:
        return {}
    found = dict(inspect.signature(cls).parameters)
    loose = [p for p in found.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY)]
    if loose and told_by_name:
        raise InvalidParameterError(
            f"the constructor of {cls.__name__} takes {loose[0]}, so its arguments have no names: name each argument, "
            "or give the class a method describe()"
        )
    return {name: p for name, p in found.items() if p not in loose}


def rebuild(told: dict[str, Any]) -> Any:
    """The object of a description, with freshly initialised weights.

    Only registered classes are made. A name in a description never causes an import.

    Raises:
        UnknownNameError: a type is not registered.
    """
    arguments = {k: made(v) for k, v in told.items()}
    cls: Any = find(arguments.pop("type", None)).cls
    return getattr(cls, "rebuild", cls)(**arguments)


def made(value: Any) -> Any:
    """The value with objects in place of descriptions (tables with a `type`), also in lists."""
    if isinstance(value, list):
        return [made(v) for v in value]
    return rebuild(value) if isinstance(value, dict) and "type" in value else value


def _require_all(thing: Any, told: dict[str, Any]) -> None:
    """Refuse an inherited describe() that omits arguments added by this class."""
    order = type(thing).__mro__
    describes = next(i for i, c in enumerate(order) if "describe" in vars(c))
    makes = next(i for i, c in enumerate(order) if "__init__" in vars(c))
    known = {*told, *inspect.signature(order[describes]).parameters}  # it leaves out its own arguments on purpose
    known |= {*_declared(thing, "in_state_dict"), *_declared(thing, "added_later")}
    lost = [n for n in parameters_of(type(thing)) if n not in known] if makes < describes else []
    if lost:
        raise InvalidParameterError(
            f"{type(thing).__name__} takes {', '.join(lost)}, but its describe(), inherited from "
            f"{order[describes].__name__}, does not include this: define describe() in the class itself"
        )


def _plain(value: Any, where: str) -> Any:
    """The value as JSON data."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(v, where) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if not isinstance(value, type) and entry_of(type(value)) is not None:
        return description(value)
    table = getattr(value, "value", value)  # for a constrained parameter, its value
    if callable(getattr(table, "tolist", None)):
        size = getattr(table, "size", 0)
        count = table.numel() if callable(size) else size
        if count <= _LARGEST:
            return _plain(table.tolist(), where)
        raise InvalidParameterError(
            f"{where} holds {count} numbers, too many for a description: store them in the state dict (as a parameter "
            "or buffer), and describe only how to make the object"
        )
    if kind_of(type(value)) not in (None, "network"):
        return description(value)  # raises: it is not registered
    kind = "class" if isinstance(value, type) else type(value).__name__
    raise InvalidParameterError(
        f"{where} is a {kind} ({getattr(value, '__name__', kind)}), but a checkpoint cannot store it: expected "
        "numbers, texts, lists and dictionaries of them, or objects of registered classes (@retune.register)"
    )
