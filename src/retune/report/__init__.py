"""Tables, figures, one self-contained HTML page; reads result files, never models.

The caller writes ``results.json`` and the images it names into a folder; everything here is computed from these::

    results = read_results(folder)
    write_all(results, folder)  # figures/*.png and report.html
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from retune.report.certificates import certificate_table
from retune.report.figures import write_figures
from retune.report.html import write_report
from retune.report.results import check_results, read_results
from retune.report.table import terminal_table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "certificate_table",
    "check_results",
    "read_results",
    "terminal_table",
    "write_all",
    "write_figures",
    "write_report",
]


def write_all(results: dict, folder: str | Path, console: Console | None = None) -> Path:
    """Write the figures and the page of `results`; return the path of ``report.html``.

    Args:
        results: what ``results.json`` contains.
        folder: the output folder; the images that `results` names are looked up in it.
        console: if given, the tables are printed on it as well.

    Raises:
        InvalidParameterError: `results` is not of the expected form, or an image it names is missing.
    """
    folder = Path(folder)
    check_results(results)
    page = write_report(results, folder, write_figures(results, folder))
    if console is not None:
        terminal_table(results, console)
    return page
