"""One certificate for an image that was solved in parts (its tiles, or the pages of its file)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from retune.certificate.claims import Claim, Number
from retune.certificate.document import ImageCertificate
from retune.equilibrium import Status
from retune.guarantee import Assumption
from retune.records.certificates import Basis

__all__ = ["worst_part"]


def worst_part(parts: Sequence[ImageCertificate]) -> ImageCertificate:
    """A certificate that holds for every part: the largest of each number, and a bound only if all parts have one.

    It covers the parts, each with the equilibrium of its own problem (a tile includes its margins). It does not cover
    the blending of the seams. The failure probabilities of randomised bounds add up (union bound).

    Args:
        parts: their certificates, at least one.
    """
    if len(parts) == 1:
        return parts[0]
    # The texts come from the part with the weakest guarantee.
    weakest = min(parts, key=lambda p: (not p.refuted, p.rmse.proved is not None, bool(p.statement)))
    claims = {name: _claim([p.claims[name] for p in parts]) for name in weakest.claims}
    return replace(
        weakest,
        **claims,
        assumptions=_together([p.assumptions for p in parts]),
        strong_convexity=min((p.strong_convexity for p in parts), key=lambda s: s[0]),
        refuted=next((p.refuted for p in parts if p.refuted), ""),
        status=next((p.status for p in parts if p.status is not Status.CONVERGED), Status.CONVERGED),
        jumps=max(p.jumps for p in parts),
        layers=max(p.layers for p in parts),
        parts=sum(p.parts for p in parts),
    )


def _claim(claims: Sequence[Claim]) -> Claim:
    """One number for each method that every part has."""
    found = []
    for basis in Basis:
        numbers = [n for claim in claims if (n := claim.by(basis))]
        if len(numbers) < len(claims):
            continue
        worst = max(numbers, key=lambda n: n.value)
        rests = _together([n.assumptions for n in numbers])
        found.append(Number(worst.value, basis, f"the worst of {len(claims)} parts: {worst.how}", rests))
    return Claim(tuple(found))


def _together(each: Sequence[tuple[Assumption, ...]]) -> tuple[Assumption, ...]:
    """The assumptions of all parts, each once. The failure probabilities of the parts add up."""
    found: dict[tuple[str, bool], list[Assumption]] = {}
    for assumption in (a for assumptions in each for a in assumptions):
        found.setdefault((assumption.statement, assumption.checked), []).append(assumption)
    return tuple(
        replace(same[0], probability=max(0.0, 1 - sum(1 - a.probability for a in same))) for same in found.values()
    )
