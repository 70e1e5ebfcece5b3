"""The user's own code: modules that runs and model files may name.

A run, a folder or a model may come from a stranger, so a name in it never causes an import. The user names the code:
with ``--plugin`` or ``--problem module:function`` on the command line, or with
[`load_plugin`][retune.plugins.load_plugin] in Python.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from retune.errors import ConfigError, InvalidParameterError, RetuneError, did_you_mean, one_line

__all__ = ["accept", "given", "is_accepted", "load_plugin", "named_function", "repeat", "require_accepted"]

#: the modules and the single functions that the user named
_modules: dict[str, ModuleType] = {}
_functions: set[str] = set()
#: the arguments of [`load_plugin`][retune.plugins.load_plugin], with absolute paths
_loaded: list[str] = []


def load_plugin(plugin: str | Path) -> ModuleType:
    """Import your own module. Runs and models may then name its classes and functions.

    Importing executes the module, so load only code that you trust.

    Args:
        plugin: the name of a module (installed, or in the working directory), or a Python file.

    Raises:
        InvalidParameterError: the module or file does not exist or fails, or another module has its name.
    """
    path = Path(plugin)
    is_file = path.suffix == ".py"
    module = _import_file(path) if is_file else import_module(str(plugin), str(plugin))
    _modules[module.__name__] = module
    name = str(path.resolve()) if is_file else str(plugin)
    if name not in _loaded:
        _loaded.append(name)
    return module


def accept(function: str) -> None:
    """Accept this ``module:function``, because the user named it. It is imported when needed."""
    _functions.add(function)


def is_accepted(function: str) -> bool:
    """Whether the user named this ``module:function`` or its module."""
    return function in _functions or function.partition(":")[0] in _modules


def require_accepted(function: str, where: str) -> None:
    """Refuse a ``module:function`` that the user did not name.

    Args:
        function: the ``module:function`` in a run or a model.
        where: the origin of the name, for the message.

    Raises:
        ConfigError: the user named neither the function nor its module.
    """
    if is_accepted(function):
        return
    module = function.partition(":")[0]
    raise ConfigError(
        f"{where} names the code {function!r}. Importing would execute it, so ReTune imports only code that you name "
        f"yourself. If you trust it, add --plugin {module} (or its file) to the command; in Python "
        f"call retune.plugins.load_plugin({module!r}) first"
    )


def named_function(name: str) -> Callable[..., Any]:
    """The function ``module:function``.

    An accepted module gives access to functions that it or its package defines. The user must name functions that it
    only imports from elsewhere.

    Raises:
        InvalidParameterError: the module cannot be imported, has no such function, or only imports it.
    """
    module_name, _, function_name = name.partition(":")
    module = _modules.get(module_name) or import_module(module_name, name)
    function = getattr(module, function_name, None)
    if not callable(function):
        hint = did_you_mean(function_name, [k for k, v in vars(module).items() if callable(v)])
        raise InvalidParameterError(f"the module {module_name!r} has no function {function_name!r}{hint}")
    home = str(getattr(function, "__module__", ""))
    if module_name in _modules and name not in _functions and home.split(".")[0] != module_name.split(".")[0]:
        raise InvalidParameterError(
            f"{name!r} is not defined in {module_name!r}: this module imports it from {home!r}. If you trust it, name "
            "the "
            f"function itself: --problem {name}"
        )
    return function


def given() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names from the user, for [`repeat`][retune.plugins.repeat] in another process."""
    return tuple(_loaded), tuple(sorted(_functions))


def repeat(named: tuple[Sequence[str], Sequence[str]]) -> None:
    """Load and accept the names that the user gave in the parent process."""
    plugins, functions = named
    for plugin in plugins:
        load_plugin(plugin)
    for function in functions:
        accept(function)


def import_module(module: str, named: str) -> ModuleType:
    """Import a module that is installed or in the working directory; `named` is the user's spelling.

    Raises: InvalidParameterError: the module is missing or fails.
    """
    _search(Path.cwd())
    try:
        return importlib.import_module(module)
    except Exception as error:  # the user's code may raise anything
        whole = "" if module == named else f" of {named!r}"
        raise InvalidParameterError(
            f"cannot import the module {module!r}{whole}: {_told(error)}; it must be installed or in the working "
            "directory, or be a file: --plugin FILE.py"
        ) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InvalidParameterError(f"there is no file {path}; --plugin takes a Python file, or the name of a module")
    path, name = path.resolve(), path.stem
    known = sys.modules.get(name)
    if known is not None:
        place = getattr(known, "__file__", None)
        if place is not None and Path(place).resolve() == path:
            return known
        raise InvalidParameterError(
            f"{path} cannot be loaded as the module {name!r}, because another module has this name "
            f"({place or 'built in'}): rename the file"
        )
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidParameterError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _search(path.parent)  # so that it can import files beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        # Our own message says what to do; an error of any other kind is shown with its kind.
        told = one_line(error) if isinstance(error, RetuneError) else _told(error)
        raise InvalidParameterError(f"{path} fails when it is imported: {told}") from error
    return module


def _search(folder: Path) -> None:
    """Search this folder for modules last, so that none replaces an installed module."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _told(error: Exception) -> str:
    """The kind of an error and its message, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
