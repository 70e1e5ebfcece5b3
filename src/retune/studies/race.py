"""Training methods for the same time: PSNR against seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from deepinv.loss import Loss

from retune._torch.clock import clock_of
from retune.build import map_of, options_of, prior_of, solver_of
from retune.comparison.methods import METHODS, Method, network
from retune.comparison.pace import TRIAL, Clocked
from retune.comparison.score import number
from retune.config import Config
from retune.errors import DivergedError, one_line
from retune.gradients import Truncated
from retune.records import Raced, StepCost
from retune.training.data import TrainingData
from retune.training.fit import fit
from retune.training.options import FitOptions

__all__ = ["Contender", "contenders", "race"]

#: Validations during a training.
_VALIDATIONS = 6
#: M of the method with adjoint blocks.
BLOCKS = 3
_BLOCKS_METHOD = Method(
    "retune-blocks",
    f"ReTune, {BLOCKS} adjoint blocks",
    f"at the equilibrium, K layers pulled back {BLOCKS} times",
    Truncated,
    limits=lambda layers: {"blocks": BLOCKS},
)


@dataclass(frozen=True)
class Contender:
    """A method with a depth and a number of restarts."""

    key: str
    label: str
    method: Method
    depth: int
    restarts: int

    def budget(self, layers: int) -> tuple[int, int]:
        """The K and R of its training steps, for a map with this number of layers in a cycle.

        As in ``retune.comparison.methods.network``, JFB restarts one cycle more often, and unrolled networks do
        not restart.
        """
        if self.method.single_layer:
            return layers, self.depth * (self.restarts + 1) // layers - 1
        rule = self.method.rule
        return self.depth, self.restarts if rule is None or rule.restarts else 0


def contenders(run: Config, costs: Sequence[StepCost]) -> list[Contender]:
    """The learned methods at the K and R of the run, and ReTune at other depths whose steps cost as much.

    Args:
        run: the run.
        costs: of the cells of the grid.
    """
    k, r = run.model.depth, run.model.restarts
    methods = [m for m in METHODS if m.rule is not None]
    found = [Contender(m.key, m.label, m, k, r) for m in (*methods, _BLOCKS_METHOD)]
    plain = next(m for m in methods if m.key == "retune")
    for depth, restarts in equal_cost(costs, k, r):
        name = f"retune-{depth}-{restarts}"
        found.append(Contender(name, f"ReTune, K = {depth}, R = {restarts}", plain, depth, restarts))
    return found


def equal_cost(costs: Sequence[StepCost], depth: int, restarts: int) -> list[tuple[int, int]]:
    """The next smaller and the next larger depth of the grid, with the R whose step takes about as long as (K, R).

    Seconds are linear in R. A depth whose step takes longer even without restarts is left out.
    """
    lines = {k: _line([c for c in costs if c.depth == k]) for k in sorted({c.depth for c in costs})}
    lines = {k: line for k, line in lines.items() if line is not None}
    if not lines:
        return []
    near = min(lines, key=lambda k: abs(k - depth))
    step, layer = lines[near]
    wanted = step * depth / near + layer * depth * restarts
    below, above = [k for k in lines if k < depth][-1:], [k for k in lines if k > depth][:1]
    found = []
    for k in (*below, *above):
        step, layer = lines[k]
        rounds = round((wanted - step) / (layer * k)) if layer > 0 else -1
        if rounds >= 0:
            found.append((k, rounds))
    return found


def _line(row: list[StepCost]) -> tuple[float, float] | None:
    """Seconds of a step without restarts, and of a layer; None without two values of R."""
    known = sorted((c.restarts, float(c.seconds)) for c in row if c.seconds is not None)
    if len(known) < 2 or known[0][0] == known[-1][0]:
        return None
    slope = (known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0])
    return known[0][1] - slope * known[0][0], slope / row[0].depth


def race(run: Config, one: Contender, data: TrainingData, seconds: float, seed: int, device: str) -> Raced:
    """Train one contender for a given time of its training steps.

    A few steps tell how many fit into the time; the learning rate falls over this number. Validations are not counted.
    A training that diverges is no error; the record names its reason.

    Args:
        run: the run, whose learning rates, batch and crop are used.
        one: the contender.
        data: training and validation images.
        seconds: the time.
        seed: of weights, crops, operators and noise.
        device: "cpu", "cuda", …
    """
    channels = data.images[0].shape[0]
    usual = options_of(run)
    options = replace(usual, device=device, progress=False, seed=seed, warm_start=False)

    def learn(data: TrainingData, steps: int, every: int) -> tuple[Clocked, list[tuple[int, float]]]:
        torch.manual_seed(seed)
        total = one.depth * (one.restarts + 1)
        net = network(
            one.method,
            map_of(prior_of(run.prior, channels), run),
            one.depth,
            one.restarts,
            rtol=run.model.rtol,
            longest=max(run.compare.multiples) * total,
            solver=solver_of(run.model),
        )
        clock = Clocked(usual.loss, clock_of(device))
        result = fit(net, data, _with(options, steps, every, clock))
        return clock, [(v.step, v.psnr) for v in result.validation]

    depth, restarts = one.budget(map_of(prior_of(run.prior, channels), run).layers)
    facts = {"key": one.key, "label": one.label, "depth": depth, "restarts": restarts, "seed": seed}
    try:
        trial, _ = learn(TrainingData(data.images, data.problem), TRIAL, TRIAL)
        steps = trial.steps_in(seconds)
        clock, scores = learn(data, steps, max(1, steps // _VALIDATIONS))
    except DivergedError as error:
        return Raced.model_validate(facts | {"failure": one_line(error)})
    curve = {"seconds": [n * clock.step for n, _ in scores], "psnr": [number(p) for _, p in scores]}
    return Raced.model_validate(facts | {"steps": steps} | curve)


def _with(options: FitOptions, steps: int, every: int, loss: Loss) -> FitOptions:
    return replace(options, steps=steps, validate_every=every, loss=loss)
