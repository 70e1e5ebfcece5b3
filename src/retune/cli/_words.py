"""Words on a terminal of 80 columns: lines are broken between words, and a command to copy stays in one line."""

from __future__ import annotations

import textwrap

__all__ = ["COLUMNS", "wrapped"]

COLUMNS = 80
#: Two spaces introduce a command in a text.
_COMMAND = "  retune "


def wrapped(text: str, first: str = "", rest: str = "") -> str:
    """The text in lines of at most 80 columns; longer words, such as paths, are not broken.

    Args:
        text: one or several lines. Two spaces and "retune" begin a command, which gets a separate line.
        first: prefix of the first line.
        rest: prefix of the other lines.
    """
    lines = []
    for i, paragraph in enumerate(text.split("\n")):
        words, introduces, command = paragraph.partition(_COMMAND)
        lines += textwrap.wrap(
            words,
            COLUMNS,
            initial_indent=rest if i else first,
            subsequent_indent=rest,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [(rest if i else first).rstrip()]
        if introduces:
            lines.append(f"{rest}{introduces}{command}")
    return "\n".join(lines)
