"""``NAME.json`` beside a result of ``retune restore``: what it was made from, and how it went."""

from __future__ import annotations

from typing import Any, Self

from retune._plain import RECORDS, parse_json
from retune.errors import InvalidParameterError
from retune.records.base import Number, Record, Text
from retune.records.certificates import CertifiedImage

__all__ = ["RestoredImage"]


class RestoredImage(Record):
    """``NAME.json``, beside the result ``NAME`` of ``retune restore``. It marks that result as ours."""

    format: int = 1
    retune: Text
    """The version that wrote it."""
    file: Text
    """The name of the result."""
    image_sha256: Text | None = None
    """Of the file that was restored."""
    model_sha256: Text | None = None
    problem: dict[str, Any] | None = None
    """The section [problem] of a run, without the files that it names."""
    problem_files: dict[str, Text] | None = None
    """SHA-256 of the kernel and of the mask, where these are files."""
    tile: Number = None
    """Side of the tiles; None if it was not chosen."""
    overlap: Number = None
    white: Number = None
    """Intensity that counts as 1."""
    status: Text | None = None
    """How the solve ended, or "being written"."""
    advice: Text | None = None
    residual: Number = None
    layers: Number = None
    tiles: Number = None
    kind: Text | None = None
    """How the residual is known: measured."""
    seconds: Number = None
    certificate: CertifiedImage | None = None

    @classmethod
    def of(cls, content: bytes, file: str) -> Self | None:
        """The record in the content of a file if it is one of ours, of the result `file`; None for anything else.

        One of ours with entries of another kind, as another version may write them, tells no more than that.
        """
        try:
            values = parse_json(content, RECORDS)
        except ValueError:
            return None
        if not isinstance(values, dict) or "retune" not in values or values.get("file") != file:
            return None
        try:
            return cls.checked(values, file)
        except InvalidParameterError:
            return cls(retune=str(values["retune"]), file=file)

    def made_as(self, other: RestoredImage) -> bool:
        """Whether it was made with the facts that are given in the other one."""
        mine, facts = self.plain(), other.plain()
        return {k: mine.get(k) for k in facts} == facts
