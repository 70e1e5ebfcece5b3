"""``NAME.json`` beside a result of ``retune restore``: its inputs, its settings and the end of the solve."""

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
    """The version that wrote the file."""
    file: Text
    """The name of the result."""
    image_sha256: Text | None = None
    """SHA-256 of the input file."""
    result_sha256: Text | None = None
    """SHA-256 of the result, as it was written."""
    model_sha256: Text | None = None
    problem: dict[str, Any] | None = None
    """The section [problem] of a run, without the files that it names."""
    problem_files: dict[str, Text] | None = None
    """SHA-256 of the kernel and of the mask, if these are files."""
    tile: Number = None
    """Side of the tiles; None if it was not given."""
    overlap: Number = None
    white: Number | Text = None
    """Intensity that counts as 1; "auto" for one that was found in the file."""
    black: Number | Text = None
    """Intensity that counts as 0."""
    white_found: Number = None
    black_found: Number = None
    """White and black in the units of the file, if one of them was found there."""
    status: Text | None = None
    """Status of the solve, or "being written"."""
    advice: Text | None = None
    residual: Number = None
    layers: Number = None
    solver: Text | None = None
    """The algorithm that solved for the equilibrium, with its options."""
    tiles: Number = None
    kind: Text | None = None
    """Basis of the residual: measured."""
    seconds: Number = None
    certificate: CertifiedImage | None = None
    noise: Text | None = None
    """The noise that the strengths follow from, as ``--noise`` takes it, if no network was given; one a page."""

    @classmethod
    def of(cls, content: bytes, file: str) -> Self | None:
        """The record of the result `file` in the content of a file; None if the content is no record of ReTune.

        Another version may write entries of another kind. Then the record only says that the result is ours.
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
        """Whether this record agrees with all facts that `other` gives."""
        mine, facts = self.plain(), other.plain()
        return {k: mine.get(k) for k in facts} == facts
