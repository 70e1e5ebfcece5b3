"""The file of ``retune doctor --json``."""

from __future__ import annotations

from typing import Any

from pydantic import Field, StrictBool

from retune.records.base import Number, Record, Text

__all__ = ["Examinations", "ExaminedFile", "FindingRecord", "Findings"]


class FindingRecord(Record):
    """One finding."""

    check: Text
    """The check that made this finding."""
    severity: Text
    found: Text
    advice: Text = ""
    numbers: dict[str, Any] = Field(default_factory=dict)
    """The evidence; None stands for a number that is not finite."""


class Findings(Record):
    """All findings about one subject."""

    subject: Text
    ok: StrictBool
    worst: Text
    findings: list[FindingRecord]


class ExaminedFile(Record):
    """The findings about an image or about the operator alone, or the reason for their absence."""

    name: Text
    ok: StrictBool
    part: tuple[int, int] | None = None
    """Height and width of the examined middle; None for the whole image."""
    failure: Text | None = None
    diagnosis: Findings | None = None
    white_found: Number = None
    black_found: Number = None
    """White and black in the units of the file, if they were found there."""


class Examinations(Record):
    """The file of ``retune doctor --json``."""

    format: int = 1
    examined: list[ExaminedFile]
