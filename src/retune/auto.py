"""``depth="auto"`` and ``restarts="auto"``: choose K, M and R from the requested accuracy and the allowed memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune._torch.memory import as_bytes, in_words, peak_of
from retune.errors import InvalidParameterError, require_real
from retune.gradients.base import GradientRule
from retune.maps.base import AbstractMap, BoundMap
from retune.maps.linearised import Linearised, spectral_radius
from retune.solve import Stop, solve
from retune.solvers.base import AbstractSolver

__all__ = ["OR_AUTO", "Auto", "Choice", "asked", "choose", "provisional_depth", "rehearse"]

#: The other value of a depth or of a number of restarts, for an error message.
OR_AUTO = 'or "auto"'

#: Above this depth, more adjoint blocks give the same gradient with less memory.
DEEPEST = 50
_SLOWEST = 0.999  # rates are measured to about 1e-3, so a slower rate cannot decide a depth
_LAYERS = 2000
_REMEMBERED = 4  # number of blocks of restarts whose memory is measured


@dataclass(frozen=True)
class Choice:
    """The choice on the first training batch, and its reason.

    Attributes:
        depth, restarts, blocks: K, R and M.
        rate: measured asymptotic factor per layer, of the slowest image of the batch.
        accuracy: the requested relative error of the gradient.
        expected: the expected error ``rate^{K M}`` (for a rule that picks its own M, the requested error).
        memory: the allowed bytes, or None.
        peak: the expected bytes of a training step with this K; None without a memory limit.
        why: the choice in words.
    """

    depth: int
    restarts: int
    blocks: int
    rate: float
    accuracy: float
    expected: float
    memory: int | None
    peak: int | None
    why: str

    def to_dict(self) -> dict:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return self.why


@dataclass(frozen=True)
class Auto:
    """The options that a network chooses itself, and its choice.

    Attributes:
        depth, restarts: whether each of the two is chosen.
        accuracy: requested relative error of the gradient, in (0, 1).
        memory: allowed bytes of a training step, or None.
        choice: None before the first training batch.
    """

    depth: bool
    restarts: bool
    accuracy: float
    memory: int | None
    choice: Choice | None = None

    def to_dict(self) -> dict:
        """Plain data, from which the object can be rebuilt."""
        return asdict(self)


def asked(
    depth: Any, restarts: Any, accuracy: float, memory: int | float | str | None, gradient: GradientRule | None
) -> Auto | None:
    """The options that are "auto"; None if no option is "auto".

    Raises:
        InvalidParameterError: accuracy or memory is out of range, or the network does not use them.
    """
    accuracy = require_real("accuracy", accuracy)
    if not 0 < accuracy < 1:
        raise InvalidParameterError(f"accuracy must lie strictly between 0 and 1, got {accuracy}")
    limit = None if memory is None else as_bytes(memory)
    if depth != "auto" and limit is not None:
        raise InvalidParameterError('memory is a limit for depth="auto"; retune.plan(net, ...) predicts the need')
    if "auto" not in (depth, restarts):
        return None
    if gradient is not None and not gradient.restarts:
        raise InvalidParameterError(
            f"{gradient!r} trains the output at a fixed depth, so an accuracy cannot decide the depth: give depth and "
            "restarts, or use "
            "a rule at the equilibrium (retune.Truncated, retune.Implicit)"
        )
    return Auto(depth == "auto", restarts == "auto", accuracy, limit)


def provisional_depth(layers: int) -> int:
    """Layers per block before the first measurement: ten, rounded up to whole cycles."""
    return -(-10 // layers) * layers


def choose(
    bound: BoundMap,
    auto: Auto,
    gradient: GradientRule,
    solver: AbstractSolver,
    depth: int,
    restarts: int,
    step: Callable[[int], object],
    restart: Callable[[int], object],
) -> Choice:
    r"""K, M and R for one batch.

    The restarts run, without graph, to a tenth of the accuracy. There the rate ρ of one layer is measured (spectral
    radius, by power iteration). K and M satisfy ``K·M ≥ log(accuracy)/log(ρ)``, with K as large as the memory allows
    (at most 50). R brings the relative distance to the equilibrium below the accuracy. These are estimates for this
    batch and these weights. Training changes the weights, and reports the gradient error at each step.

    Args:
        bound: the map, bound to the batch without graph.
        auto: the options that are "auto".
        gradient: the rule. If it sums a given number of blocks, M is chosen, too.
        solver: runs the restarts.
        depth: K, if K is given.
        restarts: R, if R is given.
        step: runs one differentiated block of a given depth and its backward pass, to measure its memory.
        restart: runs restarts with a given total number of layers, for the same purpose.

    Raises:
        InvalidParameterError: a single cycle exceeds the memory.
    """
    layers = bound.layers
    first = provisional_depth(layers)
    start = bound.init()
    stop = Stop(auto.accuracy / 10, _LAYERS)
    searching = solver.bind(bound.objective)
    run = solve(bound.layer, start, solver=searching, depth=first, stop=stop, cycle=layers, trace=True)
    measured = spectral_radius(Linearised(bound.at(run.u), run.u, products=False), iterations=100, starts=2)
    rate = float(measured.value.max()) ** (1 / layers)
    used = min(max(rate, 1e-6), _SLOWEST)
    words = [f"errors shrink by {rate:.4g} per layer (power iteration at the equilibrium of the first batch)"]
    if rate > _SLOWEST:
        words.append(f"too slow for a choice, so {_SLOWEST} is assumed")

    wanted = _whole(math.log(auto.accuracy) / math.log(used), layers)
    fixed = gradient.fixed_blocks
    peak_at: Callable[[int], int] | None = None
    if auto.depth:
        depth = min(wanted, _whole(DEEPEST, layers)) if fixed is not None else provisional_depth(layers)
        if auto.memory is not None:
            runs = gradient.restarts and (auto.restarts or restarts > 0)
            depth, peak_at = _fit(auto.memory, depth, layers, step, restart if runs else None, start.device, words)
    blocks = 1 if fixed is None else fixed
    if fixed is not None:
        if auto.depth:  # no excess layers: the smallest depth that still needs this number of blocks
            blocks = math.ceil(wanted / depth)
            depth = min(depth, _whole(wanted / blocks, layers))
        expected = min(rate, 1.0) ** (depth * blocks)
        words.append(
            f"{depth * blocks} differentiated layers leave a gradient error of {expected:.1e} "
            f"({auto.accuracy:.1e} was requested): depth K = {depth}" + (f" × {blocks} blocks" if blocks > 1 else "")
        )
    else:
        expected = auto.accuracy if gradient.rtol is None else gradient.rtol
        told = "is not changed" if gradient.rtol is None else "adds blocks until its own tolerance"
        words.append(f"depth K = {depth}, and {gradient!r} {told}")
    if auto.restarts:
        assert run.trace is not None
        needed = _layers_to(auto.accuracy, run.trace.layers, run.trace.residual, used**first)
        restarts = max(1, math.ceil(needed / depth))
        words.append(f"{needed} layers come within {auto.accuracy:.1e} of the equilibrium: restarts R = {restarts}")
    peak = None if peak_at is None else peak_at(depth)
    choice = Choice(depth, restarts, blocks, rate, auto.accuracy, expected, auto.memory, peak, "; ".join(words))
    logging.getLogger("retune").info("%s", choice)
    return choice


def rehearse(map: AbstractMap, y: Tensor, physics: LinearPhysics, gradient: GradientRule, depth: int) -> None:
    """The differentiated block of a training step, and its backward pass, to measure their memory."""
    with torch.enable_grad():
        bound = map.bind(map.data_term(y, physics))
        u, _ = gradient(bound, depth, bound.init)
        image = bound.image(u)
        leaves = [p for p in map.parameters() if p.requires_grad]
        if image.requires_grad and leaves:
            torch.autograd.grad(image.square().sum(), leaves, allow_unused=True)


def _whole(count: float, layers: int) -> int:
    """At least `count` layers, in whole cycles."""
    return max(1, math.ceil(count / layers)) * layers


def _fit(
    memory: int,
    depth: int,
    layers: int,
    step: Callable[[int], object],
    restart: Callable[[int], object] | None,
    device: torch.device,
    words: list[str],
) -> tuple[int, Callable[[int], int]]:
    """The deepest block up to `depth` that fits, and the expected peak per depth: linear, at least that of restarts."""
    step(layers)  # fill all permanent caches before measuring
    enough = _REMEMBERED * provisional_depth(layers)
    held = 0 if restart is None else peak_of(lambda: restart(enough), device)
    near, far = 2 * layers, 4 * layers
    low, high = (peak_of(lambda k=k: step(k), device) for k in (near, far))
    slope = max((high - low) / (far - near), 1.0)
    fits = math.floor((memory - low) / slope + near) // layers * layers
    if fits < layers:
        raise InvalidParameterError(
            f"a training step on this batch needs about {in_words(low - slope * (near - layers))} for a block of "
            f"{layers} layer(s), but memory={in_words(memory)} was given: allow more memory, or use a smaller batch "
            "or crop"
        )
    if held > memory:
        raise InvalidParameterError(
            f"the restarts of this batch need about {in_words(held)}, but memory={in_words(memory)} was given: allow "
            "more memory, or use a solver with less memory (Picard, Inertial), or a smaller batch or crop"
        )
    if fits < depth:
        words.append(f"{in_words(memory)} hold {fits} layers, {in_words(slope)} each")
    return min(depth, fits), lambda k: max(held, round(low + slope * (k - near)))


def _layers_to(accuracy: float, layers: tuple[int, ...], residual: Tensor, q: float) -> int:
    """The number of layers after which the estimated relative distance of every image is at most `accuracy`."""
    distance = (residual * q / (1 - q)).amax(1).tolist()
    return next((n for n, d in zip(layers, distance, strict=True) if d <= accuracy), layers[-1])
