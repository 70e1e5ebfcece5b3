"""Certificates as rows of a table."""

from __future__ import annotations

from dataclasses import dataclass

from retune.records import Certified, Claim
from retune.report.numbers import MISSING, power

__all__ = ["CertificateRow", "CertificateTable", "certificate_table"]

#: The claims that a report shows, with their labels; {K} is the depth.
CLAIMS = {
    "step_size": "step size ÷ (2/L)",
    "layer_factor": "factor of one layer",
    "block_factor": "factor of {K} layers",
    "averaged": "averaged, α",
    "rate": "asymptotic factor per layer",
    "residual": "relative change in {K} layers",
    "relative_distance": "relative distance to the equilibrium",
    "rmse": "distance to the equilibrium, RMSE",
    "gradient_error": "relative error of the adjoint of the gradient",
}


@dataclass(frozen=True)
class CertificateRow:
    """One quantity: the bound with its kind, and the estimate or measurement with its method."""

    name: str
    bound: str
    bound_kind: str
    other: str
    other_kind: str
    how: str


@dataclass(frozen=True)
class CertificateTable:
    """The table of one image."""

    title: str
    verdict: str
    row: str
    rows: list[CertificateRow]
    assumptions: list[str]


def certificate_table(certificate: Certified | None, names: list[str] | None = None) -> list[CertificateTable]:
    """One table per image.

    Args:
        certificate: the certificate in a result file; None for no table.
        names: names of the images.
    """
    if certificate is None:
        return []
    depth = "K" if certificate.depth is None else f"{certificate.depth:g}"
    tables = []
    for i, image in enumerate(certificate.images):
        claims = image.claims
        rows = [_row(label.format(K=depth), claims[name]) for name, label in CLAIMS.items() if claims.get(name)]
        tables.append(
            CertificateTable(
                title=names[i] if names and i < len(names) else f"image {i}",
                verdict=image.verdict or "",
                row=image.row or "",
                rows=rows,
                assumptions=[
                    f"{a['statement']} ({'' if a['checked'] else 'not '}checked: {a['how']})" for a in image.assumptions
                ]
                + ([f"Bounds of distances allow for rounding: {image.rounding}"] if image.rounding else []),
            )
        )
    return tables


def _row(name: str, numbers: list[Claim]) -> CertificateRow:
    bound = next((n for n in numbers if n.proved), None)
    other = next((n for n in numbers if n is not bound), None)
    return CertificateRow(
        name=name,
        bound=MISSING if bound is None else f"≤ {_number(bound.value)}",
        bound_kind="" if bound is None else bound.kind,
        other=MISSING if other is None else _number(other.value),
        other_kind="" if other is None else other.kind,
        how="; ".join(n.how for n in (bound, other) if n is not None and n.how),
    )


def _number(value: float | None) -> str:
    """A factor as text; if it rounds to 1 but is not 1, as its distance from 1."""
    if value is not None and value != 1 and abs(value - 1) < 0.05:
        return f"1 {'−' if value < 1 else '+'} {power(abs(value - 1))}"
    return power(value)
