"""The numbers of a certificate, each with its kind and its assumptions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from retune.guarantee import Assumption
from retune.records.certificates import Basis

__all__ = ["Claim", "Number", "proved_kind"]


def proved_kind(assumptions: tuple[Assumption, ...]) -> str:
    """The kind of a bound with these assumptions: "proved" only if none is unchecked or random."""
    if not all(a.checked for a in assumptions):
        return "proved if its unchecked assumptions hold"
    failure = sum(1 - a.probability for a in assumptions)
    return "proved" if failure == 0 else f"proved with probability 1 − {failure:.0e}"


@dataclass(frozen=True)
class Number:
    """One number of a certificate.

    Attributes:
        value: the number.
        basis: proved (an upper bound), estimated (from below, by power iterations) or measured.
        how: the method; for an estimate with its iterations and spread.
        assumptions: the assumptions of a proved number.
    """

    value: float
    basis: Basis
    how: str
    assumptions: tuple[Assumption, ...] = ()

    @property
    def kind(self) -> str:
        """The basis in words.

        "proved" if all assumptions are checked, "proved with probability 1 − p" if one is a randomised estimate,
        "proved if its unchecked assumptions hold" otherwise; "estimated" or "measured".
        """
        return proved_kind(self.assumptions) if self.is_bound else self.basis.value

    @property
    def is_bound(self) -> bool:
        """Whether the number is an upper bound, with or without conditions."""
        return self.basis is Basis.PROVED

    @property
    def is_unconditional(self) -> bool:
        """Whether the number is an upper bound whose assumptions are all checked and certain."""
        return self.is_bound and all(a.checked and a.probability == 1 for a in self.assumptions)

    def to_dict(self) -> dict:
        """Plain data that JSON can hold (infinity and NaN become None)."""
        return {
            "value": self.value if math.isfinite(self.value) else None,
            "basis": self.basis.value,
            "kind": self.kind,
            "how": self.how,
            "assumptions": [a.to_dict() for a in self.assumptions],
        }


@dataclass(frozen=True)
class Claim:
    """One quantity by every available method: bound, estimate, measurement."""

    numbers: tuple[Number, ...] = ()

    def by(self, basis: Basis) -> Number | None:
        """The number with this basis, or None."""
        return next((n for n in self.numbers if n.basis is basis), None)

    @property
    def proved(self) -> Number | None:
        """The upper bound, with or without conditions (see its ``kind``), or None."""
        return self.by(Basis.PROVED)

    @property
    def estimated(self) -> Number | None:
        """The estimate, or None."""
        return self.by(Basis.ESTIMATED)

    @property
    def measured(self) -> Number | None:
        """The measurement, or None."""
        return self.by(Basis.MEASURED)

    @property
    def best(self) -> Number | None:
        """The bound if there is one, else the estimate or measurement."""
        return self.numbers[0] if self.numbers else None
