"""Descriptions to objects: the only registry of names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from deepinv.optim import L2
from torch import Tensor

from retune import _checkpoint, problems
from retune.config import Config, DataConfig, ProblemConfig
from retune.data import as_images, photograph
from retune.errors import CheckpointError, ConfigError, RetuneError, unknown_name
from retune.gradients import Implicit, Truncated, Unrolled
from retune.maps import ForwardBackward, GradientStep
from retune.model import Restarted
from retune.networks import RidgeDenoiser, SmallUNet
from retune.priors import RED, Denoiser, Ridge, WaveletL1, WaveletL12
from retune.problems import Restoration
from retune.problems.noise import estimate_noise
from retune.problems.own import OwnPhysics
from retune.solve import Stop
from retune.solvers import Anderson, Damped, Inertial, Picard

__all__ = ["build", "load", "network_of", "problem_of", "training_images"]

_KNOWN: dict[str, Any] = {
    c.__name__: c
    for c in (
        Anderson,
        Damped,
        Denoiser,
        ForwardBackward,
        GradientStep,
        Implicit,
        Inertial,
        L2,
        Picard,
        RED,
        Restarted,
        Ridge,
        RidgeDenoiser,
        SmallUNet,
        Truncated,
        Unrolled,
        WaveletL1,
        WaveletL12,
    )
}
_SOLVERS = {"picard": Picard, "anderson": Anderson}
#: the fields of the section [problem] that each problem has, beside sigma
_OPTIONS = {
    "denoise": (),
    "inpaint": ("keep", "mask"),
    "deblur": ("kernel", "boundary"),
    "superres": ("factor",),
}
_PHOTOGRAPHS = ("chelsea", "coffee", "motorcycle")


def problem_of(config: ProblemConfig, y: Tensor | None = None) -> Restoration:
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
                f"{', '.join(['sigma', *has])}); {' and '.join(having)} has one"
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


def network_of(config: Config, channels: int) -> Restarted:
    """The network that a run describes, for images of so many channels, with its first weights."""
    prior, model, gradient = config.prior, config.model, config.gradient
    kind = WaveletL12 if prior.norm == "l12" else WaveletL1
    weights = {"channels": channels if prior.weights_per_channel else None, "coarse": prior.coarse}
    wavelet = prior.wavelet if isinstance(prior.wavelet, str) else list(prior.wavelet)
    rules = {
        "truncated": lambda: Truncated(blocks=gradient.blocks, rtol=gradient.rtol),
        "unrolled": Unrolled,
        "implicit": lambda: Implicit() if gradient.rtol is None else Implicit(rtol=gradient.rtol),
    }
    return Restarted(
        ForwardBackward(
            kind(wavelet, prior.levels, **weights),
            step_size=model.step_size,
            reg=model.reg,
            layers=model.layers,
            learn_step_size=model.learn_step_size,
            learn_reg=model.learn_reg,
        ),
        depth=model.depth,
        restarts=model.restarts,
        gradient=rules[gradient.rule](),
        solver=_SOLVERS[model.solver](),
        stop=None if gradient.rule == "unrolled" else Stop(model.rtol, model.max_layers),
    )


def training_images(config: DataConfig) -> tuple[list[Tensor], list[Tensor] | None]:
    """Images to learn from, and to validate on if there are any, each (C, H, W).

    Raises:
        InvalidParameterError, ShapeError, NotFiniteError: see :func:`retune.data.as_images`.
    """
    shipped = config.train == "photographs"
    train = [photograph(name) for name in _PHOTOGRAPHS] if shipped else as_images(config.train)
    validation = None if config.validation is None else as_images(config.validation)
    if config.grey:
        train = [_grey(x) for x in train]
        validation = None if validation is None else [_grey(x) for x in validation]
    return train, validation


def _grey(x: Tensor) -> Tensor:
    """Luminance (1, H, W), ITU-R BT.601."""
    if x.shape[0] == 1:
        return x
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)


def build(description: dict) -> Any:
    """The object that ``obj.describe()`` described, with freshly initialised weights.

    Raises:
        UnknownNameError: a type that is not registered (yours? then rebuild the network in Python, and load the
            weights with ``load_state_dict``).
    """
    known = {k: build(v) if isinstance(v, dict) and "type" in v else v for k, v in description.items()}
    kind = known.pop("type", None)
    if kind not in _KNOWN:
        raise unknown_name("type", kind, _KNOWN)
    if kind == "Restarted":
        known["stop"] = Stop(**known["stop"])
        return Restarted.rebuild(known.pop("auto", None), **known)
    return _KNOWN[kind](**known)


def load(path: str | Path) -> Restarted:
    """A network saved with ``net.save(path)``, in eval mode, on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, foreign, of another format, or does not fit its description.
    """
    tensors, description, _ = _checkpoint.read(path)
    try:
        net = build(description)
        broken = [name for name, t in tensors.items() if not torch.isfinite(t).all()]
        if broken:
            raise CheckpointError(f"NaN or Inf in the weights {', '.join(broken)}")
        net.load_state_dict(tensors, assign=True)  # keeps the precision that was saved
    except (RetuneError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not describe a network that this version can rebuild: {error}") from error
    return net.eval()
