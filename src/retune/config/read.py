"""Runs from TOML files."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from retune.config.faults import faults_of
from retune.config.sections import Config
from retune.errors import ConfigError, did_you_mean

__all__ = ["absolute", "from_dict", "load", "shipped"]

#: the fields that may name a file or a folder
_FILES = (
    ("problem", "kernel"),
    ("problem", "mask"),
    ("prior", "weights"),
    ("data", "train"),
    ("data", "validation"),
    ("compare", "test"),
)


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a run from a TOML file, or by the name of a shipped one, with ``"section.field=value"`` overrides.

    Files that it names are taken relative to its own folder.

    Raises:
        ConfigError: no such file, not TOML, or not a run; every fault is named.
    """
    found = Path(path)
    if not found.is_file() and str(path) in shipped():
        found = shipped()[str(path)]
    if not found.is_file():
        hint = did_you_mean(path, shipped())
        raise ConfigError(
            f"there is no file {path}{hint or ';'} shipped runs: {', '.join(sorted(shipped()))}. "
            "retune train --init deblur > my.toml writes one to start from"
        )
    try:
        values = tomllib.loads(found.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{found} is not a TOML file: {error}") from error
    return from_dict(_with_paths(values, found.parent), overrides, str(found))


def from_dict(values: dict, overrides: Iterable[str] = (), source: str = "the run") -> Config:
    """A run of plain data, with overrides.

    Raises:
        ConfigError: every fault is named.
    """
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for text in overrides:
        _override(values, text)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        faults = faults_of(error, values)
        raise ConfigError("\n  ".join([f"{source} has {len(faults)} fault(s):", *faults])) from error


def shipped() -> dict[str, Path]:
    """The runs that come with the package, by name."""
    return {p.stem: p for p in sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))}


def _override(values: dict, text: str) -> None:
    key, equals, given = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {text}: expected SECTION.FIELD=VALUE, such as model.depth=5")
    try:
        value = tomllib.loads(f"value = {given}")["value"]
    except tomllib.TOMLDecodeError:
        value = given.strip()  # words need no quotes on the command line
    place = values
    for part in parts[:-1]:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {text}: {part!r} is not a section")
    place[parts[-1]] = absolute(value, Path.cwd()) if tuple(parts) in _FILES else value


def absolute(given: Any, folder: Path) -> Any:
    """The absolute path of a file or folder that is there, taken relative to `folder`; anything else as it is."""
    return str((folder / given).resolve()) if isinstance(given, str) and (folder / given).exists() else given


def _with_paths(values: dict, folder: Path) -> dict:
    """Relative paths made absolute, so that the resolved run means the same from everywhere."""
    for section, key in _FILES:
        table = values.get(section)
        given = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and given is not None:
            table[key] = absolute(given, folder)
    return values
