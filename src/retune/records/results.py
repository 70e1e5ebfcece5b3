"""``results.json``: the results of ``retune compare`` and ``retune demo``, from which the report is made."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, StrictBool, field_validator, model_validator

from retune._plain import RECORDS, parse_json
from retune.errors import InvalidParameterError
from retune.records.base import Number, Record, Text
from retune.records.certificates import Basis, Certified

__all__ = [
    "Curve",
    "MethodResult",
    "Methods",
    "Pictures",
    "ProblemResult",
    "Results",
    "Scores",
    "Training",
    "Verdict",
    "horizons",
    "longest",
]

#: The format of results.json that this version reads and writes.
FORMAT = 1
_EXPECTED = 'expected a results.json written by "retune demo" or "retune compare"'
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LONGER = re.compile(r"(psnr|residual)_([1-9]\d*)x")


class Curve(Record):
    """Means over the images, as functions of the number of layers."""

    layers: list[Number] = Field(default_factory=list)
    psnr: list[Number] = Field(default_factory=list)
    residual: list[Number] = Field(default_factory=list)

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        for key in ("psnr", "residual"):
            if (found := getattr(self, key)) and len(found) != len(self.layers):
                raise ValueError(
                    f"the length of {key} is {len(found)}, expected {len(self.layers)}, one for each of «layers»"
                )
        return self


class Training(Record):
    """A training."""

    loss: list[Number] = Field(default_factory=list)


class Scores(Record):
    """The scores of a method, for one test image or for all of them.

    PSNR and residual after n times the trained depth are called ``psnr_<n>x`` and ``residual_<n>x``. An unknown score
    is None or left out.
    """

    psnr: Number = None
    """Mean over the test images, dB."""
    psnr_per_image: list[Number] | None = None
    ssim: Number = None
    psnr_trained: Number = None
    """PSNR at the trained depth, dB."""
    layers_trained: Number = None
    layers_run: list[Number] | None = None
    status: list[Text] | None = None
    residual: Number = None
    seconds_restoring: Number = None
    """The certificate of one test image."""
    curve: Curve | None = None
    certificate: Certified | None = None

    @model_validator(mode="after")
    def _numbers(self) -> Self:
        for key, value in (self.model_extra or {}).items():
            if _LONGER.fullmatch(key) and (isinstance(value, bool) or not isinstance(value, int | float | None)):
                raise ValueError(f"{key} is {value!r}, expected a number or null")
        return self


class MethodResult(Scores):
    """A row of the table."""

    label: Text | None = None
    how: Text | None = None
    failure: Text | None = None
    """The reason for a failed training."""
    remark: Text | None = None
    """A remark for the reader."""
    gradient_error: Number = None
    distance: Number = None
    """The largest certified relative distance to the equilibrium."""
    distance_kind: Basis | None = None
    seconds: Number = None
    """Time of training or tuning."""
    steps: int | None = None
    """Number of training steps, if a time was given instead."""
    memory: Number = None
    """Bytes at the peak of a training step."""
    images: list[Text] | None = None
    """Files of the restored images, relative to the folder of the results."""
    training: Training | None = None
    learned: dict[str, Any] | None = None
    """Parameters by name."""

    @property
    def horizons(self) -> list[int]:
        """The multiples of the trained depth at which the PSNR is known."""
        found = (_LONGER.fullmatch(key) for key in self.model_extra or {})
        return sorted({int(match[2]) for match in found if match and match[1] == "psnr"})

    def psnr_after(self, times: int | None) -> float | None:
        """PSNR after that many times the trained depth, dB."""
        return (self.model_extra or {}).get(f"psnr_{times}x")

    @property
    def change(self) -> float | None:
        """PSNR at the largest multiple of the trained depth minus the PSNR of the output, in dB."""
        later = self.psnr_after(longest([self]))
        return None if self.psnr is None or later is None else later - self.psnr


#: Rows by the key of the method.
Methods = dict[str, MethodResult]


class Pictures(Record):
    """The shown test images: their names, and the files of the truth and of the measurement."""

    names: list[Text] = Field(default_factory=list)
    truth: list[Text] = Field(default_factory=list)
    measurement: list[Text] = Field(default_factory=list)


class ProblemResult(Record):
    """The methods on one problem."""

    title: Text | None = None
    description: Text | None = None
    problem: dict[str, Any] | None = None
    """Its parameters."""
    psnr_measurement: Number = None
    images: Pictures | None = None
    methods: Methods = Field(min_length=1)

    @model_validator(mode="after")
    def _as_many_as_test_images(self) -> Self:
        images = self.images or Pictures()
        count = len(images.truth)
        rows: list[tuple[str, Sequence | None, bool]] = [
            ("images.names", images.names, False),
            ("images.measurement", images.measurement, False),
        ]
        for name, method in self.methods.items():
            rows.append((f"methods.{name}.images", method.images, False))
            # there may be pictures of the first images only
            rows.append((f"methods.{name}.psnr_per_image", method.psnr_per_image, True))
        for name, found, more in rows:
            if found and count and (len(found) < count or (len(found) > count and not more)):
                least = "at least " if more else ""
                raise ValueError(f"{name} has {len(found)}, expected {least}{count} entries, one per test image")
        return self

    @field_validator("methods", mode="before")
    @classmethod
    def _named(cls, methods: Any) -> Any:
        return _with_names(methods)


class Verdict(Record):
    """Whether a claim holds."""

    claim: Text
    holds: StrictBool
    problem: Text | None = None
    """Key of the problem of the claim; None for all problems."""
    detail: Text | None = None
    """The numbers that decide."""


class Results(Record):
    """A result file."""

    format: int = FORMAT
    retune: Text | None = None
    command: Text | None = None
    quick: StrictBool = False
    """Whether there were too few training steps to draw conclusions."""
    seed: int | None = None
    seconds: Number = None
    device: Text | None = None
    threads: int | None = None
    cores: int | None = None
    versions: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    problems: dict[str, ProblemResult] = Field(min_length=1)
    verdicts: list[Verdict] = Field(default_factory=list)

    @field_validator("problems", mode="before")
    @classmethod
    def _named(cls, problems: Any) -> Any:
        return _with_names(problems)

    @property
    def methods(self) -> list[MethodResult]:
        """The rows of all problems."""
        return [method for problem in self.problems.values() for method in problem.methods.values()]

    @classmethod
    def checked(cls, values: Any, source: str = "results") -> Self:
        """The results that plain data describe; see ``Record.checked``.

        Raises:
            InvalidParameterError: see ``Record.checked``; or the file has another format or comes from another program.
        """
        if not isinstance(values, dict) or "format" not in values:
            raise InvalidParameterError(f"{source} is not a result file of ReTune (it has no «format»); {_EXPECTED}")
        if values["format"] != FORMAT:
            raise InvalidParameterError(
                f"{source} has format {values['format']!r} (written by ReTune {values.get('retune', 'unknown')}), but "
                f"this version reads format {FORMAT}: use the version that wrote it, or run the command again"
            )
        return super().checked(values, source)

    @classmethod
    def read(cls, where: str | Path) -> Self:
        """Read the results in a folder or file.

        Args:
            where: a folder with a ``results.json``, or such a file.

        Raises:
            InvalidParameterError: the file is missing, truncated, of another format, or no result file.
        """
        where = Path(where)
        path = where / "results.json" if where.is_dir() else where
        if not path.is_file():
            raise InvalidParameterError(f'there is no result file {path}; "retune demo --out FOLDER" writes one')
        try:
            values = parse_json(path.read_bytes(), RECORDS)
        except (ValueError, OSError) as error:
            size = path.stat().st_size
            raise InvalidParameterError(
                f"{path} cannot be read ({size} bytes): «{error}». It is truncated or not JSON; {_EXPECTED}"
            ) from error
        return cls.checked(values, str(path))


def horizons(methods: Iterable[MethodResult]) -> list[int]:
    """The multiples of the trained depth to which at least one method was run."""
    return sorted({times for method in methods for times in method.horizons})


def longest(methods: Iterable[MethodResult]) -> int | None:
    """The largest of ``horizons`` at which at least one method has a PSNR."""
    methods = list(methods)
    known = (n for n in horizons(methods) if any(m.psnr_after(n) is not None for m in methods))
    return max(known, default=None)


def finite(value: float | None) -> float | None:
    """The number if it is finite, or None."""
    return value if value is not None and math.isfinite(value) else None


def _with_names(table: Any) -> Any:
    """The table; raise if a key cannot be a part of a file name."""
    for name in table if isinstance(table, dict) else ():
        if not _NAME.fullmatch(str(name)):
            raise ValueError(f"a name is {name!r}, expected letters, digits, «_», «-» and «.» (it becomes a file name)")
    return table
