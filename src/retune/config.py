"""A run as a TOML file: what it restores, with which prior and model, how it learns, from what.

>>> config = load("my.toml", ["model.depth=5"])  # doctest: +SKIP
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError, field_validator

from retune.errors import ConfigError, did_you_mean, unknown_name

__all__ = ["Config", "from_dict", "load", "shipped", "starting_point", "to_toml"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Level = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Count = Annotated[StrictInt, Field(ge=1)]


class _Section(BaseModel):
    # The sentence below each field is its description, here, in the starting point and in the documentation.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ProblemConfig(_Section):
    """What was measured: y = A x + noise."""

    name: str = "deblur"
    """denoise, inpaint, deblur or superres; or any deepinv physics as module:function."""
    sigma: Level | list[Level] | Literal["estimate"] = 0.05
    """Noise standard deviation, one or one per channel, intensities in [0, 1]; or "estimate" (tune only)."""
    kernel: str | None = None
    """Blur kernel (deblur): gaussian:SIGMA, uniform:SIDE, motion:LENGTH@DEGREES, three-motions, or a file."""
    boundary: Literal["reflect", "circular", "valid"] | None = None
    """What the blur sees beyond the border (deblur): reflect, circular, or valid if the sensor saw more."""
    keep: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    """Share of pixels that are measured (inpaint), where no mask is given."""
    mask: str | None = None
    """Image file, black where nothing was measured (inpaint)."""
    factor: Literal[2, 3, 4] | None = None
    """Magnification (superres): 2, 3 or 4."""
    options: dict[str, Any] = {}
    """Arguments of your own physics (module:function), as a table [problem.options]."""

    @field_validator("sigma")
    @classmethod
    def _some_level(cls, sigma: Any) -> Any:
        if sigma == []:
            raise ValueError("Input should be one number, or one per channel")
        return sigma


class PriorConfig(_Section):
    """What is known of images: a weighted norm of wavelet coefficients."""

    norm: Literal["l12", "l1"] = "l12"
    """l12 groups channels and bands of a position; l1 takes every coefficient by itself."""
    wavelet: str | list[str] = "db4"
    """An orthogonal wavelet (haar, db2 … db38, sym2 …, coif1 …), or several for a union of bases."""
    levels: Count = 5
    """Scales; crops need 2**levels pixels on a side."""
    weights_per_channel: StrictBool = True
    """Whether every colour channel has weights of its own."""
    coarse: StrictBool = False
    """Whether the coarse approximation is penalised too."""


class ModelConfig(_Section):
    """What is iterated, and for how long."""

    depth: Count = 10
    """K, layers in a block: what is differentiated at once. More layers, more exact gradients, more memory."""
    restarts: Annotated[StrictInt, Field(ge=0)] = 10
    """R, blocks run in training before the one that is differentiated. More restarts, closer to the equilibrium."""
    layers: Count = 1
    """Different layers in a cycle: 1 ties all weights."""
    step_size: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.9
    """s, where the step is 2s/L: between 0 and 1."""
    learn_step_size: StrictBool = True
    """Whether the step size is learned."""
    reg: Positive = 0.05
    """λ, the strength of the prior, at the start."""
    learn_reg: StrictBool = True
    """Whether the strength is learned."""
    solver: Literal["picard", "anderson"] = "picard"
    """How the equilibrium is reached: plain restarts, or accelerated."""
    rtol: Annotated[float, Field(ge=0, lt=1, strict=True)] = 1e-4
    """Relative change over a block below which a restoration is settled."""
    max_layers: Count = 2000
    """Layers after which a restoration is given up as not settled."""


class GradientConfig(_Section):
    """How the derivative of the equilibrium is formed."""

    rule: Literal["truncated", "unrolled", "implicit"] = "truncated"
    """truncated is ReTune; unrolled trains the output after K layers; implicit solves the adjoint system."""
    blocks: Count = 1
    """How often the recorded block is pulled back (truncated): more blocks, more exact."""
    rtol: Annotated[float, Field(gt=0, lt=1, strict=True)] | None = None
    """Relative error of the adjoint to reach, instead of a number of blocks."""


class DataConfig(_Section):
    """What it is learned from."""

    train: str = "photographs"
    """Folder or file of sharp images; "photographs" takes some that ship inside scikit-image."""
    validation: str | None = None
    """Folder or file of images that decide which weights are kept; none keeps the last."""
    crop: Count = 64
    """Side of the random square crops."""
    batch_size: Count = 4
    """Crops per step."""
    grey: StrictBool = False
    """Whether colour images are made grey first."""


class OptimiserConfig(_Section):
    """How it is learned: Adam with a cosine schedule."""

    steps: Count = 200
    """Training steps."""
    lr: Positive = 0.05
    """Learning rate of step sizes, strengths and weights (on a logarithmic scale)."""
    lr_network: Positive = 1e-4
    """Learning rate of all other parameters."""
    validate_every: Count | None = None
    """Steps between validations; a fifth of all by default."""
    checkpoint_every: Count = 20
    """Steps between checkpoints: what is lost at most when the power fails."""


class Config(_Section):
    """A run."""

    seed: Annotated[StrictInt, Field(ge=0)] = 0
    """Decides crops, operators and noise."""
    problem: ProblemConfig = ProblemConfig()
    """What was measured."""
    prior: PriorConfig = PriorConfig()
    """What is known of images."""
    model: ModelConfig = ModelConfig()
    """What is iterated."""
    gradient: GradientConfig = GradientConfig()
    """How the derivative is formed."""
    data: DataConfig = DataConfig()
    """What it is learned from."""
    optimiser: OptimiserConfig = OptimiserConfig()
    """How it is learned."""


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a run from a TOML file, or by the name of a shipped one, with ``"section.field=value"`` overrides.

    Files that it names are taken relative to its own folder.

    Raises:
        ConfigError: no such file, not TOML, or not a run; every fault is named.
    """
    found = Path(path)
    if not found.is_file() and str(path) in shipped():
        found = shipped()[str(path)]
    if not found.is_file():
        hint = did_you_mean(path, shipped())
        raise ConfigError(
            f"there is no file {path}{hint or ';'} shipped runs: {', '.join(sorted(shipped()))}. "
            "retune train --init deblur > my.toml writes one to start from"
        )
    try:
        values = tomllib.loads(found.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{found} is not a TOML file: {error}") from error
    return from_dict(_with_paths(values, found.parent), overrides, str(found))


def from_dict(values: dict, overrides: Iterable[str] = (), source: str = "the run") -> Config:
    """A run of plain data, with overrides.

    Raises:
        ConfigError: every fault is named.
    """
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for text in overrides:
        _override(values, text)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        faults = _faults(error, values)
        raise ConfigError("\n  ".join([f"{source} has {len(faults)} fault(s):", *faults])) from error


def shipped() -> dict[str, Path]:
    """The runs that come with the package, by name."""
    return {p.stem: p for p in sorted((Path(__file__).parent / "configs").glob("*.toml"))}


def starting_point(name: str) -> str:
    """A commented TOML file to start from: a shipped run with what every field means.

    Raises:
        UnknownNameError: no shipped run of that name.
    """
    if name not in shipped():
        raise unknown_name("run to start from", name, shipped())
    return to_toml(load(shipped()[name]), comments=True)


def to_toml(config: Config, comments: bool = False) -> str:
    """The run as TOML, with every field; `comments` says what each means."""
    lines = ["# A run of ReTune: retune train THIS.toml --out FOLDER", "", *_fields(config, comments)]
    for name, section in config:
        if isinstance(section, BaseModel):
            lines += ["", *([f"# {section.__doc__}"] if comments else []), f"[{name}]", *_fields(section, comments)]
            tables = {k: v for k, v in section if isinstance(v, dict) and v}
            for key, table in tables.items():
                lines += ["", f"[{name}.{key}]", *(f"{k} = {_toml(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def _fields(section: BaseModel, comments: bool) -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            continue
        if comments:
            lines.append(f"# {field.description}")
        if value is not None and not isinstance(value, dict):
            lines.append(f"{name} = {_toml(value)}")
        elif comments:
            lines.append(f"# {name} =")
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(f"\\u{ord(c):04X}" if ord(c) < 32 or ord(c) == 127 else c for c in escaped) + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _override(values: dict, text: str) -> None:
    key, equals, given = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {text}: expected SECTION.FIELD=VALUE, such as model.depth=5")
    try:
        value = tomllib.loads(f"value = {given}")["value"]
    except tomllib.TOMLDecodeError:
        value = given.strip()  # words need no quotes on the command line
    place = values
    for part in parts[:-1]:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {text}: {part!r} is not a section")
    place[parts[-1]] = value


def _with_paths(values: dict, folder: Path) -> dict:
    """Relative paths made absolute, so that the resolved run means the same from everywhere."""
    for section, key in (("problem", "kernel"), ("problem", "mask"), ("data", "train"), ("data", "validation")):
        table = values.get(section)
        given = table.get(key) if isinstance(table, dict) else None
        if isinstance(given, str) and (folder / given).exists():
            table[key] = str((folder / given).resolve())  # type: ignore[index]
    return values


def _faults(error: ValidationError, values: dict) -> list[str]:
    """One line a field: its name, the value, what is allowed, the nearest known key."""
    messages: dict[str, list[str]] = {}
    lines: dict[str, str] = {}
    for one in error.errors():
        location, section = _place(one["loc"])
        name = ".".join(location)
        if one["type"] == "extra_forbidden":
            name = ".".join(str(part) for part in one["loc"])
            known = list(section.model_fields)
            hint = did_you_mean(one["loc"][-1], known) or _elsewhere(str(one["loc"][-1]))
            lines[name] = f"unknown key {name}{hint or ';'} known here: {', '.join(known)}"
            continue
        given: Any = values
        for part in location:
            given = given.get(part) if isinstance(given, dict) else None
        messages.setdefault(name, []).append(one["msg"].removeprefix("Value error, "))
        # A field of several kinds fails once for each of them; then its description says what it may be.
        message = messages[name][0].replace("Input should", "it should") if len(messages[name]) == 1 else "not allowed"
        description = section.model_fields[location[-1]].description if location else ""
        lines[name] = f"{name} = {_toml(given)}: {message}. {description}".rstrip()
    return list(lines.values())


def _place(location: tuple) -> tuple[list[str], type[BaseModel]]:
    """The part of an error's location that is made of keys, and the section that it leads to."""
    parts: list[str] = []
    section: type[BaseModel] = Config
    for part in location:
        if not isinstance(part, str) or part not in section.model_fields:
            break
        parts.append(part)
        kind = section.model_fields[part].annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            break
        if len(parts) < len(location):
            section = kind
    return parts, section


def _elsewhere(key: str) -> str:
    places = [
        f"{name}.{key}"
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        if key in field.annotation.model_fields
    ]
    return f"; did you mean {' or '.join(places)}?" if places else ""
