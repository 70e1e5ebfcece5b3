"""Runs as TOML text, with what every field means if it is wanted."""

from __future__ import annotations

from typing import TypeGuard

from retune.config.read import load, shipped
from retune.config.sections import Config, Section
from retune.config.values import as_key, as_toml
from retune.errors import unknown_name

__all__ = ["starting_point", "to_toml"]


def starting_point(name: str) -> str:
    """A commented TOML file to start from: a shipped run with what every field means.

    Raises:
        UnknownNameError: no shipped run of that name.
    """
    if name not in shipped():
        raise unknown_name("run to start from", name, shipped())
    return to_toml(load(shipped()[name]), comments=True)


def to_toml(config: Config, comments: bool = False) -> str:
    """The run as TOML, with every field; `comments` says what each means."""
    lines = ["# A run of ReTune: retune train THIS.toml --out FOLDER", "", *_fields(config, comments)]
    for name, section in config:
        if _is_section(section) and (comments or section.spoken or section != type(section)()):
            lines += ["", *([f"# {section.__doc__}"] if comments else []), f"[{name}]", *_fields(section, comments)]
            tables = {k: v for k, v in section if isinstance(v, dict) and v}
            for key, table in tables.items():
                lines += ["", f"[{name}.{key}]", *(f"{as_key(k)} = {as_toml(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def _is_section(value: object) -> TypeGuard[Section]:
    """A run has fields and sections side by side; only their class tells them apart."""
    return isinstance(value, Section)


def _fields(section: Section, comments: bool) -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if _is_section(value):
            continue
        if comments:
            lines.append(f"# {field.description}")
        if value is not None and not isinstance(value, dict) and section.has(name):
            lines.append(f"{name} = {as_toml(value)}")
        elif comments:
            lines.append(f"# {name} =")
    return lines
