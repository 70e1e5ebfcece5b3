"""``report.html`` of ``retune restore`` and ``retune tune``: pictures of the work, in one file.

The page consists of the sections in the folder ``report``, which belong to the results beside it. Jobs that share a
folder write the same page, with the sections of all jobs.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from markupsafe import Markup

from retune._files import write_atomically
from retune._version import __version__
from retune.diagnosis.residual import ResidualKind
from retune.errors import InvalidParameterError
from retune.records.pictured import MOST, Encoded, Pictured, PicturedImage
from retune.report.plots import histogram, spectrum
from retune.report.templates import templates

__all__ = ["PAGE", "write_page"]

PAGE = "report.html"
_PARTS = "report"
#: At the beginning of a page of ours.
_MARKER = "ReTune report of results"
#: Number of sections with all their pictures, and their largest size together (bytes). The others are rows.
_SECTIONS, _BYTES = 12, 40_000_000
#: Number of rows with a thumbnail.
_THUMBNAILS = 400
#: If other jobs add sections meanwhile, the page is written again, at most this many times.
_ATTEMPTS = 10
_BAD = {ResidualKind.STRUCTURE.value, ResidualKind.PLACES.value, ResidualKind.LARGE.value}


@dataclass(frozen=True)
class _Image:
    """An image with its curves, for the template."""

    of: PicturedImage
    histogram: Markup | str
    spectrum: Markup | str
    beyond: str

    def __getattr__(self, name: str):
        return getattr(self.of, name)


@dataclass(frozen=True)
class _Section:
    part: Pictured
    anchor: str
    bad: bool
    images: tuple[_Image, ...]


@dataclass(frozen=True)
class _Row:
    name: str
    anchor: str
    thumbnail: Encoded | None
    ended: str
    residual: str
    size: str
    doubts: str
    bad: bool
    verb: str


def write_page(folder: Path, failed: Sequence[tuple[str, str]] = ()) -> Path | None:
    """Write ``report.html`` from the sections of the results in a folder.

    Args:
        folder: of the results.
        failed: names of the files that failed, and why.

    Returns:
        The page; None if there is no section and no old page to update.

    Raises:
        InvalidParameterError: a file of that name exists and is not a page of ReTune.
        OSError: the page cannot be written.
    """
    path = folder / PAGE
    for _ in range(_ATTEMPTS):
        before = _listed(folder)
        sections, rows = _read(folder)
        if not rows and not path.exists():
            return None
        _require_ours(path)
        page = _rendered(sections, rows, failed).encode(errors="backslashreplace")  # names of files may be no text
        if not path.is_file() or path.is_symlink() or path.read_bytes() != page:
            write_atomically(path, page)
        if _listed(folder) == before:  # if not, another job added a section, and may have written its page before
            break
    return path


def _require_ours(path: Path) -> None:
    """Raise if the page would replace a file that is not a page of ReTune."""
    if not path.is_symlink() and not path.exists():
        return
    ours = False
    if path.is_file() and not path.is_symlink():  # reading a pipe may never end
        with path.open("rb") as file:
            ours = f'content="{_MARKER}"'.encode() in file.read(1000)
    if not ours:
        raise InvalidParameterError(
            f"{path} already exists and is not a page of retune restore or tune, so it was not changed. Choose another "
            "folder with --out, move the file, or leave the page out with --no-report"
        )


def _listed(folder: Path) -> set[tuple[str, int]]:
    """The sections and when they were written."""
    found = set()
    for path in (folder / _PARTS).glob("*.json"):
        try:
            found.add((path.name, path.stat().st_mtime_ns))
        except OSError:
            continue
    return found


def _read(folder: Path) -> tuple[list[_Section], list[_Row]]:
    """The sections with all their pictures, and a row for every section."""
    sections: list[_Section] = []
    rows: list[_Row] = []
    room = _BYTES
    for path in sorted((folder / _PARTS).glob("*.json"), key=lambda p: _in_order(p.name)):
        part = _part(folder, path)
        if part is None:
            continue
        anchor = ""
        if part.detailed or part.verb == "tune":
            size = sum(len(str(image.plain())) for image in part.images)
            if len(sections) < _SECTIONS and (size <= room or not sections):
                room -= size
                anchor = f"s{len(rows)}"
                sections.append(_section(part, anchor))
        rows.append(_row(part, anchor, len(rows) < _THUMBNAILS))
    tuned = [s for s in sections if s.part.verb == "tune"]
    return tuned + [s for s in sections if s.part.verb != "tune"], rows


def _part(folder: Path, path: Path) -> Pictured | None:
    """The section in a file, if it belongs to the result that is there now."""
    name = path.name.removesuffix(".json")
    try:
        if not path.is_file() or path.stat().st_size > MOST:
            return None
        part = Pictured.of(path.read_bytes(), name)
        if part is None:
            return None
        record = folder / (name if part.verb == "tune" else f"{name}.json")
        if not (folder / name).is_file() or not record.is_file():
            return None
        return part if hashlib.sha256(record.read_bytes()).hexdigest() == part.made else None
    except OSError:
        return None


def _in_order(name: str) -> list:
    """A key by which image 10 comes after image 9."""
    words = [word for word in re.split(r"(\d+)", name.lower()) if word]
    return [(0, int(word), "") if word.isdecimal() else (1, 0, word) for word in words]


def _section(part: Pictured, anchor: str) -> _Section:
    images = []
    for image in part.images:
        found = image.residual
        beyond = ""
        if found is not None and found.beyond is not None and found.histogram:
            beyond = f"{100 * found.beyond:.2g} % are beyond ±3; of normal noise, 0.27 %."
        images.append(
            _Image(
                image,
                histogram(found.histogram) if found else "",
                spectrum(found.spectrum) if found else "",
                beyond,
            )
        )
    return _Section(part, anchor, _is_bad(part), tuple(images))


def _is_bad(part: Pictured) -> bool:
    return part.verb == "restore" and any(i.residual is not None and i.residual.kind in _BAD for i in part.images)


def _row(part: Pictured, anchor: str, thumbnail: bool) -> _Row:
    image = part.images[0] if part.images else PicturedImage(name=part.title)
    found = image.residual
    facts = {fact[0]: fact[1] for fact in part.facts}
    return _Row(
        name=part.title,
        anchor=anchor,
        thumbnail=image.thumbnail if thumbnail else None,
        ended=facts.get("ended", ""),
        residual="" if found is None else found.kind,
        size="" if found is None or found.size is None else f"{found.size:.2f} × noise",
        doubts=" ".join(part.doubts),
        bad=_is_bad(part),
        verb=part.verb,
    )


def _rendered(sections: list[_Section], rows: list[_Row], failed: Sequence[tuple[str, str]]) -> str:
    script = "\n" + resources.files("retune.report").joinpath("page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        templates()
        .get_template("page.html.jinja")
        .render(
            marker=_MARKER,
            version=__version__,
            script=Markup(script),  # ours; its hash is the only one that the page allows
            script_hash=f"sha256-{digest}",
            headline=_headline(rows, failed),
            summary=_summary(rows, sections),
            failed=failed,
            rows=rows,
            sections=sections,
            same=_same_shape,
            parts=_PARTS,
        )
    )


def _same_shape(before: Encoded, after: Encoded) -> bool:
    """Whether one picture can cover the other: the ratios of their sides are equal."""
    return math.isclose(before.width * after.height, before.height * after.width, rel_tol=0.02)


def _headline(rows: list[_Row], failed: Sequence[tuple[str, str]]) -> str:
    restored, tuned = (sum(row.verb == verb for row in rows) for verb in ("restore", "tune"))
    words = []
    if tuned:
        words.append("a restoration was tuned")
    if restored or not tuned:
        words.append(f"{restored} file{'s were' if restored != 1 else ' was'} restored")
    if failed:
        words.append(f"{len(failed)} failed")
    told = ", ".join(words)
    return told[0].upper() + told[1:]


def _summary(rows: list[_Row], sections: list[_Section]) -> list[str]:
    told = []
    judged = [row for row in rows if row.verb == "restore" and row.residual]
    if judged:
        bad = [row.name for row in judged if row.bad]
        white = sum(row.residual == ResidualKind.WHITE.value for row in judged)
        told.append(f"The residual is white for {white} of {len(judged)}: nothing of the image is left in it.")
        if bad:
            named = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
            told.append(f"Something is left in the residual of {named}.")
    if len(sections) < len(rows):
        told.append(f"{len(sections)} of {len(rows)} are shown with all pictures, the others in the table.")
    return told
