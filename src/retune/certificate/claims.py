"""The numbers of a certificate, each with its kind and its assumptions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from retune.guarantee import Assumption

__all__ = ["CONDITIONAL", "ESTIMATED", "MEASURED", "PROVED", "Claim", "Number", "proved_kind"]

PROVED, ESTIMATED, MEASURED = "proved", "estimated", "measured"
CONDITIONAL = "proved if its unchecked assumptions hold"


def proved_kind(assumptions: tuple[Assumption, ...]) -> str:
    """The kind of a bound with these assumptions: "proved" only if none is unchecked or random."""
    if not all(a.checked for a in assumptions):
        return CONDITIONAL
    failure = sum(1 - a.probability for a in assumptions)
    return PROVED if failure == 0 else f"proved with probability 1 − {failure:.0e}"


@dataclass(frozen=True)
class Number:
    """One number of a certificate.

    Attributes:
        value: the number.
        kind: "proved" (an upper bound; all its assumptions are checked), "proved with probability 1 − p" (an assumption
            is a randomised estimate), "proved if its unchecked assumptions hold" (an assumption is not checked),
            "estimated" (from below, by power iterations) or "measured".
        how: the method; for an estimate with its iterations and spread.
        assumptions: the assumptions of a proved number.
    """

    value: float
    kind: str
    how: str
    assumptions: tuple[Assumption, ...] = ()

    @property
    def is_bound(self) -> bool:
        """Whether the number is an upper bound, with or without conditions."""
        return self.kind.startswith(PROVED)

    def to_dict(self) -> dict:
        """Plain data that JSON can hold (infinity and NaN become None)."""
        return {
            "value": self.value if math.isfinite(self.value) else None,
            "kind": self.kind,
            "how": self.how,
            "assumptions": [a.to_dict() for a in self.assumptions],
        }


@dataclass(frozen=True)
class Claim:
    """One quantity by every available method: bound, estimate, measurement."""

    numbers: tuple[Number, ...] = ()

    def _first(self, kind: str) -> Number | None:
        return next((n for n in self.numbers if n.kind.startswith(kind)), None)

    @property
    def proved(self) -> Number | None:
        """The upper bound, with or without conditions (see its ``kind``), or None."""
        return self._first(PROVED)

    @property
    def estimated(self) -> Number | None:
        """The estimate, or None."""
        return self._first(ESTIMATED)

    @property
    def measured(self) -> Number | None:
        """The measurement, or None."""
        return self._first(MEASURED)

    @property
    def best(self) -> Number | None:
        """The bound if there is one, else the estimate or measurement."""
        return self.numbers[0] if self.numbers else None
