"""Tables, figures, and a self-contained HTML page. Reads result files, never models.

The caller writes ``results.json`` and its images into a folder. Everything here is computed from these files:
``write_all(Results.read(folder), folder)`` writes ``figures/*.png`` and ``report.html``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import lazy_loader

if TYPE_CHECKING:
    from rich.console import Console

    from retune.records import Results
    from retune.report.certificates import certificate_table
    from retune.report.figures import write_figures
    from retune.report.html import write_report
    from retune.report.table import terminal_table

__all__ = [
    "certificate_table",
    "terminal_table",
    "write_all",
    "write_figures",
    "write_report",
]

# Loaded on first use: the templates alone need no matplotlib.
_load, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "certificates": ["certificate_table"],
        "figures": ["write_figures"],
        "html": ["write_report"],
        "table": ["terminal_table"],
    },
)


def __getattr__(name: str) -> Any:
    return _load(name)


def write_all(results: Results, folder: str | Path, console: Console | None = None) -> Path:
    """Write the figures and the page of `results`; return the path of ``report.html``.

    Args:
        results: the results.
        folder: the output folder; the images that `results` names are looked up in it.
        console: if given, the tables are also printed on it.

    Raises:
        InvalidParameterError: an image named in `results` is missing.
    """
    from retune.report.figures import write_figures
    from retune.report.html import write_report
    from retune.report.table import terminal_table

    folder = Path(folder)
    page = write_report(results, folder, write_figures(results, folder))
    if console is not None:
        terminal_table(results, console)
    return page
