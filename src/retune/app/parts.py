"""The parts of the page as HTML. Every text is escaped, and every picture is in the text itself."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from markupsafe import Markup, escape
from PIL import Image
from torch import Tensor

from retune.app.looking import Curve, Findings, Measured, Noise
from retune.app.words import in_page_words
from retune.build import problem_of
from retune.config import from_dict
from retune.diagnosis.findings import Severity
from retune.diagnosis.residual import ResidualKind
from retune.equilibrium import Status
from retune.jobs.inputs import known_noise
from retune.jobs.pictures import SIDE, picture_kernel
from retune.jobs.pixels import eight, encode, reduced
from retune.records import Certified, Pictured, RestoredImage
from retune.report.certificates import certificate_table
from retune.report.plots import frame, histogram, line, spectrum, ticks
from retune.report.templates import templates

__all__ = ["Curves", "blur", "facts", "findings", "glimpse", "noise", "picture", "remark", "result", "tuned"]

#: What the doctor's checks are about, in plain words.
_CHECKS = {
    "finite": "Numbers",
    "noise": "Noise",
    "range": "Brightness",
    "clipping": "Clipped values",
    "kernel": "The blur",
    "convolution": "How the blur acts",
    "boundary": "The border",
    "norm": "Brightening",
    "adjoint": "The blur and its transpose",
    "linear": "Proportionality",
    "null space": "What is lost",
    "null_space": "What is lost",
    "guarantees": "What can be promised",
    "consistency": "Does the image fit",
    "shape": "Size",
}
_WORDS = {Severity.PROBLEM: "Mend first", Severity.WARNING: "Look at this", Severity.NOTE: "Good to know"}
_BAD = {ResidualKind.STRUCTURE.value, ResidualKind.PLACES.value, ResidualKind.LARGE.value}
#: Side of the pictures of the iteration.
_GLIMPSE = 512
#: Points of a curve that are drawn.
_POINTS = 200
_COLOURS = ("#0072b2", "#d55e00", "#009e73")


def _made(name: str, **values: Any) -> str:
    return templates("app").get_template(f"{name}.html.jinja").render(**values)


def remark(text: str, kind: str = "remark") -> str:
    """A sentence that stands out."""
    return str(Markup('<p class="{}" role="status">{}</p>').format(kind, text))


def facts(name: str, seen: Measured, page: int) -> str:
    """The file in a line: its size, colours, numbers and pages."""
    _, channels, height, width = seen.y.shape
    layout = seen.layout
    bits = layout.bits or 8 * layout.dtype.itemsize
    kind = "floating point" if layout.dtype.kind == "f" else "whole numbers"
    told = [f"{width} × {height} pixels", "colour" if channels == 3 else "grey", f"{bits} bits, {kind}"]
    told += [f"page {min(page, seen.pages - 1) + 1} of {seen.pages}"] if seen.pages > 1 else []
    told += [f"{seen.unit}"] if seen.unit.auto else []
    return str(Markup('<p class="facts"><b>{}</b> <span>{}</span></p>').format(name, " · ".join(told)))


def picture(seen: Measured) -> str:
    """The image, reduced, as a data URL: over it the missing pixels are painted."""
    y = torch.where(seen.y.isfinite(), seen.y, torch.zeros_like(seen.y))[0]
    top = seen.layout.top
    low, high = (0.0, 1.0) if top is not None and top <= 255 and not seen.unit.auto else _ends(y)
    return encode(reduced(eight(y, low, high), SIDE)).uri


def glimpse(image: Tensor) -> str:
    """An image of the iteration, small, as a data URL."""
    low, high = _ends(image[0])
    shown = reduced(eight(image[0].detach().cpu(), min(low, 0.0), max(high, 1.0 if high > 0.2 else high)), _GLIMPSE)
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shown)).save(out, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _ends(image: Tensor) -> tuple[float, float]:
    values = image.detach().float().flatten()[:: max(1, image.numel() // 200_000)]
    low, high = (float(v) for v in values.quantile(torch.tensor([0.001, 0.999])))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def noise(found: Noise) -> str:
    """The noise in words, and its variance against the brightness."""
    plot = _variances(found.curves) if any(curve.points for curve in found.curves) else ""
    return _made("noise", sentence=found.sentence, plot=plot)


def _variances(curves: Sequence[Curve]) -> Markup:
    """Points: the variance of the noise in classes of brightness. Lines: what the restoration assumes."""
    points = [p for curve in curves for p in curve.points]
    left, right = min(m for m, _ in points), max(m for m, _ in points)
    right = right if right > left else left + 1e-6
    top = 1.15 * max(1e-12, *(v for _, v in points), *(c.gain * right + c.square for c in curves))
    drawn = []
    for curve, colour in zip(curves, _COLOURS if len(curves) > 1 else _COLOURS[:1], strict=False):
        ends = [(0.0, curve.gain * left + curve.square), (1.0, curve.gain * right + curve.square)]
        shown = [(x, min(max(v, 0.0) / top, 1.0)) for x, v in ends]
        drawn.append(line(shown, f'stroke="{colour}" stroke-width="2"'))
        dots = [((m - left) / (right - left), min(max(v, 0.0) / top, 1.0)) for m, v in curve.points]
        look = f'stroke="{colour}" stroke-width="6" stroke-linecap="round" opacity=".6"'
        drawn += [line([dot, dot], look) for dot in dots]
    label = "Variance of the noise against the brightness, with the line of the restoration"
    return frame("".join(drawn), label, ticks(left, right), ticks(0.0, top, 3), "brightness, where 1 is white")


def blur(fields: dict[str, Any]) -> str:
    """The blur, drawn; nothing if there is none."""
    if "kernel" not in fields:
        return ""
    shown = picture_kernel(problem_of(known_noise(from_dict({"problem": fields}, (), "the image").problem)))
    return "" if shown is None else _made("blur", kernel=shown)


def findings(found: Findings) -> str:
    """The doctor's findings: what needs attention, and what is in order."""
    told = [
        {
            "about": _CHECKS.get(f.check, f.check),
            "kind": f.severity.value,
            "word": _WORDS.get(f.severity, "In order"),
            "found": _begun(in_page_words(f.found)),
            "advice": in_page_words(f.advice),
        }
        for f in found.found
    ]
    serious = [f for f in told if f["kind"] in ("problem", "warning")]
    return _made("findings", serious=serious, others=[f for f in told if f not in serious], part=found.part)


def _begun(text: str) -> str:
    """A sentence with a capital letter; a formula stays as it is."""
    return text[0].upper() + text[1:] if text[:2].isascii() and text[:2].isalpha() else text


@dataclass
class Curves:
    """The objective and the change per layer of a solve, as it runs."""

    layers: list[int] = field(default_factory=list)
    change: list[float] = field(default_factory=list)
    objective: list[float | None] = field(default_factory=list)

    def add(self, layers: int, change: float, objective: float | None) -> None:
        """A moment."""
        self.layers.append(layers)
        self.change.append(change)
        self.objective.append(objective)

    def plain(self) -> dict[str, list]:
        """As plain data."""
        return {"layers": self.layers, "change": self.change, "objective": self.objective}

    def shown(self) -> str:
        """Both curves; a sentence if there are not two points."""
        if len(self.layers) < 2:
            return ""
        return _made("curves", change=self._changes(), objective=self._objectives())

    def _drawn(self, values: Sequence[float], colour: str, label: str, y: list[tuple[float, str]], to: Any) -> Markup:
        step = max(1, len(values) // _POINTS)
        kept = [*range(0, len(values) - 1, step), len(values) - 1]
        last = self.layers[-1]
        points = [(self.layers[i] / last, min(max(to(values[i]), 0.0), 1.0)) for i in kept]
        drawn = line(points, f'stroke="{colour}" stroke-width="2.2"')
        return frame(drawn, label, ticks(0.0, float(last)), y, "layers")

    def _changes(self) -> Markup | str:
        values = [max(v, 1e-12) for v in self.change if math.isfinite(v)]
        if len(values) != len(self.layers):
            return ""
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        high = max(high, low + 1)
        step = max(1, (high - low) // 4)
        y = [((k - low) / (high - low), f"1e{k}".replace("-", "−")) for k in range(low, high + 1, step)]
        label = "Change of the image per layer, relative to the image, in a logarithmic scale"
        return self._drawn(values, "#0072b2", label, y, lambda v: (math.log10(v) - low) / (high - low))

    def _objectives(self) -> Markup | str:
        values = [v for v in self.objective if v is not None and math.isfinite(v)]
        if len(values) != len(self.layers):
            return ""
        low, high = min(values), max(values)
        wide = (high - low) or 1.0
        label, y = "The objective, which the iteration lowers", [(0.0, "least"), (1.0, "first")]
        return self._drawn(values, "#d55e00", label, y, lambda v: (v - low) / wide)


def result(section: Pictured, record: RestoredImage, curves: Curves) -> str:
    """Everything about a restored image."""
    (image,) = section.images[:1]
    found = image.residual
    settled = record.status in (Status.CONVERGED, Status.DEPTH_REACHED)
    table = []
    if record.certificate is not None:
        table = certificate_table(Certified(depth=None, images=[record.certificate]), [section.title])
    return _made(
        "result",
        section=section,
        image=image,
        same=image.before is not None
        and image.after is not None
        and math.isclose(
            image.before.width * image.after.height, image.before.height * image.after.width, rel_tol=0.02
        ),
        bad=found is not None and found.kind in _BAD,
        histogram=histogram(found.histogram) if found else "",
        spectrum=spectrum(found.spectrum) if found else "",
        settled=settled,
        layers=f"{record.layers:g}" if record.layers else "0",
        status=record.status,
        seconds="" if record.seconds is None else f"{record.seconds:.2g}",
        curves=Markup(curves.shown()),  # ours: made of escaped parts
        doubts=[in_page_words(doubt) for doubt in section.doubts],
        table=table,
    )


def tuned(verdict: str) -> str:
    """The verdict on a tuning."""
    return str(Markup('<p class="verdict"><b>Tuned.</b> {}</p>').format(escape(verdict)))
