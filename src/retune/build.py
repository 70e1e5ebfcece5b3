"""Build objects from a run: the problem, the prior, the map, the network, and the options of the training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepinv.loss import Loss, SupLoss
from deepinv.loss.metric import SNR
from deepinv.models import Denoiser as DeepinvDenoiser
from deepinv.optim.data_fidelity import DataFidelity
from deepinv.optim.potential import Potential
from deepinv.optim.prior import Prior
from torch import Tensor, nn

from retune import weights
from retune.config import (
    Config,
    DataConfig,
    FidelityConfig,
    GradientConfig,
    ModelConfig,
    OptimiserConfig,
    PriorConfig,
    ProblemConfig,
)
from retune.data import grey, photograph, read_files
from retune.errors import ConfigError
from retune.gradients.base import GradientRule
from retune.io import list_files
from retune.io.intensity import read_scaled
from retune.maps.base import AbstractMap
from retune.model import Restarted
from retune.parameters import Positive
from retune.plugins import require_accepted
from retune.priors import RED, Denoiser, Energy, WaveletL1, WaveletL12, adapt
from retune.problems import Problem
from retune.problems.counts import estimate_counts, parse_noise
from retune.problems.detail import kept_detail
from retune.problems.noise import estimate_noise
from retune.problems.own import OwnPhysics
from retune.registry import build, find, is_ours, make, names, takes
from retune.solve import Stop
from retune.solvers import AbstractSolver
from retune.training.data import TrainingData
from retune.training.options import FitOptions
from retune.training.penalty import JacobianPenalty

__all__ = [
    "Built",
    "build",
    "built",
    "fidelity_of",
    "loss_of",
    "map_of",
    "network_of",
    "options_of",
    "prior_of",
    "problem_of",
    "rule_of",
    "sharp_images",
    "takes_reg",
    "solver_of",
    "training_images",
]

_SHIPPED = {"denoiser": "denoiser", "red": "denoiser", "ridge": "ridge-convex", "energy": "energy"}
_GREY = "denoiser-gray"
_PHOTOGRAPHS = ("chelsea", "coffee", "motorcycle")


def problem_of(config: ProblemConfig, y: Tensor | None = None) -> Problem:
    """The problem that the section [problem] describes.

    Args:
        config: the section.
        y: a measurement (B, C, h, w), for ``sigma = "estimate"``.

    Raises:
        UnknownNameError: no problem has this name.
        ConfigError: the problem has no such field, or sigma is "estimate" without a measurement.
    """
    given = {k: v for k, v in config if k not in ("name", "sigma") and v not in (None, {})}
    if ":" in config.name:
        _require_fields(config.name, given, ["options"])
        require_accepted(config.name, "problem.name")
        return OwnPhysics(config.name, sigma=_sigma(config, y), **given)
    arguments = takes("problem", config.name)
    # The table of options is for arguments without a field in the section, or with a field of another type.
    of_class = ["options"] if not is_ours(config.name) or set(config.options) <= set(arguments) else []
    _require_fields(config.name, given, [*(a for a in arguments if a in ProblemConfig.model_fields), *of_class])
    options = given.pop("options", {})
    if config.noise is None and config.sigma == "estimate" and y is not None and "noise" in arguments:
        quiet = {"problem": given | {"sigma": 0.0}}  # the noise does not matter for what the operator removes
        silent = make("problem", config.name, where="problem.options", options=options, given=quiet)
        found = estimate_counts(y, detail=kept_detail(silent, y))
        if found is not None and found.grows:
            given["noise"] = str(found.noise)
    # A model of the noise replaces its level.
    noise = {} if "noise" in given else {"sigma": _sigma(config, y)}
    said = noise if config.sigma != ProblemConfig().sigma else {}
    return make(
        "problem", config.name, where="problem.options", options=options, given={"problem": given | said}, usual=noise
    )


def _require_fields(problem: str, given: dict[str, Any], has: list[str]) -> None:
    for name, value in given.items():
        if name not in has:
            having = [p for p in names("problem") if name in takes("problem", p)] or ["module:function"]
            raise ConfigError(
                f"problem.{name} = {repr(value)[:100]}: the problem {problem} has no {name} (it has: "
                f"{', '.join(dict.fromkeys(['sigma', *has]))}); {' and '.join(having)} "
                f"{'has' if len(having) == 1 else 'have'} one"
            )


def _sigma(config: ProblemConfig, y: Tensor | None) -> Any:
    if config.sigma != "estimate":
        return config.sigma
    if ":" not in config.name and find(config.name, "problem").cls.has_gaps:
        raise ConfigError('problem.sigma = "estimate": this is impossible with missing pixels; give the noise level')
    if y is None:
        raise ConfigError(
            'problem.sigma = "estimate": training makes its own measurements, so it needs a level; retune tune '
            "estimates it from yours"
        )
    return estimate_noise(y)


def prior_of(config: PriorConfig, channels: int) -> Prior:
    """The prior that the section [prior] describes, for images with this number of channels.

    Raises:
        ConfigError: the weights are for another number of channels, or of another kind of network.
        UnknownNameError, CheckpointError: the weights do not exist or cannot be read.
    """
    if config.type == "wavelet":
        kind = WaveletL12 if config.norm == "l12" else WaveletL1
        wavelet = config.wavelet if isinstance(config.wavelet, str) else list(config.wavelet)
        per_channel = channels if config.weights_per_channel else None
        return kind(wavelet, config.levels, channels=per_channel, coarse=config.coarse, margin=config.margin)
    if config.type not in _SHIPPED:
        usual = {"channels": channels}
        return make("prior", config.type, where="prior.options", options=config.options, usual=usual)
    network = _network(config, channels)
    learned: dict[str, Any] = {"learn_sigma": config.learn_sigma, "learn_denoiser": config.learn_weights}
    if config.type == "energy":
        assert isinstance(config.sigma, float)
        return Energy(network, config.sigma, learn_sigma=config.learn_sigma, learn_network=config.learn_weights)
    if config.type != "ridge":
        learned["bfloat16"] = config.bfloat16
    if config.type == "denoiser":
        return Denoiser(network, config.sigma, config.strength, learn_strength=config.learn_strength, **learned)
    if config.type == "red":
        return RED(network, config.sigma, config.lipschitz, **learned)
    assert isinstance(config.sigma, float)
    ridge = _regulariser(network)
    assert ridge is not None
    ridge.requires_grad_(config.learn_weights)
    ridge.sigma = Positive(config.sigma, (), learn=config.learn_sigma, name="sigma")
    return ridge


def _regulariser(network: nn.Module) -> Any:
    """The prior whose proximity operator is this network, if it has a gradient and a noise level; otherwise None."""
    prior = getattr(network, "prior", None)
    able = adapt(prior) if isinstance(prior, Prior) else None
    return prior if able is not None and able.has_grad and "sigma" in able.tunables() else None


def _network(config: PriorConfig, channels: int) -> DeepinvDenoiser:
    fitting = f"{_SHIPPED[config.type]}-{'color' if channels == 3 else 'gray'}"
    if config.type == "energy" and fitting not in weights.names():
        fitting = "energy-gray"  # on each channel
    network = weights.load(fitting if config.weights is None else config.weights)
    what = "" if config.weights is None else f"prior.weights = {config.weights!r}: "
    if config.type == "ridge" and _regulariser(network) is None:
        raise ConfigError(
            f'{what}this is a {type(network).__name__}, not a ridge regulariser, which a prior of type "ridge" needs; '
            'for any other denoiser set type = "denoiser"'
        )
    if config.type == "energy" and not callable(getattr(network, "at", None)):
        raise ConfigError(
            f'{what}this is a {type(network).__name__}, not an energy, which a prior of type "energy" needs; for any '
            'other denoiser set type = "denoiser"'
        )
    known = int(getattr(network, "channels", channels))
    runs_on_each = known == 1 and config.type != "ridge"
    if known != channels and not runs_on_each:
        raise ConfigError(
            f"{what}these weights are for images of {known} channel(s), but yours have {channels}; "
            + (f"{fitting} fits" if channels in (1, 3) else f"a grey denoiser can be applied to each channel: {_GREY}")
            + (", or make the images grey: data.grey = true" if known == 1 else "")
        )
    return network


def map_of(prior: Prior, config: Config) -> AbstractMap:
    """The map with a prior that the sections [map], [data_fidelity], [prior] and [model] describe.

    Raises:
        ConfigError: a field is set that the map does not have.
    """
    name = _suiting(prior, config.prior) if config.map.type == "auto" else config.map.type
    usual = {k: getattr(config.model, k) for k in ("step_size", "reg", "layers", "learn_step_size", "learn_reg")}
    plain = ModelConfig()
    given: dict[str, Any] = {"model": {k: v for k, v in usual.items() if v != getattr(plain, k)}}
    given["prior"] = {"box": (0.0, 1.0)} if config.prior.box else {}
    fidelity = fidelity_of(config.data_fidelity) or _fidelity_of_noise(config.problem.noise)
    given["data_fidelity"] = {} if fidelity is None else {"data_fidelity": fidelity}
    if "prior" not in takes("map", name) and config.prior != PriorConfig():
        raise ConfigError(f'prior.type = "{config.prior.type}": the map {name} takes no prior; leave the section out')
    return make(
        "map", name, where="map.options", options=config.map.options, given=given, usual=usual | {"prior": prior}
    )


def takes_reg(config: Config) -> bool:
    """Whether the map of a run has a strength λ."""
    return config.map.type == "auto" or "reg" in takes("map", config.map.type)


def _suiting(prior: Prior, config: PriorConfig) -> str:
    """The name of the map for a prior: primal–dual for an analysis form, proximal for a prox, else gradient steps."""
    able = adapt(prior)
    if able.has_analysis and not able.has_prox and not able.has_grad:
        return "primal_dual"
    proximal = type(prior).prox is not Potential.prox and config.type not in ("red", "ridge", "energy")
    return "forward_backward" if proximal else "gradient_step"


def fidelity_of(config: FidelityConfig) -> DataFidelity | None:
    """The data fidelity that the section [data_fidelity] describes; None for the default of the map."""
    if config == FidelityConfig():
        return None
    return make("fidelity", config.type, where="data_fidelity.options", options=config.options)


def _fidelity_of_noise(noise: str | None) -> DataFidelity | None:
    """The data fidelity that fits the noise of the problem; None for the usual one."""
    known = None if noise is None else parse_noise(noise)
    return known.fidelity() if known is not None and known.grows else None


def rule_of(config: GradientConfig) -> GradientRule:
    """The gradient rule that the section [gradient] describes.

    Raises:
        ConfigError: the rule has no blocks, no tolerance or no such option.
    """
    usual = {"blocks": config.blocks} | ({} if config.rtol is None else {"rtol": config.rtol})
    plain = GradientConfig()
    chosen = {k: v for k, v in usual.items() if v != getattr(plain, k)}
    rule = make(
        "rule",
        config.rule,
        where="gradient.options",
        options=config.options,
        usual=usual,
        given={"gradient": chosen},
    )
    if "blocks" in chosen and rule.rtol is not None:
        raise ConfigError(
            f"gradient.blocks = {config.blocks}: with a tolerance (rtol = {rule.rtol:g}) the rule {config.rule} takes "
            "as many blocks as that needs; leave out one of the two, or bound their number: gradient.options.max_blocks"
        )
    return rule


def solver_of(config: ModelConfig) -> AbstractSolver | None:
    """The solver that the section [model] names; None for the default of the map."""
    if config.solver == "auto":
        return None
    return make("solver", config.solver, where="model.solver_options", options=config.solver_options)


def network_of(config: Config, channels: int) -> Restarted:
    """The network that a run describes, for images with this number of channels, with its initial weights.

    Raises:
        ConfigError: see [`prior_of`][retune.build.prior_of].
    """
    model, rule = config.model, rule_of(config.gradient)
    return Restarted(
        map_of(prior_of(config.prior, channels), config),
        depth=model.depth,
        restarts=model.restarts,
        gradient=rule,
        solver=solver_of(model),
        stop=Stop(model.rtol, model.max_layers) if rule.restarts else None,
    )


@dataclass(frozen=True)
class Built:
    """The objects of a run: the arguments of ``fit(net, data, options)``.

    Attributes:
        net: the network, with its initial weights.
        data: training and validation images, and the problem.
        options: the options of the training, without a folder.
    """

    net: Restarted
    data: TrainingData
    options: FitOptions


def built(config: Config) -> Built:
    """The objects that a run describes. This seeds the global generator, from which the initial weights are drawn.

    Raises:
        RetuneError: see [`problem_of`][retune.build.problem_of], [`training_images`][retune.build.training_images] and
            [`network_of`][retune.build.network_of].
    """
    problem = problem_of(config.problem)
    images, validation = training_images(config.data)
    torch.manual_seed(config.seed)
    net = network_of(config, images[0].shape[0])
    return Built(net, TrainingData(images, problem, validation), options_of(config))


def options_of(config: Config) -> FitOptions:
    """The options of the training, from the sections [data] and [optimiser] and the seed."""
    optimiser = config.optimiser
    return FitOptions(
        steps=optimiser.steps,
        batch_size=config.data.batch_size,
        crop=config.data.crop,
        lr=optimiser.lr,
        lr_network=optimiser.lr_network,
        loss=loss_of(optimiser),
        seed=config.seed,
        validate_every=optimiser.validate_every,
        warm_start=optimiser.warm_start,
        checkpoint_every=optimiser.checkpoint_every,
    )


def loss_of(config: OptimiserConfig) -> Loss | None:
    """The loss that the section [optimiser] describes; None is mean squared error."""
    fidelity = SupLoss(SNR(train_loss=True)) if config.loss == "snr" else None
    return JacobianPenalty(config.penalty, fidelity) if config.penalty else fidelity


def training_images(config: DataConfig) -> tuple[list[Tensor], list[Tensor] | None]:
    """The training images and the validation images, if there are any; each is (C, H, W).

    Raises:
        InvalidParameterError, ShapeError, NotFiniteError: see [`sharp_images`][retune.build.sharp_images].
    """
    shipped = config.train == "photographs"
    train = [photograph(name) for name in _PHOTOGRAPHS] if shipped else sharp_images(config.train, config, config.crop)
    validation = None if config.validation is None else sharp_images(config.validation, config)
    if shipped and config.grey:
        train = [grey(x) for x in train]
    return train, validation


def sharp_images(source: str, config: DataConfig, crop: int | None = None) -> list[Tensor]:
    """The images (C, H, W) of a folder or file, in the unit and colours of the section [data].

    Args:
        source: the folder or file.
        config: the section [data].
        crop: minimum side of the images: crops of this side must fit.

    Raises:
        InvalidParameterError, ShapeError, NotFiniteError: the message names each unusable file and the reason; see
            [`read`][retune.io.read] and ``retune.io.intensity.intensity_scale``.
    """

    def one(file: Path) -> Tensor:
        images = read_scaled(file, config.white, "data.white=")
        return torch.stack([grey(x) for x in images]) if config.grey else images

    return read_files(list_files(source), one, crop)
