"""Descriptions to objects: runs to problems, priors and networks, checkpoints to networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from deepinv.models import Denoiser as DeepinvDenoiser
from deepinv.optim.prior import Prior
from torch import Tensor

from retune import problems, weights
from retune.config import Config, DataConfig, GradientConfig, ModelConfig, PriorConfig, ProblemConfig
from retune.data import grey, photograph, read_files
from retune.errors import ConfigError, unknown_name
from retune.gradients import Implicit, Truncated, Unrolled
from retune.gradients.base import GradientRule
from retune.io import list_files
from retune.io.intensity import read_scaled
from retune.maps import ForwardBackward, GradientStep
from retune.maps.base import AbstractMap
from retune.model import Restarted
from retune.networks import RidgeDenoiser
from retune.parameters import Positive
from retune.priors import RED, Denoiser, WaveletL1, WaveletL12
from retune.problems import Problem
from retune.problems.noise import estimate_noise
from retune.problems.own import OwnPhysics
from retune.registry import build
from retune.solve import Stop
from retune.solvers import AbstractSolver, Anderson, Damped, Inertial, Picard

__all__ = [
    "build",
    "map_of",
    "network_of",
    "prior_of",
    "problem_of",
    "rule_of",
    "sharp_images",
    "solver_of",
    "training_images",
]

_SOLVERS = {"picard": Picard, "damped": Damped, "anderson": Anderson, "inertial": Inertial}
_SHIPPED = {"denoiser": "denoiser", "red": "denoiser", "ridge": "ridge-convex"}
#: the fields of the section [problem] that each problem has, beside sigma
_OPTIONS = {
    "denoise": (),
    "inpaint": ("keep", "mask"),
    "deblur": ("kernel", "boundary"),
    "superres": ("factor", "kernel", "boundary"),
}
_GREY = "denoiser-gray"
_PHOTOGRAPHS = ("chelsea", "coffee", "motorcycle")


def problem_of(config: ProblemConfig, y: Tensor | None = None) -> Problem:
    """The problem that the section [problem] describes.

    Args:
        config: the section.
        y: a measurement (B, C, h, w), from which ``sigma = "estimate"`` is estimated.

    Raises:
        UnknownNameError: no such problem.
        ConfigError: a field that the problem does not have, or a noise level to be estimated from nothing.
    """
    own = ":" in config.name
    if not own and config.name not in _OPTIONS:
        raise unknown_name("problem", config.name, [*_OPTIONS, "module:function"])
    has = ("options",) if own else _OPTIONS[config.name]
    given = {k: v for k, v in config if k not in ("name", "sigma") and v not in (None, {})}
    for name in given:
        if name not in has:
            having = [p for p, fields in _OPTIONS.items() if name in fields] or ["module:function"]
            raise ConfigError(
                f"problem.{name} = {given[name]!r}: the problem {config.name} has no {name} (it has: "
                f"{', '.join(['sigma', *has])}); {' and '.join(having)} {'has' if len(having) == 1 else 'have'} one"
            )
    given["sigma"] = _sigma(config, y)
    if own:
        return OwnPhysics(config.name, **given)
    return problems.get(config.name, **given)


def _sigma(config: ProblemConfig, y: Tensor | None) -> Any:
    if config.sigma != "estimate":
        return config.sigma
    if config.name == "inpaint":
        raise ConfigError('problem.sigma = "estimate": not from an image with missing pixels; give the noise level')
    if y is None:
        raise ConfigError(
            'problem.sigma = "estimate": training makes its own measurements, so it needs a level; retune tune '
            "estimates it from yours"
        )
    return estimate_noise(y)


def prior_of(config: PriorConfig, channels: int) -> Prior:
    """The prior that the section [prior] describes, for images of so many channels.

    Raises:
        ConfigError: weights for images of another number of channels, or of another kind of network.
        UnknownNameError, CheckpointError: weights that do not exist, or cannot be read.
    """
    if config.type == "wavelet":
        kind = WaveletL12 if config.norm == "l12" else WaveletL1
        wavelet = config.wavelet if isinstance(config.wavelet, str) else list(config.wavelet)
        per_channel = channels if config.weights_per_channel else None
        return kind(wavelet, config.levels, channels=per_channel, coarse=config.coarse, margin=config.margin)
    network = _network(config, channels)
    learned: dict[str, Any] = {"learn_sigma": config.learn_sigma, "learn_denoiser": config.learn_weights}
    if config.type != "ridge":
        learned["bfloat16"] = config.bfloat16
    if config.type == "denoiser":
        return Denoiser(network, config.sigma, config.strength, learn_strength=config.learn_strength, **learned)
    if config.type == "red":
        return RED(network, config.sigma, config.lipschitz, **learned)
    assert isinstance(network, RidgeDenoiser)
    assert isinstance(config.sigma, float)
    ridge = network.prior.requires_grad_(config.learn_weights)
    ridge.sigma = Positive(config.sigma, (), learn=config.learn_sigma, name="sigma")
    return ridge


def _network(config: PriorConfig, channels: int) -> DeepinvDenoiser:
    fitting = f"{_SHIPPED[config.type]}-{'color' if channels == 3 else 'gray'}"
    network = weights.load(fitting if config.weights is None else config.weights)
    what = "" if config.weights is None else f"prior.weights = {config.weights!r}: "
    if config.type == "ridge" and not isinstance(network, RidgeDenoiser):
        raise ConfigError(
            f'{what}this is a {type(network).__name__}, not a ridge regulariser, which a prior of type "ridge" needs; '
            'for any other denoiser set type = "denoiser"'
        )
    known = int(getattr(network, "channels", channels))
    runs_on_each = known == 1 and config.type != "ridge"
    if known != channels and not runs_on_each:
        raise ConfigError(
            f"{what}these weights are for images of {known} channel(s), yours have {channels}; "
            + (f"{fitting} fits" if channels in (1, 3) else f"a grey denoiser is run on each channel: {_GREY}")
            + (", or make the images grey: data.grey = true" if known == 1 else "")
        )
    return network


def map_of(prior: Prior, config: Config) -> AbstractMap:
    """The map that iterates on a prior, as the sections [prior] and [model] say."""
    model = config.model
    options: dict[str, Any] = {
        "step_size": model.step_size,
        "reg": model.reg,
        "layers": model.layers,
        "learn_step_size": model.learn_step_size,
        "learn_reg": model.learn_reg,
    }
    if config.prior.type in ("red", "ridge"):
        return GradientStep(prior, box=(0.0, 1.0) if config.prior.box else None, **options)
    return ForwardBackward(prior, **options)


def rule_of(config: GradientConfig) -> GradientRule:
    """The gradient rule that the section [gradient] describes."""
    if config.rule == "unrolled":
        return Unrolled()
    if config.rule == "implicit":
        return Implicit() if config.rtol is None else Implicit(rtol=config.rtol)
    return Truncated(blocks=config.blocks, rtol=config.rtol)


def solver_of(config: ModelConfig) -> AbstractSolver | None:
    """The solver that the section [model] names; None for the one that suits the map."""
    return None if config.solver == "auto" else _SOLVERS[config.solver]()


def network_of(config: Config, channels: int) -> Restarted:
    """The network that a run describes, for images of so many channels, with its first weights.

    Raises:
        ConfigError: see :func:`prior_of`.
    """
    model = config.model
    return Restarted(
        map_of(prior_of(config.prior, channels), config),
        depth=model.depth,
        restarts=model.restarts,
        gradient=rule_of(config.gradient),
        solver=solver_of(model),
        stop=None if config.gradient.rule == "unrolled" else Stop(model.rtol, model.max_layers),
    )


def training_images(config: DataConfig) -> tuple[list[Tensor], list[Tensor] | None]:
    """Images to learn from, and to validate on if there are any, each (C, H, W).

    Raises:
        InvalidParameterError, ShapeError, NotFiniteError: see :func:`sharp_images`.
    """
    shipped = config.train == "photographs"
    train = [photograph(name) for name in _PHOTOGRAPHS] if shipped else sharp_images(config.train, config, config.crop)
    validation = None if config.validation is None else sharp_images(config.validation, config)
    if shipped and config.grey:
        train = [grey(x) for x in train]
    return train, validation


def sharp_images(source: str, config: DataConfig, crop: int | None = None) -> list[Tensor]:
    """The images (C, H, W) of a folder or file, in the unit and the colours that the section [data] says.

    Args:
        source: where they are.
        config: the section [data].
        crop: side of crops that have to fit.

    Raises:
        InvalidParameterError, ShapeError, NotFiniteError: every file that cannot be used, and why; see
            :func:`retune.io.read` and :func:`retune.io.intensity.intensity_scale`.
    """

    def one(file: Path) -> Tensor:
        images = read_scaled(file, config.white, "data.white=")
        return torch.stack([grey(x) for x in images]) if config.grey else images

    return read_files(list_files(source), one, crop)
