"""The files of a study: ``study.json``, and ``study.csv`` with one line per image and cell."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from retune._files import write_atomically
from retune.errors import InvalidParameterError
from retune.records import Study

__all__ = ["FILES", "require_own", "write_study"]

FILES = ("study.json", "study.csv", "races.csv", "study.html", "figures")
_CELL = ("depth", "restarts", "gradient_error", "cosine", "reported", "distance", "certified", "certified_kind")
_CELL += ("distance_bound", "distance_expected")
_DEPTH = ("adjoint_error", "bound", "expected")
_COST = ("seconds", "memory")
_RACE = ("key", "label", "depth", "restarts", "seed", "steps", "failure")


def require_own(out: Path) -> None:
    """Raise if a new study would replace files that belong to something else.

    Raises:
        InvalidParameterError: such a file exists, and the folder holds no progress of a study.
    """
    found = [name for name in FILES if (out / name).exists() or (out / name).is_symlink()]
    if found and not (out / "progress.json").exists():
        raise InvalidParameterError(
            f"{out} contains {', '.join(found)} but no progress of a study, so these may belong to something else and "
            "would be replaced: choose another folder with --out, or move the files"
        )


def write_study(study: Study, out: Path) -> None:
    """Write the result file and the tables."""
    study.write(out / "study.json")
    lines: list[list] = [["image", *_CELL, *_DEPTH, *_COST]]
    for image in (*study.images, study.mean):
        theory = {row.depth: row for row in image.depths}
        for cell in image.cells:
            cost = study.cost(cell.depth, cell.restarts)
            lines.append(
                [image.name]
                + [getattr(cell, name) for name in _CELL]
                + [getattr(theory[cell.depth], name) for name in _DEPTH]
                + [None if cost is None else getattr(cost, name) for name in _COST]
            )
    _write(out / "study.csv", lines)
    if study.races:
        lines = [[*_RACE, "second", "psnr"]]
        for one in study.races:
            points = list(zip(one.seconds, one.psnr, strict=True)) or [(None, None)]
            lines += [[*(getattr(one, name) for name in _RACE), *point] for point in points]
        _write(out / "races.csv", lines)


def _write(path: Path, lines: list[list]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    write_atomically(path, text.getvalue().encode())
