"""The page ``report.html`` at the end of a verb."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["tell_page"]


def tell_page(out: Path, failed: Sequence[tuple[str, str]] = (), unpictured: Sequence[tuple[str, str]] = ()) -> None:
    """Write the page and print its place. The results are already written, so no fault of the page is an error.

    Args:
        out: folder of the results.
        failed: names of the files that failed, and why.
        unpictured: files that the page cannot show, with the reasons.
    """
    from retune._terminal import clean_line
    from retune.cli._words import wrapped
    from retune.cli.errors import note, show
    from retune.report.page import write_page

    if unpictured:
        name, why = unpictured[0]
        others = f" (and {len(unpictured) - 1} more)" if len(unpictured) > 1 else ""
        note(f"the report does not show {clean_line(name)}{others}: {why}")
    try:
        page = write_page(out, failed)
    except Exception as error:
        note(f"the report was not written: {error}")
        return
    if page is not None:
        show(wrapped(f"{page} shows the results"))
