"""Modules and files that the user names, loaded so that they register what they define."""

from __future__ import annotations

from pathlib import Path

from retune import plugins
from retune._registry.entries import names

__all__ = ["load_plugin", "loaded_plugins"]


def load_plugin(name_or_path: str | Path) -> tuple[str, ...]:
    """Import, that is, execute a module or a file that the user named, so that it registers its classes.

    Runs may then also name its functions as ``module:function``. Nothing else may decide what is given here: no run, no
    checkpoint, no file of results.

    Args:
        name_or_path: ``FILE.py``, or the name of a module that is installed or in the working directory.

    Returns:
        The names that it registered now, as a run writes them; none if it had been imported before.

    Raises:
        InvalidParameterError: there is no such file or module, or it fails.
    """
    known = set(names())
    plugins.load_plugin(name_or_path)
    return tuple(sorted(set(names()) - known))


def loaded_plugins() -> tuple[str, ...]:
    """What was given to :func:`load_plugin`, for processes that work beside this one."""
    return plugins.given()[0]
