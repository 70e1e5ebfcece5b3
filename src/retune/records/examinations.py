"""The file of ``retune doctor --json``."""

from __future__ import annotations

from typing import Any

from pydantic import Field, StrictBool

from retune.records.base import Record, Text

__all__ = ["Examinations", "ExaminedFile", "FindingRecord", "Findings"]


class FindingRecord(Record):
    """One finding."""

    check: Text
    """Which check found it."""
    severity: Text
    found: Text
    advice: Text = ""
    numbers: dict[str, Any] = Field(default_factory=dict)
    """What it rests on; numbers that are not finite are None."""


class Findings(Record):
    """All findings about one subject."""

    subject: Text
    ok: StrictBool
    worst: Text
    findings: list[FindingRecord]


class ExaminedFile(Record):
    """What was found of an image, or of the operator alone; or why it could not be examined."""

    name: Text
    ok: StrictBool
    part: tuple[int, int] | None = None
    """Height and width of the middle that was examined; None for the whole image."""
    failure: Text | None = None
    diagnosis: Findings | None = None


class Examinations(Record):
    """The file of ``retune doctor --json``."""

    format: int = 1
    examined: list[ExaminedFile]
