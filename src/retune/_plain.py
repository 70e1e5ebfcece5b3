"""Plain data from untrusted files. JSON and TOML that are too large, too deep or not text are refused."""

from __future__ import annotations

import codecs
import json
from typing import Any

__all__ = ["MAX_BYTES", "MAX_DEPTH", "RECORDS", "depth_fault", "parse_json", "text_of"]

#: Limits for runs and descriptions of networks: they have a few kilobytes and a few nested tables.
MAX_BYTES = 1_000_000
MAX_DEPTH = 32
#: Size limit for records that ReTune writes about many images.
RECORDS = 1_000_000_000

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the same bytes as the next entry
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def text_of(content: bytes) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark, as PowerShell writes it.

    Raises:
        ValueError: the text has another encoding.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8 ({error}); save it with the encoding UTF-8") from error
    if "\0" in text:
        raise ValueError(
            "it contains zero bytes, like text in UTF-16 without a byte order mark; save it with the encoding UTF-8"
        )
    return text.replace("\r\n", "\n")


def parse_json(text: str | bytes, most: int = MAX_BYTES) -> Any:
    """The value of a JSON text.

    Args:
        text: the JSON text.
        most: its largest size.

    Raises:
        ValueError: larger than `most`, nested deeper than ``MAX_DEPTH``, or not JSON.
    """
    if len(text) > most:
        raise ValueError(f"it has {len(text)} bytes, expected at most {most}")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested too deeply, expected at most {MAX_DEPTH} levels") from None
    fault = depth_fault(value)
    if fault:
        raise ValueError(fault)
    return value


def depth_fault(value: Any) -> str:
    """A message if plain data are nested too deeply, else ""."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            return f"it is nested too deeply, expected at most {MAX_DEPTH} levels"
        inside: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inside.extend(item.values())
            elif isinstance(item, list | tuple):
                inside.extend(item)
        level = [item for item in inside if isinstance(item, dict | list | tuple)]
    return ""
