"""``retune restore``: apply a trained network to images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retune.cli import _problem
from retune.cli._help import examples
from retune.cli._moving import moving

if TYPE_CHECKING:
    from retune.jobs.restore import Row


@examples(
    (
        "restore all images of a folder, with the problem of the training",
        "retune restore my-run photos/ --out restored",
    ),
    (
        "use another kernel, and restore two files at a time",
        "retune restore my-run a.tif b.tif --kernel psf.tif --workers 2 --out restored",
    ),
    (
        "restore at once, without a network of your own",
        "retune restore photos/ --problem deblur --kernel psf.tif --out restored",
    ),
    ("use a network for your own physics", "retune restore my-run a.tif --plugin my_physics.py --out restored"),
    (
        "restore 12-bit data in 16-bit files, in tiles",
        "retune restore my-run big.tif --white 4095 --tile 1024 --out restored",
    ),
)
@_problem.describes_measurement(sigma=_problem.KnownSigma)
def restore(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="[MODEL]",
            help="model.safetensors, or the folder of retune train or tune. With --problem, it may be left out.",
        ),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILES", help="Files and folders of images."),
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", parser=_problem.folder, metavar="FOLDER", help="Folder of the results."),
    ],
    measured: _problem.Measured,
    plugins: _problem.Plugins = None,
    tile: Annotated[
        int | None,
        typer.Option(
            "--tile", metavar="PIXELS", help="Side of the tiles; 0 for none. Default above 4 megapixels: 1024."
        ),
    ] = None,
    overlap: Annotated[
        int,
        typer.Option(
            "--overlap",
            metavar="PIXELS",
            help="Margin around a tile, in pixels.",
        ),
    ] = 96,
    workers: Annotated[
        int,
        typer.Option("--workers", metavar="NUMBER", help="Files restored at the same time."),
    ] = 1,
    again: Annotated[
        bool,
        typer.Option("--again", help="Restore finished images again."),
    ] = False,
    certificate: Annotated[
        bool,
        typer.Option("--certificate/--no-certificate", help="Certify each image: about an eighth of the layers more."),
    ] = True,
    report: _problem.Report = True,
    details: _problem.Details = False,
    device: _problem.Device = "auto",
    debug: _problem.Debug = False,
) -> None:
    """Restore images with your network, or at once with the prior that ships (--problem and no MODEL).

    Each result has the format of its image: 16 bits in, 16 bits out.
    Each image also gets a record with a certificate. A broken file does not stop the others: it is named at the end,
    and the exit status is 1. Running the command again restores only missing or changed images.
    """
    from retune.cli.errors import one_screen, say, say_error

    with one_screen(debug, lambda: "run the command again: finished images are not restored twice"):
        with moving("starting"):
            from retune._terminal import clean_line
            from retune.cli._page import tell_page
            from retune.errors import ConfigError
            from retune.jobs.instant import instant_model
            from retune.jobs.opened import open_model
            from retune.jobs.restore import Options
            from retune.jobs.restore import restore as run

            _problem.accept_code(plugins, measured.problem)
            given = measured.fields()
            at_once = measured.problem is not None and not _is_model(model)
            files = _problem.chosen_files([model, *(images or [])] if at_once else images or [])
            if not files:
                raise ConfigError(
                    f"no images were given: retune restore {model} IMAGES --out FOLDER; or, without a network, retune "
                    "restore IMAGES --problem denoise --out FOLDER"
                )
            where = _problem.chosen_device(device)
            opened = instant_model(given, where) if at_once else open_model(model, given, where)
        bright, dark, remembered = measured.unit_of(opened)
        options = Options(out, tile, overlap, bright, remembered, again, certificate, report, dark)
        done: list[Row] = []

        def note(row: Row) -> None:
            done.append(row)
            say(f"{len(done)}/{len(files)}  {clean_line(row.file.name)}: {row.result}")
            line.text = f"restoring file {min(len(done) + 1, len(files))} of {len(files)}"

        with moving(f"restoring {len(files)} file{'s' * (len(files) > 1)}") as line:
            rows = run(opened, files, options, workers, note)
        _tell(rows, details)
        if report:
            tell_page(
                out,
                [(row.file.name, row.detail) for row in rows if row.result == "failed"],
                [(row.file.name, row.unpictured) for row in rows if row.unpictured],
            )
        failed = [row for row in rows if row.result == "failed"]
        if failed:
            rest = f"; the other results are in {out}" if len(failed) < len(rows) else ""
            say_error(f"{len(failed)} of {len(rows)} files failed{rest}")
            raise typer.Exit(1)


def _is_model(path: Path) -> bool:
    """Whether a path is a network, or the folder of a run."""
    return path.suffix.lower() == ".safetensors" or (path / "model.safetensors").is_file()


def _tell(rows: list[Row], details: bool) -> None:
    """The verdict, and the outcome for each file."""
    from retune._terminal import clean_line
    from retune.cli._words import wrapped
    from retune.cli.errors import show

    count = Counter(row.result for row in rows)
    words = [f"{count[result]} {result}" for result in ("restored", "done before", "failed") if count[result]]
    left = [row for row in rows if row.residual in _LEFT]
    verdict = f"{len(rows)} file{'s' * (len(rows) != 1)}: {', '.join(words)}"
    if left:
        named = clean_line(left[0].file.name) + (f" and {len(left) - 1} more" if len(left) > 1 else "")
        verdict += f". Something is left in the residual of {named}: see the report"
    show(wrapped(f"{verdict}."))
    names = [clean_line(row.file.name) for row in rows]
    width = max(map(len, names))
    for row, name in zip(rows, names, strict=True):
        seconds = f"{row.seconds:7.1f} s" if row.result == "restored" else " " * 9
        head = f"{name:<{width}}  {row.result:<11}  {seconds}  "
        if len(head) > 48:  # a long name has a line of its own
            show(name)
            head = f"  {row.result:<11}  {seconds}  "
        told = "; ".join(
            text for text in (row.detail if details or row.result == "failed" else row.short, _residual(row)) if text
        )
        show(wrapped(told, head, " " * len(head)))


#: The kinds of residual that are printed; see ``retune.diagnosis.residual``.
_LEFT = ("structure", "structure in places", "larger than the noise")


def _residual(row: Row) -> str:
    return f"residual: {row.residual}" if row.residual else ""
