"""The registered classes, with their names and kinds."""

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

#: The entry point group for plug-ins of installed distributions.
GROUP = "retune.plugins"
#: Words with another meaning in a run.
_RESERVED = ("auto", "wavelet")

Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class Entry:
    """A registered class.

    Attributes:
        kind: "map", "prior", "solver", "rule", "fidelity", "problem", "network" or "model".
        name: its name in checkpoints: that of the class, unless another name was given.
        cls: the class.
        describe: function that returns the constructor arguments of an object as plain data, for a class that lacks
            such a method.
    """

    kind: str
    name: str
    cls: type
    describe: Callable[[Any], dict] | None = None

    @property
    def ours(self) -> bool:
        """Whether the class belongs to ReTune or deepinv; its name is then reserved."""
        return self.cls.__module__.split(".")[0] in ("retune", "deepinv")


_BASES: dict[type, str] = {}
_BY_NAME: dict[str, Entry] = {}
_BY_CLASS: dict[type, Entry] = {}
#: Errors of installed plug-ins: a single list, created when they were loaded.
_failures: list[list[str]] = []


def kind_base(kind: str) -> Callable[[Class], Class]:
    """Declare the base class of a kind."""

    def declare(cls: Class) -> Class:
        _BASES[cls] = kind
        return cls

    return declare


def base_of(cls: type) -> type | None:
    """The nearest declared base of a class."""
    return next((base for base in cls.__mro__ if base in _BASES), None)


def kind_of(cls: type) -> str | None:
    """The kind of a class, by its base class."""
    base = base_of(cls)
    return None if base is None else _BASES[base]


@overload
def register(cls: Class, *, name: str | None = None, describe: Callable[[Any], dict] | None = None) -> Class:
    """As ``@register`` above a class."""


@overload
def register(*, name: str | None = None, describe: Callable[[Any], dict] | None = None) -> Callable[[Class], Class]:
    """As ``@register(name=...)`` above a class."""


def register(cls: type | None = None, *, name: str | None = None, describe: Callable[[Any], dict] | None = None) -> Any:
    """Register a class under a name. Networks with it can then be saved and loaded, and runs (TOML) can use it.

    The base class decides the kind: a map ([`AbstractMap`][retune.AbstractMap]), a prior (deepinv ``Prior``), a solver
    ([`AbstractSolver`][retune.AbstractSolver]), a gradient rule ([`GradientRule`][retune.GradientRule]), a data
    fidelity (deepinv ``DataFidelity``), a problem ([`Problem`][retune.problems.Problem]), or any other ``nn.Module``: a
    network, such as the denoiser of a prior.

    An object is described by the arguments of its constructor: the fields of a dataclass, or attributes of the same
    names. A class that stores its arguments elsewhere needs a method ``describe()``, or the argument `describe`.

    A file never causes an import. A network or run that names your class can be loaded after your Python process has
    registered it. On the command line ``retune --plugin FILE.py`` registers it; so does an installed distribution with
    an entry point of the group ``retune.plugins`` that names the module.

    Use it as a decorator, ``@retune.register``, or as a function, ``retune.register(cls)``.

    Args:
        cls: the class.
        name: its name in checkpoints and runs. Default: the name of the class (``cls.name`` for a problem). A run may
            write it in lower case with underscores: ``MedianPrior`` is ``median_prior``.
        describe: for a class that you cannot change: a function from an object to its constructor arguments.

    Returns:
        The class itself.

    Raises:
        InvalidParameterError: `cls` is not of a known kind, or has abstract methods; or the name is taken.
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
        raise InvalidParameterError(f"{cls.__name__} cannot be registered: it lacks {', '.join(missing)}")
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
        raise InvalidParameterError(f"{what} is already registered, as {before.name!r}; a class has only one name")
    if _folded(entry.name) in _RESERVED:
        raise InvalidParameterError(f"{what} cannot be called {entry.name!r}, a reserved word in runs; {other}")
    there = _BY_NAME.get(_folded(entry.name))
    # A cell of a notebook that is run again defines the class anew; so does a script (__main__) that is a plug-in too.
    if there is None or _origin(there.cls) == _origin(entry.cls):
        return
    if there.ours:
        raise InvalidParameterError(f"{what} cannot be called {entry.name!r}: that name is ReTune's own; {other}")
    raise InvalidParameterError(
        f"{what}{_where(entry.cls)} cannot be called {entry.name!r}: that name belongs to "
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
    """The entry of a class. A derived class does not inherit the entry."""
    return _BY_CLASS.get(cls)


def find(name: object, kind: str | None = None) -> Entry:
    """The class of that name and, if given, of that kind. Capitals and underscores are ignored.

    Raises:
        UnknownNameError: no such name; the message gives similar names, and tells how to register a class.
    """
    for _ in range(2):
        entry = _BY_NAME.get(_folded(name)) if isinstance(name, str) else None
        if entry is not None and kind in (None, entry.kind):
            return entry
        if not _load_installed():
            break
    known = [e.name for e in _BY_NAME.values()] if kind is None else names(kind)
    hint = (
        f" Your own {kind or 'class'} must be registered (@retune.register) and its module imported; on the command "
        "line add --plugin FILE.py"
    )
    failed = "".join(f". {failure}" for failure in (_failures[0] if _failures else []))
    raise UnknownNameError(f"{unknown_name(kind or 'type', name, known)}{hint}{failed}")


def names(kind: str | None = None) -> list[str]:
    """The registered names of a kind, as written in runs."""
    _load_installed()
    return sorted(written(e.name) for e in _BY_NAME.values() if kind in (None, e.kind))


def written(name: str) -> str:
    """A name as written in runs: ``forward_backward`` for ``ForwardBackward``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _folded(name: str) -> str:
    return name.replace("_", "").lower()


def _load_installed() -> bool:
    """Load the plug-ins of installed distributions, once. Returns whether this was the first call."""
    if _failures:
        return False
    _failures.append([])
    for point in entry_points(group=GROUP):
        try:
            found = point.load()
            if isinstance(found, type) and inspect.getmodule(found) is not None and found not in _BY_CLASS:
                register(found)
        except (Exception, RetuneError) as error:  # foreign code may raise anything; the message is reported
            _failures[0].append(f"The installed plug-in {point.name} ({point.value}) failed: {one_line(error)}")
    return True
