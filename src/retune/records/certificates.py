"""Certificates in the files of ``retune compare``, ``retune train`` and ``retune certify``."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field

from retune.records.base import Number, Record, Text

__all__ = ["Basis", "Certificates", "Certified", "CertifiedFile", "CertifiedImage", "Claim", "TrainingCertificate"]


class Basis(StrEnum):
    """The basis of a number, from strong to weak."""

    PROVED = "proved"
    """An upper bound; it may have conditions."""
    ESTIMATED = "estimated"
    MEASURED = "measured"


class Claim(Record):
    """One number of a certificate."""

    value: Number
    """The number; None if it is unknown."""
    basis: Basis | None = None
    """None in files of version 0.1."""
    kind: Text
    """The basis in words, with its conditions."""
    how: Text
    """The origin of the number."""

    def rests_on(self, basis: Basis) -> bool:
        """Whether this is the basis of the number. In files of version 0.1 it is the first word of the kind."""
        return (self.basis or self.kind.partition(" ")[0]) == basis

    @property
    def proved(self) -> bool:
        """Whether it is a proved bound, with or without conditions."""
        return self.rests_on(Basis.PROVED)


class CertifiedImage(Record):
    """The certificate of one image, or the reason for its absence."""

    claims: dict[str, list[Claim]] = Field(default_factory=dict)
    """Numbers by the name of the quantity."""
    verdict: Text | None = None
    row: Text | None = None
    assumptions: list[dict[str, Any]] = Field(default_factory=list)
    rounding: Text | None = None
    jumps: Number = None
    """Relative change over a cycle of layers if the iteration jumps between several images; otherwise 0."""
    failure: Text | None = None


class Certified(Record):
    """The certificates of a method."""

    depth: Number = None
    images: list[CertifiedImage] = Field(default_factory=list)


class CertifiedFile(Record):
    """The result of ``retune certify`` for one image: a certificate, or the reason for its absence."""

    name: Text
    """Name of the file, with the number of the image if the file is a stack."""
    part: tuple[int, int] | None = None
    """Height and width of the certified middle; None for the whole image."""
    seconds: Number = None
    failure: Text | None = None
    certificate: Certified | None = None
    white_found: Number = None
    black_found: Number = None
    """White and black in the units of the file, if they were found there."""


class Certificates(Record):
    """The file of ``retune certify --json``."""

    format: int = 1
    retune: Text | None = None
    """The version that wrote the file."""
    model_sha256: Text | None = None
    problem: dict[str, Any] | None = None
    """The section [problem] of a run."""
    images: list[CertifiedFile]


class TrainingCertificate(Record):
    """``certificate.json`` of ``retune train``."""

    image: Text
    """Which image was measured, restored and certified."""
    pixels: tuple[int, int] | None = None
    """Its height and width."""
    solver: Text | None = None
    """The solver that restored it, and whether the network chose it; None in files of earlier versions."""
    certificate: CertifiedImage
