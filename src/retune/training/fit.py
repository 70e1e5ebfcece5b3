"""Training: what is trained on, and how, are checked here; the loop is in ``loop``."""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from typing import Any, Unpack, overload

from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from retune.data import check_crop
from retune.errors import DoubtfulWarning, InvalidParameterError, did_you_mean, require
from retune.model import Restarted
from retune.parameters import scalars
from retune.priors.capabilities import priors_of
from retune.problems.base import Problem
from retune.problems.given import as_problem
from retune.solve import Stop
from retune.training.data import TrainingData
from retune.training.loop import Training
from retune.training.options import FitKeywords, FitOptions
from retune.training.records import FitResult, StepRecord, Validation
from retune.training.simulate import evaluate
from retune.training.warm import WarmStart

#: Relative change per block below which the iterates of a denoiser in bfloat16 may not come: 2e-3 to 3e-3 measured.
_BFLOAT16 = 4e-3

#: Floats above this are taken for another unit than [0, 1].
_LARGEST = 4.0

__all__ = ["FitResult", "StepRecord", "Validation", "evaluate", "fit", "parameter_groups"]


def parameter_groups(net: nn.Module, lr: float, lr_network: float) -> list[dict]:
    """Constrained scalars and tables (log or logistic scale) at `lr`, all other weights at `lr_network`."""
    constrained = {id(p) for table in scalars(net).values() for p in table.parameters()}
    trained = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in constrained], "lr": lr},
        {"params": [p for p in trained if id(p) not in constrained], "lr": lr_network},
    ]
    return [g for g in groups if g["params"]]


@overload
def fit(
    net: Restarted, data: TrainingData, options: FitOptions | None = None, /, **keywords: Unpack[FitKeywords]
) -> FitResult: ...


@overload
def fit(
    net: Restarted,
    images: Any,
    problem: Problem | LinearPhysics,
    options: FitOptions | None = None,
    *,
    validation: Any = None,
    **keywords: Unpack[FitKeywords],
) -> FitResult: ...


def fit(
    net: Restarted,
    images: Any,
    problem: Any = None,
    options: FitOptions | None = None,
    *,
    validation: Any = None,
    **keywords: Any,
) -> FitResult:
    """Train a network on simulated measurements of images: random crops, flips and fresh noise at every step.

    Adam with a cosine schedule. The network is trained in place and left in eval mode; with validation images it
    keeps the weights of the best validation PSNR (the initial ones included), without them those of the last step.
    A deepinv loss that adapts the model (R2R, splitting) does so for the training only.

    Every random draw follows from (seed, step, process), so a run that is continued from a checkpoint ends, on a CPU,
    with the same weights, bit for bit, as one that was not interrupted (unless the loss has a generator of its own).
    Started by torchrun or ``fabric run``, each process draws `batch_size` crops of its own, and the gradient is that
    of the joint batch.

    It is called as ``fit(net, data, options)``, or as ``fit(net, images, problem, steps=500, lr=0.1)``, which makes
    both.

    Args:
        net: the network.
        images: training images, see [`as_images`][retune.data.as_images]; or a
            [`TrainingData`][retune.training.TrainingData], which has a problem and validation images already.
        problem: a problem of ``retune.problems`` (fresh operator and noise at every step), or a deepinv physics
            (fresh noise only). Options in its place, after a ``TrainingData``.
        options: how to train; see [`FitOptions`][retune.FitOptions].
        validation: validation images; their measurements are drawn once.
        **keywords: fields of [`FitOptions`][retune.FitOptions], in place of those in `options`: `steps`, `batch_size`,
            `crop`, `lr`, `lr_network`, `loss`, `seed`, `device`, `validate_every`, `progress`, `warm_start`, `folder`,
            `checkpoint_every`, `resume`, `flips`, `stop`.

    Raises:
        DivergedError: the loss is no longer finite; the network has the best weights so far (without validation
            images, those of the last fifth that was completed).
        InvalidParameterError: nothing to train, images that do not fit the crop, a folder that holds another run, a
            loss without gradient, a tolerance beside a denoiser in bfloat16, …
        ProcessLostError: another process of the training has ended.
        CheckpointError: `folder` holds a run with other settings or data, or no readable checkpoint.

    Warns:
        DoubtfulWarning: images, or a noise level, that are far outside [0, 1], as on a scale of 0…255.
    """
    if hasattr(images, "measure"):  # data that know how they are measured need no problem: options follow them
        data, options = images, problem if options is None else options
        if validation is not None:
            raise InvalidParameterError(
                "validation was given beside a TrainingData, which has its own: retune.training.TrainingData(images, "
                "problem, validation)"
            )
    else:
        data = TrainingData(images, as_problem(problem), validation)
    options = FitOptions() if options is None else options
    require("options", options, FitOptions, "a retune.FitOptions", "for example retune.FitOptions(steps=500)")
    options = _with(options, keywords)
    _doubt_unit(data.images)
    check_crop(data.images, options.crop)
    groups = parameter_groups(net, options.lr, options.lr_network)
    if not groups:
        raise InvalidParameterError("the network has nothing to train: every parameter has requires_grad=False")
    warm = WarmStart() if options.warm_start is True else options.warm_start or None
    _check_bfloat16(net, warm, options.stop)
    return Training(net, data, options, groups, warm).run()


def _with(options: FitOptions, keywords: dict[str, Any]) -> FitOptions:
    """The options, with the keywords of the call in place of their fields."""
    known = [field.name for field in fields(FitOptions)]
    for name in keywords:
        if name not in known:
            raise TypeError(f"fit() got an unexpected keyword argument {name!r}{did_you_mean(name, known)}")
    return replace(options, **keywords) if keywords else options


def _doubt_unit(images: list[Tensor]) -> None:
    """Warn of images on a scale of 0…255: step sizes, strengths and shipped networks are made for [0, 1].

    Floats that leave [0, 1] a little, as sharpened or noisy images do, are nothing unusual.
    """
    largest = max(float(x.abs().max()) for x in images)
    if largest > _LARGEST:
        warnings.warn(
            f"the images have values up to {largest:.4g}, but the defaults of networks and problems assume "
            "intensities in [0, 1]: divide images of 0…255 by 255 (and noise levels, too: sigma=25/255), or give "
            "integer images, which are scaled",
            DoubtfulWarning,
            stacklevel=3,
        )


def _check_bfloat16(net: Restarted, warm: WarmStart | None, stop: Stop | None) -> None:
    """Nothing that bfloat16 cannot reach is asked for: restarts would always go on to their limit."""
    if not any(p.trains_in_bfloat16 for p in priors_of(net)):
        return
    asked = {
        "warm_start": 1.0 if warm is None else warm.rtol,
        "stop": 1.0 if stop is None or stop.rtol == 0 else stop.rtol,
    }
    for name, rtol in asked.items():
        if rtol < _BFLOAT16:
            raise InvalidParameterError(
                f"{name} requires a relative change of {rtol:g} in training, but with bfloat16=True the iterates "
                f"settle only to 2e-3 to 3e-3: give at least {_BFLOAT16:g}, or leave out one of the two"
            )
    if net.gradient.solves_adjoint:
        raise InvalidParameterError(
            f"{net.gradient!r} solves for the gradient to a tolerance, but a denoiser with bfloat16=True is not "
            "accurate enough for that: train with retune.Truncated(), or with bfloat16=False"
        )
    if net.auto is not None:
        raise InvalidParameterError(
            'depth="auto" and restarts="auto" are chosen for an accuracy that a denoiser with bfloat16=True does not '
            "allow: give numbers (retune.plan proposes some), or bfloat16=False"
        )
