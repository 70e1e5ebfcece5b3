"""``study.html``: a study on one page that needs no other file, and its sentences."""

from __future__ import annotations

from pathlib import Path

from retune._files import write_atomically
from retune._torch.memory import in_words
from retune.records import Study, StudyCell, StudyImage
from retune.records.studies import equal_time
from retune.report.numbers import MISSING, decimal, plain, power
from retune.report.pictures import data_uri
from retune.report.study_figures import rates, write_study_figures
from retune.report.study_words import above, factor, share, summary, title_of
from retune.report.templates import templates

__all__ = ["PAGE", "write_study_page"]

PAGE = "study.html"
#: Cosines closer to 1 than this are 1 up to rounding.
_COSINE = 1e-12
#: Name, alternative text, and caption of each figure.
_FIGURES = {
    "gradient": (
        "Table in colour over depth and restarts: the error of the gradient.",
        "Dark is a large error. K grows to the right, R upwards; K = 1 is JFB. Cells on a dashed line take the same "
        "time for a training step.",
    ),
    "state": (
        "Table in colour over depth and restarts: the distance to the equilibrium.",
        "The distance before the differentiated block. Cells of equal K·R have the same state. “<”: closer than the "
        "reference itself is known.",
    ),
    "direction": (
        "Table in colour over depth and restarts: the angle between the gradient and the exact one.",
        "0° is the exact direction, 90° is useless. A gradient can have the right direction and the wrong length.",
    ),
    "reported": (
        "Reported against true error of the gradient, one point for each cell and image.",
        "One point for each cell and image; rings are points that coincide. A step sees the decay of its block, but "
        "not how far the state is from the equilibrium: points outside the band have too few restarts, or large "
        "contributions that cancel.",
    ),
    "depth": (
        "Error of the gradient against the depth K, with the theory.",
        "At the equilibrium (R = ∞) the error of the adjoint must stay below the middle of the grey band. The gradient "
        "of the parameters may lie above its adjoint where large contributions cancel; with few restarts it ends at "
        "the error of the state.",
    ),
    "distance": (
        "Distance to the equilibrium against the layers of the restarts, with the certificate and the theory.",
        "Both theory lines start at the measured first distance. The certificate sees only the state and the map: a "
        "bound must lie above the measured line, an estimate near it.",
    ),
    "race": (
        "PSNR against training time for each method.",
        "Mean over the seeds; the shade is their range; the first rise may lie below the axis. Every method has the "
        "same time, batch, crops and learning rates. The unrolled network is judged at its own K layers, the others "
        "where they settle. A point every sixth of the training, joined by straight lines.",
    ),
}


def write_study_page(study: Study, folder: str | Path) -> Path:
    """Write the figures and ``study.html``; return its path.

    Args:
        study: the study.
        folder: the folder of the page.
    """
    folder = Path(folder)
    figures = write_study_figures(study, folder)
    shown = [
        {"key": key, "uri": data_uri(figures[key].read_bytes()), "alt": alt, "caption": caption}
        for key, (alt, caption) in _FIGURES.items()
        if key in figures
    ]
    page = (
        templates()
        .get_template("study.html.jinja")
        .render(
            study=study,
            title=title_of(study),
            summary=[_together(sentence) for sentence in summary(study)],
            figures=shown,
            rates=[(image.name, _factors(image), _reached(image)) for image in _all(study)],
            solved="measured against dense linear algebra" if study.mean.exact_measured else "estimated",
            rate_names=[name for name, _ in rates(study.mean)],
            condition=_condition(study.mean),
            rows=_rows(study),
            races=_races(study),
            made=_made(study),
            end=decimal(equal_time(study.races), 2),
        )
    )
    path = folder / PAGE
    write_atomically(path, page.encode())
    return path


def _all(study: Study) -> list[StudyImage]:
    return [*study.images, study.mean] if len(study.images) > 1 else study.images


def _reached(image: StudyImage) -> list[str]:
    return [power(image.reference_error), power(image.exact_error)]


def _factors(image: StudyImage) -> list[str]:
    return [factor(value) for _, value in rates(image)]


def _condition(image: StudyImage) -> str:
    """What the proof of the factor rests on, if not everything is checked."""
    kind = image.rate_kind
    return "" if kind is None or kind == "proved" else f" The first factor is {kind}."


def _together(sentence: str) -> str:
    """Keep "K = 1" and "80 %" on one line."""
    return sentence.replace(" = ", "\u00a0=\u00a0").replace(" %", "\u00a0%").replace(" dB", "\u00a0dB")


def _cosine(value: float | None) -> str:
    """Four digits; close to 1, its distance from 1."""
    if value is None:
        return MISSING
    if value >= 0.999:
        return f"1 − {power(1 - value)}" if 1 - value > _COSINE else "1"
    return decimal(value, 4)


def _certified(cell: StudyCell) -> str:
    """With ≤ if it is a bound, and ≈ if it is an estimate."""
    if cell.certified is None or cell.certified_kind is None:
        return share(cell.certified)
    return f"{'≤' if cell.certified_kind.startswith('proved') else '≈'} {share(cell.certified)}"


def _rows(study: Study) -> list[dict]:
    """The grid as a table, cell by cell, of the mean over the images."""
    rows = []
    for cell in study.mean.cells:
        cost = study.cost(cell.depth, cell.restarts)
        rows.append(
            {
                "depth": cell.depth,
                "restarts": cell.restarts,
                "first": cell.restarts == study.restarts[0],
                "cells": [
                    above(cell.gradient_error, study.mean.exact_error),
                    _cosine(cell.cosine),
                    share(cell.reported),
                    above(cell.distance, study.mean.reference_error),
                    _certified(cell),
                    MISSING if cost is None or cost.seconds is None else _milliseconds(float(cost.seconds)),
                    MISSING if cost is None or cost.memory is None else in_words(float(cost.memory)),
                ],
            }
        )
    return rows


def _races(study: Study) -> list[dict]:
    """The trainings, one row for each method."""
    rows, end = [], equal_time(study.races) or 0.0
    for key in dict.fromkeys(one.key for one in study.races):
        runs = [one for one in study.races if one.key == key]
        last = [p for one in runs if (p := one.psnr_at(end)) is not None]
        failures = [one.failure for one in runs if one.failure]
        rows.append(
            {
                "label": runs[0].label,
                "cells": [
                    str(runs[0].depth),
                    str(runs[0].restarts),
                    ", ".join(str(one.steps) for one in runs),
                    decimal(sum(last) / len(last)) if last else MISSING,
                    f"{decimal(min(last))} … {decimal(max(last))}" if last else MISSING,
                ],
                "failure": failures[0] if failures else "",
            }
        )
    return rows


def _made(study: Study) -> list[tuple[str, str]]:
    named = [("command", study.command), ("seed", study.seed), ("device", study.device)]
    named += [("problem", study.problem), ("network and images", "; ".join(study.about) or None)]
    named += [("learned parameters", study.parameters)]
    named += [("retune version", study.retune), *((f"{k} version", v) for k, v in (study.versions or {}).items())]
    return [(name, plain(value)) for name, value in named if value is not None]


def _milliseconds(seconds: float) -> str:
    """With three digits, and never as a power of ten."""
    return f"{1000 * seconds:#.3g}".rstrip(".") if seconds < 0.9995 else f"{1000 * seconds:.0f}"
