"""Text on its way to a terminal: it drives nothing, and every code page can show it."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from retune import _terminal
from retune._terminal import clean, clean_line, cleaned, make_safe

HOSTILE = [
    "\x1b]0;owned\x07",  # renames the window
    "\x1b[2J\x1b[H",  # clears the screen
    "\x9b31m",  # the same in one byte
    "a\rb",  # overwrites the line
    "\x08\x08",
    "\u202egnp.exe",  # reverses the direction
    "\u2066x\u2069",
    "\x00",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_drives_the_terminal(text):
    shown = clean(f"before {text} after")
    assert all(c.isprintable() for c in shown)
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert "\\x" in shown or "\\u" in shown or "\\r" in shown


def test_ordinary_text_is_left_alone():
    text = "σ = 0.1 → 28.4 dB\n\t‖A‖² ≤ 1, Ångström, 画像, 3\u202fμm"
    assert clean(text) == text
    assert clean_line("a\nb\tc") == "a\\nb\\tc"
    assert clean("caf\udcff.png") == "caf\\udcff.png"  # a name that is no UTF-8
    assert cleaned({"a\x1b": ["\x1b", 3, None]}) == {"a\\x1b": ["\\x1b", 3, None]}


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii", "latin-1", "utf-8"])
def test_no_code_page_ends_a_verb(encoding, monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    make_safe()
    print("σ = 0.1 → Λ ‖A‖² ×2 ≤ é 画 \udcff ─│ x̂ 😀", file=out, flush=True)
    if encoding == "utf-8":
        assert "σ = 0.1 → Λ ‖A‖² ×2 ≤ é 画 \\udcff".encode() in out.buffer.getvalue()
        return
    shown = out.buffer.getvalue().decode(encoding)
    if encoding == "ascii":
        assert shown.startswith("sigma = 0.1 -> Lambda ||A||2 x2 <= e ? \\udcff -| x ?")
    if encoding == "cp1252":
        assert shown.startswith("sigma = 0.1 -> Lambda ||A||² ×2 <= é ?")


def test_logs_and_tracebacks_are_clean(capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    make_safe()
    assert logging.lastResort is not None
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "broken file %s", ("\x1b[2J.tif",), None)
    assert logging.lastResort.format(record) == "broken file \\x1b[2J.tif"
    try:
        raise ValueError("\x1b[2J")
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    assert "\x1b" not in capsys.readouterr().err


def test_streams_without_an_encoding_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    make_safe()
    assert _terminal.clean("x") == "x"
