"""``retune certify``: the distance of restorations from their equilibrium, proved or estimated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retune.cli import _problem
from retune.cli._help import examples

if TYPE_CHECKING:
    from retune.jobs.certify import Certified


@examples(
    ("certify each image of a folder", "retune certify my-run photos/"),
    ("use another kernel, and write all numbers as JSON", "retune certify my-run a.tif --kernel psf.tif --json a.json"),
    ("certify the central part of a large image", "retune certify my-run big.tif --crop 512"),
)
def certify(
    model: Annotated[Path, typer.Argument(help="model.safetensors, or the folder of retune train or tune.")],
    images: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    json: Annotated[Path | None, typer.Option("--json", help="File for the certificates, as JSON.")] = None,
    crop: Annotated[
        int | None,
        typer.Option("--crop", help="Side of the central part to certify. Default above 4 megapixels: 1024."),
    ] = None,
    problem: _problem.Problem = None,
    kernel: _problem.Kernel = None,
    kernel_background: _problem.KernelBackground = None,
    centre_kernel: _problem.CentreKernel = None,
    boundary: _problem.Boundary = None,
    mask: _problem.Mask = None,
    factor: _problem.Factor = None,
    sigma: _problem.KnownSigma = None,
    white: _problem.White = None,
    plugins: _problem.Plugins = None,
    device: _problem.Device = "auto",
    debug: _problem.Debug = False,
) -> None:
    """Restore images, and report the distance of each from its equilibrium: proved, estimated or measured.

    The last line of each certificate is the verdict. If an image has no certificate, or its restoration failed, it is
    named at the end, and the exit status is 1.
    """
    from retune.cli.errors import one_screen, say_error

    with one_screen(debug, lambda: "run the command again"):
        from retune.errors import InvalidParameterError
        from retune.jobs.certify import certify_files, record
        from retune.jobs.opened import open_model

        if json is not None and json.is_dir():
            raise InvalidParameterError(
                f"{json} is a folder: name a file for the certificates, --json {json / 'a.json'}"
            )
        _problem.accept_code(plugins, problem)
        files = _problem.chosen_files(images)
        given = _problem.given(problem, kernel, boundary, mask, factor, sigma)
        given |= _problem.of_kernel(kernel_background, centre_kernel)
        opened = open_model(model, given, _problem.chosen_device(device))
        unit, remembered = _problem.unit_of(opened, white)
        certified = certify_files(
            opened,
            files,
            white=unit,
            white_remembered=remembered,
            side=crop,
            note=_show,
        )
        if json is not None:
            record(opened, certified).write(json)
        bad = [c.name for c in certified if not c.sound]
        if bad:
            say_error(f"{len(bad)} of {len(certified)} images failed or have no certificate:  {', '.join(bad)}")
            raise typer.Exit(1)


def _show(done: Certified) -> None:
    from retune.cli.errors import show, title

    part = "" if done.part is None else f" (the central {done.part[0]}×{done.part[1]})"
    title(f"{done.name}{part}")
    show(f"{done.certificate if done.certificate is not None else done.failure}\n")
