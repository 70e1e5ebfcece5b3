"""The options for the problem of the measurements, and for the user's own code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from retune.config import Config
    from retune.io.intensity import Level
    from retune.jobs.instant import InstantModel
    from retune.jobs.opened import OpenedModel
    from retune.records import Record


def _option(name: str, help: str, metavar: str = "") -> Any:
    """An option with a value, which is checked later, together with the others."""
    return typer.Option(name, metavar=metavar or name.lstrip("-").upper(), help=help)


Problem = Annotated[
    str | None,
    typer.Option(
        "--problem",
        "-p",
        metavar="PROBLEM",
        help="denoise, inpaint, deblur, superres, or module:function, which imports and runs your own code.",
    ),
]
Kernel = Annotated[
    str | None, _option("--kernel", "Blur: gaussian:1.6, motion:15@30, …, or an image, NPY or TIFF file.")
]
KernelBackground = Annotated[
    str | None,
    _option(
        "--kernel-background",
        "Level of the kernel's border, which is subtracted: auto, or a number in the units of its file.",
        "auto|NUMBER",
    ),
]
CentreKernel = Annotated[
    bool | None,
    typer.Option("--centre-kernel/--no-centre-kernel", help="Move the kernel's centre of mass to its middle."),
]
Boundary = Annotated[str | None, _option("--boundary", "How the blur continues the image: reflect, circular or valid.")]
Mask = Annotated[str | None, _option("--mask", "Image file, black where nothing was measured.")]
Factor = Annotated[int | None, _option("--factor", "Magnification: 2, 3 or 4.")]
Sigma = Annotated[str | None, _option("--sigma", "Noise level on [0, 1], one per channel as 0.1,0.2,0.3, or estimate.")]
Noise = Annotated[
    str | None,
    _option(
        "--noise",
        "Noise that grows with brightness, in place of --sigma: poisson:GAIN,READ. GAIN is one count, where 1 is "
        "white. Without --noise and --sigma, the noise is estimated.",
        "MODEL",
    ),
]
KnownSigma = Annotated[
    str | None,
    _option("--sigma", "Noise level. That of a network cannot be changed: tune again for another level."),
]
White = Annotated[
    str | None, _option("--white", "Intensity that counts as 1, in the units of the file; auto: the brightest.")
]
Black = Annotated[
    str | None,
    _option(
        "--black",
        "Intensity that counts as 0, such as the camera's offset; auto: the darkest. The result has it again.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="A field, such as model.depth=5; repeat the option for several."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the folder, exactly.")]
Details = Annotated[bool, typer.Option("--details", help="Print also the numbers for experts.")]
Report = Annotated[
    bool, typer.Option("--report/--no-report", help="Write report.html into the folder, with pictures of the results.")
]
Device = Annotated[str, _option("--device", "auto, cpu, cuda, cuda:1, …")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py|MODULE",
        help="Your own module that the run or the model may name. It is executed. Repeat the option for several.",
    ),
]


@dataclass(frozen=True)
class Measured:
    """The options that describe a measurement, as they were typed."""

    problem: Problem = None
    kernel: Kernel = None
    kernel_background: KernelBackground = None
    centre_kernel: CentreKernel = None
    boundary: Boundary = None
    mask: Mask = None
    factor: Factor = None
    sigma: Sigma = None
    noise: Noise = None
    white: White = None
    black: Black = None

    def fields(self) -> dict[str, Any]:
        """The given fields of the section [problem], with absolute paths of files.

        Raises:
            ConfigError: a noise level and a noise model were given.
        """
        from retune.config.read import absolute
        from retune.errors import ConfigError

        if self.noise is not None and self.sigma not in (None, "estimate"):
            raise ConfigError(f"--noise {self.noise} and --sigma {self.sigma} both give the noise: use one of them")
        found = {
            "name": self.problem,
            "kernel": absolute(self.kernel, Path.cwd()),
            "boundary": self.boundary,
            "mask": absolute(self.mask, Path.cwd()),
            "factor": self.factor,
            "sigma": _numbers(self.sigma),
            "kernel_background": _numbers(self.kernel_background),
            "centre_kernel": self.centre_kernel,
            "noise": self.noise,
        }
        return {k: v for k, v in found.items() if v is not None}

    def levels(self) -> tuple[Level, Level]:
        """White and black.

        Raises: InvalidParameterError: neither a number nor auto.
        """
        from retune.io.intensity import read_level

        return read_level(self.white, "--white"), read_level(self.black, "--black")

    def unit_of(self, model: OpenedModel | InstantModel) -> tuple[Level, Level, bool]:
        """White, black, and whether white comes from the network; a printed line names the values from the network."""
        from retune.cli.errors import say

        bright, dark = self.levels()
        told = [
            f"{found:g} counts as {name}"
            for name, given, found in (("white", bright, model.white), ("black", dark, model.black))
            if given is None and found is not None
        ]
        if told:
            say(f"{' and '.join(told)}, as in the network's training (--white and --black change it)")
        return (
            model.white if bright is None else bright,
            model.black if dark is None else dark,
            bright is None and model.white is not None,
        )


#: no option was given
NOTHING = Measured()


def describes_measurement(*without: str, **other: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb the options of ``Measured`` in place of its parameter `measured`.

    Args:
        without: options that the verb does not have.
        other: options that it has in another form.
    """
    hints = get_type_hints(Measured, include_extras=True) | other
    options = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=None, annotation=hints[field.name])
        for field in fields(Measured)
        if field.name not in without
    ]

    def wrap(verb: Callable[..., None]) -> Callable[..., None]:
        @wraps(verb)
        def run(**typed: Any) -> None:
            measured = Measured(**{option.name: typed.pop(option.name) for option in options})
            verb(**typed, measured=measured)

        # typer reads the options from the signature.
        own = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in signature(verb, eval_str=True).parameters.values()]
        at = [p.name for p in own].index("measured")
        own[at : at + 1] = options
        run.__signature__ = Signature(own)  # pyright: ignore[reportAttributeAccessIssue]
        run.__annotations__ = {p.name: p.annotation for p in own}
        return run

    return wrap


def accept_code(plugins: Sequence[str] | None, problem: str | None = None, overrides: Sequence[str] = ()) -> None:
    """Import the plugins, and accept a function that the user typed. A file may not name any other code.

    Raises:
        RetuneError: a plugin cannot be imported.
    """
    from retune.config.read import overridden
    from retune.plugins import accept, load_plugin

    for plugin in plugins or []:
        load_plugin(plugin)
    section = overridden(overrides).get("problem")
    for name in (problem, section.get("name") if isinstance(section, dict) else None):
        if isinstance(name, str) and ":" in name:
            accept(name)


def code_words(plugins: Sequence[str] | None, problem: str) -> str:
    """The options that a later command needs to run the same code. Each starts with a space."""
    if plugins:
        return "".join(f" --plugin {plugin}" for plugin in plugins)
    return f" --problem {problem}" if ":" in problem else ""


def folder(name: str) -> Path:
    """The folder of an option.

    Raises: typer.BadParameter: the name is empty, often because a shell variable is not set.
    """
    if not str(name).strip():
        raise typer.BadParameter("the name of the folder is empty (is a variable of the shell not set?)")
    return Path(name)


def json_file(name: str | None, kind: type[Record]) -> Path | None:
    """The file for a result as JSON. It is checked before the work.

    Raises:
        typer.BadParameter: the name is empty.
        InvalidParameterError: a folder, or a file that is not such a result.
    """
    if name is None:
        return None
    if not name.strip():
        raise typer.BadParameter("the name of the file is empty (is a variable of the shell not set?)")
    from retune._files import is_stream
    from retune.errors import InvalidParameterError

    path = Path(name)
    if path.is_dir():
        raise InvalidParameterError(f"{path} is a folder: name a file, for example --json {path / 'a.json'}")
    if path.exists() and not is_stream(path) and not kind.is_in(path):
        raise InvalidParameterError(
            f"{path} already exists and does not contain results of this command, so it was not changed: choose "
            "another name with --json, or move the file"
        )
    return path


def _numbers(text: str | None) -> Any:
    """A number, a list of numbers, or the text itself ("estimate", "auto"), which the validation accepts or refuses."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return text
    return numbers[0] if len(numbers) == 1 else numbers


def on_top(config: Config, fields: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The run with the given fields of the section [problem]. A different problem drops all old fields."""
    from retune.config import from_dict

    values = config.model_dump(exclude_unset=True)
    told = values["problem"] if fields.get("name", config.problem.name) == config.problem.name else {}
    for one, other in (("noise", "sigma"), ("sigma", "noise")):  # either replaces the other
        if one in fields:
            told = {k: v for k, v in told.items() if k != other}
    if "kernel" in fields:  # changes of the run's kernel need not suit another kernel
        told = {k: v for k, v in told.items() if k not in ("kernel_background", "centre_kernel")}
    return from_dict({**values, "problem": {**told, **fields}}, overrides, "the run")


def chosen_files(images: Sequence[Path]) -> list[Path]:
    """The image files in the given files and folders."""
    from retune import io

    files = [file for path in images for file in (io.list_files(path) if path.is_dir() else [path])]
    return list({file.absolute(): file for file in files}.values())  # each file once


def chosen_device(device: str) -> str:
    """The device; "auto" means a GPU if available."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
