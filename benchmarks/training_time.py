"""Wall time of training to within 0.05 dB of the final validation PSNR.

One λ, and by ours one step size, are learned (ℓ1 norm of db4 wavelets, 4 levels, from a λ five times too small), on
four parts of two photographs, flipped at random, two a step (2×3×64×64), for inpainting and for deblurring with a
kernel of 25 taps: every part comes back every other step, which is the best case for warm starts. Everyone sees the
same crops and measurements. On a CPU with one thread, times are those the process computed: the wall time of an idle
machine.
The target is 0.05 dB below the best final PSNR of all, on a part of a third photograph, at the equilibrium; only
training steps are timed, and the contenders take turns step by step. Of deepinv's DEQ the λ that it has learned is
scored, in our network, so that neither its borders of the wavelets nor its number of iterations decide.

deepinv's DEQ is tuned first, in races of its own on other draws: how large its learning rate is, when it stops early,
and whether its Anderson acceleration helps; the options that reach their common target first are raced. It learns λ
alone: its equilibrium does not depend on the step size, and learned without a bound that left (0, 2/L) and diverged.
It runs at most as many iterations as plain ReTune, and takes 10 iterations for its adjoint, instead of its default
of 50. Run ``python benchmarks/training_time.py``.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from deepinv.loss.metric import PSNR
from deepinv.optim import L2, PGD, DEQConfig
from deepinv.optim.prior import WaveletPrior
from rich.table import Table
from torch import Tensor, nn

import retune
from _timing import CONSOLE, arguments, synchronize, verdict, where, write
from retune.data import draw_crops, photograph
from retune.demo import _part as part

WAVELET, LEVELS, CROP, BATCH = "db4", 4, 64, 2
DEPTH, RESTARTS, LR = 10, 10, 0.2
START = {"inpaint": 0.012, "deblur": 0.005}
PARTS = ((100, 150), (180, 250))  # of each training photograph
WITHIN = 0.05
PLAIN, DEQ = "ReTune, plain restarts", "deepinv DEQ"


def clock(device: torch.device) -> float:
    """Seconds; on a CPU those that the process computed, so that a busy machine does not decide."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


class Contender:
    """A network, its optimiser, and the seconds and PSNR along its training."""

    def __init__(self, net: nn.Module, groups: list[dict], warm: retune.WarmStart | None = None):
        self.net, self.warm = net, warm
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.seconds: list[float] = []
        self.psnr: list[float] = []

    def step(self, x: Tensor, crops: Any, y: Tensor, physics: Any) -> None:
        """One training step, timed."""
        synchronize(x.device)
        start = clock(x.device)
        self.net.train()
        self.optimiser.zero_grad()
        if self.warm is None:
            image = self.net(y, physics)
        else:
            self.warm.at(crops)
            image = self.net(y, physics, report=self.warm.keep, **self.warm.options(self.net))  # type: ignore[arg-type]
        (image - x).square().mean().backward()
        self.optimiser.step()
        synchronize(x.device)
        self.seconds.append(clock(x.device) - start)

    def validate(self, x: Tensor, y: Tensor, physics: Any) -> None:
        """PSNR at the equilibrium, not timed."""
        self.net.eval()
        if self.psnr and self.psnr[-1] == -math.inf:  # it has diverged, and will not come back
            return self.psnr.append(-math.inf)
        net = self.net if isinstance(self.net, retune.Restarted) else self._with_its_strength()
        with torch.no_grad():
            image = net(y, physics, stop=retune.Stop(1e-4, 2000))
            psnr = float(PSNR()(image, x).mean())
            self.psnr.append(psnr if math.isfinite(psnr) else -math.inf)

    def _with_its_strength(self) -> retune.Restarted:
        reg = max(1e-8, float(next(p.detach() for p in self.net.parameters() if p.requires_grad)))
        return ours(reg, DEPTH, RESTARTS, retune.Anderson()).to(next(self.net.parameters()).device).eval()

    def time_to(self, target: float) -> float:
        """Seconds of the steps up to the first PSNR above the target."""
        first = next((i for i, p in enumerate(self.psnr) if p >= target), None)
        return float("inf") if first is None else sum(self.seconds[:first])


def ours(reg: float, depth: int, restarts: int, solver: retune.solvers.AbstractSolver) -> retune.Restarted:
    prior = retune.priors.WaveletL1(WAVELET, LEVELS, learn=False)
    return retune.Restarted(
        retune.ForwardBackward(prior, step_size=0.9, reg=reg),
        depth,
        restarts,
        solver=solver,
    )


@dataclass(frozen=True)
class Tuned:
    """Options of deepinv's DEQ: learning rate of λ ÷ ours, relative change per iteration to stop at, acceleration."""

    rate: float
    stop: float
    anderson: bool


def theirs(reg: float, lipschitz: float, tuned: Tuned, device: torch.device) -> Contender:
    net = PGD(
        data_fidelity=L2(),
        prior=WaveletPrior(level=LEVELS, wv=WAVELET, device=str(device)),
        stepsize=2 * 0.9 / lipschitz,
        lambda_reg=reg,
        max_iter=DEPTH * (RESTARTS + 1),
        early_stop=True,
        thres_conv=tuned.stop,
        unfold=True,
        trainable_params=["lambda"],
        anderson_acceleration=tuned.anderson,
        DEQ=DEQConfig(jacobian_free=False, max_iter_backward=DEPTH, anderson_acceleration_backward=tuned.anderson),
    ).to(device)
    # λ is a raw parameter: its learning rate is relative to its first value.
    groups = [{"params": [p], "lr": LR * tuned.rate * reg} for p in net.parameters() if p.requires_grad]
    return Contender(net, groups)


def contenders(
    reg: float, lipschitz: float, images: list[Tensor], tuned: Tuned, device: torch.device
) -> dict[str, Contender]:
    made = {}
    for label, depth, solver in (
        (PLAIN, DEPTH, retune.Picard()),
        ("ReTune, warm + Anderson", DEPTH, retune.Anderson()),
        ("ReTune, warm + Anderson, K = 3", 3, retune.Anderson()),
        ("ReTune, warm + Inertial, K = 3", 3, retune.Inertial()),
    ):
        net = ours(reg, depth, DEPTH * RESTARTS // depth, solver).to(device)
        warm = None if label == PLAIN else retune.WarmStart(rtol=1e-2 * depth / DEPTH)
        if warm is not None:
            warm.prepare(net, images)
        made[label] = Contender(net, [{"params": [p for p in net.parameters() if p.requires_grad], "lr": LR}], warm)
    made[DEQ] = theirs(reg, lipschitz, tuned, device)
    return made


def race(name: str, steps: int, seed: int, device: torch.device, tuned: list[Tuned]) -> dict[str, Contender]:
    """All contenders if one way to tune DEQ is given; else DEQ in all those ways."""
    problem = {"inpaint": retune.problems.inpaint, "deblur": retune.problems.deblur}[name]()
    images = [photograph(n)[:, r : r + CROP, c : c + CROP] for n in ("chelsea", "coffee") for r, c in PARTS]
    held = part("motorcycle", CROP)[None].to(device)
    y_held, physics_held = problem.measure(held, 7)
    lipschitz = float(retune.Problem(y_held, physics_held).lipschitz.max())
    if len(tuned) > 1:
        runners = {str(t): theirs(START[name], lipschitz, t, device) for t in tuned}
    else:
        runners = contenders(START[name], lipschitz, images, tuned[0], device)
    generator = torch.Generator().manual_seed(seed)
    for r in runners.values():
        r.validate(held, y_held, physics_held)
    for k in range(steps):
        x, crops = draw_crops(images, BATCH, None, generator)
        x = x.to(device)
        y, physics = problem.measure(x, 1000 * seed + k)
        order = list(runners.values())
        for r in order[k % len(order) :] + order[: k % len(order)]:
            r.step(x, crops, y, physics)
        for r in runners.values():
            r.validate(held, y_held, physics_held)
        told = "  ".join(f"{r.psnr[-1]:.2f} dB {r.seconds[-1]:.2f} s" for r in runners.values())
        CONSOLE.print(f"{name}, race {seed}, step {k + 1}: {told}", highlight=False, soft_wrap=True)
    return runners


def tune(name: str, steps: int, device: torch.device) -> Tuned:
    """The options with which deepinv's DEQ comes to 0.05 dB below the best of its final PSNRs first."""

    def best(ways: list[Tuned]) -> Tuned:
        runners = race(name, steps, 100, device, ways)
        target = max(r.psnr[-1] for r in runners.values()) - WITHIN
        return min(ways, key=lambda w: runners[str(w)].time_to(target))

    first = best([Tuned(rate, 1e-4, False) for rate in (2, 5, 12)])
    return best(
        [first, replace(first, stop=1e-3), replace(first, anderson=True), replace(first, stop=1e-3, anderson=True)]
    )


def main() -> None:
    whole = {"type": int, "metavar": "N"}
    options = arguments(
        __doc__, rounds=whole | {"help": "races a problem (default 3)"}, steps=whole | {"help": "of each (default 25)"}
    )
    rounds, steps = (1, 16) if options.quick else (3, 25)
    rounds, steps = options.rounds or rounds, options.steps or steps
    table = Table(title=f"Training to within {WITHIN} dB of the best final PSNR\n{where(options)}")
    for heading in ("problem", "", "final PSNR", "s a step", "steps", "s to target", "faster than\nplain", "than DEQ"):
        table.add_column(heading, justify="right" if heading not in ("problem", "") else "left")
    records = []
    began = time.perf_counter()
    device = torch.device(options.device)
    for name in START:
        tuned = tune(name, max(6, steps // 3), device)
        races = [race(name, steps, seed + 1, device, [tuned]) for seed in range(rounds)]
        targets = [max(c.psnr[-1] for c in r.values()) - WITHIN for r in races]
        times = {label: [r[label].time_to(t) for r, t in zip(races, targets, strict=True)] for label in races[0]}
        for label in races[0]:
            runs = [r[label] for r in races]
            # Who does not arrive has at least needed all of its steps.
            least = [min(t, sum(c.seconds)) for t, c in zip(times[label], runs, strict=True)]
            never = "> " if any(t == float("inf") for t in times[label]) else ""
            cells, ratios = [], {}
            for other, bar in ((PLAIN, 3), (DEQ, 5)):
                theirs_ = [min(t, sum(r[other].seconds)) for t, r in zip(times[other], races, strict=True)]
                ratios[other] = statistics.median(a / b for a, b in zip(theirs_, least, strict=True))
                sign = "> " if any(t == float("inf") for t in times[other]) else ""
                met = None if never else ratios[other] >= bar
                cells.append(f"{sign}{ratios[other]:.2f}{verdict(met)}" if "warm" in label else "")
            needed = [
                next((i for i, p in enumerate(c.psnr) if p >= t), steps) for c, t in zip(runs, targets, strict=True)
            ]
            table.add_row(
                name,
                label,
                f"{statistics.median(c.psnr[-1] for c in runs):.2f}",
                f"{statistics.median(s for c in runs for s in c.seconds):.3f}",
                f"{never}{statistics.median(needed):g}",
                f"{never}{statistics.median(least):.2f}",
                *cells,
            )
            records.append(
                {"problem": name, "contender": label, "seconds": least, "arrived": not never, "faster than": ratios}
                | {"final PSNR": [c.psnr[-1] for c in runs], "DEQ tuned": str(tuned)}
            )
        CONSOLE.print(f"{name}: deepinv's DEQ was raced with {tuned}", highlight=False)
        table.add_section()
    CONSOLE.print(table)
    CONSOLE.print(f"{time.perf_counter() - began:.0f} s in all")
    write(options, "training to within 0.05 dB", records)


if __name__ == "__main__":
    main()
