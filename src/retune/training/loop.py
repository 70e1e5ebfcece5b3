"""The loop of a training. Lightning Fabric handles devices and processes; everything else is plain PyTorch."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from threading import Event
from typing import Any

import torch
from deepinv.loss import Loss, SupLoss
from deepinv.loss.metric import MSE
from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from retune._torch.streams import seeded, stream
from retune.auto import Choice
from retune.data import draw_crops
from retune.equilibrium import Equilibrium
from retune.errors import DivergedError, Interrupted, InvalidParameterError
from retune.model import Restarted
from retune.solve import Stop
from retune.training.checkpoints import RunFolder, stop_requests
from retune.training.data import TrainingData
from retune.training.devices import agreed, make_fabric, other_processes
from retune.training.options import FitOptions
from retune.training.progress import TrainingProgress
from retune.training.records import FitResult, Keeper, StepRecord, Validation
from retune.training.settings import called, decisive
from retune.training.simulate import evaluate, held_out_pairs
from retune.training.warm import WarmStart

__all__ = ["Training"]

Batch = tuple[Tensor, Tensor, LinearPhysics]


class Training:
    """One training: its objects, made once, and its steps.

    Args:
        net: the network.
        data: the images and the problem.
        options: the options of the training.
        groups: parameters with their learning rates, for the optimiser.
        warm: the memory of equilibria, or None.
    """

    def __init__(
        self, net: Restarted, data: TrainingData, options: FitOptions, groups: list[dict], warm: WarmStart | None
    ):
        self.net, self.data, self.options, self.warm = net, data, options, warm
        self.fabric = make_fabric(str(options.device))
        self.rates = [g["lr"] for g in groups]
        optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.criterion: Loss = SupLoss(metric=MSE()) if options.loss is None else options.loss
        if warm is not None:
            warm.prepare(net, data.images)
        self.saved = self._saved_canvases()
        self.watched = _Watched(net, warm, options.stop)
        self.model: nn.Module = self.criterion.adapt_model(self.watched)
        # With update_parameters=True adapted models draw and keep their corruption, as in deepinv's Trainer.
        asks = "update_parameters" in inspect.signature(self.model.forward).parameters
        self.call_options = {"update_parameters": True} if asks else {}
        self.wrapped, self.optimiser = self.fabric.setup(self.model, optimiser)
        seed, device = options.seed, self.fabric.device
        self.held_out = None
        if data.validation is not None:
            self.held_out = held_out_pairs(data.validation, data.measure, seed, device)
        self.result, self.keeper = FitResult(), Keeper(net)

    def _saved_canvases(self) -> WarmStart | None:
        """The memory of equilibria, if the checkpoints contain it."""
        warm = self.warm
        # Canvases in files are too large for a checkpoint, and each process has its own canvases.
        saved = None if warm is None or warm.on_disk or self.fabric.world_size > 1 else warm
        if self.options.resume and warm is not saved:
            raise InvalidParameterError(
                "a run with warm_start cannot be resumed exactly if the canvases are in files, or with several "
                "processes: the checkpoints do not contain the canvases; leave out warm_start or resume"
            )
        return saved

    def run(self) -> FitResult:
        """Train. This leaves the network in eval mode, with the kept weights."""
        options, fabric = self.options, self.fabric
        folder, done, spent = self._opened_folder()
        self.start = time.perf_counter() - spent
        with (
            closing(folder) if folder is not None else nullcontext(),
            TrainingProgress(options.steps, enabled=options.progress and fabric.is_global_zero) as bar,
            stop_requests(enabled=folder is not None) as asked,
            other_processes(fabric, options.folder),
        ):
            if self.held_out is not None and not done:
                self._validate(0, bar)
            if done < options.steps:
                self._choose(done + 1)
            for step in range(done + 1, options.steps + 1):
                record = self._step(step)
                self.result.steps.append(record)
                bar.step(record)
                if options.note is not None:
                    options.note(record)
                if step % options.validation_interval == 0 or step == options.steps:
                    self._validate(step, bar)
                halt = self._halts(asked)
                if folder is not None and (halt or step % options.checkpoint_every == 0 or step == options.steps):
                    self._save(folder, step)
                if halt:
                    self.net.eval()
                    raise Interrupted(asked.number)
        self.result.best_step = self.keeper.restore() if self.held_out is not None else options.steps
        self.result.seconds = time.perf_counter() - self.start
        self.net.eval()
        return self.result

    def _opened_folder(self) -> tuple[RunFolder | None, int, float]:
        """The folder of checkpoints, the step of the newest one, and the seconds of training before it."""
        options = self.options
        if options.folder is None:
            return None, 0, 0.0
        settings = decisive(self.net, self.data, options, self.criterion, self.warm, self.fabric.world_size)
        folder = RunFolder(options.folder, settings, options.resume)
        return folder, *folder.load(self.net, self.optimiser, self.result, self.keeper, self.saved)

    def _save(self, folder: RunFolder, step: int) -> None:
        """The first process writes a checkpoint; the others wait."""
        if self.fabric.is_global_zero:
            seconds = time.perf_counter() - self.start
            folder.save(step, self.net, self.optimiser, self.result, self.keeper, seconds, self.saved)
        self.fabric.barrier()

    def _halts(self, asked: Event) -> bool:
        """Whether any process received a request to stop."""
        (halt,) = agreed(self.fabric, asked.is_set())
        return bool(halt)

    def _validate(self, step: int, bar: TrainingProgress) -> None:
        """Score the current weights and keep the best. Without validation images, always keep the current ones."""
        if self.held_out is None:
            self.keeper.offer(step, step)
            return
        psnr = sum(evaluate(self.net, *pair) for pair in self.held_out) / len(self.held_out)
        self.result.validation.append(Validation(step, psnr, time.perf_counter() - self.start))
        self.keeper.offer(psnr, step)
        bar.validated(psnr)

    def _choose(self, step: int) -> Choice | None:
        """Choose "auto" options before the first step, on its batch, in the form in which the loss passes it on."""
        if self.net.auto is None or self.net.auto.choice is not None:
            return None
        self.wrapped.train()
        _, y, physics = self._batch(step)
        with self._draws(step), self.watched.choosing():
            self.model(y, physics, **self.call_options)
        return self.net.auto.choice

    def _step(self, step: int) -> StepRecord:
        """One step: set the rates, draw the batch, and learn from it."""
        self.wrapped.train()
        self._set_rates(step)
        x, y, physics = self._batch(step)
        with self._draws(step):
            return self._learn(step, x, y, physics)

    def _set_rates(self, step: int) -> None:
        """Scale the learning rate of each group by the same factor, which falls from 1 to 0.05."""
        factor = 0.05 + 0.95 * (1 + math.cos(math.pi * (step - 1) / self.options.steps)) / 2
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _batch(self, step: int) -> Batch:
        """Crops of the training images, and their measurements, drawn from the seed, the step and the process."""
        options = self.options
        generator = torch.Generator().manual_seed(stream(options.seed, step, self.fabric.global_rank))
        x, crops = draw_crops(self.data.images, options.batch_size, options.crop, generator, flips=options.flips)
        x = x.to(self.fabric.device)
        if self.warm is not None:
            self.warm.at(crops)
        return (x, *self.data.measure(x, int(torch.randint(2**31, (), generator=generator))))

    def _draws(self, step: int) -> Any:
        """Inside this block the global generator, which the loss uses, is seeded by the step."""
        return seeded(stream(self.options.seed, step, self.fabric.global_rank, 1), self.fabric.device)

    def _learn(self, step: int, x: Tensor, y: Tensor, physics: LinearPhysics) -> StepRecord:
        """Compute loss and gradient, and take a step of the optimiser."""
        self.watched.seen.clear()
        self.optimiser.zero_grad()
        try:
            value = self._loss(x, y, physics)
            self.fabric.backward(value)
            norms = [p.grad.abs().sum() for p in self.model.parameters() if p.grad is not None]
            if not bool(torch.isfinite(torch.stack(norms)).all()):
                raise DivergedError("a gradient became NaN or Inf.")
        except DivergedError as error:
            kept = self.keeper.restore()
            raise DivergedError(
                f"training failed at step {step}: {error} The weights of step {kept} are restored. Lower lr (or "
                "lr_network), raise restarts so that the gradient is taken at the equilibrium, or start from a smaller "
                "step_size"
            ) from error
        self.optimiser.step()
        first = self.watched.seen[0]
        wrong = None if first.gradient is None else first.gradient.relative_error
        return StepRecord(
            step=step,
            loss=float(value.detach()),
            residual=float(first.residual.mean()),
            gradient_error=float("nan") if wrong is None else float(wrong.mean()),
        )

    def _loss(self, x: Tensor, y: Tensor, physics: LinearPhysics) -> Tensor:
        """The mean loss; raise if it is not finite or has no gradient."""
        x_net = self.wrapped(y, physics, **self.call_options)
        value = self.criterion(x=x, x_net=x_net, y=y, physics=physics, model=self.model).mean()
        if agreed(self.fabric, ~torch.isfinite(value.detach()))[0]:
            raise DivergedError(f"the loss became {float(value.detach())}.")
        if not x_net.requires_grad:
            raise InvalidParameterError(
                "the restored images have no gradient, so nothing can be learned: call retune.fit outside "
                "torch.no_grad() and torch.inference_mode(), or give a network whose gradient rule records a graph"
            )
        if not value.requires_grad:
            raise InvalidParameterError(
                f"the loss {called(self.criterion)} has no gradient with respect to the restored images, so nothing "
                "can be learned from it (deepinv's PSNR has no gradient: use SNR, which differs from PSNR by a "
                "constant for each image)"
            )
        return value


class _Watched(nn.Module):
    """The network, which stores the equilibria that it finds: a loss may wrap it, and wrappers return images only."""

    def __init__(self, net: Restarted, warm: WarmStart | None = None, stop: Stop | None = None):
        super().__init__()
        self.net, self.warm, self.stop = net, warm, stop
        self.seen: list[Equilibrium] = []
        self._chooses = False

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """Calls in this block choose the "auto" options on their input, and restore nothing."""
        self._chooses = True
        try:
            yield
        finally:
            self._chooses = False

    def forward(self, y: Tensor, physics: LinearPhysics) -> Tensor:
        if self._chooses:
            self.net.choose(y, physics)
            return physics.A_adjoint(y)  # wrappers expect the shape of an image
        # Only the first call of a step restores the crops themselves: a loss may call again with its own images.
        warm = self.warm if self.training and not self.seen else None
        options = {"stop": self.stop if self.training else None} if warm is None else warm.options(self.net)
        image = self.net(y, physics, report=self.seen.append, **options)
        if warm is not None:
            warm.keep(self.seen[0])
        return image
