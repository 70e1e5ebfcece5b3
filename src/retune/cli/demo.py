"""``retune demo``: the main job on real photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retune.cli._help import examples
from retune.cli._problem import folder


@examples(
    ("all three problems, about three minutes on two cores", "retune demo"),
    ("one problem, into a folder of your choice", "retune demo --problem inpaint --out my-demo"),
    ("go on after an interruption", "retune demo --resume"),
    ("a first look in half a minute, too short to conclude from", "retune demo --quick"),
)
def demo(
    problem: Annotated[
        list[str] | None,
        typer.Option("--problem", "-p", help="inpaint, deblur or denoise; repeat it for several. All by default."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", parser=folder, help="Folder for results.json, figures and report.html.")
    ] = Path("retune-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Small images and few steps: under 45 seconds.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of crops, masks and noise.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the demo that is in the folder.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, …")] = "auto",
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Learn the weights of a wavelet norm at the equilibrium, beside the methods that it should be compared with.

    On photographs that ship inside scikit-image (nothing is downloaded), for inpainting, deblurring and denoising:
    the best single λ by grid search, the plain unrolled network, JFB, the implicit gradient, and ReTune, with the
    same start and the same budget. Writes a table, figures and one report that opens in any browser.
    """
    from retune.cli.errors import one_screen

    with one_screen(debug):
        from retune.demo import run

        run(problem, out, quick=quick, seed=seed, resume=resume, device=device)
