"""Objects from the names and options in a run. Errors name the option that does not fit."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from retune._registry.describe import made, parameters_of
from retune._registry.entries import find, written
from retune.errors import ConfigError, RetuneError, did_you_mean

__all__ = ["make", "takes"]


def takes(kind: str, name: str) -> list[str]:
    """The arguments of the class of that name."""
    return list(parameters_of(find(name, kind).cls))


def make(
    kind: str,
    name: str,
    *,
    where: str,
    options: Mapping[str, Any] | None = None,
    given: Mapping[str, Mapping[str, Any]] | None = None,
    usual: Mapping[str, Any] | None = None,
) -> Any:
    """An object of a registered class.

    Args:
        kind: the required kind.
        name: its name.
        where: the table of the run with the options, for messages.
        options: the user's options, by the names of the constructor's arguments. A table with a `type` becomes an
            object of that registered class, also in a list.
        given: values from other tables of the run, by the name of the table; the constructor must accept them.
        usual: default values of the run; omitted if the constructor does not accept them.

    Raises:
        UnknownNameError: no such name.
        ConfigError: an option is unknown or missing, or the class refuses a value.
    """
    cls, has = find(name, kind).cls, parameters_of(find(name, kind).cls)
    arguments = {k: v for k, v in (usual or {}).items() if k in has}
    for table, told in {**(given or {}), where: options or {}}.items():
        for key, value in told.items():
            if key not in has:
                known = ", ".join(has) or "no options"
                raise ConfigError(
                    f"{table}.{key} = {value!r}: the {kind} {written(name)} has no {key}"
                    f"{did_you_mean(key, has)} (it has: {known})"
                )
            arguments[key] = made(value)
    missing = [n for n, p in has.items() if p.default is inspect.Parameter.empty and n not in arguments]
    if missing:
        raise ConfigError(f"the {kind} {written(name)} needs {', '.join(missing)}: write it in the table [{where}]")
    try:
        return cls(**arguments)
    except RetuneError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"[{where}]: {cls.__name__} refuses {dict(options or {})}: {error}") from error
