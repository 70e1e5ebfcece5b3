"""``retune app``: a page in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from retune.cli import _problem
from retune.cli._help import examples
from retune.cli._moving import moving

#: What the extra [app] installs.
_NEEDED = ("gradio", "fastapi", "uvicorn")


@examples(
    ("open the page of this machine in the browser", "retune app --open"),
    (
        "let colleagues in, with the password in RETUNE_APP_PASSWORD, and take larger files",
        "retune app --host 0.0.0.0 --port 8000 --upload 1000",
    ),
)
def app(
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", help="Address to listen on. Others than this machine's need a password."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option("--port", metavar="NUMBER", help="Port; the first free one from 7860 by default.")
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(
            "--password",
            metavar="PASSWORD",
            envvar="RETUNE_APP_PASSWORD",
            show_envvar=True,
            help="Password that every visitor has to give, with any name.",
        ),
    ] = None,
    upload: Annotated[float, typer.Option("--upload", metavar="MB", help="Largest file.")] = 200,
    values: Annotated[
        float, typer.Option("--values", metavar="MILLIONS", help="Largest image: pixels times channels, of all pages.")
    ] = 50,
    minutes: Annotated[float, typer.Option("--minutes", metavar="MINUTES", help="Longest computation.")] = 15,
    opens: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    debug: _problem.Debug = False,
) -> None:
    """Open a page in the browser: drop an image, see it restored, take it away.

    The page is for this machine only, unless --host says otherwise. Files are kept in a temporary folder and removed
    when the page is closed.
    """
    from importlib.util import find_spec

    from retune.cli.errors import one_screen, say

    with one_screen(debug):
        from retune.errors import InvalidParameterError

        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing:
            raise InvalidParameterError(
                f"retune app needs {missing[0]}, which is not installed: pip install 'retune-imaging[app]'"
            )
        for name, number in (("--upload", upload), ("--values", values), ("--minutes", minutes)):
            if not 0 < number < 1e6:
                raise InvalidParameterError(f"{name} {number:g}: expected a number above 0")

        def ready(address: str) -> None:
            say(f"the page is at {address} (Ctrl-C ends it)")
            if opens:
                import webbrowser

                webbrowser.open(address)

        with moving("starting"):
            from retune.app.launch import serve
            from retune.app.worker import Limits
        limits = Limits(upload=int(upload * 1e6), values=int(values * 1e6), seconds=60 * minutes)
        serve(limits, host, port, password, ready)
