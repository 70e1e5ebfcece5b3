"""Runs as TOML text, optionally with the meaning of every field."""

from __future__ import annotations

from typing import TypeGuard

from retune.config.fields import Section
from retune.config.read import load, shipped
from retune.config.sections import Config
from retune.config.values import as_key, as_toml
from retune.errors import unknown_name

__all__ = ["starting_point", "to_toml"]


def starting_point(name: str) -> str:
    """A commented TOML file as a starting point: a shipped run with the meaning of every field.

    Raises: UnknownNameError: no shipped run has that name.
    """
    if name not in shipped():
        raise unknown_name("run to start from", name, shipped())
    return to_toml(load(shipped()[name]), comments=True)


def to_toml(config: Config, comments: bool = False) -> str:
    """The run as TOML text with every field; `comments` adds their meanings."""
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
