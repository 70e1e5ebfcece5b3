"""Which classes are registered, under which name, as what kind."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar, overload

from retune.errors import InvalidParameterError, RetuneError, UnknownNameError, one_line, unknown_name, wrong_type

__all__ = ["GROUP", "Entry", "base_of", "entry_of", "find", "kind_base", "kind_of", "names", "register", "written"]

#: The group of entry points by which an installed distribution offers its classes.
GROUP = "retune.plugins"
#: Words that a run already gives another meaning.
_RESERVED = ("auto", "wavelet")

Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class Entry:
    """A registered class.

    Attributes:
        kind: "map", "prior", "solver", "rule", "fidelity", "problem", "network" or "model".
        name: what a checkpoint calls it: the name of the class, unless another one was given.
        cls: the class.
        describe: gives the constructor's arguments of an object as plain data, for a class that cannot do it itself.
    """

    kind: str
    name: str
    cls: type
    describe: Callable[[Any], dict] | None = None

    @property
    def ours(self) -> bool:
        """Whether the class comes with ReTune (or deepinv), so that its name cannot be taken."""
        return self.cls.__module__.split(".")[0] in ("retune", "deepinv")


_BASES: dict[type, str] = {}
_BY_NAME: dict[str, Entry] = {}
_BY_CLASS: dict[type, Entry] = {}
#: What went wrong with installed plug-ins: one list, which is there once they were looked for.
_failures: list[list[str]] = []


def kind_base(kind: str) -> Callable[[Class], Class]:
    """Declare the class that all of one kind derive from."""

    def declare(cls: Class) -> Class:
        _BASES[cls] = kind
        return cls

    return declare


def base_of(cls: type) -> type | None:
    """The nearest declared base of a class."""
    return next((base for base in cls.__mro__ if base in _BASES), None)


def kind_of(cls: type) -> str | None:
    """The kind of a class, by what it derives from."""
    base = base_of(cls)
    return None if base is None else _BASES[base]


@overload
def register(cls: Class, *, name: str | None = None, describe: Callable[[Any], dict] | None = None) -> Class:
    """As ``@register`` above a class."""


@overload
def register(*, name: str | None = None, describe: Callable[[Any], dict] | None = None) -> Callable[[Class], Class]:
    """As ``@register(name=...)`` above a class."""


def register(cls: type | None = None, *, name: str | None = None, describe: Callable[[Any], dict] | None = None) -> Any:
    """Give a class a name, so that networks with it are saved and loaded, and runs (TOML) can ask for it.

    What the class is follows from its base: a map ([`AbstractMap`][retune.AbstractMap]), a prior (deepinv ``Prior``), a
    solver ([`AbstractSolver`][retune.AbstractSolver]), a gradient rule ([`GradientRule`][retune.GradientRule]), a data
    fidelity (deepinv ``DataFidelity``), a problem ([`Problem`][retune.problems.Problem]), or any other ``nn.Module``: a
    network, such as the denoiser of a prior.

    An object is described by the arguments of its constructor: the fields of a dataclass, or attributes of the same
    names. A class that keeps its arguments elsewhere needs a method ``describe()``, or the argument `describe`.

    A file never decides what is imported: a network or run that names your class is understood once your Python has
    registered it. ``retune --plugin FILE.py`` does that on the command line, and so does an installed distribution with
    an entry point of the group ``retune.plugins`` that names the module.

    Use it as a decorator, ``@retune.register``, or as a function, ``retune.register(cls)``.

    Args:
        cls: the class.
        name: its name in checkpoints and runs; by default that of the class (and ``cls.name`` for a problem). A run may
            write it in lower case with underscores: ``MedianPrior`` is ``median_prior``.
        describe: for a class that is not yours: a function from an object to the arguments of its constructor.

    Returns:
        The class itself.

    Raises:
        InvalidParameterError: not a class of a known kind, a class with abstract methods, or a name that is taken.
    """
    if cls is None:
        return lambda given: register(given, name=name, describe=describe)
    if not isinstance(cls, type):
        raise wrong_type("what is registered", cls, "a class", "write @retune.register above a class")
    kind = kind_of(cls)
    if kind is None:
        raise InvalidParameterError(
            f"{cls.__name__} cannot be registered: expected a map (a class that derives from retune.AbstractMap), a "
            "prior (deepinv's Prior), a solver (retune.AbstractSolver), a gradient rule (retune.GradientRule), a data "
            "fidelity (deepinv's DataFidelity), a problem (retune.problems.Problem) or a network (torch.nn.Module)"
        )
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise InvalidParameterError(f"{cls.__name__} cannot be registered before it has {', '.join(missing)}")
    own = getattr(cls, "name", None) if kind == "problem" else None
    entry = Entry(kind, name or (own if isinstance(own, str) else cls.__name__), cls, describe)
    _require_free(entry)
    _BY_NAME[_folded(entry.name)] = _BY_CLASS[cls] = entry
    return cls


def _require_free(entry: Entry) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", entry.name):
        raise InvalidParameterError(
            f"{entry.name!r} cannot be a registered name: expected a letter, then letters, digits and underscores"
        )
    what = f"{entry.cls.__module__}.{entry.cls.__qualname__}"
    other = "give it another name: @retune.register(name=...)"
    before = _BY_CLASS.get(entry.cls)
    if before is not None and before.name != entry.name:
        raise InvalidParameterError(f"{what} is registered already, as {before.name!r}; a class has one name")
    if _folded(entry.name) in _RESERVED:
        raise InvalidParameterError(f"{what} cannot be called {entry.name!r}, a word that runs already use; {other}")
    there = _BY_NAME.get(_folded(entry.name))
    # A cell of a notebook that is run again defines the class anew; so does a script (__main__) that is a plug-in too.
    if there is None or _origin(there.cls) == _origin(entry.cls):
        return
    if there.ours:
        raise InvalidParameterError(f"{what} cannot be called {entry.name!r}: that name is ReTune's own; {other}")
    raise InvalidParameterError(
        f"{what}{_where(entry.cls)} cannot be called {entry.name!r}: that name is that of "
        f"{there.cls.__module__}.{there.cls.__qualname__}{_where(there.cls)}, which was registered before. If they are "
        f"the same class, load only one of the two; if not, {other}"
    )


def _origin(cls: type) -> tuple[str, str]:
    """The file (or, without one, the module) that defines a class, and its name there."""
    return _file_of(cls) or cls.__module__, cls.__qualname__


def _where(cls: type) -> str:
    file = _file_of(cls)
    return "" if file is None else f" (in {file})"


def _file_of(cls: type) -> str | None:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return None if file is None else str(Path(file).resolve())


def entry_of(cls: type) -> Entry | None:
    """What is registered of a class; a derived class has no entry but its own."""
    return _BY_CLASS.get(cls)


def find(name: object, kind: str | None = None) -> Entry:
    """The class of that name, and of that kind if one is given; capitals and underscores do not count.

    Raises:
        UnknownNameError: no such name; the nearest ones are given, and how to register one.
    """
    for _ in range(2):
        entry = _BY_NAME.get(_folded(name)) if isinstance(name, str) else None
        if entry is not None and kind in (None, entry.kind):
            return entry
        if not _load_installed():
            break
    known = [e.name for e in _BY_NAME.values()] if kind is None else names(kind)
    hint = (
        f" A {kind or 'class'} of your own is known once it is registered (@retune.register) and its module imported; "
        "on the command line add --plugin FILE.py"
    )
    failed = "".join(f". {failure}" for failure in (_failures[0] if _failures else []))
    raise UnknownNameError(f"{unknown_name(kind or 'type', name, known)}{hint}{failed}")


def names(kind: str | None = None) -> list[str]:
    """The registered names of a kind, as a run writes them."""
    _load_installed()
    return sorted(written(e.name) for e in _BY_NAME.values() if kind in (None, e.kind))


def written(name: str) -> str:
    """A name as a run writes it: ``forward_backward`` for ``ForwardBackward``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _folded(name: str) -> str:
    return name.replace("_", "").lower()


def _load_installed() -> bool:
    """Load what installed distributions offer, once; whether this was the first time."""
    if _failures:
        return False
    _failures.append([])
    for point in entry_points(group=GROUP):
        try:
            found = point.load()
            if isinstance(found, type) and inspect.getmodule(found) is not None and found not in _BY_CLASS:
                register(found)
        except (Exception, RetuneError) as error:  # code of others: whatever it raises is told
            _failures[0].append(f"The installed plug-in {point.name} ({point.value}) failed: {one_line(error)}")
    return True
