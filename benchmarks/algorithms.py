"""Seconds to a relative gap of 1e-4 in the objective, for total variation, against deepinv's algorithms.

``½‖Ax − y‖² + λTV(x)`` on a grey photograph, for denoising and for a Gaussian blur, in float32. The number of
iterations that a contender needs is found first, untimed, by doubling and bisection. The same number is then timed,
without any evaluation of the objective. The smallest objective is that of 3,000 iterations of ours in float64.
deepinv's primal–dual steps are the best of three ratios. Its ``PGD`` and ``DRS`` have the prior ``TVPrior``, whose prox
is itself an iteration, here with its defaults.

Run ``python benchmarks/algorithms.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from deepinv.optim import DRS, L2, PDCP, PGD
from deepinv.optim.prior import L12Prior, TVPrior
from deepinv.physics import BlurFFT, Denoising, LinearPhysics
from deepinv.physics.functional.blur import gaussian_blur
from torch import Tensor

import retune
from _timing import CONSOLE, Column, Timing, arguments, interleave, report
from retune.data import grey, photograph
from retune.priors import TV
from retune.solve import Stop, solve
from retune.solvers import Picard

GAP = 1e-4
REG = {"denoising": 0.1, "deblurring": 0.01}
RATIOS = (1.0, 4.0, 16.0)  # ς/τ of deepinv's primal–dual steps
LARGEST = 8192
#: Seconds that one run may take. An algorithm whose prox of TV is itself an iteration may need more.
LONG = 20.0
Run = Callable[[int], Tensor]


def problem(name: str, side: int, device: torch.device, dtype: torch.dtype) -> tuple[LinearPhysics, Tensor]:
    x = grey(photograph("chelsea"))[None, :, 60 : 60 + side, 100 : 100 + side].to(device, dtype)
    physics: LinearPhysics = Denoising()
    if name == "deblurring":
        physics = BlurFFT(img_size=(1, side, side), filter=gaussian_blur(sigma=(1.5, 1.5)).to(dtype), device=device)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    return physics, physics.A(x) + (0.1 if name == "denoising" else 0.02) * noise


def objective(x: Tensor, y: Tensor, physics: LinearPhysics, reg: float) -> float:
    residual = physics.A(x).double() - y.double()
    return float(0.5 * residual.square().sum() + reg * TV().fn(x.double()).sum())


def ours(map_: retune.AbstractMap, y: Tensor, physics: LinearPhysics) -> Run:
    def run(iterations: int) -> Tensor:
        with torch.no_grad():
            bound = map_.bind(map_.data_term(y, physics))
            found = solve(bound.layer, bound.init(), solver=Picard(), depth=10, stop=Stop(0.0, iterations), cycle=1)
            return bound.image(found.u)

    return run


def theirs(kind: type, y: Tensor, physics: LinearPhysics, reg: float, **settings: Any) -> Run:
    def run(iterations: int) -> Tensor:
        algorithm = kind(data_fidelity=L2(), lambda_reg=reg, max_iter=iterations, early_stop=False, **settings)
        with torch.no_grad():
            return algorithm(y, physics)

    return run


def primal_dual(y: Tensor, physics: LinearPhysics, reg: float, ratio: float) -> Run:
    """Chambolle and Pock, split at the differences: ``τς‖∇‖² = 1``."""
    tv = TVPrior()
    tau = (1 / (8 * ratio)) ** 0.5
    steps = {"stepsize": tau, "stepsize_dual": ratio * tau}

    def start(y: Tensor, physics: LinearPhysics) -> tuple[Tensor, Tensor, Tensor]:
        x = physics.A_adjoint(y)
        return x, x, torch.zeros_like(tv.nabla(x))

    split: dict[str, Any] = {"K": tv.nabla, "K_adjoint": tv.nabla_adjoint, "g_first": True, "custom_init": start}
    return theirs(PDCP, y, physics, reg, prior=L12Prior(l2_axis=-1), **steps, **split)


def needed(run: Run, gap: Callable[[Tensor], float]) -> tuple[int | None, str]:
    """The number of iterations after which the gap is at most GAP, and what was found, in words.

    None if twice as many iterations would take longer than LONG, or beyond LARGEST.
    """
    high = 1
    while True:
        start = time.process_time()
        image = run(high)
        seconds, reached = time.process_time() - start, gap(image)
        if reached <= GAP:
            break
        if seconds > LONG / 2 or 2 * high > LARGEST:
            return None, f"given up: a gap of {reached:.1g} after {high} iterations, which took {seconds:.1f} s"
        high *= 2
    low = high // 2
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if gap(run(middle)) <= GAP else (middle, high)
    return high, f"{high} iterations"


def contenders(name: str, y: Tensor, physics: LinearPhysics) -> dict[str, Run]:
    reg = REG[name]
    found = {"PrimalDual": ours(retune.PrimalDual(TV(), reg=reg), y, physics)}
    for ratio in RATIOS:
        found[f"deepinv PDCP, ς/τ = {ratio:g}"] = primal_dual(y, physics, reg, ratio)
    found["deepinv PGD"] = theirs(PGD, y, physics, reg, prior=TVPrior(), stepsize=1.0)
    found["deepinv DRS"] = theirs(DRS, y, physics, reg, prior=TVPrior(), stepsize=1.0)
    return found


def timed(name: str, side: int, rounds: int, device: torch.device) -> Timing:
    physics, y = problem(name, side, device, torch.float32)
    fine = problem(name, side, device, torch.float64)[0]
    reg, found = REG[name], contenders(name, y, physics)
    exact = ours(retune.PrimalDual(TV(), reg=reg), y.double(), fine)
    best = objective(exact(3000), y.double(), fine, reg)

    def gap(x: Tensor) -> float:
        return objective(x, y, physics, reg) / best - 1

    counts = {}
    for contender, run in found.items():
        counts[contender], words = needed(run, gap)
        CONSOLE.print(f"{name}: {contender}: {words}", highlight=False)
    split = {c: n for c, n in counts.items() if "PDCP" in c and n is not None}
    fastest = min(split, key=lambda c: split[c]) if split else None
    ready = {c: n for c, n in counts.items() if n is not None and ("PDCP" not in c or c == fastest)}
    timing = interleave({c: (lambda c=c, n=n: found[c](n)) for c, n in ready.items()}, rounds, device)
    names = {c: "deepinv PDCP" if "PDCP" in c else c for c in ready}
    return Timing({names[c]: seconds for c, seconds in timing.seconds.items()})


def main() -> None:
    options = arguments(__doc__, side={"type": int, "default": 128, "help": "side of the image (default 128)"})
    device, rounds = torch.device(options.device), 3 if options.quick else 7
    cases = {name: timed(name, options.side, rounds, device) for name in REG}
    bars = [Column(f"deepinv {n}", faster=True, bar=2.5, only="PrimalDual") for n in ("PDCP", "PGD", "DRS")]
    columns = [c for c in bars if all(c.against in t.seconds for t in cases.values())]
    title = f"Seconds to a gap of {GAP:g}, total variation, 1×1×{options.side}×{options.side}, {rounds} rounds"
    report(title, cases, columns, options, scale=1.0, unit="s")


if __name__ == "__main__":
    main()
