"""``retune compare``: all methods on the problem and images of a run, with equal effort."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retune.cli._help import examples
from retune.cli._problem import Debug, Device, Overrides, Plugins, accept_code, chosen_device, folder


@examples(
    ("compare the six methods on ReTune's photographs, for your own blur", "retune compare my.toml --out comparison"),
    (
        "use your own images for training, tuning and testing",
        "retune compare my.toml --set data.train=a/ --set data.validation=b/ --set compare.test=c/ -o comparison",
    ),
    (
        "compare two methods only, with three learning rates each",
        "retune compare my.toml --methods retune,implicit --set compare.lr=[0.02,0.05,0.1]",
    ),
    ("continue after an interruption", "retune compare my.toml --out comparison --resume"),
    ("compare networks that are already trained", "retune compare my.toml --methods none --model my-run --model run2"),
)
def compare(
    config: Annotated[str, typer.Argument(help="A TOML file, or the name of a shipped run.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", parser=folder, help="Folder of results, figures and report.html.")
    ] = Path("retune-comparison"),
    methods: Annotated[
        str | None,
        typer.Option("--methods", help="One or more of variational,pnp,unrolled,jfb,implicit,retune; or none."),
    ] = None,
    models: Annotated[
        list[Path] | None, typer.Option("--model", help="A trained network to compare; repeat the option for several.")
    ] = None,
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed, in place of the run's own.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the comparison in the folder.")] = False,
    plugins: Plugins = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Compare methods on your problem: grid search, Plug-and-Play, unrolled, JFB, implicit gradient, ReTune.

    The trained methods start from the best point of the grid search on the validation images. All of them get the same
    crops, noise, steps and learning rates. The folder gets a table (also as CSV and JSON), figures, the networks and a
    file report.html.
    """
    from retune.cli.errors import one_screen, say

    how = f"continue with the same command and --resume: the results in {out} are kept"
    with one_screen(debug, lambda: how):
        from rich.console import Console

        from retune import config as runs
        from retune._terminal import cleaned
        from retune.cli.errors import show
        from retune.comparison.rows import write_results
        from retune.comparison.run import compare as run_all
        from retune.records import Results
        from retune.report import terminal_table, write_all

        given = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]
        accept_code(plugins, None, given)
        run = runs.load(config, given)
        keys = None if methods is None else [k for k in methods.replace(" ", "").split(",") if k not in ("", "none")]
        console = Console()
        words = ["retune compare", config, *(f"--set {o}" for o in given)]
        words += [] if methods is None else [f"--methods {methods}"]
        words += [f"--plugin {plugin}" for plugin in plugins or []]

        def changed(results: Results) -> None:
            results.command = " ".join(words)
            write_results(results, out)

        results = run_all(
            run,
            out,
            methods=keys,
            models=models or [],
            resume=resume,
            device=chosen_device(device),
            note=say,
            progress=console.is_terminal,
            changed=changed,
        )
        page = write_all(results, out)
        terminal_table(cleaned(results), console)
        show(f"\nOpen {page} in a browser; results.csv, results.json and models/ are in the same folder.")
