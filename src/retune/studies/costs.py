"""Time and memory of a training step for every depth K and number of restarts R."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from retune._torch.clock import clock_of
from retune._torch.memory import peak_of
from retune.gradients import GradientRule
from retune.model import Restarted
from retune.records import StepCost
from retune.solve import Stop
from retune.studies.scenes import Scene

__all__ = ["step_costs"]

#: Layers over which the time of a layer without graph is measured, and repetitions of each measurement.
_LAYERS, _TIMES = 40, 3


def step_costs(
    net: Restarted, scene: Scene, rule: GradientRule, depths: Sequence[int], restarts: Sequence[int]
) -> list[StepCost]:
    """Measure a training step of each depth, and of each (K, R) report its cost.

    The restarts run without graph, so their time is K·R times that of a layer, and their memory does not depend on R.

    Args:
        net: the network, in the precision of the training.
        scene: image and measurement in the same precision.
        rule: the gradient rule of the steps.
        depths: the values of K.
        restarts: the values of R.
    """
    device, clock = scene.x.device, clock_of(scene.x.device)

    def step(depth: int, rounds: int) -> Callable[[], None]:
        one = Restarted(net.map, depth, rounds, rule, net.training_solver).train()

        def run() -> None:
            one.zero_grad(set_to_none=True)
            (one(scene.y, scene.physics) - scene.x).square().mean().backward()

        return run

    def layers(count: int) -> Callable[[], object]:
        one = Restarted(net.map, net.map.layers, 0, rule, net.training_solver).eval()
        return lambda: one.solve(scene.y, scene.physics, stop=Stop(0.0, count * net.map.layers))

    few, many = (_seconds(layers(n), clock) for n in (2, 2 + _LAYERS))
    layer = max(many - few, 0.0) / (_LAYERS * net.map.layers)
    found = []
    for depth in depths:
        seconds = _seconds(step(depth, 0), clock)
        peaks = {r: peak_of(step(depth, r), device) for r in {min(r, 1) for r in restarts}}
        net.zero_grad(set_to_none=True)
        for r in restarts:
            time_of = seconds + depth * r * layer
            found.append(StepCost(depth=depth, restarts=r, seconds=time_of, memory=peaks[min(r, 1)]))
    return found


def _seconds(task: Callable[[], object], clock: Callable[[], float]) -> float:
    """The median of several runs, after one that is not measured."""
    found = []
    for _ in range(_TIMES + 1):
        start = clock()
        task()
        found.append(clock() - start)
    return statistics.median(found[1:])
