"""``retune train``: learn what a TOML file describes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retune.cli._help import examples
from retune.cli._problem import Debug, Device, folder


@examples(
    ("write a commented file to start from, and edit it", "retune train --init deblur > my.toml"),
    ("train what it describes", "retune train my.toml --out my-run"),
    ("change a field or two without editing", "retune train my.toml --set optimiser.steps=500 --set seed=1 -o run2"),
    ("go on after an interruption; nothing is lost but the last interval", "retune train --resume --out my-run"),
)
def train(
    config: Annotated[str | None, typer.Argument(help="A TOML file, or the name of a run that ships.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", parser=folder, help="Folder of the run.")] = Path("retune-run"),
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A field, as model.depth=5; repeat it for several.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder, exactly.")] = False,
    init: Annotated[str | None, typer.Option("--init", help="Print a commented file to start from.")] = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Learn a restoration from sharp images, for a blur, mask or noise of yours.

    The run is a TOML file; every field has a default. The folder gets the resolved run, seed, versions and a
    fingerprint of the data, two checkpoints, a log, and at the end model.safetensors, for retune restore.
    """
    from retune.cli.errors import one_screen

    with one_screen(debug):
        from retune import config as runs
        from retune.errors import ConfigError

        if init is not None:
            typer.echo(runs.starting_point(init), nl=False)
            return
        saved = out / "config.toml"
        if config is None:
            if not resume or not saved.is_file():
                raise ConfigError(
                    f"no run was named: retune train my.toml (one of {', '.join(sorted(runs.shipped()))} ships; --init "
                    f"writes one to start from); --resume needs none if {saved} is there"
                )
            config = str(saved)
        run = runs.load(config, overrides or [])

        import json

        from retune.certificate.quick import in_a_line
        from retune.jobs.folder import MODEL
        from retune.jobs.train import CERTIFICATE
        from retune.jobs.train import train as learn
        from retune.training.devices import first_process

        result = learn(run, out, resume=resume, device=device)
        if not first_process():
            return
        score = "" if result.best_psnr is None else f", validation {result.best_psnr:.2f} dB (step {result.best_step})"
        typer.echo(f"{len(result.steps)} steps in {result.seconds:.0f} s, loss {result.steps[-1].loss:.3e}{score}")
        facts = json.loads((out / CERTIFICATE).read_text(encoding="utf-8"))
        typer.echo(f"{facts['image']}: {in_a_line(facts['certificate'])}")
        typer.echo(f"{out / MODEL}: restore images with  retune restore {out} IMAGES --out FOLDER")
