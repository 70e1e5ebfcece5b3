"""``retune certify``: the distance of restorations from their equilibrium, proved or estimated."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retune.cli import _problem
from retune.cli._help import examples
from retune.cli._moving import moving

if TYPE_CHECKING:
    from retune.jobs.certify import Certified


@examples(
    ("certify each image of a folder", "retune certify my-run photos/"),
    ("use another kernel, and write all numbers as JSON", "retune certify my-run a.tif --kernel psf.tif --json a.json"),
    ("print all numbers of each certificate", "retune certify my-run photos/ --details"),
    ("certify the central part of a large image", "retune certify my-run big.tif --crop 512"),
)
@_problem.describes_measurement("noise", sigma=_problem.KnownSigma)
def certify(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="model.safetensors, or the folder of retune train or tune.",
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="FILES", help="Files and folders of images."),
    ],
    json: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="File for the certificates, as JSON."),
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option(
            "--crop", metavar="PIXELS", help="Side of the central part to certify. Default above 4 megapixels: 1024."
        ),
    ] = None,
    measured: _problem.Measured = _problem.NOTHING,
    plugins: _problem.Plugins = None,
    details: _problem.Details = False,
    device: _problem.Device = "auto",
    debug: _problem.Debug = False,
) -> None:
    """Restore images, and report the distance of each from its equilibrium: proved, estimated or measured.

    Each file gets its verdict; --details prints all numbers of each image. If an image has no certificate, or its
    restoration failed, it is named at the end, and the exit status is 1.
    """
    from retune.cli.errors import one_screen, say_error

    with one_screen(debug, lambda: "run the command again"):
        with moving("starting"):
            from retune.jobs.certify import certify_files, record
            from retune.jobs.opened import open_model
            from retune.records import Certificates

        target = _problem.json_file(json, Certificates)
        _problem.accept_code(plugins, measured.problem)
        files = _problem.chosen_files(images)
        given = measured.fields()
        with moving("reading the network"):
            opened = open_model(model, given, _problem.chosen_device(device))
        bright, dark, remembered = measured.unit_of(opened)
        told = _Told(details)
        with moving("certifying"):
            certified = certify_files(
                opened, files, white=bright, black=dark, white_remembered=remembered, side=crop, note=told.add
            )
        told.end()
        if target is not None:
            record(opened, certified).write(target)
        bad = [c.name for c in certified if not c.sound]
        if bad:
            say_error(f"{len(bad)} of {len(certified)} images failed or have no certificate:  {', '.join(bad)}")
            raise typer.Exit(1)


class _Told:
    """Prints the verdicts, file by file. Of a stack, only the weakest certificate; with details, all."""

    def __init__(self, details: bool):
        self._details, self._waiting = details, []

    def add(self, done: Certified) -> None:
        """Another image; the images of a file follow each other."""
        if self._details:
            _show_details(done)
            return
        if self._waiting and self._waiting[-1].file != done.file:
            self.end()
        self._waiting.append(done)

    def end(self) -> None:
        """The last image of a file was added."""
        if self._waiting:
            _show(self._waiting)
        self._waiting = []


def _show(images: list[Certified]) -> None:
    """The verdict on a file, in plain words."""
    from retune.certificate.quick import in_words
    from retune.cli._words import wrapped
    from retune.cli.errors import show, title
    from retune.records import CertifiedImage

    failed = [image for image in images if image.certificate is None]
    found = [image for image in images if image.certificate is not None]
    first = images[0]
    part = "" if first.part is None else f" (the central {first.part[0]}×{first.part[1]})"
    title(f"{first.file if len(images) > 1 else first.name}{part}")
    if first.unit is not None:
        show(f"  {first.unit}, found in the file")
    if found:
        worst = max(found, key=_weakness)
        if len(images) > 1:
            show(wrapped(f"{len(found)} images; the weakest certificate is that of {worst.name}:", "  ", "  "))
        assert worst.certificate is not None
        for words in in_words(CertifiedImage.model_validate(worst.certificate[0].to_dict())):
            show(wrapped(words, "  ", "  "))
        if worst.certificate[0].status.unsettled or not worst.sound:
            show(wrapped(f"The restoration ended as: {worst.certificate[0].status}.", "  ", "  "))
    reasons = Counter(image.failure.replace(image.name, "the image") for image in failed)
    for why, count in reasons.items():
        some = f" for {count} images" if count > 1 else "" if len(images) == 1 else f" for {failed[0].name}"
        show(wrapped(f"No certificate{some}: {why if count > 1 else failed[0].failure}", "  ", "  "))
    show("")


def _weakness(done: Certified) -> tuple:
    """Larger is weaker: failed, unproved, far."""
    assert done.certificate is not None
    image = done.certificate[0]
    best = image.rmse.best
    return (
        not done.sound,
        bool(image.refuted or image.jumps),
        image.rmse.proved is None,
        best.value if best else math.inf,
    )


def _show_details(done: Certified) -> None:
    from retune.cli.errors import show, title

    part = "" if done.part is None else f" (the central {done.part[0]}×{done.part[1]})"
    title(f"{done.name}{part}")
    show(f"{done.certificate if done.certificate is not None else done.failure}\n")
