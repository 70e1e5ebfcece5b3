"""What a certificate says: numbers, each with its kind and what it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

from retune.guarantee import Assumption

__all__ = ["Certificate", "Claim", "ImageCertificate", "Number", "proved_kind"]

PROVED, ESTIMATED, MEASURED = "proved", "estimated", "measured"
CONDITIONAL = "proved if its unchecked assumptions hold"


def proved_kind(assumptions: tuple[Assumption, ...]) -> str:
    """How a bound must be called that rests on these: "proved" only if nothing is left to belief or to chance."""
    if not all(a.checked for a in assumptions):
        return CONDITIONAL
    failure = sum(1 - a.probability for a in assumptions)
    return PROVED if failure == 0 else f"proved with probability 1 − {failure:.0e}"


@dataclass(frozen=True)
class Number:
    """One number of a certificate.

    Attributes:
        value: the number.
        kind: "proved" (an upper bound whose assumptions have all been checked), "proved with probability 1 − p" (one
            of them is a randomised estimate), "proved if its unchecked assumptions hold" (somebody is believed),
            "estimated" (by power iterations: from below) or "measured".
        how: how it was found; for an estimate with its iterations and spread.
        assumptions: what a proved number rests on.
    """

    value: float
    kind: str
    how: str
    assumptions: tuple[Assumption, ...] = ()

    @property
    def is_bound(self) -> bool:
        """Whether it is an upper bound, with or without conditions."""
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
    """One quantity, by as many routes as there are: bound, estimate, measurement."""

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


@dataclass(frozen=True)
class ImageCertificate:
    """Everything that is claimed of one image.

    Attributes:
        step_size: ``τL/2``, the largest of the layers: the step as a share of ``2/L``; below 1 is what is needed.
        layer_factor: Lipschitz constant of one layer (the largest of a cycle).
        block_factor: of the block of K layers.
        rate: asymptotic factor per layer (spectral radius of the Jacobian at the equilibrium).
        residual: relative change over one block of K layers.
        distance: ``‖u − u*‖`` of the state.
        relative_distance: ``‖u − u*‖/‖u‖``.
        rmse: root mean square difference between image and equilibrium image, in units of intensity.
        gradient_error: relative error of the adjoint with which the K-layer gradient is formed at the equilibrium.
        row: which row of the table of guarantees the image stands on.
        statement: what is proved of the iterates, in one clause; "" if nothing is.
        assumptions: what that, and every proved number, rests on.
        strong_convexity: μ, and where it comes from.
        status: how the solve ended.
        layers: layers run by the solve.
        dtype: the arithmetic that the numbers were computed in.
        refuted: the estimate that exceeds its bound, so that an assumption is wrong and nothing is called proved; ""
            if none does.
        rounding: what the bounds of distances allow for it.
        parts: pieces that were solved each for itself (tiles, pages), of which every number is the worst.
    """

    step_size: Claim
    layer_factor: Claim
    block_factor: Claim
    rate: Claim
    residual: Claim
    distance: Claim
    relative_distance: Claim
    rmse: Claim
    gradient_error: Claim
    row: str
    statement: str
    assumptions: tuple[Assumption, ...]
    strong_convexity: tuple[float, str]
    status: str
    layers: int
    dtype: str
    refuted: str = ""
    rounding: str = ""
    parts: int = 1

    @property
    def claims(self) -> dict[str, Claim]:
        """The quantities by name."""
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Claim)}

    @property
    def verdict(self) -> str:
        """One sentence."""
        from retune.certificate.words import verdict

        return verdict(self)

    def to_dict(self) -> dict:
        """Plain data that JSON can hold."""
        return {
            "verdict": self.verdict,
            "row": self.row,
            "statement": self.statement,
            "status": self.status,
            "layers": self.layers,
            "dtype": self.dtype,
            "rounding": self.rounding,
            "refuted": self.refuted,
            "parts": self.parts,
            "strong_convexity": {"value": self.strong_convexity[0], "from": self.strong_convexity[1]},
            "assumptions": [a.to_dict() for a in self.assumptions],
            "claims": {name: [n.to_dict() for n in claim.numbers] for name, claim in self.claims.items()},
        }


@dataclass(frozen=True)
class Certificate:
    """One :class:`ImageCertificate` per image of the batch; printed, a short table and a verdict for each.

    Attributes:
        images: one entry per image.
        depth: K.
        gradient: the gradient rule, in words.
    """

    images: tuple[ImageCertificate, ...]
    depth: int
    gradient: str

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> ImageCertificate:
        return self.images[i]

    def __iter__(self) -> Iterator[ImageCertificate]:
        return iter(self.images)

    def to_dict(self) -> dict:
        """Plain data that JSON can hold; what the report reads."""
        return {"depth": self.depth, "gradient": self.gradient, "images": [i.to_dict() for i in self.images]}

    def __str__(self) -> str:
        from retune.certificate.words import text

        return text(self)

    __repr__ = __str__
