"""One training loop: devices and processes from Lightning Fabric, everything else plain to read."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from deepinv.loss import Loss, SupLoss
from deepinv.loss.metric import MSE, PSNR
from deepinv.physics import LinearPhysics
from lightning_fabric import Fabric
from torch import Tensor, nn

from retune.data import as_images, check_crop, draw_crops
from retune.equilibrium import Equilibrium
from retune.errors import DivergedError, InvalidParameterError
from retune.maps.parameters import ScalarParameter
from retune.model import Restarted
from retune.problems.base import Restoration
from retune.training.progress import TrainingProgress
from retune.training.warm import WarmStart

__all__ = ["FitResult", "StepRecord", "Validation", "evaluate", "fit", "parameter_groups"]

Measure = Callable[[Tensor, int], tuple[Tensor, LinearPhysics]]


@dataclass(frozen=True)
class StepRecord:
    """One training step: its loss, and how far and how wrong it was (means over the batch)."""

    step: int
    loss: float
    residual: float
    gradient_error: float


@dataclass(frozen=True)
class Validation:
    """Validation after so many steps: PSNR in dB, mean over the images."""

    step: int
    psnr: float
    seconds: float


@dataclass
class FitResult:
    """What a training run did.

    Attributes:
        steps: one record per training step.
        validation: PSNR along the way, the untrained network first; empty without validation images.
        best_step: the step whose weights the network now has (the last one without validation).
        seconds: wall time, validation included.
    """

    steps: list[StepRecord] = field(default_factory=list)
    validation: list[Validation] = field(default_factory=list)
    best_step: int = 0
    seconds: float = 0.0

    @property
    def best_psnr(self) -> float | None:
        """Validation PSNR of the kept weights, or None without validation images."""
        return max((v.psnr for v in self.validation), default=None)


def parameter_groups(net: nn.Module, lr: float, lr_network: float) -> list[dict]:
    """Constrained scalars and tables (log or logistic scale) at `lr`, all other weights at `lr_network`."""
    scalars = {id(p) for m in net.modules() if isinstance(m, ScalarParameter) for p in m.parameters()}
    trained = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in scalars], "lr": lr},
        {"params": [p for p in trained if id(p) not in scalars], "lr": lr_network},
    ]
    return [g for g in groups if g["params"]]


def fit(
    net: Restarted,
    images: Any,
    problem: Restoration | LinearPhysics,
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
) -> FitResult:
    """Train a network on simulated measurements of images: random crops, flips and fresh noise at every step.

    Adam with a cosine schedule. The network is trained in place and left in eval mode; with validation images it
    keeps the weights of the best validation PSNR (the initial ones included), without them those of the last step.
    A deepinv loss that adapts the model (R2R, splitting) does so for the training only.

    Args:
        net: the network.
        images: training images, see :func:`retune.data.as_images`.
        problem: a problem of :mod:`retune.problems` (fresh operator and noise at every step), or a deepinv physics
            (fresh noise only).
        validation: validation images; their measurements are drawn once.
        steps: training steps.
        batch_size: crops per step.
        crop: side of the square crops; None takes whole images.
        lr: learning rate of step sizes, strengths and weights.
        lr_network: learning rate of all other parameters.
        loss: a deepinv ``Loss``; mean squared error by default.
        seed: seeds crops, operators and noise; the global generator is not touched.
        device: "auto", "cpu", "cuda", "cuda:1", …
        validate_every: steps between validations; a fifth of `steps` by default.
        progress: show a progress bar with loss, validation PSNR, residual and measured gradient error.
        warm_start: let every training image remember its equilibrium, and restart to a tolerance; ``restarts`` is then
            the most that are run. True for the defaults of :class:`retune.WarmStart`.

    Raises:
        DivergedError: the loss is no longer finite; the network has the best weights so far (without validation
            images, those of the last fifth that was completed).
        InvalidParameterError: nothing to train, images that do not fit the crop, …
    """
    train = as_images(images)
    check_crop(train, crop)
    every = max(1, steps // 5) if validate_every is None else validate_every
    if min(steps, batch_size, every) < 1:
        raise InvalidParameterError(
            f"steps, batch_size and validate_every must be at least 1, got {steps}, {batch_size} and {every}"
        )
    if not (0 < lr < math.inf and 0 < lr_network < math.inf):
        raise InvalidParameterError(f"learning rates must be positive, got lr={lr} and lr_network={lr_network}")
    groups = parameter_groups(net, lr, lr_network)
    if not groups:
        raise InvalidParameterError("the network has nothing to train: every parameter has requires_grad=False")
    fabric = _fabric(str(device))
    fabric.launch()
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
    # One factor for all groups, from 1 to 0.05: each falls from its own learning rate.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda k: 0.05 + 0.95 * (1 + math.cos(math.pi * k / steps)) / 2
    )
    criterion = SupLoss(metric=MSE()) if loss is None else loss
    warm = WarmStart() if warm_start is True else warm_start or None
    if warm is not None:
        warm.prepare(net, train)
    watched = _Watched(net, warm)
    model = criterion.adapt_model(watched)
    wrapped, optimiser = fabric.setup(model, optimiser)
    trainee = _Trainee(wrapped, model, watched.seen)
    measure = _measure(problem)
    held_out = None if validation is None else _measurements(as_images(validation), measure, seed, fabric.device)

    # Every process draws its own crops; one process draws what the first of many would.
    generator = torch.Generator().manual_seed(seed + 1_000_003 * fabric.global_rank)
    result, keeper = FitResult(), _Keeper(net)
    start = time.perf_counter()
    with TrainingProgress(steps, enabled=progress and fabric.is_global_zero) as bar:
        if held_out is not None:
            _validate(net, held_out, 0, start, result, keeper, bar)
        for step in range(1, steps + 1):
            wrapped.train()
            x, crops = draw_crops(train, batch_size, crop, generator)
            x = x.to(fabric.device)
            if warm is not None:
                warm.at(crops)
            y, physics = measure(x, int(torch.randint(2**31, (), generator=generator)))
            record = _step(fabric, trainee, optimiser, criterion, x, y, physics, step, keeper)
            schedule.step()
            result.steps.append(record)
            bar.step(record)
            if step % every == 0 or step == steps:
                if held_out is None:
                    keeper.offer(step, step)  # the latest are the best that is known
                else:
                    _validate(net, held_out, step, start, result, keeper, bar)
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
    keeper: _Keeper,
) -> StepRecord:
    trainee.seen.clear()
    optimiser.zero_grad()
    try:
        x_net = trainee.wrapped(y, physics, **trainee.options)
        value = criterion(x=x, x_net=x_net, y=y, physics=physics, model=trainee.model).mean()
        if not bool(torch.isfinite(value)):
            raise DivergedError(f"the loss became {float(value.detach())}.")
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


class _Watched(nn.Module):
    """The network, noting the equilibria it finds: a loss may wrap it, and wrappers pass on images only."""

    def __init__(self, net: Restarted, warm: WarmStart | None = None):
        super().__init__()
        self.net, self.warm = net, warm
        self.seen: list[Equilibrium] = []

    def forward(self, y: Tensor, physics: LinearPhysics) -> Tensor:
        # Only the first call of a step is about the crops themselves: a loss may call again for images of its own.
        warm = self.warm if self.training and not self.seen else None
        image = self.net(y, physics, report=self.seen.append, **({} if warm is None else warm.options(self.net)))
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


class _Keeper:
    """A copy of the best weights so far."""

    def __init__(self, net: nn.Module):
        self._net, self._best, self._step = net, float("-inf"), 0
        self._weights = self._copy()

    def _copy(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self._net.state_dict().items()}

    def offer(self, score: float, step: int) -> None:
        if score > self._best:
            self._best, self._step, self._weights = score, step, self._copy()

    def restore(self) -> int:
        self._net.load_state_dict(self._weights)
        self._net.eval()
        return self._step


def _validate(
    net: Restarted,
    held_out: list[tuple[Tensor, Tensor, LinearPhysics]],
    step: int,
    start: float,
    result: FitResult,
    keeper: _Keeper,
    bar: TrainingProgress,
) -> None:
    psnr = sum(evaluate(net, *pair) for pair in held_out) / len(held_out)
    result.validation.append(Validation(step, psnr, time.perf_counter() - start))
    keeper.offer(psnr, step)
    bar.validated(psnr)


def evaluate(net: Restarted, x: Tensor, y: Tensor, physics: LinearPhysics) -> float:
    """Mean PSNR in dB of a network in eval mode, for intensities in [0, 1]."""
    was_training = net.training
    net.eval()
    # A network that has not settled is scored as it is: its trouble shows in the figure.
    image = net.solve(y, physics).image
    net.train(was_training)
    return float(PSNR()(image, x).mean())


def _measurements(
    images: Iterable[Tensor], measure: Measure, seed: int, device: torch.device
) -> list[tuple[Tensor, Tensor, LinearPhysics]]:
    pairs = []
    for i, image in enumerate(images):
        x = image[None].to(device)
        y, physics = measure(x, seed + 500_009 + i)
        pairs.append((x, y, physics))
    return pairs


def _measure(problem: Restoration | LinearPhysics) -> Measure:
    if isinstance(problem, Restoration):
        return problem.measure
    if not isinstance(problem, LinearPhysics):
        raise InvalidParameterError(
            f"problem must be one of retune.problems or a deepinv LinearPhysics, got {type(problem).__name__}"
        )

    def measure(x: Tensor, seed: int) -> tuple[Tensor, LinearPhysics]:
        # The physics of the user has a noise model of its own, which may only know the global generator.
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            return problem(x), problem

    return measure


def _fabric(device: str) -> Fabric:
    if device == "auto":
        return Fabric(accelerator="auto", devices=1)
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda", "mps"):
        raise InvalidParameterError(f"unknown device {device!r}; use auto, cpu, cuda, cuda:1 or mps")
    try:
        return Fabric(accelerator=kind, devices=[int(index)] if index else 1)
    except (RuntimeError, ValueError) as error:
        raise InvalidParameterError(f"device {device!r} is not available here: {error}") from error
