"""Certificates in files: of a comparison, of a training, and those that ``retune certify`` writes."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field

from retune.records.base import Number, Record, Text

__all__ = ["Certificates", "Certified", "CertifiedFile", "CertifiedImage", "Claim", "Distance", "TrainingCertificate"]


class Distance(StrEnum):
    """How the distance to the equilibrium is known."""

    PROVED = "proved"
    ESTIMATED = "estimated"


class Claim(Record):
    """One number of a certificate."""

    value: Number
    """The number; None where it is not known."""
    kind: Text
    """proved, proved under assumptions, estimated, or measured."""
    how: Text
    """How it was found."""

    @property
    def proved(self) -> bool:
        """Whether it is a bound, under assumptions or without."""
        return self.kind.startswith(Distance.PROVED)


class CertifiedImage(Record):
    """The certificate of one image, or why there is none."""

    claims: dict[str, list[Claim]] = Field(default_factory=dict)
    """Numbers by the name of the quantity."""
    verdict: Text | None = None
    row: Text | None = None
    assumptions: list[dict[str, Any]] = Field(default_factory=list)
    rounding: Text | None = None
    jumps: Number = None
    """Relative change over a cycle of layers, where the iteration jumps between several images; 0 where it does not."""
    failure: Text | None = None


class Certified(Record):
    """The certificates of a method."""

    depth: Number = None
    images: list[CertifiedImage] = Field(default_factory=list)


class CertifiedFile(Record):
    """What ``retune certify`` found of an image: a certificate, or why there is none."""

    name: Text
    """Of the file, with the number of the image if it is one of a stack."""
    part: tuple[int, int] | None = None
    """Height and width of the middle that was certified; None for the whole image."""
    seconds: Number = None
    failure: Text | None = None
    certificate: Certified | None = None


class Certificates(Record):
    """The file of ``retune certify --json``."""

    format: int = 1
    retune: Text | None = None
    """The version that wrote it."""
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
    certificate: CertifiedImage
