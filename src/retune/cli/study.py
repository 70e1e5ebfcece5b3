"""``retune study``: the errors of gradient and state over depth and restarts, and their cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retune.cli._help import examples
from retune.cli._problem import Debug, Device, Plugins, accept_code, chosen_device, folder


@examples(
    ("see it in a minute, on a small part of a photograph", "retune study denoise --quick"),
    ("study a run on ReTune's photographs", "retune study demo-deblur --out study"),
    ("study a trained network, the folder of retune train", "retune study my-run --out study"),
    (
        "choose the grid, and leave the trainings out",
        "retune study my.toml --depths 1,5,10 --restarts 0,1,10 --train-seconds 0",
    ),
    ("continue after an interruption", "retune study my.toml --out study --resume"),
)
def study(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A TOML file, the name of a shipped run, or the folder of a run.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", parser=folder, help="Folder of tables, figures and study.html.")
    ] = Path("retune-study"),
    depths: Annotated[
        str | None, typer.Option("--depths", metavar="K,K,…", help="Values of K. Default: 1,2,5,10,20,50.")
    ] = None,
    restarts: Annotated[
        str | None, typer.Option("--restarts", metavar="R,R,…", help="Values of R. Default: 0,1,2,5,10,25,50.")
    ] = None,
    images: Annotated[int | None, typer.Option("--images", help="Number of images. Default: 2.")] = None,
    crop: Annotated[
        int | None,
        typer.Option("--crop", metavar="PIXELS", help="Side of the central part of each image. Default: 96."),
    ] = None,
    train_seconds: Annotated[
        float | None,
        typer.Option("--train-seconds", help="Training time of each method and seed, or 0. Default: 10."),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Trainings of each method. Default: 3.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small grid on a small part of one image; too short for conclusions.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A field, such as model.depth=5; repeat the option for several.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed, in place of the run's own.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the study in the folder.")] = False,
    plugins: Plugins = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Measure how depth K and restarts R control the errors of the gradient and of the image.

    For every K and R the gradient of a training step is compared with the exact one, and the state with the
    equilibrium; beside them stand the step's own report, the certificate, the theory, and time and memory. Then methods
    are trained for the same time. The folder gets study.html with all figures, study.csv, races.csv and study.json.
    """
    from retune.cli.errors import one_screen, say

    how = f"continue with the same command and --resume: the results in {out} are kept"
    with one_screen(debug, lambda: how):
        from dataclasses import replace

        from retune import config as runs
        from retune.cli._moving import moving
        from retune.cli.errors import show
        from retune.jobs.folder import MODEL, RUN
        from retune.jobs.opened import open_network
        from retune.report.study_page import write_study_page
        from retune.report.study_words import summary
        from retune.studies import StudyOptions
        from retune.studies import study as measure
        from retune.studies.options import QUICK

        given = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]
        accept_code(plugins, None, given)
        is_folder = Path(run).is_dir()
        settings = runs.load(Path(run) / RUN if is_folder else run, given)
        net = open_network(Path(run))[0] if is_folder and (Path(run) / MODEL).is_file() else None
        chosen = {
            "depths": _numbers(depths),
            "restarts": _numbers(restarts),
            "images": images,
            "crop": crop,
            "train_seconds": train_seconds,
            "seeds": seeds,
        }
        told = {k: v for k, v in chosen.items() if v is not None}
        options = replace(QUICK if quick else StudyOptions(), **told)
        words = ["retune study", run, *["--quick"] * quick, *(f"--set {o}" for o in given)]
        named = {k: v if isinstance(v, int | float) else ",".join(map(str, v)) for k, v in told.items()}
        words += [f"--{k.replace('_', '-')} {v}" for k, v in named.items()]
        words += [f"--plugin {plugin}" for plugin in plugins or []]

        with moving("starting") as line:

            def note(text: str) -> None:
                line.text = text
                say(text)

            found = measure(
                settings,
                out,
                options,
                net=net,
                resume=resume,
                device=chosen_device(device),
                command=" ".join(words),
                quick=quick,
                note=note,
            )
            page = write_study_page(found, out)
        for sentence in summary(found):
            show(sentence)
        show(f"\nOpen {page} in a browser; study.csv, study.json and the figures are in the same folder.")


def _numbers(text: str | None) -> tuple[int, ...] | None:
    """Whole numbers, separated by commas."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise typer.BadParameter(f"expected whole numbers separated by commas, such as 1,5,10; got {text!r}") from error
