"""Wall time of training to within 0.05 dB of the final validation PSNR.

One step size and one λ are learned (ℓ1 norm of db4 wavelets, 4 levels, from a λ five times too small), on four parts of
two photographs, flipped at random, two a step (2×3×64×64), for inpainting and for deblurring with a kernel of 25 taps:
every part comes back every other step, which is the best case for warm starts. Everyone sees the same crops and
measurements. On a CPU with one thread, times are those the process computed: the wall time of an idle machine.
The target is 0.05 dB below the best final PSNR of all, on a part of a third photograph; only training
steps are timed, and the contenders take turns step by step.

deepinv's DEQ stops early (relative change 1e-4 per iteration, what ours is per ten layers), runs at most as many
iterations as plain ReTune, and takes 10 iterations for its adjoint, instead of its default of 50. Its learning rates
are those that give it the relative steps of ours. Run ``python benchmarks/training_time.py``.
"""

from __future__ import annotations

import statistics
import time
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
        """PSNR in eval mode, not timed."""
        self.net.eval()
        with torch.no_grad():
            stop = {"stop": retune.Stop(1e-4, 2000)} if isinstance(self.net, retune.Restarted) else {}
            self.psnr.append(float(PSNR()(self.net(y, physics, **stop), x).mean()))

    def time_to(self, target: float) -> float:
        """Seconds of the steps up to the first PSNR above the target."""
        first = next((i for i, p in enumerate(self.psnr) if p >= target), None)
        return float("inf") if first is None else sum(self.seconds[:first])


def ours(reg: float, depth: int, restarts: int, fast: bool) -> retune.Restarted:
    prior = retune.priors.WaveletL1(WAVELET, LEVELS, learn=False)
    return retune.Restarted(
        retune.ForwardBackward(prior, step_size=0.9, reg=reg),
        depth,
        restarts,
        solver=retune.Anderson() if fast else retune.Picard(),
    )


def contenders(reg: float, lipschitz: float, images: list[Tensor], device: torch.device) -> dict[str, Contender]:
    made = {}
    for label, depth, fast in (
        ("ReTune, plain restarts", DEPTH, False),
        ("ReTune, warm + Anderson", DEPTH, True),
        ("ReTune, warm + Anderson, K = 3", 3, True),
    ):
        net = ours(reg, depth, DEPTH * RESTARTS // depth, fast).to(device)
        warm = retune.WarmStart(rtol=1e-2 * depth / DEPTH) if fast else None
        if warm is not None:
            warm.prepare(net, images)
        made[label] = Contender(net, [{"params": [p for p in net.parameters() if p.requires_grad], "lr": LR}], warm)
    theirs = PGD(
        data_fidelity=L2(),
        prior=WaveletPrior(level=LEVELS, wv=WAVELET, device=str(device)),
        stepsize=2 * 0.9 / lipschitz,
        lambda_reg=reg,
        max_iter=DEPTH * (RESTARTS + 1),
        early_stop=True,
        thres_conv=1e-4,
        unfold=True,
        trainable_params=["lambda", "stepsize"],
        DEQ=DEQConfig(jacobian_free=False, max_iter_backward=DEPTH),
    ).to(device)
    groups = [{"params": [p], "lr": LR * float(p.detach().mean()) * (1 if "lambda" in n else 0.1)}
              for n, p in theirs.named_parameters() if p.requires_grad]  # fmt: skip
    made["deepinv DEQ"] = Contender(theirs, groups)
    return made


def race(name: str, steps: int, seed: int, device: torch.device) -> dict[str, Contender]:
    problem = {"inpaint": retune.problems.inpaint, "deblur": retune.problems.deblur}[name]()
    images = [photograph(n)[:, r : r + CROP, c : c + CROP] for n in ("chelsea", "coffee") for r, c in PARTS]
    held = part("motorcycle", CROP)[None].to(device)
    y_held, physics_held = problem.measure(held, 7)
    lipschitz = float(retune.Problem(y_held, physics_held).lipschitz.max())
    runners = contenders(START[name], lipschitz, images, device)
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
        CONSOLE.log(name, seed, k, [f"{r.psnr[-1]:.2f} dB {r.seconds[-1]:.2f} s" for r in runners.values()])
    return runners


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
    for name in START:
        races = [race(name, steps, seed + 1, torch.device(options.device)) for seed in range(rounds)]
        targets = [max(c.psnr[-1] for c in r.values()) - WITHIN for r in races]
        times = {label: [r[label].time_to(t) for r, t in zip(races, targets, strict=True)] for label in races[0]}
        for label in races[0]:
            runs = [r[label] for r in races]
            seconds = statistics.median(times[label])
            ratio = {
                other: statistics.median(a / b for a, b in zip(times[other], times[label], strict=True))
                for other in ("ReTune, plain restarts", "deepinv DEQ")
            }
            fast = "warm" in label
            needed = [sum(s <= t for s in _cumulated(c.seconds)) for c, t in zip(runs, times[label], strict=True)]
            table.add_row(
                name,
                label,
                f"{statistics.median(c.psnr[-1] for c in runs):.2f}",
                f"{statistics.median(s for c in runs for s in c.seconds):.3f}",
                f"{statistics.median(needed):g}",
                f"{seconds:.2f}",
                f"{ratio['ReTune, plain restarts']:.2f}{verdict(ratio['ReTune, plain restarts'] >= 3)}" if fast else "",
                f"{ratio['deepinv DEQ']:.2f}{verdict(ratio['deepinv DEQ'] >= 5)}" if fast else "",
            )
            records.append({"problem": name, "contender": label, "seconds": seconds, "faster than": ratio})
        table.add_section()
    CONSOLE.print(table)
    CONSOLE.print(f"{time.perf_counter() - began:.0f} s in all")
    write(options, "training to within 0.05 dB", records)


def _cumulated(seconds: list[float]) -> list[float]:
    total, out = 0.0, []
    for s in seconds:
        total += s
        out.append(total - 1e-9)
    return out


if __name__ == "__main__":
    main()
