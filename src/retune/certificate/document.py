"""The certificate as a document: every claim about an image, its verdict in one sentence, and the table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from retune.certificate.claims import Claim, proved_kind
from retune.equilibrium import Status
from retune.guarantee import Assumption

__all__ = ["Certificate", "ImageCertificate"]

#: Claims and their labels in the table; {K} is the depth.
_ROWS = {
    "step_size": "step size ÷ (2/L)",
    "layer_factor": "factor of one layer",
    "block_factor": "factor of K = {K} layers",
    "averaged": "averaged, α",
    "rate": "asymptotic factor per layer",
    "residual": "relative change in K layers (measured)",
    "relative_distance": "distance to equilibrium, relative",
    "rmse": "distance to equilibrium, RMSE",
    "gradient_error": "relative error of the adjoint",
}


@dataclass(frozen=True)
class ImageCertificate:
    """All claims about one image.

    Attributes:
        step_size: ``τL/2``, the step as a share of ``2/L``, largest over the layers. It must be below 1.
        layer_factor: Lipschitz constant of one layer (the largest of a cycle).
        block_factor: Lipschitz constant of the block of K layers.
        averaged: α such that a layer is ``(1 − α) I + α N`` with N nonexpansive in the norm that the number names.
        rate: asymptotic factor per layer (spectral radius of the Jacobian at the equilibrium).
        residual: relative change over one block of K layers.
        distance: ``‖u − u*‖`` of the state.
        relative_distance: ``‖u − u*‖/‖u‖``.
        rmse: root mean square difference between image and equilibrium image, in units of intensity.
        gradient_error: relative error of the adjoint in the K-layer gradient at the equilibrium.
        row: the applicable row of the table of guarantees.
        statement: the theorem about the iterates, in one clause; "" if nothing is proved.
        assumptions: the assumptions of the statement and of every proved number.
        strong_convexity: μ and its origin.
        status: how the solve ended.
        layers: layers run by the solve.
        dtype: the precision of the computation.
        refuted: the estimate that exceeds its bound, so that an assumption is wrong and nothing is called proved; ""
            if none does.
        jumps: relative change over a cycle of layers if the iteration jumps between several states that are no
            equilibria; otherwise 0.
        rounding: the allowance of the distance bounds for rounding.
        parts: number of pieces that were solved separately (tiles, pages); every number is that of the worst piece.
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
    status: Status
    layers: int
    dtype: str
    refuted: str = ""
    rounding: str = ""
    parts: int = 1
    jumps: float = 0.0
    averaged: Claim = field(default_factory=Claim)

    @property
    def claims(self) -> dict[str, Claim]:
        """The quantities by name: the fields whose class is a claim."""
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Claim)}

    @property
    def verdict(self) -> str:
        """One sentence."""
        return _verdict(self)

    def to_dict(self) -> dict:
        """Plain data that JSON can hold."""
        return {
            "verdict": self.verdict,
            "row": self.row,
            "statement": self.statement,
            "status": self.status.value,
            "layers": self.layers,
            "dtype": self.dtype,
            "rounding": self.rounding,
            "refuted": self.refuted,
            "jumps": self.jumps,
            "parts": self.parts,
            "strong_convexity": {"value": self.strong_convexity[0], "from": self.strong_convexity[1]},
            "assumptions": [a.to_dict() for a in self.assumptions],
            "claims": {name: [n.to_dict() for n in claim.numbers] for name, claim in self.claims.items()},
        }


@dataclass(frozen=True)
class Certificate:
    """Certificates of a batch. Printed, each image has a short table and a verdict.

    Attributes:
        images: one [`ImageCertificate`][retune.ImageCertificate] per image.
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
        """Plain data that JSON can hold. The report reads it."""
        return {"depth": self.depth, "gradient": self.gradient, "images": [i.to_dict() for i in self.images]}

    def __str__(self) -> str:
        return _text(self)

    __repr__ = __str__


def _verdict(image: ImageCertificate) -> str:
    """The verdict: the strongest reliable statement, in one sentence."""
    if image.status.failed:
        return f"The iteration failed ({image.status}): nothing can be said about this image."
    rate = image.rate.estimated
    near, wrong = image.rmse.proved, image.gradient_error.proved
    if near is not None:
        what = "the image is" if image.parts == 1 else f"each of its {image.parts} parts is"
        found = f"{_opening(near.assumptions)} {what} within {_short(near.value)} (RMSE) of the only equilibrium"
        if wrong is not None and wrong.value < 1:
            found += f", and the adjoint of the gradient formed there within {_percent(wrong.value)} of the exact one"
        return found + "."
    about = "" if rate is None else f"near this image a layer multiplies an error by {_short(rate.value)}"
    if rate is not None and rate.value >= 1:
        about = f"near this image errors grow by {_short(rate.value)} per layer, so it is not an attracting equilibrium"
    if image.jumps:
        about = (
            "the iteration jumps between several images, and this is one of them: a cycle of layers moves it by "
            f"{_short(100 * image.jumps)} %, so it is no equilibrium"
        )
    near = image.rmse.estimated
    if near is not None and math.isfinite(near.value):
        about += f" and it is about {_short(near.value)} (RMSE) from its equilibrium"
    if image.refuted:
        return f"Nothing is proved: {image.refuted}, so an assumption is wrong (see retune.doctor); estimated: {about}."
    if image.statement:
        return f"{_opening(image.assumptions)} {image.statement}; no rate is proved; estimated: {about}."
    return f"Nothing is proved about this map in advance; estimated: {about}."


def _opening(assumptions: tuple[Assumption, ...]) -> str:
    if all(a.checked for a in assumptions):
        return f"{proved_kind(assumptions).capitalize()}:"
    return "Proved, if the unchecked assumptions hold:"


def _text(certificate: Certificate) -> str:
    """The certificate as plain text."""
    parts = [_image(certificate, i) for i in range(len(certificate))]
    return "\n\n".join(parts)


def _image(certificate: Certificate, i: int) -> str:
    image = certificate[i]
    count = len(certificate)
    title = "Certificate" if count == 1 else f"Certificate of image {i} (of {count})"
    lines = [f"{title}: {image.row}; {image.status} after {image.layers} layers, {image.dtype}"]
    cells = [("", _bounds(image), "estimated", "how")]
    for name, label in _ROWS.items():
        claim = image.claims[name]
        if claim.numbers:
            cells.append((label.format(K=certificate.depth), *_cells(claim)))
    widths = [max(len(row[c]) for row in cells) for c in range(3)]
    for row in cells:
        lines.append(f"  {row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip())
    if image.strong_convexity[0]:
        lines.append(f"  μ = {_short(image.strong_convexity[0])}: {image.strong_convexity[1]}".removesuffix(": "))
    for assumption in image.assumptions:
        mark = "checked" if assumption.checked else "NOT CHECKED"
        lines.append(f"  rests on: {assumption.statement} ({mark}: {assumption.how})")
    if any(n.is_bound for claim in image.claims.values() for n in claim.numbers):
        lines.append(f"  rounding: the bounds of distances allow for {image.rounding}")
    lines.append(image.verdict)
    return "\n".join(lines)


def _bounds(image: ImageCertificate) -> str:
    """The heading of the column of bounds. The verdict and the last lines name their conditions."""
    bounds = [n for claim in image.claims.values() for n in claim.numbers if n.is_bound]
    return "proved" if all(n.is_unconditional for n in bounds) else "proved*"


def _cells(claim: Claim) -> tuple[str, str, str]:
    bound = claim.proved
    other = claim.estimated or claim.measured
    how = "; ".join(n.how for n in claim.numbers)
    return ("–" if bound is None else f"≤ {_short(bound.value)}", "–" if other is None else _short(other.value), how)


def _short(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if 0.9995 <= value < 1:  # so close to 1, the distance to 1 is more readable
        return f"1 − {1 - value:.1e}"
    if 1 < value < 1.0005:
        return f"1 + {value - 1:.1e}"
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e3 else f"{value:.1e}"


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %" if value >= 1e-4 else _short(value)
