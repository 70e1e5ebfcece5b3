"""The templates of the pages."""

from __future__ import annotations

import jinja2

__all__ = ["templates"]


def templates(more: str = "") -> jinja2.Environment:
    """The templates of this package. Every text is escaped; a name that is not given is an error.

    Args:
        more: another folder of the package, whose templates come first.
    """
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader("retune", folder) for folder in (more, "report") if folder]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
