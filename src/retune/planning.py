"""Predict memory and time of a training step, and the depth that fits a memory."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import deepinv
import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune._torch.memory import as_bytes, in_words, peak_of
from retune.errors import InvalidParameterError, require, require_whole
from retune.gradients.base import GradientRule
from retune.model import Restarted
from retune.problems.base import Problem
from retune.problems.given import as_problem
from retune.solve import Stop

__all__ = ["Plan", "plan"]

#: Two layers (or images) count as equally costly if their costs differ by at most this share.
_STEADY = 0.05


@dataclass(frozen=True)
class Plan:
    """A prediction for one network, image size and batch. It prints as text.

    Attributes:
        image_size: (C, H, W).
        batch: B.
        depth, restarts: K and R.
        step_bytes: peak of a training step, in addition to `resident_bytes`.
        resident_bytes: memory that is always used: weights, the two moments of Adam, images and measurements.
        evaluation_bytes: peak of an evaluation, in addition to `resident_bytes`.
        step_seconds: time of one training step.
        evaluation_seconds: time of one evaluation of K(R + 1) layers. Only a solve can tell how many layers an image
            needs.
        memory: allowed bytes, or None.
        deepest: the largest K that fits; 0 if no K fits; None without a limit.
        chosen: for ``depth="auto"`` or ``restarts="auto"``, the reason for K and R; else "". Here a missing choice is
            made on random images; in training it is made on the first batch.
    """

    image_size: tuple[int, int, int]
    batch: int
    depth: int
    restarts: int
    step_bytes: int
    resident_bytes: int
    evaluation_bytes: int
    step_seconds: float
    evaluation_seconds: float
    memory: int | None
    deepest: int | None
    chosen: str = ""

    @property
    def fits(self) -> bool | None:
        """Whether the depth of the network fits the memory; None without a limit."""
        return None if self.deepest is None else self.depth <= self.deepest

    def __str__(self) -> str:
        lines = [
            f"{self.batch}×{'×'.join(map(str, self.image_size))}, K = {self.depth}, R = {self.restarts}",
            f"  training step  {in_words(self.step_bytes)} (+ {in_words(self.resident_bytes)} resident), "
            f"{self.step_seconds:.3g} s",
            f"  evaluation     {in_words(self.evaluation_bytes)}, {self.evaluation_seconds:.3g} s for "
            f"{self.depth * (self.restarts + 1)} layers",
        ]
        if self.memory is not None and self.deepest is not None:
            verdict = "fits" if self.fits else "does not fit"
            deepest = f"the deepest that fits is {self.deepest}" if self.deepest else "no depth fits: lower the batch"
            lines.append(f"  K = {self.depth} {verdict} {in_words(self.memory)}; {deepest}")
        if self.chosen:
            lines.append(f"  chosen: {self.chosen}")
        return "\n".join(lines)


def plan(
    net: Restarted,
    image_size: tuple[int, int, int],
    batch: int,
    memory: int | float | str | None = None,
    *,
    problem: Problem | LinearPhysics | None = None,
) -> Plan:
    """Predict memory and time of a training step and of an evaluation, and the depth that fits a memory.

    Training steps of two small depths on batches of one and two images of the real size are run and measured. If the
    cost of a layer or of an image is not visible, larger steps follow. Memory is linear in the depth and in the batch;
    time is, too, once both are large. For a rule that chooses its own number of adjoint blocks, time is measured at the
    network's depth on random data. A depth "auto" is chosen as in training, on random images. The network stays
    unchanged.

    Memory is counted in bytes of tensors (on CUDA by the allocator). Workspaces inside an operation, and memory that an
    allocator rounds up or keeps, are extra.

    Args:
        net: the network, on its device, with its depth, restarts and gradient rule.
        image_size: (C, H, W).
        batch: B.
        memory: the available memory, in bytes or as ``"8 GB"``; None sets no limit.
        problem: a problem of ``retune.problems``, or a physics for images of this size. Default: inpainting of half of
            the pixels (a blur needs the memory of a few more images).

    Raises:
        InvalidParameterError: an argument has a wrong type; or the depth is "auto" and the network's memory limit is
            too small for one cycle of this batch.
    """
    require("net", net, Restarted, "a network", "for example retune.Restarted(retune.ForwardBackward(prior))")
    batch = require_whole("batch", batch)
    if len(image_size) != 3 or min(image_size) < 1 or batch < 1:
        raise InvalidParameterError(
            f"image_size must be (channels, height, width) and batch at least 1, got {image_size} and {batch}"
        )
    limit = None if memory is None else as_bytes(memory)
    known = None if problem is None else as_problem(problem)
    return _Planner(net, (image_size[0], image_size[1], image_size[2]), known).plan(batch, limit)


_Kind = Literal["step", "restarts", "evaluation"]


class _Planner:
    def __init__(self, given: Restarted, size: tuple[int, int, int], problem: Problem | None):
        self.net, self.size = copy.copy(given), size  # the choice of "auto" must not change the caller's network
        parameters = list(given.parameters())
        first = parameters[0] if parameters else torch.zeros(())
        self.device, self.dtype = first.device, torch.float32 if first.dtype != torch.float64 else first.dtype
        if problem is None:
            physics = deepinv.physics.Inpainting(size, mask=0.5, device=self.device)  # pyright: ignore[reportArgumentType]
            problem = as_problem(physics.to(self.dtype))
        self.problem = problem
        self.cycle = given.map.layers
        self.depths = (2 * self.cycle, 4 * self.cycle)

    def plan(self, batch: int, memory: int | None) -> Plan:
        net = self.net
        kept = [(p, p.grad) for p in net.parameters()]
        mode = net.training
        try:
            net.choose(*self._measurement(batch)[1:])
            steps = self._steps(batch)
            # A new operator is examined first; for few layers this would be the peak.
            once = [self._over_batches(lambda b: self._peak(b, self.cycle, "step", warm=False), batch)]
            evaluation = self._over_batches(lambda b: self._peak(b, net.depth, "evaluation"), batch)
            if net.gradient.restarts and net.restarts > 0:
                # The restarts run before the graph is recorded, so they are measured separately: for few layers an
                # accelerated solver may be the peak, and would hide the cost of a layer.
                same = type(net.training_solver) is type(net.solver)
                once.append(
                    evaluation if same else self._over_batches(lambda b: self._peak(b, net.depth, "restarts"), batch)
                )
            step_seconds, evaluation_seconds = self._seconds(batch)
        finally:
            for p, grad in kept:
                p.grad = grad
            net.train(mode)

        def bytes_at(depth: int) -> float:
            return max(steps(depth), *once)

        resident = self._resident(batch)
        deepest = None
        if memory is not None:
            far = 1000 * self.cycle
            slope = max((bytes_at(far) - bytes_at(far // 2)) / (far - far // 2), 1.0)
            room = memory - resident
            fits = (room - bytes_at(far)) / slope + far if room >= bytes_at(self.cycle) else 0
            deepest = max(0, math.floor(fits / self.cycle) * self.cycle)
        return Plan(
            image_size=self.size,
            batch=batch,
            depth=net.depth,
            restarts=net.restarts,
            step_bytes=round(bytes_at(net.depth)),
            resident_bytes=resident,
            evaluation_bytes=round(evaluation),
            step_seconds=step_seconds,
            evaluation_seconds=evaluation_seconds,
            memory=memory,
            deepest=deepest,
            chosen="" if net.auto is None or net.auto.choice is None else net.auto.choice.why,
        )

    def _steps(self, batch: int) -> Callable[[int], float]:
        """Peak of a step as a function of its depth, linear in the depth and in the batch once a layer is visible.

        Some computations do not depend on depth and batch (the norm of a filter bank). They may be the peak of a short
        step on few images. So depth and batch are doubled until the cost of a layer shows, at most up to those of the
        network.
        """
        found: dict[tuple[int, int], int] = {}

        def peak(b: int, k: int) -> int:
            if (b, k) not in found:
                found[b, k] = self._peak(b, k, "step")
            return found[b, k]

        few, more = (self.net.gradient.recorded(k, self.cycle) for k in self.depths)
        if few == more:  # the recorded memory does not depend on the depth
            whole = self._over_batches(lambda n: peak(n, self.depths[0]), batch)
            return lambda depth: whole
        # A differentiated layer stores at least one state, and costs as much as the previous layer.
        state = math.prod(self.size) * torch.finfo(self.dtype).bits // 8
        b, k = 1, self.depths[0]
        while True:
            slope = (peak(b, 2 * k) - peak(b, k)) / k
            more = (peak(b, 4 * k) - peak(b, 2 * k)) / (2 * k) if slope >= b * state / 2 else math.inf
            if abs(more - slope) <= _STEADY * slope:
                break
            grown = (2 * b if 2 * b <= batch else b, 2 * k if 2 * k < self.net.depth else k)
            if grown == (b, k):  # the network itself is this short, so it is measured directly
                break
            b, k = grown

        more_images = min(2 * b, max(batch, 2))
        lines = [(peak(n, k), (peak(n, 2 * k) - peak(n, k)) / k) for n in (b, more_images)]

        def at(depth: int) -> float:
            """Linear in the depth for each batch, then linear in the batch."""
            one, two = (low + slope * (depth - k) for low, slope in lines)
            return one if b == batch else one + (two - one) * (batch - b) / (more_images - b)

        return at

    def _over_batches(self, peak: Callable[[int], int], batch: int) -> float:
        """Extrapolate from small batches to the requested one. They are doubled until images cost the same."""
        n, here = 1, peak(1)
        after = peak(2)
        while 2 * n < batch:
            n, here, before = 2 * n, after, here
            after = peak(min(2 * n, batch))
            slope, last = (after - here) / (min(2 * n, batch) - n), (here - before) / (n // 2)
            if last > 0 and abs(slope - last) <= _STEADY * slope:
                break
        far = 2 * n if n == 1 else min(2 * n, max(batch, 2))
        return here + (after - here) / (far - n) * (batch - n)

    def _measurement(self, batch: int) -> tuple[Tensor, Tensor, LinearPhysics]:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(batch, *self.size, generator=generator, dtype=self.dtype).to(self.device)
        y, physics = self.problem.measure(x, 0)
        return x, y, physics

    def _task(
        self,
        batch: int,
        depth: int,
        kind: _Kind,
        restarts: int = 1,
        rule: GradientRule | None = None,
    ) -> Callable[[], object]:
        """A training step, its restarts, or an evaluation of as many layers, as a function."""
        x, y, physics = self._measurement(batch)
        solver = self.net.solver if kind == "evaluation" else self.net.training_solver
        net = Restarted(self.net.map, depth, restarts, rule or self.net.gradient, solver)
        net.train(kind == "step")
        if kind != "step":
            stop = Stop(0.0, depth * (restarts + 1))
            return lambda: net.solve(y, physics, stop=stop)

        def step() -> None:
            net.zero_grad(set_to_none=True)
            loss = (net(y, physics) - x).square().mean()
            if loss.requires_grad:
                loss.backward()

        return step

    def _peak(self, batch: int, depth: int, kind: _Kind, warm: bool = True) -> int:
        task = self._task(batch, depth, kind, 0 if kind == "step" else self.net.restarts, self.net.gradient.cheap())
        if warm:
            task()
        self.net.zero_grad(set_to_none=True)
        return peak_of(task, self.device)

    def _seconds(self, batch: int) -> tuple[float, float]:
        """One training step of the network, and one evaluation of K(R + 1) layers, for the whole batch."""
        net, (near, far) = self.net, self.depths
        small = min(batch, 2)  # for small images the time of a single image is mostly overhead
        # One-time work per image would distort a measurement of few layers, so the cost of a layer is a difference.
        short, long = (self._time(self._task(small, near, "evaluation", r)) for r in (1, 9))
        layer = (long - short) / (8 * near) if long > short else long / (10 * near)
        once = max(long - 10 * near * layer, 0.0)
        if net.gradient.rtol is None:
            blocks = [self._time(self._task(small, k, "step", 0)) for k in self.depths]
            slope = max(blocks[1] - blocks[0], 0.0) / (far - near)
            block = max(blocks[0] + slope * (net.depth - near), blocks[0] * min(1.0, net.depth / near))
        else:  # the number of blocks depends on the depth and on the data
            block = self._time(self._task(small, net.depth, "step", 0))
        rounds = net.restarts if net.gradient.restarts else 0
        scale = batch / small
        evaluation = once + layer * net.depth * (net.restarts + 1)
        return scale * (block + layer * net.depth * rounds), scale * evaluation

    def _time(self, task: Callable[[], object]) -> float:
        seconds = []
        for _ in range(4):
            _wait(self.device)
            start = time.perf_counter()
            task()
            _wait(self.device)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:])  # the first run is a warm-up

    def _resident(self, batch: int) -> int:
        """Bytes of weights, Adam's two moments, images and measurements (gradients belong to the step)."""
        weights = sum(p.numel() * p.element_size() * (3 if p.requires_grad else 1) for p in self.net.parameters())
        x, y, _ = self._measurement(1)
        parts = [x, *([y] if isinstance(y, Tensor) else list(y))]
        return weights + batch * sum(p.numel() * p.element_size() for p in parts)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
