"""Evaluations of the map T to a relative residual of 1e-5, plain and accelerated.

The three problems of ``retune demo`` with its network (WaveletL12, db4, 5 levels, K = 10), after a short training with
the demo's settings, on its two test photographs (128×128). All solvers stop at a relative change of 1e-5 per block of
K = 10 layers; solvers that evaluate single layers must stay below a tenth of that per layer, which bounds it. The last
column runs one plain block from what was returned, and gives its relative change: it was not counted.
``--weak``: priors that are too weak by far (λ = 0.003), with which the equilibrium is slow, on 64×64, at most 6000
layers.
Run ``python benchmarks/acceleration.py``.
"""

from __future__ import annotations

import time

import torch
from rich.table import Table

import retune
from _timing import CONSOLE, arguments, verdict, where, write
from retune.build import problem_of
from retune.comparison.images import images_of
from retune.demo import run_of

RTOL, DEPTH = 1e-5, 10
SOLVERS = {"plain": retune.Picard, "Inertial": retune.Inertial, "Anderson": retune.Anderson}
FAST = 200  # layers within which plain restarts count as fast already
WEAK, MOST = 0.003, 6000


def main() -> None:
    options = arguments(__doc__, weak={"action": "store_true", "help": "priors that are too weak, on 64×64"})
    if options.weak:
        weak(options)
        return
    run, size = run_of("denoise"), 64 if options.quick else 128
    levels = 4 if options.quick else run.prior.levels
    x, train = photographs(size, options)
    table = Table(
        title=f"Layers to a relative change of {RTOL:g} per {DEPTH} layers, 2×3×{size}×{size}\n{where(options)}"
    )
    for heading in ("problem", "solver", "layers", "÷ plain", "bar", "s", "checked"):
        table.add_column(heading, justify="left" if heading in ("problem", "solver") else "right")
    records = []
    for name, reg in (("inpaint", 0.06), ("deblur", 0.02), ("denoise", 0.3)):
        problem = problem_of(run_of(name).problem)
        prior = retune.priors.WaveletL12(run.prior.wavelet, levels, channels=3)
        net = retune.Restarted(retune.ForwardBackward(prior, reg=reg), DEPTH, run.model.restarts)
        retune.fit(
            net,
            train,
            problem,
            steps=15,
            batch_size=2,
            crop=run.data.crop,
            lr=run.optimiser.lr,
            progress=False,
            device=options.device,
        )
        y, physics = problem.measure(x, 22)
        plain: list[int] = []
        for label, solver in SOLVERS.items():
            net.solver = solver()
            start = time.perf_counter()
            found = net.solve(y, physics, stop=retune.Stop(RTOL, 5000))
            seconds = time.perf_counter() - start
            assert bool(found.converged.all())
            layers = found.layers.tolist()
            plain = plain or layers
            with torch.no_grad():
                u, bound = found.state, net.map.bind(net.map.data_term(y, physics))
                after = bound.block(u, DEPTH)
                change = ((after - u).flatten(1).norm(dim=1) / after.flatten(1).norm(dim=1)).max()
            share = [n / p for n, p in zip(layers, plain, strict=True)]
            bars = [1 / 2 if p <= FAST else 1 / 3 for p in plain]
            met = None if label == "plain" else all(s <= b for s, b in zip(share, bars, strict=True))
            table.add_row(
                name,
                label,
                " / ".join(map(str, layers)),
                "" if met is None else " / ".join(f"{s:.2f}" for s in share) + verdict(met),
                "" if met is None else " / ".join(f"{b:.2f}" for b in bars),
                f"{seconds:.2f}",
                f"{float(change):.1e}",
            )
            records.append({"problem": name, "solver": label, "layers": layers, "share": share, "seconds": seconds})
        table.add_section()
    CONSOLE.print(table)
    write(options, "layers to a relative change of 1e-5", records)


def photographs(size: int, options) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The parts of the two test photographs (2, 3, size, size), and the training photographs."""
    run = run_of("denoise")
    images = images_of(run.model_copy(update={"compare": run.compare.model_copy(update={"crop": size})}))
    return torch.stack(images.test).to(options.device), images.train


def weak(options) -> None:
    """Where the safeguards of the accelerations are tried: no bar."""
    x, _ = photographs(64, options)
    table = Table(title=f"Layers to {RTOL:g}, λ = {WEAK:g}, 2×3×64×64, at most {MOST}\n{where(options)}")
    for heading in ("problem", "prior", *SOLVERS):
        table.add_column(heading, justify="left" if heading in ("problem", "prior") else "right")
    records = []
    for name in ("inpaint", "deblur", "superres"):
        y, physics = getattr(retune.problems, name)().measure(x, 22)
        for prior in (retune.priors.WaveletL12, retune.priors.WaveletL1):
            step = retune.ForwardBackward(prior(), reg=WEAK).to(options.device)
            found = {}
            for label, solver in SOLVERS.items():
                net = retune.Restarted(step, DEPTH, solver=solver()).eval()
                found[label] = net.solve(y, physics, stop=retune.Stop(RTOL, MOST)).layers.tolist()
            table.add_row(name, prior.__name__, *(" / ".join(map(str, n)) for n in found.values()))
            records.append({"problem": name, "prior": prior.__name__} | found)
    CONSOLE.print(table)
    write(options, "layers to a relative change of 1e-5, weak priors", records)


if __name__ == "__main__":
    main()
