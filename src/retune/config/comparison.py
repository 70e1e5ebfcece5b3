"""The section of a comparison, and the allowed values of each field."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictBool, StrictInt, field_validator

from retune.config.fields import Count, Multiple, Positive, Section

__all__ = ["CompareConfig"]


class CompareConfig(Section):
    """The test images of retune compare, and the allowed effort of each method."""

    test: str = "photographs"
    """Folder or file of sharp images that no method has seen; "photographs" uses two shipped images."""
    every: Count = 1
    """Report on every n-th test image."""
    crop: Count | None = None
    """Side of the central part of each test image; default: whole images."""
    validation_every: Count = 1
    """Tune on every n-th validation image."""
    validation_crop: Count = 128
    """Side of the central part of each validation image."""
    grid: Annotated[StrictInt, Field(ge=4, le=10_000)] = 12
    """Number of values of each grid search."""
    lr: list[Positive] = Field(default_factory=list)
    """Learning rates to try for every learned method; the best result is kept. Empty: only optimiser.lr."""
    seconds: Positive | None = None
    """Train each method for this time, without validations, instead of for optimiser.steps: equal time for all."""
    reg_range: tuple[Positive, Positive] = (5e-4, 5.0)
    """Smallest and largest λ of the grid search."""
    far: Multiple | Annotated[list[Multiple], Field(min_length=1, max_length=100)] = 10
    """Runs longer than the training depth by these factors, to see whether the result stays: a number, or several."""
    run_on: list[str] = Field(default_factory=list)
    """Methods that continue even after they have settled: slower, but it shows that they stay."""
    certify: Annotated[StrictInt, Field(ge=0, le=1_000_000)] = 1
    """Number of test images, from the first, whose distance to the equilibrium is certified."""
    certified: list[str] = Field(default_factory=list)
    """Methods whose restorations are certified; default: all."""
    memory: StrictBool = True
    """Whether the memory of a training step is measured."""
    about: str = ""
    """A sentence about the measurements, for the report."""

    @field_validator("reg_range")
    @classmethod
    def _ascending(cls, reg_range: tuple[float, float]) -> tuple[float, float]:
        if reg_range[0] >= reg_range[1]:
            raise ValueError("the first number should be less than the second")
        return reg_range

    @property
    def multiples(self) -> tuple[int, ...]:
        """The values of `far` in ascending order."""
        return tuple(sorted(set(self.far if isinstance(self.far, list) else [self.far])))
