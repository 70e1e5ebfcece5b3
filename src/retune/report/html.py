"""The HTML page: a single file with all its content."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from retune._files import write_atomically
from retune.records import ProblemResult, Results
from retune.records.results import longest
from retune.report.certificates import CertificateTable, certificate_table
from retune.report.figures import write_figures
from retune.report.learned import Learned, learned_table
from retune.report.numbers import (
    Column,
    about,
    best_methods,
    columns_of,
    decimal,
    duration,
    label,
    plain,
    remarks,
    title,
    winners,
)
from retune.report.palette import looks
from retune.report.pictures import data_uri, pixels_uri, read_rows
from retune.report.summary import headlines, summary
from retune.report.templates import templates

#: Entries of the results that tell how they were made, besides the command, the time and the versions.
_MADE = ("seed", "device", "threads", "cores")


@dataclass(frozen=True)
class _Section:
    """The data of one problem for the template."""

    key: str
    title: str
    description: str
    parameters: str
    measured: str
    best: set[str]
    rows: list[dict]
    table: list[dict]
    remarks: list[str]
    figures: dict[str, dict[str, str]]
    learned: Learned | None
    certificates: list[CertificateTable]


def write_report(results: Results, folder: str | Path, figures: dict[str, Path] | None = None) -> Path:
    """Write ``report.html``. The page needs no other file, no network and no script.

    Args:
        results: the results.
        folder: the folder of the named images and of the page.
        figures: the result of [`write_figures`][retune.report.write_figures]; drawn now if not given.

    Returns:
        The path of the page.

    Raises:
        InvalidParameterError: an image named in `results` is missing.
    """
    folder = Path(folder)
    figures = write_figures(results, folder) if figures is None else figures
    columns = columns_of(results.methods)
    page = (
        templates()
        .get_template("report.html.jinja")
        .render(
            origin=_origin(results),
            summary=summary(results),
            headlines=headlines(results),
            verdicts=[(about(results, v), v) for v in results.verdicts],
            sections=[_section(results, name, folder, figures, columns) for name in results.problems],
            columns=columns,
            made=_made(results),
            settings={str(k).replace("_", " "): plain(v) for k, v in (results.settings or {}).items()},
        )
    )
    path = folder / "report.html"
    write_atomically(path, page.encode("utf-8"))
    return path


def _section(results: Results, name: str, folder: Path, figures: dict[str, Path], columns: list[Column]) -> _Section:
    problem = results.problems[name]
    parameters = {k: v for k, v in (problem.problem or {}).items() if k != "name"}
    measured = problem.psnr_measurement
    return _Section(
        key=name,
        title=title(problem, name),
        description=problem.description or "",
        parameters=plain(parameters),
        measured="" if measured is None else decimal(measured),
        best=winners(problem.methods),
        rows=_rows(problem, folder),
        table=_table(problem, columns),
        remarks=remarks(problem),
        figures={
            kind: {"uri": data_uri(figures[f"{name}-{kind}"].read_bytes()), "alt": _alt(problem, name, kind)}
            for kind in ("psnr", "residual", "training")
            if f"{name}-{kind}" in figures
        },
        learned=learned_table(problem),
        certificates=_certificates(problem),
    )


def _certificates(problem: ProblemResult) -> list[CertificateTable]:
    """The certificates of the methods that have one, image by image."""
    names = problem.images.names if problem.images else None
    found = []
    for name, method in problem.methods.items():
        for table in certificate_table(method.certificate, names):
            found.append(replace(table, title=f"{label(method, name)}, {table.title}"))
    return found


def _rows(problem: ProblemResult, folder: Path) -> list[dict]:
    """The pictures, each with its enlarged part and the position of this part in per cent."""
    look = looks(problem.methods)
    rows = []
    for row in read_rows(problem, folder):
        tiles = []
        for picture in row.pictures:
            height, width = picture.pixels.shape[:2]
            window = row.window
            tiles.append(
                {
                    "key": picture.key,
                    "title": picture.title,
                    "note": picture.note,
                    "colour": look[picture.key].colour if picture.key in look else "",
                    "uri": picture.uri,
                    "zoom": pixels_uri(window.of(picture.pixels)) if window else "",
                    "frame": window
                    and "; ".join(
                        f"{side}: {100 * value:.2f}%"
                        for side, value in (
                            ("left", window.left / width),
                            ("top", window.top / height),
                            ("width", window.width / width),
                            ("height", window.height / height),
                        )
                    ),
                    "alt": f"{row.name}: {picture.title}" + (f", PSNR {picture.note}" if picture.note else ""),
                }
            )
        rows.append({"name": row.name, "tiles": tiles})
    return rows


def _table(problem: ProblemResult, columns: list[Column]) -> list[dict]:
    methods = problem.methods
    look = looks(methods)
    best = {column.long: best_methods(methods, column) for column in columns}
    rows = []
    for name, method in methods.items():
        cells = [
            {
                "text": column.text(method),
                "best": name in best[column.long],
                "fall": column.alarming(method),
            }
            for column in columns
        ]
        how = method.how or ""
        rows.append(
            {"key": name, "label": label(method, name), "how": how, "colour": look[name].colour, "cells": cells}
        )
    return rows


def _alt(problem: ProblemResult, name: str, kind: str) -> str:
    """A description of a figure in words."""
    heading, methods = title(problem, name), problem.methods
    if kind == "psnr":
        last = longest(methods.values())
        ends = [
            f"{label(m, key)} from {decimal(m.psnr_trained)} to {decimal(m.psnr_after(last))} dB"
            for key, m in methods.items()
            if m.psnr_after(last) is not None and m.psnr_trained is not None
        ]
        told = f" At {last} times the trained depth: {'; '.join(ends)}." if ends else ""
        return f"{heading}: PSNR against the number of layers.{told}"
    if kind == "residual":
        return f"{heading}: relative residual against the number of layers, one line per method."
    return f"{heading}: training loss against the training step, one line per method."


def _origin(results: Results) -> list[str]:
    """The line above the title."""
    origin = [f"ReTune {results.retune or ''}".strip()]
    if results.command:
        origin.append(results.command)
    if results.seconds is not None:
        origin.append(duration(results.seconds))
    return [*origin, f"on {results.device}"] if results.device else origin


def _made(results: Results) -> list[tuple[str, str]]:
    """How the results were made, as pairs of name and value."""
    made = [("command", results.command)] if results.command else []
    made += [(key, plain(value)) for key in _MADE if (value := getattr(results, key)) is not None]
    if results.seconds is not None:
        made.append(("time", duration(results.seconds)))
    versions = {"retune": results.retune, **(results.versions or {})}
    return made + [(f"{key} version", plain(value)) for key, value in versions.items() if value is not None]
