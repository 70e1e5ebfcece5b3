"""``retune demo``: a complete example on photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retune.cli._help import examples
from retune.cli._problem import Debug, Device, folder


@examples(
    ("run all four problems, about three minutes on two cores", "retune demo"),
    ("run one problem, and choose the folder", "retune demo --problem inpaint --out my-demo"),
    ("continue after an interruption", "retune demo --resume"),
    ("run for half a minute, too short for conclusions", "retune demo --quick"),
)
def demo(
    problem: Annotated[
        list[str] | None,
        typer.Option(
            "--problem", "-p", help="inpaint, deblur, denoise or superres; repeat the option for several. Default: all."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", parser=folder, help="Folder for results.json, figures and report.html.")
    ] = Path("retune-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Small images and few steps: under 45 seconds.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of crops, masks and noise.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the demo in the folder.")] = False,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Learn the weights of a wavelet norm at the equilibrium, and compare with other methods.

    The demo runs inpainting, deblurring and denoising with wavelets, and super-resolution with total variation, on
    photographs inside scikit-image; nothing is downloaded. It compares the best single λ by grid search, the plain
    unrolled network, JFB, the implicit gradient, and ReTune, all with the same start and the same budget. It writes a
    table, figures and a report for any browser.
    """
    from retune.cli.errors import one_screen

    with one_screen(debug):
        from retune.demo import run

        run(problem, out, quick=quick, seed=seed, resume=resume, device=device)
