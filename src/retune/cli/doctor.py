"""``retune doctor``: examine the operator and the measurements before training on them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retune.cli import _problem
from retune.cli._help import examples

if TYPE_CHECKING:
    from retune.config import Config
    from retune.jobs.doctor import Examined


@examples(
    ("examine the operator of a run", "retune doctor my.toml"),
    ("examine a kernel and blurred images", "retune doctor photos/ --problem deblur --kernel psf.tif --sigma 0.02"),
    ("examine images with your own run, and write the findings as JSON", "retune doctor my.toml a.tif --json a.json"),
    ("examine a run with your own physics", "retune doctor my.toml --plugin my_physics.py"),
)
@_problem.describes_measurement("noise")
def doctor(
    what: Annotated[
        list[Path] | None, typer.Argument(help="A run (a TOML file, or the name of a shipped run), then images.")
    ] = None,
    size: Annotated[
        str, typer.Option("--size", help="Height x width of the image for the operator, if no image is given.")
    ] = "128x128",
    json: Annotated[str | None, typer.Option("--json", help="File for the findings, as JSON.")] = None,
    measured: _problem.Measured = _problem.NOTHING,
    plugins: _problem.Plugins = None,
    debug: _problem.Debug = False,
) -> None:
    """Examine a blur, mask or noise level, and images measured with it: report faults and their remedies.

    The exit status is 1 if there is a problem or a warning.
    """
    from retune.cli.errors import one_screen, say_error

    with one_screen(debug, lambda: "run the command again"):
        from retune.jobs.doctor import examine
        from retune.records import Examinations

        target = _problem.json_file(json, Examinations)
        _problem.accept_code(plugins, measured.problem)
        fields = measured.fields()
        config, rest = _run_and_images(what or [], fields)
        files = _problem.chosen_files(rest)
        bright, dark = measured.levels()
        found = examine(config, files, size=_size(size), white=bright, black=dark, note=_show)
        if target is not None:
            Examinations(format=1, examined=[e.record() for e in found]).write(target)
        bad = [e.name for e in found if not e.ok]
        if bad:
            say_error(f"problems or warnings for {len(bad)} of {len(found)}:  {', '.join(bad)}")
            raise typer.Exit(1)


def _run_and_images(what: list[Path], fields: dict) -> tuple[Config, list[Path]]:
    """The run from the first argument, if it is one, changed by the options; the rest are images."""
    from retune import config as runs
    from retune.errors import ConfigError
    from retune.jobs.inputs import require_kernel

    named = what and (what[0].suffix == ".toml" or (str(what[0]) in runs.shipped() and not what[0].exists()))
    if not named and "name" not in fields:
        raise ConfigError(
            "no problem was given: retune doctor my.toml, or retune doctor IMAGES --problem deblur (or denoise, "
            "inpaint, superres, module:function)"
        )
    if named:
        return _problem.on_top(runs.load(what[0]), fields), what[1:]
    config = runs.from_dict({"problem": fields}, source="the problem")
    if what:
        require_kernel(config.problem)
    return config, what


def _size(text: str) -> tuple[int, int]:
    from retune.errors import InvalidParameterError

    found = re.fullmatch(r"\s*(\d+)\s*[x×]\s*(\d+)\s*", text)
    if not found:
        raise InvalidParameterError(f"--size {text}: expected height and width, such as --size 128x96")
    return int(found[1]), int(found[2])


def _show(found: Examined) -> None:
    from retune.cli.errors import show, title

    part = "" if found.part is None else f" (the central {found.part[0]}×{found.part[1]})"
    title(f"{found.name}{part}")
    if found.unit is not None:
        show(f"  {found.unit}, found in the file")
    show(f"{found.diagnosis if found.diagnosis is not None else found.failure}\n")
