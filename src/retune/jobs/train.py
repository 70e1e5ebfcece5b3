"""Train what a run describes, in a folder of its own."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from deepinv.loss import Loss, SupLoss
from deepinv.loss.metric import SNR
from torch import Tensor

from retune._files import remove_leftovers
from retune._torch.devices import check_chosen_device
from retune.build import network_of, problem_of, training_images
from retune.certificate.quick import sample_certificate
from retune.config import Config, OptimiserConfig
from retune.data import centres
from retune.jobs.folder import CERTIFICATE, MODEL, prepare, save_model
from retune.model import Restarted
from retune.problems.base import Problem
from retune.records import TrainingCertificate
from retune.training.checkpoints import fingerprint
from retune.training.devices import first_process
from retune.training.fit import fit
from retune.training.lock import FolderLock
from retune.training.penalty import JacobianPenalty
from retune.training.records import FitResult

__all__ = ["CERTIFICATE", "loss_of", "train"]

#: Side of the middle of an image that is certified at the end.
_SIDE = 128


def train(
    config: Config, out: str | Path, *, resume: bool = False, device: str = "auto", progress: bool = True
) -> FitResult:
    """Train the network of a run; ``out`` gets the resolved run, its facts, checkpoints, the log and the model.

    Args:
        config: the run.
        out: folder for ``config.toml`` (every field), ``run.json`` (seed, versions, fingerprint of the data),
            ``checkpoint-*.safetensors``, ``log.csv`` and, at the end, ``model.safetensors`` and
            ``certificate.json``: how far the restoration of a validation image (else of a training image) is from its
            equilibrium, and what that rests on.
        resume: continue from the newest checkpoint in ``out``, if there is one.
        device: "auto", "cpu", "cuda", "cuda:1", …
        progress: show a progress bar.

    Raises:
        RetuneError: see [`fit`][retune.fit] and [`problem_of`][retune.build.problem_of].
    """
    check_chosen_device(device)
    out = Path(out)
    problem = problem_of(config.problem)
    images, validation = training_images(config.data)
    torch.manual_seed(config.seed)
    net = network_of(config, images[0].shape[0])
    with FolderLock(out) if first_process() else nullcontext():
        return _train(config, out, net, problem, images, validation, resume, device, progress)


def _train(
    config: Config,
    out: Path,
    net: Restarted,
    problem: Problem,
    images: list[Tensor],
    validation: list[Tensor] | None,
    resume: bool,
    device: str,
    progress: bool,
) -> FitResult:
    if first_process():
        remove_leftovers(out)
        held_out = None if validation is None else fingerprint(validation)
        prepare(config, out, fingerprint(images), resume, validation=held_out)
    options = config.optimiser
    result = fit(
        net,
        images,
        problem,
        validation=validation,
        steps=options.steps,
        batch_size=config.data.batch_size,
        crop=config.data.crop,
        lr=options.lr,
        lr_network=options.lr_network,
        loss=loss_of(options),
        seed=config.seed,
        device=device,
        validate_every=options.validate_every,
        progress=progress,
        warm_start=options.warm_start,
        folder=out,
        checkpoint_every=options.checkpoint_every,
        resume=resume,
    )
    if not first_process():
        return result
    scores = {} if result.best_psnr is None else {"psnr_validation": f"{result.best_psnr:.3f}"}
    save_model(net.cpu(), out / MODEL, config.problem, config.data.white, **scores)
    seen = "training image" if validation is None else "validation image"
    sample = centres((images if validation is None else validation)[:1], _SIDE)
    certificate = sample_certificate(net, lambda: problem.measure(sample, config.seed + 1))
    pixels = (sample.shape[-2], sample.shape[-1])
    TrainingCertificate(image=f"first {seen}", pixels=pixels, certificate=certificate).write(out / CERTIFICATE)
    return result


def loss_of(config: OptimiserConfig) -> Loss | None:
    """The loss that the section [optimiser] describes; None is mean squared error."""
    fidelity = SupLoss(SNR(train_loss=True)) if config.loss == "snr" else None
    return JacobianPenalty(config.penalty, fidelity) if config.penalty else fidelity
