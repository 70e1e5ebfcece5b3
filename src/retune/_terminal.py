"""Safe text for a terminal: it cannot control the terminal, and no character can crash the program.

File names, notes in a model and messages of other packages are untrusted. An escape sequence in them could move the
cursor, rename the window or hide a line, so it is printed as visible text, such as ``\\x1b]0;…``.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import sys
import traceback
import unicodedata
from types import TracebackType
from typing import Any

__all__ = ["clean", "clean_line", "cleaned", "make_safe"]

#: Replacements for characters that some terminals cannot print.
_PLAIN = {
    "✓": "[ok]",
    "✗": "[FAILS]",
    "–": "-",
    "—": "-",
    "−": "-",
    "×": "x",
    "·": "*",
    "±": "+-",
    "∞": "inf",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "≠": "!=",
    "→": "->",
    "…": "...",
    "«": "<<",
    "»": ">>",
    "‖": "||",
    "⟨": "<",
    "⟩": ">",
    "√": "sqrt",
    "∇": "grad",
    "∂": "d",
    "∈": "in",
    "ᵀ": "^T",
    "⁻": "^-",
    "\u0302": "",  # the hat of x̂
    "⌈": "ceil(",
    "⌉": ")",
}
_PLAIN |= dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True)) | dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_HANDLER = "retune.plain"


def clean(text: str) -> str:
    """The text with every unprintable character, except line breaks and tabs, shown as an escape."""
    return "".join(c if c in "\n\t" or _prints(c) else _escaped(c) for c in text)


def clean_line(text: str) -> str:
    """The same for a name on a single line: line breaks and tabs are also shown as escapes."""
    return "".join(c if _prints(c) else _escaped(c) for c in text)


def cleaned(data: Any) -> Any:
    """Plain data (dictionaries, lists, texts) with every text in it cleaned."""
    if isinstance(data, str):
        return clean(data)
    if isinstance(data, dict):
        return {cleaned(key): cleaned(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [cleaned(value) for value in data]
    return data


def make_safe() -> None:
    """Let the streams, the log and the tracebacks of this process print any text.

    A character that the terminal's code page lacks is spelt out: σ as ``sigma``, × as ``x``, others as ``?``.
    """
    codecs.register_error(_HANDLER, _spelt)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a notebook or a test may have replaced the stream
            with contextlib.suppress(ValueError, OSError):
                reconfigure(errors=_HANDLER)
    if logging.lastResort is not None:  # other packages report broken files this way
        logging.lastResort.setFormatter(_CleanFormatter())
    sys.excepthook = _show_traceback


def _prints(character: str) -> bool:
    # isprintable() accepts only the ordinary space, but macOS uses others in the names of screenshots.
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _spelt(error: UnicodeError) -> tuple[str, int]:
    """An error handler for codecs: the closest spelling in ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_in_ascii(c) for c in error.object[error.start : error.end]), error.end


def _in_ascii(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    name = unicodedata.name(character, "")
    if name.startswith(("GREEK SMALL LETTER ", "GREEK CAPITAL LETTER ")):
        word = name.split()[3].lower().replace("lamda", "lambda")  # Unicode's own spelling
        return word if "SMALL" in name else word.capitalize()
    if name.startswith("BOX DRAWINGS"):
        return "|" if "VERTICAL" in name else "-"
    if 0xD800 <= ord(character) <= 0xDFFF:
        return _escaped(character)  # a byte of a file name that is not text
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode("ascii")
    return plain or "?"


class _CleanFormatter(logging.Formatter):
    """Log records without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record))


def _show_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    sys.stderr.write(clean("".join(traceback.format_exception(kind, error, where))))
