"""The faults of a run in words, one line per field."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ValidationError

from retune.config.sections import Config
from retune.config.values import as_toml
from retune.errors import did_you_mean

__all__ = ["faults_of"]

#: A file that is not a run may have thousands of faults; the first ones are enough.
_READ = 200
#: How pydantic says that a section is expected.
_A_SECTION = re.compile(r"a valid dictionary or instance of \w+")


def faults_of(error: ValidationError, values: dict) -> list[str]:
    """One line per field: its name, its value, the allowed values, the most similar known key."""
    messages: dict[str, list[str]] = {}
    lines: dict[str, str] = {}
    for one in error.errors(include_url=False, include_context=False)[:_READ]:
        location, section = _place(one["loc"])
        name = ".".join(location)
        if one["type"] == "extra_forbidden":
            name = _short(".".join(str(part) for part in one["loc"]))
            known = list(section.model_fields)
            hint = did_you_mean(_short(str(one["loc"][-1])), known) or _elsewhere(str(one["loc"][-1]))
            lines[name] = f"unknown key {name}{hint or ';'} known here: {', '.join(known)}"
            continue
        if not location:  # for incompatible fields; the message names them
            lines[one["msg"]] = one["msg"].removeprefix("Value error, ")
            continue
        given: Any = values
        for part in location:
            given = given.get(part) if isinstance(given, dict) else None
        messages.setdefault(name, []).append(one["msg"].removeprefix("Value error, "))
        # A field with several types fails once for each type; its description then tells the allowed values.
        message = messages[name][0].replace("Input should", "it should") if len(messages[name]) == 1 else "not allowed"
        message = _A_SECTION.sub(f"a section: a table [{name}] of fields", message)
        description = section.model_fields[location[-1]].description
        lines[name] = f"{name} = {_short(as_toml(given))}: {message}. {description}".rstrip()
    return list(lines.values())


def _short(text: str) -> str:
    """A long text is shortened."""
    return text if len(text) <= 100 else f"{text[:80]}… ({len(text)} characters)"


def _place(location: tuple) -> tuple[list[str], type[BaseModel]]:
    """The keys in an error's location, and their section."""
    parts: list[str] = []
    section: type[BaseModel] = Config
    for part in location:
        if not isinstance(part, str) or part not in section.model_fields:
            break
        parts.append(part)
        kind = section.model_fields[part].annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            break
        if len(parts) < len(location):
            section = kind
    return parts, section


def _elsewhere(key: str) -> str:
    places = [
        f"{name}.{key}"
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        if key in field.annotation.model_fields
    ]
    return f"; did you mean {' or '.join(places)}?" if places else ""
