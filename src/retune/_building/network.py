"""The network that a run describes: its prior, its map, its gradient rule and its solver."""

from __future__ import annotations

from typing import Any

from deepinv.models import Denoiser as DeepinvDenoiser
from deepinv.optim.data_fidelity import DataFidelity
from deepinv.optim.potential import Potential
from deepinv.optim.prior import Prior
from torch import nn

from retune import weights
from retune.config import (
    Config,
    FidelityConfig,
    GradientConfig,
    ModelConfig,
    PriorConfig,
)
from retune.errors import ConfigError
from retune.gradients.base import GradientRule
from retune.maps.base import AbstractMap
from retune.model import Restarted
from retune.parameters import Positive
from retune.priors import RED, Denoiser, Energy, WaveletL1, WaveletL12, adapt
from retune.problems.counts import parse_noise
from retune.registry import make, takes
from retune.solve import Stop
from retune.solvers import AbstractSolver

__all__ = ["fidelity_of", "map_of", "network_of", "prior_of", "rule_of", "solver_of", "takes_reg"]

_SHIPPED = {"denoiser": "denoiser", "red": "denoiser", "ridge": "ridge-convex", "energy": "energy"}
_GREY = "denoiser-gray"


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


def rule_of(config: GradientConfig) -> GradientRule | None:
    """The gradient rule that the section [gradient] describes; None, if all is default: the one that suits the map.

    Raises:
        ConfigError: the rule has no blocks, no tolerance or no such option.
    """
    if config == GradientConfig():
        return None
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
        stop=Stop(model.rtol, model.max_layers) if rule is None or rule.restarts else None,
        coarse_start=model.coarse_start,
    )
