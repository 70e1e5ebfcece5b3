"""Training with plain restarts against training with inertial restarts.

The problems of ``retune demo`` with a wavelet prior (K = R = 10): the same network is trained twice, with the same
crops and noise. Steps are timed in turn, so that both meet whatever else the machine does. A row tells the time of a
step, the distance of the state that a step differentiates to its equilibrium, and the PSNR of the two test
photographs at rest after the training.
Run ``python benchmarks/training_solver.py`` (2 to 4 min).
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

import torch
from deepinv.loss.metric import PSNR
from rich.table import Table

import retune
from _timing import CONSOLE, arguments, synchronize, where, write
from acceleration import photographs
from retune.build import problem_of
from retune.data import random_crops
from retune.demo import run_of

DEPTH, RESTARTS, BATCH = 10, 10, 4
SOLVERS = {"plain": retune.Picard, "Inertial": retune.Inertial}


@dataclass
class Trained:
    """One of the two networks, with what was measured in its steps."""

    net: retune.Restarted
    optimiser: torch.optim.Optimizer
    seconds: list[float] = field(default_factory=list)


def main() -> None:
    options = arguments(__doc__, seeds={"type": int, "default": 2}, steps={"type": int, "default": 16})
    if options.quick:
        options.seeds, options.steps = 1, 2
    test, train = photographs(64 if options.quick else 128, options)
    table = Table(title=f"K = R = {DEPTH}, {options.steps} steps of {BATCH} crops of 64×64\n{where(options)}")
    for heading in ("problem", "seed", "restarts", "s a step", "÷ plain", "distance", "PSNR at rest"):
        table.add_column(heading, justify="left" if heading in ("problem", "restarts") else "right")
    records = []
    for name, reg in (("inpaint", 0.06), ("deblur", 0.02), ("denoise", 0.3)):
        for seed in range(options.seeds):
            for row in rows(name, reg, seed, test, train, options):
                records.append({"problem": name, "seed": seed, **row})
                told = (f"{row['ratio']:.2f}", f"{row['distance']:.1e}", f"{row['psnr']:.2f}")
                table.add_row(name, str(seed), row["restarts"], f"{row['seconds']:.3f}", *told)
        table.add_section()
    CONSOLE.print(table)
    write(options, "training with plain and with inertial restarts", records)


def rows(name: str, reg: float, seed: int, test: torch.Tensor, train: list, options) -> list[dict]:
    """Train both networks, step by step in turn."""
    problem = problem_of(run_of(name).problem)
    lr = run_of(name).optimiser.lr
    both = {label: started(solver, reg, lr, options) for label, solver in SOLVERS.items()}
    for step in range(options.steps):
        crops = random_crops(train, BATCH, 64, torch.Generator().manual_seed(1000 * seed + step)).to(options.device)
        y, physics = problem.measure(crops, 1000 * seed + step)
        for label in sorted(both, reverse=step % 2 == 1):
            one = both[label]
            synchronize(crops.device)
            start = time.perf_counter()
            one.optimiser.zero_grad()
            (one.net(y, physics) - crops).square().mean().backward()
            one.optimiser.step()
            synchronize(crops.device)
            one.seconds.append(time.perf_counter() - start)
    y, physics = problem.measure(test, 22)
    found = []
    for label, one in both.items():
        with torch.no_grad():
            cut = one.net.train().solve(y, physics).state
            rest = one.net.eval().solve(y, physics, stop=retune.Stop(1e-6, 20_000))
        away = (cut - rest.state).flatten(1).norm(dim=1) / rest.state.flatten(1).norm(dim=1)
        ratio = statistics.median(a / b for a, b in zip(one.seconds, both["plain"].seconds, strict=True))
        row = {"restarts": label, "seconds": statistics.median(one.seconds), "ratio": ratio}
        found.append(row | {"distance": float(away.max()), "psnr": float(PSNR()(rest.image, test).mean())})
    return found


def started(solver: type[retune.AbstractSolver], reg: float, lr: float, options) -> Trained:
    """An untrained network whose training restarts with this solver."""
    prior = retune.priors.WaveletL12("db4", 3 if options.quick else 4, channels=3)
    net = retune.Restarted(retune.ForwardBackward(prior, reg=reg), DEPTH, RESTARTS, solver=solver())
    net = net.to(options.device).train()
    return Trained(net, torch.optim.Adam(net.parameters(), lr=lr))


if __name__ == "__main__":
    main()
