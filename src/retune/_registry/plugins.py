"""Modules and files that the user names, loaded so that they register what they define."""

from __future__ import annotations

import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from retune._registry.entries import names
from retune.errors import InvalidParameterError, one_line

__all__ = ["load_plugin", "loaded_plugins"]

_loaded: list[str] = []


def load_plugin(name_or_path: str | Path) -> tuple[str, ...]:
    """Import, that is, execute a module or a file that the user named, so that it registers its classes.

    Nothing else may decide what is given here: no run, no checkpoint, no file of results.

    Args:
        name_or_path: ``FILE.py``, or the name of a module that is installed or in the working directory.

    Returns:
        The names that it registered now, as a run writes them; none if it had been imported before.

    Raises:
        InvalidParameterError: there is no such file or module, it fails, or it registers nothing.
    """
    given = str(name_or_path)
    known = set(names())
    if isinstance(name_or_path, Path) or given.endswith(".py"):
        path = Path(given).resolve()
        fresh = _import_file(path)
        given = str(path)
    else:
        fresh = _import_module(given)
    if given not in _loaded:
        _loaded.append(given)
    found = tuple(sorted(set(names()) - known))
    if fresh and not found:
        raise InvalidParameterError(
            f"{name_or_path} registers nothing: write @retune.register above each class that it is to add"
        )
    return found


def loaded_plugins() -> tuple[str, ...]:
    """What was given to :func:`load_plugin`, for processes that work beside this one."""
    return tuple(_loaded)


def _import_file(path: Path) -> bool:
    """Whether it was not imported before."""
    if not path.is_file():
        raise InvalidParameterError(f"there is no plug-in {path}; expected FILE.py, or the name of a module")
    there = sys.modules.get(path.stem)
    if there is not None and _file_of(there) == path:
        return False
    name = path.stem if there is None else f"retune_plugin_{path.stem}"
    if there is not None and name in sys.modules and _file_of(sys.modules[name]) == path:
        return False
    _find_beside(path.parent)
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidParameterError(f"{path} is not a Python file, which a plug-in must be")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # code of the user's: whatever it raises is told
        sys.modules.pop(name, None)
        raise InvalidParameterError(f"the plug-in {path} failed: {type(error).__name__}: {one_line(error)}") from error
    return True


def _import_module(name: str) -> bool:
    fresh = name not in sys.modules
    _find_beside(Path.cwd())
    try:
        importlib.import_module(name)
    except Exception as error:
        raise InvalidParameterError(
            f"cannot import the plug-in {name!r}: {type(error).__name__}: {one_line(error)}; expected FILE.py, or a "
            "module that is installed or in the working directory"
        ) from error
    return fresh


def _find_beside(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return None if file is None else Path(file).resolve()
