"""Train the network of a run in a folder."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from retune._files import remove_leftovers
from retune._solver_choice import in_words
from retune._torch.devices import check_chosen_device
from retune.build import Built, built, loss_of
from retune.certificate.quick import sample_certificate
from retune.config import Config
from retune.data import centres
from retune.jobs.folder import CERTIFICATE, MODEL, prepare, save_model
from retune.records import TrainingCertificate
from retune.training.devices import first_process
from retune.training.fit import fit
from retune.training.lock import FolderLock
from retune.training.records import FitResult

__all__ = ["CERTIFICATE", "loss_of", "train"]

#: At the end, the middle of an image of this side is certified.
_SIDE = 128


def train(
    config: Config, out: str | Path, *, resume: bool = False, device: str = "auto", progress: bool = True
) -> FitResult:
    """Train the network of a run. Write the resolved run, its facts, checkpoints, the log and the model to ``out``.

    Args:
        config: the run.
        out: folder for ``config.toml`` (every field), ``run.json`` (seed, versions, fingerprint of the data),
            ``checkpoint-*.safetensors``, ``log.csv`` and, at the end, ``model.safetensors`` and
            ``certificate.json``: the distance of a restored validation image (or training image) to its
            equilibrium, and the assumptions.
        resume: continue from the newest checkpoint in ``out``, if there is one.
        device: "auto", "cpu", "cuda", "cuda:1", …
        progress: show a progress bar.

    Raises:
        RetuneError: see [`fit`][retune.fit] and [`built`][retune.build.built].
    """
    check_chosen_device(device)
    out, run = Path(out), built(config)
    options = replace(run.options, device=device, progress=progress, folder=out, resume=resume)
    with FolderLock(out) if first_process() else nullcontext():
        if first_process():
            remove_leftovers(out)
            prepare(config, out, run.data.fingerprint, resume, validation=run.data.validation_fingerprint)
        result = fit(run.net, run.data, options)
        if first_process():
            _keep(config, out, run, result)
    return result


def _keep(config: Config, out: Path, run: Built, result: FitResult) -> None:
    """Write the model, and the certificate of an image."""
    net, data = run.net.cpu(), run.data
    scores = {} if result.best_psnr is None else {"psnr_validation": f"{result.best_psnr:.3f}"}
    save_model(net, out / MODEL, config.problem, config.data.white, None, **scores)
    seen, images = ("training", data.images) if data.validation is None else ("validation", data.validation)
    sample = centres(images[:1], _SIDE)
    certificate = sample_certificate(net, lambda: data.measure(sample, config.seed + 1))
    pixels = (sample.shape[-2], sample.shape[-1])
    found = TrainingCertificate(
        image=f"first {seen} image",
        pixels=pixels,
        solver=in_words(net.solver, net.training_solver, net.solver_chosen),
        certificate=certificate,
    )
    found.write(out / CERTIFICATE)
