"""Wall time of training to within 0.05 dB of the final validation PSNR.

The weights of a norm of db4 wavelets are learned, by scale and band: of the ℓ1,2 norm (whose groups are the bands and
channels of a position), with a margin of 8 pixels, from a prior five times too weak, on eight parts of two photographs,
flipped at random, four a step (4×3×64×64): inpainting, and deblurring with kernels of 25 taps. Every part comes back
every other step, with fresh noise and another mask or kernel. Everyone learns from the same crops and measurements, by
Adam with the same cosine.

* **plain**: ReTune, K = 10 layers, R = 10 plain restarts.
* **warm + accelerated**: with warm starts, and `Anderson` or `Inertial`, at most as many layers.
* **warm**: the same without acceleration.
* **DEQ**: deepinv's `PGD` with `DEQConfig(jacobian_free=False)` and deepinv's own wavelets: the ℓ1 norm, which is what
  they have, and an image continued by its mirror image where ours restore a margin.
* **DEQ, stopped later**: the same with a tighter threshold and more adjoint iterations, for its equilibrium.
* **DEQ, our prior**: deepinv's loop with our prior in it, the same objective, to tell what is due to the loop.

All are judged twice, on four held-out parts of the same photographs, with the weights learned so far: where a plain
loop from the usual start **stops**, at a relative change of 1e-3 a layer (DEQ: at its own threshold) or after 110
layers, and **at the equilibrium**. Stopping early regularises, so these are two images. A contender has arrived at
the step from which on it stays within 0.05 dB of its own final PSNR; the quality is that final PSNR. Only training
steps are timed, and the contenders take turns step by step. On a CPU with one thread, times are those that the
process computed: the wall time of an idle machine.

Everyone has options of its own, ``FOUND``. ``--tune`` looks for them anew (hours): in races of their own on other
draws, everyone gets the learning rate of the best final PSNR. Then the accelerated one (K = 2, 4, 6 or 10, tolerance
of the warm start, solver, that learning rate or 0.2) and each DEQ (threshold to stop at, Anderson acceleration,
adjoint iterations, its default being 50, and how its wavelets continue an image) get the options with which they
arrive in the fewest seconds, of those whose final PSNR is within 0.025 dB of plain's, or for DEQ of its best. DEQ is
judged by what it returns there, ours and the DEQ that stops later at the equilibrium. DEQ runs at most as many layers
as plain ReTune. A bar is met by a ratio at a final PSNR that is at most 0.05 dB lower.
Run ``python benchmarks/training_time.py``.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from deepinv.loss.metric import PSNR
from deepinv.optim import L2, PGD, DEQConfig
from deepinv.optim.prior import Prior, WaveletPrior
from deepinv.physics import LinearPhysics
from rich.table import Table
from torch import Tensor, nn

import retune
from _timing import CONSOLE, arguments, synchronize, verdict, where, write
from retune.data import draw_crops, photograph
from retune.priors import WaveletL1, WaveletL12

WAVELET, LEVELS, MARGIN, CROP, BATCH = "db4", 4, 8, 64, 4
DEPTH, RESTARTS = 10, 10
LAYERS = DEPTH * (RESTARTS + 1)
START = {"inpaint": 0.012, "deblur": 0.005}
PARTS = ((60, 150), (100, 220), (180, 250), (200, 120))  # of each training photograph
HELD_OUT = ((60, 300), (140, 60))  # likewise, and apart from those
RATES = (0.03, 0.1, 0.2, 0.3)
WITHIN = 0.05
STOP = 1e-3  # relative change per layer at which a loop stops, unless DEQ chose another
READINGS = ("stopped", "at equilibrium")
PLAIN, DEQ, TIGHT = "ReTune, plain restarts", "deepinv DEQ", "deepinv DEQ, stopped later"
DEQ_OURS = "deepinv DEQ, our prior"
BARS = {PLAIN: ("plain", 3), DEQ: ("DEQ", 5), TIGHT: ("DEQ later", 5), DEQ_OURS: ("DEQ ours", None)}


def clock(device: torch.device) -> float:
    """Seconds; on a CPU those that the process computed, so that a busy machine does not decide."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


@dataclass(frozen=True)
class Judges:
    """What the weights learned so far restore: ``(y, physics)`` where a plain loop stops, and ``(y, physics, start)``
    at the equilibrium."""

    stopped: Callable[[Tensor, Any], Tensor]
    settled: Callable[[Tensor, Any, Tensor | None], Tensor]


def at_equilibrium(step: retune.ForwardBackward) -> Callable[[Tensor, Any, Tensor | None], Tensor]:
    """The fixed point of a map of ours, to the same tolerance whatever it was trained with."""
    net = retune.Restarted(step, DEPTH, RESTARTS, solver=retune.Anderson()).eval()
    return lambda y, physics, start: net.solve(y, physics, init=start, stop=retune.Stop(3e-4, 500)).image


class Contender:
    """A network whose prior learns, its optimiser, and the seconds and PSNR along its training."""

    def __init__(self, net: nn.Module, prior: Any, lr: float, judges: Judges, warm: retune.WarmStart | None = None):
        self.net, self.warm, self.lr = net, warm, lr
        self.optimiser = torch.optim.Adam(prior.parameters(), lr=lr, betas=(0.9, 0.99))
        self.judges = judges
        self.found: Tensor | None = None  # the last equilibrium, from which the next is looked for
        self.seconds: list[float] = []
        self.psnr: dict[str, list[float]] = {reading: [] for reading in READINGS}

    def step(self, share: float, x: Tensor, crops: Any, y: Tensor, physics: Any) -> None:
        """One training step after this share of all, timed."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)
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

    @torch.no_grad()
    def validate(self, x: Tensor, y: Tensor, physics: Any, readings: tuple[str, ...] = READINGS) -> None:
        """PSNR of what it restores, where a loop stops and at the equilibrium; not timed."""
        self.net.eval()
        for reading in readings:
            if reading == READINGS[0]:
                image = self.judges.stopped(y, physics)
            else:
                self.found = image = self.judges.settled(y, physics, self.found)
            psnr, seen = float(PSNR()(image, x).mean()), self.psnr[reading]
            gone = not math.isfinite(psnr) or (seen and seen[-1] == -math.inf)  # what has diverged will not come back
            seen.append(-math.inf if gone else psnr)

    def arrived(self, reading: str) -> int:
        """Steps until it stays near its final PSNR."""
        psnr = self.psnr[reading]
        far = [k for k, p in enumerate(psnr) if not abs(p - psnr[-1]) <= WITHIN]
        return min(max(far, default=-1) + 1, len(self.seconds))

    def time(self, reading: str) -> float:
        """Seconds of those steps."""
        return sum(self.seconds[: self.arrived(reading)])


class TheirWavelets(WaveletPrior):
    """deepinv's wavelets with the weights of our prior."""

    def __init__(self, weights: WaveletL1, device: torch.device, mode: str):
        super().__init__(level=LEVELS, wv=WAVELET, device=str(device), mode=mode)
        self.learned = weights

    def prox(self, x: Tensor, *args: Any, gamma: Any = 1.0, **kwargs: Any) -> Tensor:
        """Soft thresholding of each band of each level at its own threshold."""
        table = self.learned.scale_weights().T * self.learned.weights()[0]  # (levels, bands)
        # deepinv's level n = 1 (coarsest) … LEVELS takes row n − 2 of the table, ours come from fine to coarse, and
        # its first two bands change places. A check of all orders on a patch in a black image found this one.
        table = table.flip(0).roll(-1, 0)[:, [1, 0, 2]]
        gamma = torch.as_tensor(gamma, dtype=x.dtype, device=x.device).reshape(-1, 1, 1)  # one for each image
        return super().prox(x, ths=table[None], gamma=gamma)


class OurNorm(Prior):
    """Our norm of coefficients, for deepinv's loop."""

    def __init__(self, weights: WaveletL12):
        super().__init__()
        self.learned = weights
        self.frame: Any = None

    def prox(self, x: Tensor, *args: Any, gamma: Any = 1.0, **kwargs: Any) -> Tensor:
        """Of (B, C, 1, N)."""
        bound = self.learned.bind_coefficients(self.frame, x.shape[1], torch.as_tensor(gamma, dtype=x.dtype))
        assert bound.prox is not None
        return bound.prox(x)


class Coefficients(LinearPhysics):
    """``A D``, what was measured of coefficients."""

    def __init__(self, physics: LinearPhysics, frame: Any):
        super().__init__()
        self.physics, self.frame = physics, frame

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """``A D u``."""
        return self.physics.A(self.frame.synthesis(x))

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """``Dᵀ Aᵀ y``."""
        return self.frame.analysis(self.physics.A_adjoint(y))


class InCoefficients(nn.Module):
    """deepinv's loop on the coefficients of our frame, from our start."""

    def __init__(self, loop: nn.Module, norm: OurNorm):
        super().__init__()
        self.loop, self.norm = loop, norm

    def forward(self, y: Tensor, physics: LinearPhysics) -> Tensor:
        """The image (B, C, H, W)."""
        start = physics.A_adjoint(y)
        self.norm.frame = frame = self.norm.learned.frame(start.shape, start.dtype, start.device)
        return frame.synthesis(self.loop(y, Coefficients(physics, frame), init=frame.extension(start)))


@dataclass(frozen=True)
class Tuned:
    """Options of deepinv's DEQ: learning rate, threshold to stop at, acceleration, adjoint iterations, and how its
    wavelets continue an image (None: it gets ours).
    """

    lr: float
    stop: float = 1e-3
    anderson: bool = False
    backward: int = 10
    mode: str | None = "reflect"


@dataclass(frozen=True)
class Way:
    """Options of ours: K, tolerance of the warm start per K layers, solver, learning rate."""

    depth: int
    rtol: float
    solver: retune.solvers.AbstractSolver
    lr: float


#: The learning rate of plain ReTune, the options of ours, and those of DEQ, of searches as with ``--tune``.
FOUND = {
    "inpaint": (
        0.3,
        Way(2, 0.02, retune.Inertial(), 0.3),
        {
            DEQ: Tuned(0.1, backward=5),
            TIGHT: Tuned(0.1, stop=1e-4, backward=20),
            DEQ_OURS: Tuned(0.3, mode=None),
        },
    ),
    "deblur": (
        0.3,
        Way(6, 0.04, retune.Inertial(), 0.2),
        {
            DEQ: Tuned(0.3, backward=5),
            TIGHT: Tuned(0.1, stop=1e-4, backward=5),
            DEQ_OURS: Tuned(0.1, backward=5, mode=None),
        },
    ),
}


def weights(device: torch.device) -> WaveletL12:
    return WaveletL12(WAVELET, LEVELS, margin=MARGIN).to(device)


def their_weights(device: torch.device) -> WaveletL1:
    return WaveletL1(WAVELET, LEVELS).to(device)


def objective(prior: Any, reg: float) -> retune.ForwardBackward:
    step = retune.ForwardBackward(prior, step_size=0.9, reg=reg, learn_reg=False, learn_step_size=False)
    return step.to(next(prior.parameters()).device)


@dataclass
class Race:
    """What is common to the contenders of a race: the problem, the draws, and how many steps there are."""

    name: str
    steps: int
    seed: int
    device: torch.device

    def __post_init__(self):
        self.problem = {"inpaint": retune.problems.inpaint, "deblur": retune.problems.deblur}[self.name]()
        self.images = [photograph(n)[:, r : r + CROP, c : c + CROP] for n in ("chelsea", "coffee") for r, c in PARTS]
        held = [photograph(n)[:, r : r + CROP, c : c + CROP] for n in ("chelsea", "coffee") for r, c in HELD_OUT]
        self.held = torch.stack(held).to(self.device)
        self.reg = START[self.name]

    def ours(self, lr: float) -> Contender:
        """ReTune with plain restarts."""
        return self.one_of_ours(DEPTH, None, lr)

    def warmed(self, way: Way) -> Contender:
        """ReTune with warm starts."""
        return self.one_of_ours(way.depth, way.solver, way.lr, retune.WarmStart(rtol=way.rtol))

    def one_of_ours(self, depth: int, solver: Any, lr: float, warm: retune.WarmStart | None = None) -> Contender:
        """ReTune with options of its own."""
        prior = weights(self.device)
        step = objective(prior, self.reg)
        net = retune.Restarted(step, depth, DEPTH * RESTARTS // depth, solver=solver)
        if warm is not None:
            warm.prepare(net, self.images)
        plain = retune.Restarted(step, 1, LAYERS - 1, solver=retune.Picard()).eval()

        def stopped(y: Tensor, physics: Any) -> Tensor:
            return plain.solve(y, physics, stop=retune.Stop(STOP, LAYERS)).image

        return Contender(net, prior, lr, Judges(stopped, at_equilibrium(step)), warm)

    def theirs(self, tuned: Tuned) -> Contender:
        """deepinv's exact DEQ."""
        if tuned.mode is None:
            learned = weights(self.device)
            norm = OurNorm(learned)
            net: nn.Module = InCoefficients(self.loop(norm, tuned, LAYERS), norm)
            return Contender(net, learned, tuned.lr, Judges(net, at_equilibrium(objective(learned, self.reg))))
        learned = their_weights(self.device)
        prior = TheirWavelets(learned, self.device, tuned.mode)
        net = self.loop(prior, tuned, LAYERS)
        # Ours are looked for to 3e-4 over ten layers, which is as much. It starts where the last one ended.
        longer = self.loop(prior, replace(tuned, stop=3e-5, anderson=False), 5 * LAYERS)
        return Contender(net, learned, tuned.lr, Judges(net, lambda y, physics, start: longer(y, physics, init=start)))

    def loop(self, prior: Prior, tuned: Tuned, layers: int) -> PGD:
        """deepinv's proximal gradient method as a DEQ."""
        x = self.images[0][None].to(self.device)
        lipschitz = float(retune.DataTerm(*self.problem.measure(x, 0)).lipschitz.max())
        return PGD(
            data_fidelity=L2(),
            prior=prior,
            stepsize=2 * 0.9 / lipschitz,
            lambda_reg=self.reg,
            max_iter=layers,
            early_stop=True,
            thres_conv=tuned.stop,
            unfold=True,
            trainable_params=[],
            anderson_acceleration=tuned.anderson,
            DEQ=DEQConfig(
                jacobian_free=False,
                max_iter_backward=tuned.backward,
                anderson_acceleration_backward=tuned.anderson,
            ),
        ).to(self.device)

    def run(self, runners: Mapping[Any, Contender], *readings: str) -> None:
        """All steps of all contenders, in turns."""
        generator = torch.Generator().manual_seed(self.seed)
        measured, operator = self.problem.measure(self.held, 7)
        wanted = readings or READINGS
        order = list(runners.values())
        for r in order:
            r.validate(self.held, measured, operator, wanted)
        for k in range(self.steps):
            x, crops = draw_crops(self.images, BATCH, None, generator)
            x = x.to(self.device)
            y, physics = self.problem.measure(x, 1000 * self.seed + k)
            for r in order[k % len(order) :] + order[: k % len(order)]:
                r.step(k / self.steps, x, crops, y, physics)
            for r in order:
                r.validate(self.held, measured, operator, wanted)
            if (k + 1) % 5 == 0:
                told = "  ".join(
                    "/".join(f"{p[-1]:.2f}" for p in r.psnr.values() if p)
                    + f" dB {statistics.median(r.seconds[-5:]):.2f} s"
                    for r in order
                )
                CONSOLE.print(f"{self.name}, race {self.seed}, step {k + 1}: {told}", highlight=False, soft_wrap=True)


def fastest(runners: Mapping[Any, Contender], reference: float, reading: str) -> Any:
    """The way that arrives first, of those as good as the reference, a PSNR in dB.

    Half of what is allowed in the races, since their draws are others.
    """
    good = [way for way in runners if runners[way].psnr[reading][-1] >= reference - WITHIN / 2]
    return min(good or runners, key=lambda way: runners[way].time(reading))


def tune(name: str, steps: int, device: torch.device) -> tuple[float, Way, dict[str, Tuned]]:
    """Our learning rate and options, and those of deepinv's DEQ for its contenders."""
    stopped, settled = READINGS  # DEQ is what it returns; ours, and the DEQ that stops later, are their equilibria

    def rate(start: Callable[[Race, float], Contender], reading: str) -> float:
        race = Race(name, steps, 100, device)
        runners = {lr: start(race, lr) for lr in RATES}
        race.run(runners, reading)
        return max(runners, key=lambda lr: runners[lr].psnr[reading][-1])

    def options(first: Tuned, reading: str, others: tuple[str, ...] = ()) -> Tuned:
        first = replace(first, lr=rate(lambda r, lr: r.theirs(replace(first, lr=lr)), reading))
        few = replace(first, backward=5)
        tried = [first, replace(first, anderson=True), few]
        tried += [replace(t, stop=10 * t.stop) for t in (first, few)]
        race = Race(name, steps, 101, device)
        runners = {tuned: race.theirs(tuned) for tuned in tried + [replace(first, mode=m) for m in others]}
        race.run(runners, reading)
        return fastest(runners, max(r.psnr[reading][-1] for r in runners.values()), reading)

    mine = rate(lambda r, lr: r.ours(lr), settled)
    race = Race(name, steps, 101, device)
    solvers = (retune.Anderson(), retune.Inertial())
    lrs = {mine, min(mine, 0.2)}
    ways = [Way(k, rtol, s, lr) for k in (2, 4, 6, 10) for rtol in (1e-2, 2e-2, 4e-2) for s in solvers for lr in lrs]
    runners: dict[Any, Contender] = {None: race.ours(mine)} | {way: race.warmed(way) for way in ways}
    race.run(runners, settled)
    reference = runners.pop(None).psnr[settled][-1]
    way = fastest(runners, reference, settled)
    tuned = {
        DEQ: options(Tuned(0.1), stopped, ("periodic", "zero")),
        TIGHT: options(Tuned(0.1, stop=1e-4, backward=20), settled),
        DEQ_OURS: options(Tuned(0.1, mode=None), stopped),
    }
    CONSOLE.print(f"{name}: lr = {mine}, {way}; {tuned}", highlight=False)
    return mine, way, tuned


def contenders(race: Race, lr: float, way: Way, tuned: Mapping[str, Tuned]) -> dict[str, Contender]:
    """Those of the table."""
    return {
        PLAIN: race.ours(lr),
        f"warm + {type(way.solver).__name__}, K = {way.depth}": race.warmed(way),
        f"warm, K = {way.depth}": race.warmed(replace(way, solver=retune.Picard())),
    } | {label: race.theirs(options) for label, options in tuned.items()}


def main() -> None:
    whole = {"type": int, "metavar": "N"}
    options = arguments(
        __doc__,
        rounds=whole | {"help": "races a problem (default 3)"},
        steps=whole | {"help": "of each (default 24)"},
        problem={"choices": sorted(START), "help": "only this one"},
        tune={"action": "store_true", "help": "look for everyone's options anew"},
    )
    rounds, steps = (1, 16) if options.quick else (3, 24)
    rounds, steps = options.rounds or rounds, options.steps or steps
    tables = {}
    for reading in READINGS:
        title = f"Training to within {WITHIN} dB of the final PSNR, {reading}\n{where(options)}"
        tables[reading] = table = Table(title=title)
        for heading in (
            "problem",
            "",
            "final PSNR",
            "s a step",
            "steps",
            "s in all",
            *(f"than\n{short}" for short, _ in BARS.values()),
        ):
            table.add_column(heading, justify="right" if heading not in ("problem", "") else "left")
    records = []
    began = time.perf_counter()
    device = torch.device(options.device)
    for name in START if options.problem is None else (options.problem,):
        lr, way, tuned = tune(name, steps, device) if options.tune else FOUND[name]
        races = []
        for seed in range(1, rounds + 1):
            race = Race(name, steps, seed, device)
            races.append(contenders(race, lr, way, tuned))
            race.run(races[-1])
        for reading, table in tables.items():
            for row in rows(races, reading):
                table.add_row(name, *row.pop("cells"))
                records.append({"problem": name, "lr": lr, "ours": str(way), "DEQ": str(tuned)} | row)
            table.add_section()
    for table in tables.values():
        CONSOLE.print(table)
    CONSOLE.print(f"{time.perf_counter() - began:.0f} s in all")
    write(options, f"training to within {WITHIN} dB", records)


def rows(races: list[dict[str, Contender]], reading: str) -> list[dict[str, Any]]:
    """A row for each contender: medians over the races, and medians of the ratios within a race."""
    found = []
    for label in races[0]:
        runs = [r[label] for r in races]
        final = statistics.median(c.psnr[reading][-1] for c in runs)
        cells, ratios = [], {}
        for other, (_, bar) in BARS.items():
            ratios[other] = statistics.median(r[other].time(reading) / r[label].time(reading) for r in races)
            # "At the same quality": what arrives early at something worse has not met a bar.
            behind = statistics.median(r[other].psnr[reading][-1] - r[label].psnr[reading][-1] for r in races)
            met = "" if bar is None else verdict(ratios[other] >= bar and behind <= WITHIN)
            cells.append(f"{ratios[other]:.2f}{met}" if "warm" in label else "")
        step = statistics.median(s for c in runs for s in c.seconds)
        arrived = statistics.median(c.arrived(reading) for c in runs)
        seconds = [c.time(reading) for c in runs]
        told = [f"{final:.2f}", f"{step:.3f}", f"{arrived:g}", f"{statistics.median(seconds):.2f}"]
        row = {"cells": [label, *told, *cells], "reading": reading, "contender": label, "faster than": ratios}
        found.append(row | {"seconds": seconds, "final PSNR": [c.psnr[reading][-1] for c in runs]})
    return found


if __name__ == "__main__":
    main()
