"""The command ``retune``. Every verb imports its modules when it runs, so that ``--help`` is instant.

Help is plain text: typer's panels would import rich and a Markdown parser, which takes longer than everything else.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from retune._terminal import clean, make_safe
from retune._version import __version__
from retune.cli.app import app as page
from retune.cli.certify import certify
from retune.cli.compare import compare
from retune.cli.demo import demo
from retune.cli.doctor import doctor
from retune.cli.restore import restore
from retune.cli.study import study
from retune.cli.train import train
from retune.cli.tune import tune


class _Command(TyperGroup):
    """The command, on any terminal. Its output is cleaned, also where it repeats the command line."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        make_safe()
        # Threads that wait for each other leave the processor to others. By default they spin, which on a busy machine
        # costs more than the work. torch reads this variable when it is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        try:
            status = super().main(*args, standalone_mode=False, **extra)
        except Exception as error:
            told = getattr(error, "format_message", None)  # only errors in the usage of the command have this method
            if told is None:
                raise
            text = clean(told())
            error.format_message = lambda: text  # pyright: ignore[reportAttributeAccessIssue]
            error.show()  # pyright: ignore[reportAttributeAccessIssue]
            status = getattr(error, "exit_code", 2)
        sys.exit(status if isinstance(status, int) else 0)


app = typer.Typer(
    name="retune",
    cls=_Command,
    help="Image restoration learned at equilibrium: restarted truncated unrolled networks (ReTune).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("train")(train)
app.command("tune")(tune)
app.command("restore")(restore)
app.command("certify")(certify)
app.command("doctor")(doctor)
app.command("compare")(compare)
app.command("study")(study)
app.command("demo")(demo)
app.command("app")(page)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"retune {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    pass
