"""Plain data from strangers."""

from __future__ import annotations

import codecs

import pytest

from retune._plain import MAX_DEPTH, depth_fault, parse_json, text_of


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings(encoding):
    assert text_of("σ = 1\r\nb = 2".encode(encoding)) == "σ = 1\nb = 2"
    assert text_of(codecs.BOM_UTF16_BE + "σ".encode("utf-16-be")) == "σ"


@pytest.mark.parametrize("content", ["a = 1".encode("utf-16-le"), "σ = 1".encode("cp1253"), b"\xff\xfea"])
def test_other_encodings_are_named(content):
    with pytest.raises(ValueError, match="UTF-8"):
        text_of(content)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 40 + "]" * 40, '{"a":' * 500 + "1" + "}" * 500, "9" * 5000, "x"])
def test_hostile_json_is_one_error(text):
    with pytest.raises(ValueError, match=r"deep|digits|Expecting"):
        parse_json(text)


def test_size_and_depth():
    with pytest.raises(ValueError, match="expected at most 10"):
        parse_json("[1, 2, 3, 4]", most=10)
    value: list = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert depth_fault(value) == ""
    assert "too deeply" in depth_fault([value])
    assert parse_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
