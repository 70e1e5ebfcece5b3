"""The command ``retune``. Every verb imports what it needs when it runs, so that ``--help`` is instant.

Help is plain text: typer's panels would import rich and a Markdown parser, which takes longer than all the rest.
"""

from __future__ import annotations

import typer

from retune._version import __version__
from retune.cli.certify import certify
from retune.cli.compare import compare
from retune.cli.demo import demo
from retune.cli.doctor import doctor
from retune.cli.restore import restore
from retune.cli.train import train
from retune.cli.tune import tune

app = typer.Typer(
    name="retune",
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
app.command("demo")(demo)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"retune {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    pass
