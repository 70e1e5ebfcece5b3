"""The page: one HTML file that holds everything it shows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import jinja2

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
    falls,
    label,
    longest,
    plain,
    remarks,
    title,
)
from retune.report.palette import EMPHASISED, looks
from retune.report.pictures import data_uri, pixels_uri, read_rows
from retune.report.results import check_results
from retune.report.summary import headlines, summary

#: Entries of the results that say how they were made, besides the command, the time and the versions.
_MADE = ("seed", "device", "threads", "cores")


@dataclass(frozen=True)
class _Section:
    """What the template shows of one problem."""

    key: str
    title: str
    description: str
    parameters: str
    measured: str
    rows: list[dict]
    table: list[dict]
    remarks: list[str]
    figures: dict[str, dict[str, str]]
    learned: Learned | None
    certificates: list[CertificateTable]


def write_report(results: dict, folder: str | Path, figures: dict[str, Path] | None = None) -> Path:
    """Write ``report.html``, which needs no other file, no network and no script.

    Args:
        results: what ``results.json`` contains.
        folder: where the images that it names are, and where the page goes.
        figures: what [`write_figures`][retune.report.write_figures] returned; drawn now if not given.

    Returns:
        The path of the page.

    Raises:
        InvalidParameterError: `results` is not of the expected form, or an image it names is missing.
    """
    from retune._files import write_atomically  # here, so that reading results does not wait for torch

    folder = Path(folder)
    check_results(results)
    figures = write_figures(results, folder) if figures is None else figures
    columns = columns_of(results["problems"].values())
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("retune", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        origin=_origin(results),
        summary=summary(results),
        headlines=headlines(results),
        verdicts=[{**v, "about": about(results, v)} for v in results.get("verdicts") or []],
        sections=[_section(results, name, folder, figures, columns) for name in results["problems"]],
        columns=columns,
        made=_made(results),
        settings={str(k).replace("_", " "): plain(v) for k, v in (results.get("settings") or {}).items()},
        emphasised=EMPHASISED,
    )
    path = folder / "report.html"
    write_atomically(path, page.encode("utf-8"))
    return path


def _section(results: dict, name: str, folder: Path, figures: dict[str, Path], columns: list[Column]) -> _Section:
    problem = results["problems"][name]
    parameters = {k: v for k, v in (problem.get("problem") or {}).items() if k != "name"}
    measured = problem.get("psnr_measurement")
    return _Section(
        key=name,
        title=title(problem, name),
        description=str(problem.get("description") or ""),
        parameters=plain(parameters),
        measured="" if measured is None else decimal(measured),
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


def _certificates(problem: dict) -> list[CertificateTable]:
    """Those of the methods that have one, image by image."""
    names = (problem.get("images") or {}).get("names")
    found = []
    for name, method in problem["methods"].items():
        for table in certificate_table(method.get("certificate") or {}, names):
            found.append(replace(table, title=f"{label(method, name)}, {table.title}"))
    return found


def _rows(problem: dict, folder: Path) -> list[dict]:
    """The pictures, each with its enlarged part, and the place of that part in per cent."""
    look = looks(problem["methods"])
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


def _table(problem: dict, columns: list[Column]) -> list[dict]:
    methods = problem["methods"]
    look = looks(methods)
    best = {column.long: best_methods(methods, column) for column in columns}
    rows = []
    for name, method in methods.items():
        cells = [
            {
                "text": column.text(method),
                "best": name in best[column.long],
                "fall": column.short.startswith("change") and falls(method),
            }
            for column in columns
        ]
        how = str(method.get("how") or "")
        rows.append(
            {"key": name, "label": label(method, name), "how": how, "colour": look[name].colour, "cells": cells}
        )
    return rows


def _alt(problem: dict, name: str, kind: str) -> str:
    """A figure in words."""
    heading, methods = title(problem, name), problem["methods"]
    if kind == "psnr":
        last = longest(methods.values())
        ends = [
            f"{label(m, key)} from {decimal(m['psnr_trained'])} to {decimal(m[f'psnr_{last}x'])} dB"
            for key, m in methods.items()
            if m.get(f"psnr_{last}x") is not None and m.get("psnr_trained") is not None
        ]
        told = f" At {last} times the trained depth: {'; '.join(ends)}." if ends else ""
        return f"{heading}: PSNR against the number of layers.{told}"
    if kind == "residual":
        return f"{heading}: relative residual against the number of layers, one line per method."
    return f"{heading}: training loss against the training step, one line per method."


def _origin(results: dict) -> list[str]:
    """The line above the title."""
    origin = [f"ReTune {results.get('retune') or ''}".strip()]
    if results.get("command"):
        origin.append(str(results["command"]))
    if results.get("seconds") is not None:
        origin.append(duration(results["seconds"]))
    return [*origin, f"on {results['device']}"] if results.get("device") else origin


def _made(results: dict) -> list[tuple[str, str]]:
    """How the results were made, as pairs of name and value."""
    made = [("command", plain(results["command"]))] if results.get("command") else []
    made += [(key, plain(results[key])) for key in _MADE if results.get(key) is not None]
    if results.get("seconds") is not None:
        made.append(("time", duration(results["seconds"])))
    versions = {"retune": results.get("retune"), **(results.get("versions") or {})}
    return made + [(f"{key} version", plain(value)) for key, value in versions.items() if value is not None]
