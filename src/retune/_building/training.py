"""The training that a run describes: its images, its loss and its options."""

from __future__ import annotations

from pathlib import Path

import torch
from deepinv.loss import Loss, SupLoss
from deepinv.loss.metric import SNR
from torch import Tensor

from retune.config import Config, DataConfig, OptimiserConfig
from retune.data import grey, photograph, read_files
from retune.io import list_files
from retune.io.intensity import read_scaled
from retune.training.options import FitOptions
from retune.training.penalty import JacobianPenalty

__all__ = ["loss_of", "options_of", "sharp_images", "training_images"]

_PHOTOGRAPHS = ("chelsea", "coffee", "motorcycle")


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
