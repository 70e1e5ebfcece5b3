"""``retune certify``: how far restorations are from their equilibrium, and whether that is proved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retune.cli import _problem
from retune.cli._help import examples

if TYPE_CHECKING:
    from retune.jobs.certify import Certified


@examples(
    ("what you can rely on, image by image", "retune certify my-run photos/"),
    ("another kernel, and all the numbers for a program", "retune certify my-run a.tif --kernel psf.tif --json a.json"),
    ("a large image, by its middle", "retune certify my-run big.tif --crop 512"),
)
def certify(
    model: Annotated[Path, typer.Argument(help="model.safetensors, or the folder of retune train or tune.")],
    images: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    json: Annotated[Path | None, typer.Option("--json", help="File for the certificates, as JSON.")] = None,
    crop: Annotated[
        int | None,
        typer.Option("--crop", help="Certify the middle, so many pixels a side. Above 4 megapixels 1024 by default."),
    ] = None,
    problem: _problem.Problem = None,
    kernel: _problem.Kernel = None,
    boundary: _problem.Boundary = None,
    mask: _problem.Mask = None,
    factor: _problem.Factor = None,
    sigma: _problem.KnownSigma = None,
    white: _problem.White = None,
    plugins: _problem.Plugins = None,
    device: _problem.Device = "auto",
    debug: _problem.Debug = False,
) -> None:
    """Restore images, and say how far each one is from its equilibrium: proved, estimated or measured.

    The last line of each certificate is the verdict. The images that have no certificate, or whose restoration failed,
    are named at the end, and the exit status is then 1.
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
            say_error(f"{len(bad)} of {len(certified)} images have no certificate, or failed: {', '.join(bad)}")
            raise typer.Exit(1)


def _show(done: Certified) -> None:
    from retune.cli.errors import show, title

    part = "" if done.part is None else f" (the middle {done.part[0]}×{done.part[1]})"
    title(f"{done.name}{part}")
    show(f"{done.certificate if done.certificate is not None else done.failure}\n")
