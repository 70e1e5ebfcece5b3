"""Single values as TOML text."""

from __future__ import annotations

import datetime
import re
from typing import Any


def as_toml(value: Any) -> str:
    """The value as TOML text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(f"\\u{ord(c):04X}" if ord(c) < 32 or ord(c) == 127 else c for c in escaped) + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_toml(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_key(k)} = {as_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return repr(value)


def as_key(key: str) -> str:
    """The key as TOML text: in quotes unless it consists of letters, digits, - and _ only."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else as_toml(key)
