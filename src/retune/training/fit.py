"""One training loop: devices and processes from Lightning Fabric, everything else plain to read."""

from __future__ import annotations

import inspect
import json
import math
import time
import warnings
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepinv.loss import Loss, SupLoss
from deepinv.loss.metric import MSE
from deepinv.physics import LinearPhysics
from lightning_fabric import Fabric
from torch import Tensor, nn

from retune._torch.streams import seeded, stream
from retune.data import as_images, check_crop, draw_crops
from retune.equilibrium import Equilibrium
from retune.errors import DivergedError, DoubtfulWarning, Interrupted, InvalidParameterError
from retune.model import Restarted
from retune.parameters import scalars
from retune.priors.capabilities import priors_of
from retune.problems.base import Problem
from retune.problems.given import as_problem
from retune.solve import Stop
from retune.training.checkpoints import RunFolder, fingerprint, stop_requests
from retune.training.devices import agreed, make_fabric, other_processes
from retune.training.progress import TrainingProgress
from retune.training.records import FitResult, Keeper, StepRecord, Validation
from retune.training.simulate import Pairs, evaluate, held_out_pairs
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


def _described(net: Restarted) -> str:
    """What decides the iterations beside the weights; of a network that cannot be saved, less is known.

    Without what a training changes, so that the network of an interrupted one is the same still.
    """
    fixed = {"gradient": net.gradient.describe(), "solver": net.solver.describe(), "stop": repr(net.stop)}
    fixed |= {"depth": net.depth, "restarts": net.restarts} if net.auto is None else {}
    if net.auto is not None:
        del fixed["gradient"]  # its blocks are chosen, too
    try:
        fixed["map"] = _without_values(net.map.describe())
    except InvalidParameterError:
        fixed["map"] = type(net.map).__name__
    return json.dumps(fixed, sort_keys=True)


def _without_values(description: Any) -> Any:
    """A description of a map without the noise levels and strengths in it, which may have been learned."""
    if not isinstance(description, dict):
        return description
    return {k: _without_values(v) for k, v in description.items() if k not in ("sigma", "strength")}


def fit(
    net: Restarted,
    images: Any,
    problem: Problem | LinearPhysics,
    *,
    validation: Any = None,
    steps: int = 200,
    batch_size: int = 4,
    crop: int | None = 128,
    lr: float = 0.05,
    lr_network: float = 1e-4,
    loss: Loss | None = None,
    seed: int = 0,
    device: str = "auto",
    validate_every: int | None = None,
    progress: bool = True,
    warm_start: bool | WarmStart = False,
    folder: str | Path | None = None,
    checkpoint_every: int = 20,
    resume: bool = False,
    flips: bool = True,
    stop: Stop | None = None,
) -> FitResult:
    """Train a network on simulated measurements of images: random crops, flips and fresh noise at every step.

    Adam with a cosine schedule. The network is trained in place and left in eval mode; with validation images it
    keeps the weights of the best validation PSNR (the initial ones included), without them those of the last step.
    A deepinv loss that adapts the model (R2R, splitting) does so for the training only.

    Every random draw follows from (seed, step, process), so a run that is continued from a checkpoint ends, on a CPU,
    with the same weights, bit for bit, as one that was not interrupted (unless the loss has a generator of its own).
    Started by torchrun or ``fabric run``, each process draws `batch_size` crops of its own, and the gradient is that
    of the joint batch.

    Args:
        net: the network.
        images: training images, see [`as_images`][retune.data.as_images].
        problem: a problem of ``retune.problems`` (fresh operator and noise at every step), or a deepinv physics
            (fresh noise only).
        validation: validation images; their measurements are drawn once.
        steps: training steps.
        batch_size: crops per step.
        crop: side of the square crops; None takes whole images.
        lr: learning rate of step sizes, strengths and weights.
        lr_network: learning rate of all other parameters.
        loss: a deepinv ``Loss``; mean squared error by default. ``SupLoss(SNR(train_loss=True))`` gives decibels, in
            which easy and difficult crops weigh the same.
        seed: seeds crops, operators and noise; the global generator is not touched.
        device: "auto", "cpu", "cuda", "cuda:1", …
        validate_every: steps between validations; a fifth of `steps` by default.
        progress: show a progress bar with loss, validation PSNR, residual and measured gradient error.
        warm_start: let every training image remember its equilibrium, and restart to a tolerance; ``restarts`` is then
            the most that are run. True for the defaults of [`WarmStart`][retune.WarmStart].
        folder: where checkpoints and ``log.csv`` go; none are written by default. With a folder, Ctrl-C (and SIGTERM)
            finishes the step, saves, and then raises [`Interrupted`][retune.errors.Interrupted], a KeyboardInterrupt.
        checkpoint_every: steps between checkpoints, which is what is lost at most.
        resume: continue from the newest checkpoint in `folder`, if there is one.
        flips: whether crops are flipped at random; not where `images` are measurements whose operator has a direction.
        stop: when the restarts of a training step stop, instead of after R blocks.

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
    train = as_images(images)
    _doubt_unit(train)
    check_crop(train, crop)
    every = max(1, steps // 5) if validate_every is None else validate_every
    if min(steps, batch_size, every, checkpoint_every) < 1:
        raise InvalidParameterError(
            "steps, batch_size, validate_every and checkpoint_every must be at least 1, got "
            f"{steps}, {batch_size}, {every} and {checkpoint_every}"
        )
    if not (0 < lr < math.inf and 0 < lr_network < math.inf):
        raise InvalidParameterError(f"learning rates must be positive, got lr={lr} and lr_network={lr_network}")
    if resume and folder is None:
        raise InvalidParameterError("resume=True needs the folder of the run: folder=...")
    groups = parameter_groups(net, lr, lr_network)
    if not groups:
        raise InvalidParameterError("the network has nothing to train: every parameter has requires_grad=False")
    rates = [g["lr"] for g in groups]
    warm = WarmStart() if warm_start is True else warm_start or None
    _check_bfloat16(net, warm, stop)
    fabric = make_fabric(str(device))
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
    criterion = SupLoss(metric=MSE()) if loss is None else loss
    if warm is not None:
        warm.prepare(net, train)
    # Canvases in files are there because they would fill the memory, and each process has canvases of its own.
    saved = None if warm is None or warm.on_disk or fabric.world_size > 1 else warm
    if resume and warm is not saved:
        raise InvalidParameterError(
            "a run with warm_start cannot be resumed exactly if the canvases are in files, or with several "
            "processes: the checkpoints do not contain the canvases; leave out warm_start or resume"
        )
    watched = _Watched(net, warm, stop)
    model = criterion.adapt_model(watched)
    wrapped, optimiser = fabric.setup(model, optimiser)
    trainee = _Trainee(wrapped, model, watched.seen)
    source = as_problem(problem)
    measure = source.measure
    tested = None if validation is None else as_images(validation)
    held_out = None if tested is None else held_out_pairs(tested, measure, seed, fabric.device)

    result, keeper = FitResult(), Keeper(net)
    run, done, spent = None, 0, 0.0
    if folder is not None:
        decisive = {
            "steps": steps,
            "batch_size": batch_size,
            "crop": crop,
            "lr": lr,
            "lr_network": lr_network,
            "loss": _called(criterion),
            "seed": seed,
            "validate_every": every,
            "processes": fabric.world_size,
            "problem": source.identity(),
            "network": _described(net),
            "images": fingerprint(train),
            "validation": None if tested is None else fingerprint(tested),
        }
        decisive |= {k: v for k, v in (("flips", flips), ("stop", repr(stop))) if v not in (True, "None")}
        decisive |= {} if warm is None else {"warm_start": f"rtol={warm.rtol:g}, adjoint={warm.adjoint}"}
        run = RunFolder(folder, decisive, resume)
        done, spent = run.load(net, optimiser, result, keeper, saved)
    start = time.perf_counter() - spent
    with (
        closing(run) if run is not None else nullcontext(),
        TrainingProgress(steps, enabled=progress and fabric.is_global_zero) as bar,
        stop_requests(enabled=run is not None) as asked,
        other_processes(fabric, folder),
    ):

        def save(step: int) -> None:
            if run is not None and fabric.is_global_zero:
                run.save(step, net, optimiser, result, keeper, time.perf_counter() - start, saved)
            fabric.barrier()

        if held_out is not None and not done:
            _validate(net, held_out, 0, time.perf_counter() - start, result, keeper, bar)
        for step in range(done + 1, steps + 1):
            wrapped.train()
            # One factor for all groups, from 1 to 0.05: each falls from its own learning rate.
            factor = 0.05 + 0.95 * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            generator = torch.Generator().manual_seed(stream(seed, step, fabric.global_rank))
            x, crops = draw_crops(train, batch_size, crop, generator, flips=flips)
            x = x.to(fabric.device)
            if warm is not None:
                warm.at(crops)
            y, physics = measure(x, int(torch.randint(2**31, (), generator=generator)))
            # What the loss draws, it draws from the global generator.
            with seeded(stream(seed, step, fabric.global_rank, 1), fabric.device):
                record = _step(fabric, trainee, optimiser, criterion, x, y, physics, step, keeper)
            result.steps.append(record)
            bar.step(record)
            if step % every == 0 or step == steps:
                if held_out is None:
                    keeper.offer(step, step)  # the latest are the best that is known
                else:
                    _validate(net, held_out, step, time.perf_counter() - start, result, keeper, bar)
            (halt,) = agreed(fabric, asked.is_set())
            if run is not None and (halt or step % checkpoint_every == 0 or step == steps):
                save(step)
            if halt:
                net.eval()
                raise Interrupted(asked.number)
    result.best_step = keeper.restore() if held_out is not None else steps
    result.seconds = time.perf_counter() - start
    net.eval()
    return result


def _step(
    fabric: Fabric,
    trainee: _Trainee,
    optimiser: Any,
    criterion: Loss,
    x: Tensor,
    y: Tensor,
    physics: LinearPhysics,
    step: int,
    keeper: Keeper,
) -> StepRecord:
    trainee.seen.clear()
    optimiser.zero_grad()
    try:
        x_net = trainee.wrapped(y, physics, **trainee.options)
        value = criterion(x=x, x_net=x_net, y=y, physics=physics, model=trainee.model).mean()
        if agreed(fabric, ~torch.isfinite(value.detach()))[0]:
            raise DivergedError(f"the loss became {float(value.detach())}.")
        if not x_net.requires_grad:
            raise InvalidParameterError(
                "the restored images have no gradient, so nothing can be learned: call retune.fit outside "
                "torch.no_grad() and torch.inference_mode(), or give a network whose gradient rule records a graph"
            )
        if not value.requires_grad:
            raise InvalidParameterError(
                f"the loss {_called(criterion)} has no gradient with respect to the restored images, so nothing can "
                "be learned from it (deepinv's PSNR has no gradient: use SNR, which differs from PSNR by a constant "
                "for each image)"
            )
        fabric.backward(value)
        norms = [p.grad.abs().sum() for p in trainee.model.parameters() if p.grad is not None]
        if not bool(torch.isfinite(torch.stack(norms)).all()):
            raise DivergedError("a gradient became NaN or Inf.")
    except DivergedError as error:
        kept = keeper.restore()
        raise DivergedError(
            f"training failed at step {step}: {error} The weights of step {kept} are restored. Lower lr (or "
            "lr_network), raise restarts so that the gradient is taken at the equilibrium, or start from a smaller "
            "step_size"
        ) from error
    optimiser.step()
    first = trainee.seen[0]
    gradient = first.gradient
    wrong = None if gradient is None else gradient.relative_error
    return StepRecord(
        step=step,
        loss=float(value.detach()),
        residual=float(first.residual.mean()),
        gradient_error=float("nan") if wrong is None else float(wrong.mean()),
    )


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


def _called(criterion: nn.Module) -> str:
    """The name of a loss, with its own settings, and that of its metric, or of the loss in it."""
    inner = next(
        (m for m in (getattr(criterion, k, None) for k in ("metric", "loss")) if isinstance(m, nn.Module)), None
    )
    settings = getattr(criterion, "settings", "")
    told = " ".join(s for s in (settings, "" if inner is None else _called(inner)) if s)
    return type(criterion).__name__ + (f"({told})" if told else "")


class _Watched(nn.Module):
    """The network, noting the equilibria it finds: a loss may wrap it, and wrappers pass on images only."""

    def __init__(self, net: Restarted, warm: WarmStart | None = None, stop: Stop | None = None):
        super().__init__()
        self.net, self.warm, self.stop = net, warm, stop
        self.seen: list[Equilibrium] = []

    def forward(self, y: Tensor, physics: LinearPhysics) -> Tensor:
        # Only the first call of a step is about the crops themselves: a loss may call again for images of its own.
        warm = self.warm if self.training and not self.seen else None
        options = {"stop": self.stop if self.training else None} if warm is None else warm.options(self.net)
        image = self.net(y, physics, report=self.seen.append, **options)
        if warm is not None:
            warm.keep(self.seen[0])
        return image


@dataclass(frozen=True)
class _Trainee:
    """What a training step runs: the model of the loss, and Fabric's wrapper around it."""

    wrapped: nn.Module
    model: nn.Module
    seen: list[Equilibrium]

    @property
    def options(self) -> dict:
        """Adapted models draw and keep their corruption when they are asked to, as deepinv's Trainer asks them."""
        known = inspect.signature(self.model.forward).parameters
        return {"update_parameters": True} if "update_parameters" in known else {}


def _validate(
    net: Restarted,
    held_out: Pairs,
    step: int,
    seconds: float,
    result: FitResult,
    keeper: Keeper,
    bar: TrainingProgress,
) -> None:
    psnr = sum(evaluate(net, *pair) for pair in held_out) / len(held_out)
    result.validation.append(Validation(step, psnr, seconds))
    keeper.offer(psnr, step)
    bar.validated(psnr)
