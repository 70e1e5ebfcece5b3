"""``retune tune``: choose the parameters of a restoration from the measurements alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retune.cli import _problem
from retune.cli._help import examples
from retune.cli._moving import moving

if TYPE_CHECKING:
    from retune.records import TuneResult


@examples(
    ("tune for noise of a known level", "retune tune noisy.tif --problem denoise --sigma 0.05 --out my-tune"),
    (
        "tune for a folder of blurred images, with estimated noise level",
        "retune tune photos/ -p deblur --kernel psf.tif --sigma estimate --out my-tune",
    ),
    ("then restore the images", "retune restore my-tune photos/ --out restored"),
    ("continue after an interruption", "retune tune --resume --out my-tune"),
)
@_problem.describes_measurement()
def tune(
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILES", help="Files and folders of measurements."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", parser=_problem.folder, metavar="FOLDER", help="Folder of the run."),
    ] = Path("retune-tune"),
    measured: _problem.Measured = _problem.NOTHING,
    loss: Annotated[
        str,
        typer.Option("--loss", metavar="LOSS", help="auto, sure (Stein), r2r (recorrupted) or ei (equivariant)."),
    ] = "auto",
    run: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="FILE.toml", help="A TOML file with the prior and model; a wavelet norm by default."
        ),
    ] = None,
    overrides: _problem.Overrides = None,
    resume: _problem.Resume = False,
    plugins: _problem.Plugins = None,
    report: _problem.Report = True,
    details: _problem.Details = False,
    device: _problem.Device = "auto",
    debug: _problem.Debug = False,
) -> None:
    """Choose strength, step size and weights for your images, without sharp images.

    The error is estimated from the measurements (Stein's lemma, splitting) and minimised at the equilibrium. The folder
    gets checkpoints, tune.json with the chosen values and their uncertainty, and model.safetensors for retune restore
    and retune certify.
    """
    from retune.cli.errors import how_to_resume, one_screen, say_error, show

    with one_screen(debug, lambda: how_to_resume("tune", out, _problem.code_words(plugins, measured.problem or ""))):
        with moving("starting"):
            from retune import config as runs
            from retune.cli._page import tell_page
            from retune.cli._words import wrapped
            from retune.config.read import overridden
            from retune.errors import ConfigError
            from retune.jobs import tune as job

        _problem.accept_code(plugins, measured.problem, overrides or [])
        given = measured.fields()
        if resume and not images:
            config, files, facts = job.earlier(out)
            bright, dark, loss, ships = facts.white, facts.black, facts.loss, facts.ships
        else:
            if not images:
                raise ConfigError("no images were given: retune tune IMAGES --problem denoise --sigma 0.05")
            files = _problem.chosen_files(images)
            bright, dark = measured.levels()
            ships = run is None and "prior" not in overridden(overrides or [])
            if run is not None:
                config = _problem.on_top(runs.load(run), given, overrides or [])
            elif "name" in given:
                config = job.starting_run({"sigma": "estimate", **given}, overrides or [])
            else:
                raise ConfigError("no problem was given: --problem denoise, inpaint, deblur, superres, module:function")
        tuned, unpictured = job.tune(
            config, files, out, white=bright, black=dark, loss=loss, resume=resume, device=device, report=report,
            ships=ships,
        )  # fmt: skip
        if "auto" in (measured.white, measured.black):
            show(
                wrapped(
                    f"black {tuned.black or 0:g}, white {'as usual' if tuned.white is None else f'{tuned.white:g}'}"
                )
            )
        _tell(tuned, details)
        own = _problem.code_words(plugins, config.problem.name)
        if report:
            tell_page(out, unpictured=[("the tuning", unpictured)] if unpictured else [])
        show(wrapped(f"{out}: restore images with  retune restore {out} FILES --out FOLDER{own}"))
        if tuned.left_out:
            for name, why in tuned.left_out.items():
                say_error(why if name in why else f"{name}: {why}")
            say_error(f"{len(tuned.left_out)} of {len(files)} files were not used; the others were")
            raise typer.Exit(1)


def _tell(tuned: TuneResult, details: bool = True) -> None:
    from retune.certificate.quick import in_a_line
    from retune.cli._words import wrapped
    from retune.cli.errors import show
    from retune.jobs.assess import FACTORS
    from retune.jobs.contest import DEFAULT, MEASURED, TUNED
    from retune.jobs.sections import tuning_in_words

    found = tuned.comparison
    show(wrapped(tuning_in_words(tuned)))
    levels = tuned.sigma if isinstance(tuned.sigma, list) else [tuned.sigma]

    def row(name: str, text: str) -> None:
        show(wrapped(text, f"{name:<13} ", " " * 14))

    noise = f"noise {tuned.noise}" if tuned.noise else f"σ = {_values(levels)}"
    row("learned with", f"{tuned.loss}, {noise}, in {tuned.seconds:.0f} s")
    what = f"of {found.of}"
    row("defaults", _decibel(found.before, what))
    sure = "" if found.after is None or found.before is None else _sure(found.uncertainty)
    name = tuned.winner if found.better and tuned.winner != MEASURED else TUNED
    head, named = ("tuned", "") if name == TUNED else ("best", f": {name}")
    row(head, f"{_decibel(found.after, what)}{sure}{named}")
    for rival in tuned.candidates:
        if rival.name not in (DEFAULT, name):
            row("also" if rival.name != MEASURED else "as measured", f"{_decibel(rival.psnr, what)}: {rival.name}")
    if found.gain is not None:
        row("gain", f"{found.gain:+.2f} dB{_sure(found.spread)}")
    else:
        row(
            "",
            "the estimated error is 0 or less, so nothing is chosen by it: the noise level is not σ, or the values "
            "were clipped (check with retune doctor)",
        )
    if found.again is not None:
        again = f"{found.again:+.2f} dB{_sure(found.again_spread)}"
        row("", f"{again} with the error of a second restoration, which decides")
    if tuned.estimated and details:
        row("estimated", tuned.estimated)
    decides = found.gain if found.again is None else found.again
    if not found.better and decides is not None and decides > 0:
        row("", "less than two standard errors: the defaults are kept")
    elif not found.better:
        row("", "the defaults are kept")
    elif found.again is None and found.gain is not None and found.gain < 2 * (found.spread or math.inf):
        row("", "the gain is statistically insignificant")
    row("certificate", in_a_line(tuned.certificate))
    for name, values in tuned.parameters.items():
        if details or name == "reg":
            row(name if details else "strength", _values(values))
        if name == "reg" and tuned.factors is not None:
            low, high = (factor or 0.0 for factor in tuned.factors)
            tried = " ".join(f"×{factor:g}" for factor in FACTORS)
            alike = f"strengths ×{low:g} to ×{high:g} are statistically indistinguishable"
            row("", alike if low < high else f"strengths {tried} are all worse")


def _sure(error: float | None) -> str:
    return " (one block of pixels: its error is unknown)" if error is None else f" ± {error:.2f} dB (standard error)"


def _decibel(psnr: float | None, what: str) -> str:
    return "no estimate" if psnr is None else f"{psnr:.2f} dB estimated PSNR {what}"


def _values(values: Sequence[float | None]) -> str:
    return " ".join("unknown" if v is None else f"{v:.3g}" for v in values)
