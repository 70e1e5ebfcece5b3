"""``report/NAME.json`` in a folder of results: the pictures and sentences of one section of ``report.html``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from retune._plain import parse_json
from retune.errors import InvalidParameterError
from retune.records.base import Number, Record, Text

__all__ = ["Encoded", "Pictured", "PicturedImage", "PicturedKernel", "PicturedResidual"]

#: The largest file that is read.
MOST = 64_000_000
_Line = Annotated[list[Text], Field(min_length=2, max_length=2)]


class Encoded(Record):
    """A picture."""

    format: Literal["png", "jpeg"]
    data: Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9+/]*={0,2}$")]
    """In Base64."""
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]

    @property
    def uri(self) -> str:
        """A data URL."""
        return f"data:image/{self.format};base64,{self.data}"


class PicturedKernel(Record):
    """A blur kernel."""

    picture: Encoded
    centre: tuple[float, float]
    """Position of its centre from the left and from the top, as shares of the picture."""
    text: Text


class PicturedResidual(Record):
    """The residual ``y − A x̂`` in units of the noise; see ``retune.diagnosis.residual``."""

    kind: Text
    sentence: Text
    size: Number = None
    beyond: Number = None
    histogram: list[float] = Field(default_factory=list)
    spectrum: list[tuple[float, float]] = Field(default_factory=list)
    notes: list[Text] = Field(default_factory=list)
    """How it was made."""
    picture: Encoded | None = None


class PicturedImage(Record):
    """One measurement and its restoration."""

    name: Text
    thumbnail: Encoded | None = None
    before: Encoded | None = None
    after: Encoded | None = None
    middle_before: Encoded | None = None
    """The middle, pixel by pixel, of an image that is shown reduced."""
    middle_after: Encoded | None = None
    notes: list[Text] = Field(default_factory=list)
    """How it is shown."""
    kernel: PicturedKernel | None = None
    mask: Encoded | None = None
    mask_note: Text = ""
    residual: PicturedResidual | None = None


class Pictured(Record):
    """``report/NAME.json``: one section of the page ``report.html``."""

    format: int = 1
    retune: Text
    """The version that wrote it."""
    verb: Literal["restore", "tune"]
    file: Text
    """The name of the result; that of the record of a tuning."""
    made: Text
    """SHA-256 of the record of the result, which tells whether the section is of this result."""
    title: Text
    verdict: list[Text] = Field(default_factory=list)
    """The most important facts."""
    certificate: list[Text] = Field(default_factory=list)
    facts: list[_Line] = Field(default_factory=list)
    """Assumptions and findings: pairs of a name and a value."""
    doubts: list[Text] = Field(default_factory=list)
    images: list[PicturedImage] = Field(default_factory=list)

    @property
    def detailed(self) -> bool:
        """Whether it has more pictures than a thumbnail."""
        return any(image.before is not None for image in self.images)

    @classmethod
    def of(cls, content: bytes, file: str) -> Pictured | None:
        """The section in the content of a file if it is one of ours for the result `file`; None for anything else."""
        try:
            values = parse_json(content, MOST)
            if not isinstance(values, dict) or "retune" not in values or values.get("file") != file:
                return None
            return cls.checked(values, file)
        except (ValueError, InvalidParameterError):
            return None
