"""``retune train``: train the network that a TOML file describes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retune.cli._help import examples
from retune.cli._problem import Debug, Device, Overrides, Plugins, Resume, accept_code, code_words, folder


@examples(
    ("write a commented TOML file, and edit it", "retune train --init deblur > my.toml"),
    ("train with it", "retune train my.toml --out my-run"),
    ("change fields without editing the file", "retune train my.toml --set optimiser.steps=500 --set seed=1 -o run2"),
    (
        "continue after an interruption, from the last checkpoint",
        "retune train --resume --out my-run",
    ),
    ("use your own physics, in a file", "retune train my.toml --plugin my_physics.py --out my-run"),
)
def train(
    config: Annotated[str | None, typer.Argument(help="A TOML file, or the name of a shipped run.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", parser=folder, help="Folder of the run.")] = Path("retune-run"),
    overrides: Overrides = None,
    resume: Resume = False,
    init: Annotated[str | None, typer.Option("--init", help="Print a commented file to start from.")] = None,
    plugins: Plugins = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Learn a restoration from sharp images, for your own blur, mask or noise.

    A run is a TOML file; every field has a default. The folder gets the resolved run, its seed, versions and a
    fingerprint of the data, two checkpoints and a log. At the end it gets model.safetensors, for retune restore.
    """
    from retune.cli.errors import how_to_resume, one_screen, show

    with one_screen(debug, lambda: how_to_resume("train", out, code_words(plugins, ""))):
        from retune import config as runs
        from retune.errors import ConfigError

        if init is not None:
            show(runs.starting_point(init), end="")
            return
        saved = out / "config.toml"
        if config is None:
            if not resume or not saved.is_file():
                raise ConfigError(
                    f"no run was given: retune train my.toml (shipped runs: {', '.join(sorted(runs.shipped()))}; "
                    f"--init writes one to start from); --resume needs no run if {saved} exists"
                )
            config = str(saved)
        accept_code(plugins, None, overrides or [])
        run = runs.load(config, overrides or [])

        from retune.certificate.quick import in_a_line
        from retune.jobs.folder import MODEL
        from retune.jobs.train import CERTIFICATE
        from retune.jobs.train import train as learn
        from retune.records import TrainingCertificate
        from retune.training.devices import first_process

        result = learn(run, out, resume=resume, device=device)
        if not first_process():
            return
        score = "" if result.best_psnr is None else f", validation {result.best_psnr:.2f} dB (step {result.best_step})"
        show(f"{len(result.steps)} steps in {result.seconds:.0f} s, loss {result.steps[-1].loss:.3e}{score}")
        found = TrainingCertificate.parsed((out / CERTIFICATE).read_bytes(), str(out / CERTIFICATE))
        show(f"{found.image}: {in_a_line(found.certificate)}")
        show(f"Solver: {found.solver}")
        words = code_words(plugins, run.problem.name)
        show(f"{out / MODEL}: restore images with  retune restore {out} IMAGES --out FOLDER{words}")
