"""Training: check the data and the options. The loop itself is in ``loop``."""

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

#: The iterates of a denoiser in bfloat16 may never reach a relative change per block below this (measured: 2–3e-3).
_BFLOAT16 = 4e-3

#: Floats above this suggest another unit than [0, 1].
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

    The optimiser is Adam with a cosine schedule. The network is trained in place and left in eval mode. With
    validation images it keeps the weights of the best validation PSNR (possibly the initial ones). Without validation
    images it keeps those of the last step. A deepinv loss that adapts the model (R2R, splitting) adapts it for the
    training only.

    Every random draw follows from (seed, step, process). So a run that continues from a checkpoint ends, on a CPU,
    with the same weights, bit for bit, as an uninterrupted run (unless the loss has its own generator). With torchrun
    or ``fabric run``, each process draws its own `batch_size` crops, and the gradient is that of the joint batch.

    Call it as ``fit(net, data, options)``, or as ``fit(net, images, problem, steps=500, lr=0.1)``, which builds the
    data and the options.

    Args:
        net: the network.
        images: training images, see [`as_images`][retune.data.as_images]; or a
            [`TrainingData`][retune.training.TrainingData], which contains the problem and validation images.
        problem: a problem of ``retune.problems`` (fresh operator and noise at every step), or a deepinv physics
            (fresh noise only). After a ``TrainingData``, this argument is the options.
        options: the options of the training; see [`FitOptions`][retune.FitOptions].
        validation: validation images; their measurements are drawn once.
        **keywords: fields of [`FitOptions`][retune.FitOptions], in place of those in `options`: `steps`, `batch_size`,
            `crop`, `lr`, `lr_network`, `loss`, `seed`, `device`, `validate_every`, `progress`, `warm_start`, `folder`,
            `checkpoint_every`, `resume`, `flips`, `stop`, `note`.

    Raises:
        DivergedError: the loss is no longer finite. The network keeps the best weights so far (without validation
            images, those at the end of the last completed fifth).
        InvalidParameterError: the network has no trainable parameter, images are smaller than the crop, the folder
            holds another run, the loss has no gradient, a tolerance is too small for a denoiser in bfloat16, …
        ProcessLostError: another process of the training has ended.
        CheckpointError: `folder` holds a run with other settings or data, or no readable checkpoint.

    Warns:
        DoubtfulWarning: images or a noise level are far outside [0, 1], as on a scale of 0…255.
    """
    if hasattr(images, "measure"):  # a TrainingData contains its problem, so the options come next
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
    """The options with some fields replaced by the keywords of the call."""
    known = [field.name for field in fields(FitOptions)]
    for name in keywords:
        if name not in known:
            raise TypeError(f"fit() got an unexpected keyword argument {name!r}{did_you_mean(name, known)}")
    return replace(options, **keywords) if keywords else options


def _doubt_unit(images: list[Tensor]) -> None:
    """Warn of images on a scale of 0…255: step sizes, strengths and shipped networks are made for [0, 1].

    Floats slightly outside [0, 1] are normal, for example in sharpened or noisy images.
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
    """Refuse tolerances that bfloat16 cannot reach: all restarts would run to their limit."""
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
