"""``study.html``: a study on one page that needs no other file, and its sentences."""

from __future__ import annotations

from pathlib import Path

from retune._files import write_atomically
from retune._torch.memory import in_words
from retune.records import Study, StudyImage
from retune.records.studies import equal_time
from retune.report.numbers import MISSING, decimal, plain, power
from retune.report.pictures import data_uri
from retune.report.study_figures import rates, share_within_two, write_study_figures
from retune.report.templates import templates

__all__ = ["PAGE", "summary", "write_study_page"]

PAGE = "study.html"
#: Name, alternative text, and caption of each figure.
_FIGURES = {
    "grid": (
        "Two tables over the depth and the restarts: the error of the gradient, and the distance to the equilibrium.",
        "Dark is a large error. To the right the gradient has more layers, upwards the state is nearer to rest. Cells "
        "on a dashed line cost the same time of a training step.",
    ),
    "depth": (
        "Error of the gradient against the depth K, with the theory.",
        "At the equilibrium (R = ∞) the error of the adjoint must stay below ρᴷ with the proved ρ. The gradient of the "
        "parameters may lie above its adjoint where large contributions cancel; with few restarts it ends at the error "
        "of the state.",
    ),
    "distance": (
        "Distance to the equilibrium against the layers of the restarts, with the certificate and the theory.",
        "The certificate sees only the state and the map. A bound must lie above the measured line, an estimate near "
        "it.",
    ),
    "reported": (
        "Reported against true error of the gradient, one point for each cell and image.",
        "Each step reports the error of its adjoint from the decay of the block. It does not see how far the state is "
        "from the equilibrium: points outside the band have too few restarts, or large contributions that cancel.",
    ),
    "race": (
        "PSNR against training time for each method.",
        "Mean over the seeds; the shade is their range. Every method has the same time, batch, crops and learning "
        "rates, and stops or settles as it would in use.",
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
            summary=summary(study),
            figures=shown,
            rates=[(image.name, [_factor(v) for _, v in rates(image)], _reached(image)) for image in _all(study)],
            rate_names=[name for name, _ in rates(study.mean)],
            rows=_rows(study),
            races=_races(study),
            made=_made(study),
            end=decimal(equal_time(study.races), 2),
        )
    )
    path = folder / PAGE
    write_atomically(path, page.encode())
    return path


def summary(study: Study) -> list[str]:
    """The findings in a few sentences; every number comes from the study."""
    k, r = study.depths, study.restarts
    corner = [study.mean.at(a, b) for a, b in ((k[0], r[-1]), (k[-1], r[0]), (k[-1], r[-1]))]
    told = []
    if all(c.gradient_error is not None for c in corner):
        one, two, best = (_share(c.gradient_error) for c in corner)
        told.append(
            f"The error of the gradient is {one} with K = {k[0]} and R = {r[-1]}, {two} with K = {k[-1]} and "
            f"R = {r[0]}, and {best} with K = {k[-1]} and R = {r[-1]}."
        )
    mean = study.mean
    if mean.rate_estimated is not None and mean.rate_distance is not None:
        told.append(
            f"A layer multiplies the distance to the equilibrium by {_factor(mean.rate_distance)}; the certificate "
            f"estimates {_factor(mean.rate_estimated)}"
            + (f" and proves {_factor(mean.rate_proved)}." if mean.rate_proved is not None else " and proves no rate.")
        )
    cells = [c for image in study.images for c in image.cells]
    late = [c for c in cells if c.restarts == r[-1]]
    within, count = share_within_two(cells)
    settled, last = share_within_two(late)
    if count:
        told.append(
            f"The gradient error that a step reports is within a factor of 2 of the true error in {within} of {count} "
            f"steps, with R = {r[-1]} in {settled} of {last}."
        )
    return told


def _all(study: Study) -> list[StudyImage]:
    return [*study.images, study.mean] if len(study.images) > 1 else study.images


def _reached(image: StudyImage) -> list[str]:
    return [_error(image.reference_error), _error(image.exact_error)]


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
                    _share(cell.gradient_error),
                    MISSING if cell.cosine is None else decimal(cell.cosine, 4),
                    _share(cell.reported),
                    _error(cell.distance),
                    _error(cell.certified),
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
    named += [("problem", study.problem), ("images", "; ".join(study.about))]
    named += [("retune version", study.retune), *((f"{k} version", v) for k, v in (study.versions or {}).items())]
    return [(name, plain(value)) for name, value in named if value is not None]


def _factor(value: float | None) -> str:
    """A factor per layer; close to 1, its distance from 1."""
    if value is None:
        return MISSING
    return f"1 − {power(1 - value)}" if 0.995 <= value < 1 else f"{value:.4g}"


def _share(value: float | None) -> str:
    if value is None:
        return MISSING
    if not 1e-4 <= value < 100:
        return power(value)
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"


def _error(value: float | None) -> str:
    return power(value)


def _milliseconds(seconds: float) -> str:
    """With three digits, and never as a power of ten."""
    return f"{1000 * seconds:.3g}" if seconds < 0.9995 else f"{1000 * seconds:.0f}"
