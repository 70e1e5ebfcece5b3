"""A trained network of the user. Its file is read once for all steps of a verb."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any, ClassVar

from torch import Tensor

from retune import _checkpoint, io
from retune._plain import parse_json
from retune._torch.devices import check_device
from retune.config import ProblemConfig, from_dict
from retune.errors import CheckpointError, ConfigError
from retune.io.intensity import require_white
from retune.jobs.folder import MODEL
from retune.jobs.inputs import require_kernel
from retune.model import Restarted
from retune.plugins import require_accepted
from retune.problems.base import Problem
from retune.registry import network_in

__all__ = ["OpenedModel", "model_file", "open_model", "open_network"]


@dataclass(frozen=True)
class OpenedModel:
    """A trained or tuned network, with its problem.

    Pickling stores only the name of its file, because the code of a user may not be picklable. The other process reads
    the file again.

    Attributes:
        file: the weights.
        net: the network, in eval mode, on its device.
        problem: the problem of the measurements to restore.
        white: the intensity that counted as 1 in the files of its training or tuning; None if unknown.
        digest: SHA-256 of the bytes from which the network was made.
        device: the device of the network.
        black: the intensity that counted as 0; None if unknown.
        borderless: whether the image is restored without an assumption about what lies beyond its border.
        denoises_at_once: whether noise alone takes one pass of a network.
    """

    denoises_at_once: ClassVar[bool] = False

    file: Path
    net: Restarted
    problem: ProblemConfig
    white: float | None
    digest: str
    device: str = "cpu"
    borderless: bool = False
    black: float | None = None

    def fitted(self, problem: Problem, y: Tensor) -> tuple[OpenedModel, Problem]:
        """The network for a measurement, and its problem. A trained network is the same for every measurement.

        Where it is sound, inertial steps replace plain ones. They reach the same result sooner.
        """
        return replace(self, net=self.net.accelerated()), problem

    def __reduce__(self) -> tuple:
        return _again, (self.file, self.problem, self.device)


def open_model(model: Path, given: Mapping[str, Any] | None = None, device: str = "cpu") -> OpenedModel:
    """Read a network, once.

    Args:
        model: file written by ``net.save`` or the folder of ``retune train``.
        given: fields of the section [problem] that the user gave for these images.
        device: "cpu", "cuda", …

    Raises:
        CheckpointError: the file cannot be read, it names no problem, or a file that it names is not in its folder.
        ConfigError: a value that is not allowed, code that the user did not name, or another noise level.
        InvalidParameterError: the device is not available.
    """
    checkpoint = _checkpoint.opened(model_file(model))
    return _made(checkpoint, _problem(model, checkpoint, {} if given is None else given), device)


def open_network(model: Path) -> tuple[Restarted, str]:
    """The network alone, on the CPU, and the SHA-256 of its file: for callers that know the problem.

    Raises:
        CheckpointError: the file cannot be read.
    """
    checkpoint = _checkpoint.opened(model_file(model))
    return network_in(checkpoint), checkpoint.digest


def _again(file: Path, problem: ProblemConfig, device: str) -> OpenedModel:
    """Read the network again, in another process."""
    return _made(_checkpoint.opened(file), problem, device)


def _made(checkpoint: _checkpoint.Checkpoint, problem: ProblemConfig, device: str) -> OpenedModel:
    check_device(device)
    net = network_in(checkpoint).to(device)
    borderless = checkpoint.notes.get("borderless") == "yes"
    white, black = _white(checkpoint), _black(checkpoint)
    return OpenedModel(checkpoint.path, net, problem, white, checkpoint.digest, device, borderless, black)


def model_file(model: Path) -> Path:
    """The weights: the file itself, or the model of a run's folder."""
    return model / MODEL if model.is_dir() else model


def _white(checkpoint: _checkpoint.Checkpoint) -> float | None:
    try:
        white = float(checkpoint.notes["white"])
        require_white(white)
    except (KeyError, TypeError, ValueError):
        return None
    return white


def _black(checkpoint: _checkpoint.Checkpoint) -> float | None:
    try:
        black = float(checkpoint.notes["black"])
    except (KeyError, TypeError, ValueError):
        return None
    return black if math.isfinite(black) else None


def _problem(model: Path, checkpoint: _checkpoint.Checkpoint, given: Mapping[str, Any]) -> ProblemConfig:
    """The problem of the network, with the fields that the user gave.

    Raises: see ``open_model``.
    """
    file = checkpoint.path
    try:
        told = parse_json(checkpoint.notes.get("problem", "{}"))
    except ValueError:
        told = {}
    if not isinstance(told, dict) or given.get("name", told.get("name")) != told.get("name"):
        told = {}
    if not {**told, **given}.get("name"):
        raise CheckpointError(f"{model} does not say which problem it restores; name the problem: --problem deblur")
    if "kernel" in given:  # the changes of the model's kernel need not suit another kernel
        told = {k: v for k, v in told.items() if k not in ("kernel_background", "centre_kernel")}
    if ":" in str(told.get("name")) and "name" not in given:
        require_accepted(str(told["name"]), str(model))
    _require_same_noise(model, told, given)
    named = {}
    for key in {"kernel", "mask"} & told.keys() - given.keys():
        name = told[key]
        if not isinstance(name, str) or Path(name).suffix.lower() not in io.SUFFIXES:
            continue
        beside = file.parent / PureWindowsPath(name).name  # a Windows path, because it accepts both kinds of slashes
        if not beside.is_file():
            raise CheckpointError(
                f"{file} was made with the {key} in {name}, but this file is not in the same folder. A model reads no "
                f"files from other folders: copy it to {beside}, or give it with --{key}"
            )
        if beside.resolve().parent != file.parent.resolve():
            raise CheckpointError(
                f"{beside} is a link to {beside.resolve()}, but a model reads no files from other folders: give the "
                f"file with --{key}"
            )
        named[key] = str(beside.resolve())
    problem = from_dict({"problem": {**told, **named, **given}}, source="the problem").problem
    if not told:
        require_kernel(problem)
    return problem


def _require_same_noise(model: Path, told: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse another noise level than the one that the network was made for: it is in the weights."""
    if "noise" in given and given["noise"] != told.get("noise"):
        raise ConfigError(
            f"--noise {given['noise']} cannot change a restoration: the strengths of {model} were learned for its own "
            "noise. Leave --noise out, or tune a network for this noise: retune tune IMAGES --noise …"
        )
    if "sigma" not in given or given["sigma"] == told.get("sigma"):
        return
    made = f"{model} was made for sigma = {told['sigma']}" if "sigma" in told else f"{model} has no noise level"
    raise ConfigError(
        f"--sigma {given['sigma']} cannot change a restoration: {made}, and its weights and strengths were learned for "
        "its own noise. Leave --sigma out; for another noise level tune a network: retune tune IMAGES --problem "
        f"{given.get('name', told.get('name', 'denoise'))} --sigma {given['sigma']} --out FOLDER"
    )
