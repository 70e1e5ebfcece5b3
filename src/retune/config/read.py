"""Runs from TOML files."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from retune._plain import MAX_BYTES, MAX_DEPTH, depth_fault, text_of
from retune.config.faults import faults_of
from retune.config.sections import Config
from retune.errors import ConfigError, did_you_mean

__all__ = ["absolute", "from_dict", "load", "overridden", "shipped"]

#: the fields that may name a file or a folder
_FILES = (
    ("problem", "kernel"),
    ("problem", "mask"),
    ("prior", "weights"),
    ("data", "train"),
    ("data", "validation"),
    ("compare", "test"),
)
#: maximum number of listed faults of a run
_LISTED = 20
_BACKSLASHES = (
    "in TOML a backslash between double quotes begins an escape (\\t is a tab): write paths between single quotes, "
    "'C:\\Users\\me\\photos', or with slashes, \"C:/Users/me/photos\""
)


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a run from a TOML file, or a shipped run by its name, with ``"section.field=value"`` overrides.

    The file is text in UTF-8, or in UTF-16 with a byte order mark. Paths in it are relative to its own folder.

    Raises:
        ConfigError: the file is missing, not TOML, or not a run; the message names every fault.
    """
    found = Path(path)
    if not found.is_file() and str(path) in shipped():
        found = shipped()[str(path)]
    if not found.is_file():
        hint = did_you_mean(path, shipped())
        raise ConfigError(
            f"there is no file {path}{hint or ';'} shipped runs: {', '.join(sorted(shipped()))}. "
            "To start from an example: retune train --init deblur > my.toml"
        )
    return from_dict(_with_paths(_parsed(found), found.parent), overrides, str(found))


def _parsed(path: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ConfigError(
            f"{path} has {size} bytes; a run is a TOML file of a few kilobytes, at most {MAX_BYTES} bytes"
        )
    text = ""
    try:
        text = text_of(path.read_bytes())
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(
            f"{path} is nested too deeply to be a run: expected tables and lists in at most {MAX_DEPTH} levels"
        ) from None
    except ValueError as error:  # from TOML, from the encoding, or from an integer with thousands of digits
        hint = f". {_BACKSLASHES[0].upper()}{_BACKSLASHES[1:]}" if "\\" in text else ""
        raise ConfigError(f"{path} is not a TOML file: {error}{hint}") from error


def from_dict(values: dict, overrides: Iterable[str] = (), source: str = "the run") -> Config:
    """Make a run from plain data, with overrides.

    Raises: ConfigError: the data are not a run; the message names every fault.
    """
    too_deep = depth_fault(values)
    if too_deep:
        raise ConfigError(f"{source}: {too_deep}")
    values = copy.deepcopy(values)
    for text in overrides:
        _override(values, text)
    faults = _broken_paths(values)
    if not faults:
        try:
            return Config.model_validate(values)
        except ValidationError as error:
            faults = faults_of(error, values)
            listed = faults[:_LISTED] + ["and more"] * (len(faults) > _LISTED)
            raise ConfigError("\n  ".join([f"{source} has {len(faults)} fault(s):", *listed])) from error
    raise ConfigError("\n  ".join([f"{source} has {len(faults)} fault(s):", *faults]))


def overridden(overrides: Iterable[str]) -> dict[str, Any]:
    """The fields in ``"section.field=value"`` overrides only.

    Raises: ConfigError: an override does not have this form.
    """
    values: dict[str, Any] = {}
    for text in overrides:
        _override(values, text)
    return values


def shipped() -> dict[str, Path]:
    """The shipped runs, by name."""
    return {p.stem: p for p in sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))}


def _override(values: dict, text: str) -> None:
    key, equals, given = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or len(parts) > MAX_DEPTH:
        raise ConfigError(f"--set {text}: expected SECTION.FIELD=VALUE, such as model.depth=5")
    try:
        value = tomllib.loads(f"value = {given}")["value"]
    except RecursionError:
        raise ConfigError(f"--set {key}: the value is nested too deeply, expected {MAX_DEPTH} levels at most") from None
    except ValueError:
        value = given.strip()  # on the command line, texts need no quotes
    place = values
    for part in parts[:-1]:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {text}: {part!r} is not a section")
    place[parts[-1]] = absolute(value, Path.cwd()) if tuple(parts) in _FILES else value
    too_deep = depth_fault(values)
    if too_deep:
        raise ConfigError(f"--set {key}: {too_deep}")


def absolute(given: Any, folder: Path) -> Any:
    """The absolute path of an existing file or folder, relative to `folder`. Anything else stays unchanged.

    Backslashes in a path count as slashes, unless a file has a backslash in its name.
    """
    if not isinstance(given, str) or not given.strip():
        return given
    for written in dict.fromkeys((given, given.replace("\\", "/"))):
        try:
            if (folder / written).exists():
                return str((folder / written).resolve())
        except (OSError, ValueError):  # an impossible file name: too long, or with a zero byte
            return given
    return given


def _with_paths(values: dict, folder: Path) -> dict:
    """Make relative paths absolute, so that the resolved run is valid in any working directory."""
    for section, key in _FILES:
        table = values.get(section)
        given = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and given is not None:
            table[key] = absolute(given, folder)
    return values


def _broken_paths(values: dict) -> list[str]:
    """Faults of paths: empty, or with control characters. Tabs and line breaks come from backslashes in TOML."""
    faults = []
    for section, key in _FILES:
        table = values.get(section)
        given = table.get(key) if isinstance(table, dict) else None
        if isinstance(given, str) and not given.strip():
            faults.append(
                f'{section}.{key} = "": it is empty; give a name, or leave it out (is a variable of the shell not set?)'
            )
        elif isinstance(given, str) and any(ord(c) < 32 or ord(c) == 127 for c in given) and not Path(given).exists():
            faults.append(f"{section}.{key} = {given[:80]!r} contains a control character: {_BACKSLASHES}")
    return faults
