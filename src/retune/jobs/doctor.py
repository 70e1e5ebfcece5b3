"""Examine the operator of a problem and the measurements of a user, before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from retune.build import problem_of
from retune.config import Config
from retune.diagnosis import Diagnosis, doctor
from retune.errors import InvalidParameterError
from retune.io.intensity import Level, Unit, require_white
from retune.jobs.failures import failure
from retune.jobs.inputs import middle, read_in_unit
from retune.problems.base import Problem
from retune.records import ExaminedFile

__all__ = ["SIDE", "Examined", "examine", "examine_one"]

#: Larger images are cropped to this side: the examination takes some hundred evaluations of the operator.
SIDE = 1024


@dataclass(frozen=True)
class Examined:
    """The findings about one image, or about the operator alone.

    Attributes:
        name: name of the file; "the operator" without images.
        diagnosis: the findings; None if the examination failed.
        failure: the reason for the failure.
        part: (h, w) of the examined middle, or None for the whole image.
        unit: black and white, if they were found in the file.
    """

    name: str
    diagnosis: Diagnosis | None
    failure: str = ""
    part: tuple[int, int] | None = None
    unit: Unit | None = None

    @property
    def ok(self) -> bool:
        """Whether all findings are mere notes."""
        return self.diagnosis is not None and self.diagnosis.ok

    def record(self) -> ExaminedFile:
        """The entry in a result file."""
        found = {"failure": self.failure} if self.diagnosis is None else {"diagnosis": self.diagnosis.to_dict()}
        if self.unit is not None:
            found |= dict(zip(("black_found", "white_found"), self.unit.levels, strict=True))
        return ExaminedFile.model_validate({"name": self.name, "ok": self.ok, "part": self.part, **found})


def examine(
    config: Config,
    files: Sequence[Path] = (),
    *,
    size: tuple[int, int] = (128, 128),
    white: Level = None,
    black: Level = None,
    note: Callable[[Examined], None] = lambda done: None,
) -> list[Examined]:
    """Examine the operator with every image; without images, the operator alone.

    Args:
        config: the run whose problem is examined.
        files: measurements.
        size: (H, W) of the images of the operator, if there are no files.
        white: intensity (in the units of the files) that counts as 1; ``data.white`` of the run by default. If both
            are None, the values are examined unscaled. "auto" finds it in each file.
        black: intensity that counts as 0.
        note: called with each result.

    Raises:
        RetuneError: the problem cannot be built.
    """
    white = config.data.white if white is None else white
    require_white(white, black)
    if min(size) < 1:
        raise InvalidParameterError(f"the size must be at least 1×1, got {size[0]}×{size[1]}")
    if not files:
        problem = problem_of(config.problem)
        shape = (_channels(config, problem), *size)
        found = Examined("the operator", doctor(problem.physics(shape), img_size=shape))
        note(found)
        return [found]
    done: list[Examined] = []
    for file in files:
        for found in _examine_file(config, file, white, black):
            done.append(found)
            note(found)
    return done


def _examine_file(config: Config, file: Path, white: Level, black: Level) -> list[Examined]:
    try:
        measured, unit = read_in_unit(file, config.problem, white, black, in_range=False)
    except Exception as error:
        return [Examined(file.name, None, failure(error))]
    found = unit if unit.auto else None
    return [replace(examine_one(config, name, image), unit=found) for name, image in measured]


def examine_one(config: Config, name: str, image: Tensor, side: int = SIDE) -> Examined:
    """Examine the operator with one measurement (1, C, h, w); of a larger one its middle, of `side` pixels."""
    part = None
    try:
        problem, y = middle(problem_of(config.problem, image), image, side)
        part = None if y.shape == image.shape else (y.shape[-2], y.shape[-1])
        return Examined(name, doctor(problem.operator(y), y), part=part)
    except Exception as error:
        return Examined(name, None, failure(error), part)


def _channels(config: Config, problem: Problem) -> int:
    """The number of channels: that of the noise levels, of the kernel, or of the training images."""
    levels = len(problem.sigma) if isinstance(problem.sigma, tuple) else 1
    kernel = getattr(problem, "kernel", None)
    return max(levels, 1 if kernel is None else kernel.shape[1], 1 if config.data.grey else 3)
