"""The options of a study, checked at their construction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from retune.errors import InvalidParameterError, require_real, require_whole

__all__ = ["DEPTHS", "QUICK", "RESTARTS", "StudyOptions"]

DEPTHS = (1, 2, 5, 10, 20, 50)
RESTARTS = (0, 1, 2, 5, 10, 25, 50)


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """The options of [`study`][retune.studies.study].

    Raises:
        InvalidParameterError: an option has the wrong type or is out of range.
    """

    depths: tuple[int, ...] | None = None
    """The values of K, multiples of the cycle of the map; by default those of 1, 2, 5, 10, 20 and 50 that are."""
    restarts: tuple[int, ...] = RESTARTS
    """The values of R."""
    images: int = 2
    """Number of images."""
    crop: int = 96
    """Side of the central part of each image, in pixels."""
    beyond: int = 20_000
    """Maximum number of layers from the largest cell to the reference."""
    train_seconds: float = 10.0
    """Training time of each method and seed; 0 leaves the trainings out."""
    seeds: int = 3
    """Trainings of each method."""

    def __post_init__(self):
        for name in ("images", "crop", "beyond", "seeds"):
            if require_whole(name, getattr(self, name)) < 1:
                raise InvalidParameterError(f"{name} must be at least 1, got {getattr(self, name)}")
        seconds = require_real("train_seconds", self.train_seconds)
        if not 0 <= seconds < math.inf:
            raise InvalidParameterError(f"train_seconds must be finite and ≥ 0, got {seconds}")
        for name, least in (("depths", 1), ("restarts", 0)):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, _ascending(name, given, least))

    def depths_for(self, layers: int) -> tuple[int, ...]:
        """The values of K for a map with this number of layers in a cycle.

        Raises:
            InvalidParameterError: a given value is not a multiple of it.
        """
        if self.depths is None:
            return tuple(sorted({layers, *(k for k in DEPTHS if k % layers == 0)}))
        wrong = [k for k in self.depths if k % layers]
        if wrong:
            raise InvalidParameterError(
                f"depths must be multiples of the map's cycle of {layers} layers, got {wrong[0]}; leave depths out for "
                "the usual ones that are"
            )
        return self.depths


def _ascending(name: str, values: Sequence[int], least: int) -> tuple[int, ...]:
    found = tuple(sorted({require_whole(name, v) for v in values}))
    if not found or found[0] < least:
        raise InvalidParameterError(f"{name} must be whole numbers ≥ {least}, at least one, got {tuple(values)}")
    return found


#: A small grid on a small part of one image.
QUICK = StudyOptions(
    depths=(1, 2, 5, 10), restarts=(0, 1, 3, 10), images=1, crop=32, beyond=4000, train_seconds=0.5, seeds=1
)
