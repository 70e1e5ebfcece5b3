"""The templates of the pages."""

from __future__ import annotations

import jinja2

__all__ = ["templates"]


def templates() -> jinja2.Environment:
    """The templates of this package. Every text is escaped; a name that is not given is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("retune", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
