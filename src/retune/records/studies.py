"""``study.json``: the results of ``retune study``, from which its page is made."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from pydantic import Field, StrictBool

from retune.records.base import Number, Record, Text

__all__ = ["Raced", "StepCost", "Study", "StudyCell", "StudyDepth", "StudyImage", "equal_time"]

#: The format of study.json that this version writes.
FORMAT = 1


class StudyCell(Record):
    """A training step with K layers after R restarts, on one image. An unknown number is None."""

    depth: int
    """K."""
    restarts: int
    """R."""
    gradient_error: Number = None
    """``‖g − g*‖/‖g*‖`` of the gradient of the learned parameters; g* by implicit differentiation."""
    cosine: Number = None
    """Cosine of the angle between g and g*."""
    reported: Number = None
    """The relative error of the adjoint in the report of the step itself."""
    distance: Number = None
    """``‖u − u*‖`` of the state u after the R restarts, relative to the size of u."""
    certified: Number = None
    """The same distance by the certificate: its bound if it has one, else its estimate."""
    certified_kind: Text | None = None
    """"proved …" or "estimated"."""
    distance_bound: Number = None
    """``ρ^{KR}‖u₀ − u*‖/‖u‖`` with the proved factor ρ of a layer; None if none below 1 is proved, or if the solver
    does not run plain layers."""
    distance_expected: Number = None
    """The same with the estimated asymptotic factor ρ."""


class StudyDepth(Record):
    """K layers at the equilibrium itself: the limit of infinitely many restarts."""

    depth: int
    adjoint_error: Number = None
    """``‖w − w*‖/‖w*‖`` of the adjoint of the K-layer block, against the solved adjoint equation."""
    gradient_error: Number = None
    cosine: Number = None
    reported: Number = None
    bound: Number = None
    """``ρ^{KM}`` with the proved factor ρ of a layer; None if none below 1 is proved."""
    expected: Number = None
    """``ρ^{KM}`` with the estimated asymptotic factor ρ."""


class StudyImage(Record):
    """One image, or the mean over the images: geometric, but arithmetic for cosines."""

    name: Text
    rate_proved: Number = None
    """Proved factor per layer, by the certificate; None if none below 1 is proved."""
    rate_kind: Text | None = None
    """The kind of the proved factor: "proved", or "proved" with a condition."""
    rate_estimated: Number = None
    """Asymptotic factor per layer, by the power iterations of the certificate."""
    rate_distance: Number = None
    """Factor per layer, fitted to the measured distances."""
    rate_gradient: Number = None
    """Factor per layer, fitted to the error of the adjoint against K·M."""
    start: Number = None
    """Relative distance of the first state."""
    reference_error: Number = None
    """Relative distance of the reference u* to the equilibrium, by the certificate."""
    exact_error: Number = None
    """Largest relative error of the solved adjoint equations."""
    exact_measured: bool = False
    """Whether that error was measured against dense linear algebra, as on small images; otherwise it is estimated."""
    depths: list[StudyDepth] = Field(default_factory=list)
    cells: list[StudyCell] = Field(default_factory=list)

    def at(self, depth: int, restarts: int) -> StudyCell:
        """The cell (K, R)."""
        return next(c for c in self.cells if (c.depth, c.restarts) == (depth, restarts))


class StepCost(Record):
    """A training step on one image, in the precision of the training."""

    depth: int
    restarts: int
    seconds: Number
    """Measured step without restarts, and K·R times the measured time of a layer."""
    memory: Number
    """Peak bytes of tensors."""


class Raced(Record):
    """A training for a given time."""

    key: Text
    label: Text
    depth: int
    restarts: int
    seed: int
    steps: int = 0
    seconds: list[Number] = Field(default_factory=list)
    """Time of the training steps alone."""
    psnr: list[Number] = Field(default_factory=list)
    """Mean over the validation images at these times, dB."""
    failure: Text | None = None

    def psnr_at(self, second: float) -> float | None:
        """PSNR at a time, by linear interpolation; the last one afterwards, None without any."""
        pairs = zip(self.seconds, self.psnr, strict=False)
        points = [(float(s), float(p)) for s, p in pairs if s is not None and p is not None]
        for (a, p), (b, q) in pairwise(points):
            if a <= second <= b and b > a:
                return p + (q - p) * (second - a) / (b - a)
        return points[-1][1] if points else None


def equal_time(races: Iterable[Raced]) -> float | None:
    """The time that every training has reached; None without trainings."""
    return min((float(one.seconds[-1] or 0) for one in races if one.seconds), default=None)


class Study(Record):
    """A result file."""

    format: int = FORMAT
    retune: Text
    command: Text | None = None
    quick: StrictBool = False
    seed: int | None = None
    device: Text | None = None
    versions: dict[str, Any] | None = None
    problem: dict[str, Any] | None = None
    about: list[Text] = Field(default_factory=list)
    """Phrases on the network and the images."""
    parameters: int | None = None
    """Number of learned parameters: the length of the gradients."""
    blocks: int = 1
    """M, the adjoint blocks of a step."""
    depths: list[int]
    restarts: list[int]
    images: list[StudyImage] = Field(min_length=1)
    mean: StudyImage
    costs: list[StepCost] = Field(default_factory=list)
    races: list[Raced] = Field(default_factory=list)
    train_seconds: Number = None

    def cost(self, depth: int, restarts: int) -> StepCost | None:
        """The cost of the cell (K, R)."""
        return next((c for c in self.costs if (c.depth, c.restarts) == (depth, restarts)), None)

    @classmethod
    def read(cls, where: str | Path) -> Self:
        """Read the study in a folder or file.

        Raises:
            InvalidParameterError: the file cannot be read or is not a study.
        """
        where = Path(where)
        path = where / "study.json" if where.is_dir() else where
        return cls.parsed(path.read_bytes(), str(path))
