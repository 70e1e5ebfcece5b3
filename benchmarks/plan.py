"""What ``retune.plan`` predicts, against what a training step and an evaluation then need.

The prediction comes from steps of few layers and images, as many as it takes for them to show; the measurement runs
the real depth and batch: bytes of tensors alive at the peak (on CUDA the allocator's), and the median time of a few
steps.
Run ``python benchmarks/plan.py``.
"""

from __future__ import annotations

import statistics
import time

import deepinv
import torch
from rich.table import Table

import retune
from _timing import CONSOLE, arguments, synchronize, verdict, where, write
from retune._torch.memory import peak_of

BAR = 0.15  # relative error of the predicted memory


def cases(quick: bool) -> dict[str, tuple[retune.Restarted, tuple[int, int, int], int, object]]:
    unequal = torch.linspace(0.6, 1.6, 9).reshape(3, 1, 3)
    l1 = retune.priors.WaveletL1("db4", 3)
    l12 = retune.priors.WaveletL12("db4", 3, channels=3, weights=unequal)
    union = retune.priors.WaveletL1(("haar", "sym4"), 3)

    def net(prior, depth: int, restarts: int, rule: retune.Truncated | retune.Implicit | retune.Unrolled, layers=1):
        map_ = retune.ForwardBackward(prior, reg=0.1, layers=layers)
        return retune.Restarted(map_, depth, restarts, rule)

    side = 48 if quick else 96
    filters = retune.weights.load("ridge-convex-color").prior.requires_grad_()
    ridge = retune.Restarted(retune.GradientStep(filters), 10, 1)  # pyright: ignore[reportArgumentType]
    return {
        "L1, K = 10": (net(l1, 10, 2, retune.Truncated()), (3, side, side), 4, None),
        "L12, K = 20": (net(l12, 20, 1, retune.Truncated()), (3, side, side), 2, None),
        "L12, K = 10 × 3 blocks": (net(l12, 10, 1, retune.Truncated(blocks=3)), (3, side, side + 10), 4, None),
        "L12, rtol, odd size": (net(l12, 12, 1, retune.Truncated(rtol=1e-2)), (3, side - 9, side), 3, None),
        "two bases, grey": (net(union, 15, 2, retune.Truncated()), (1, 2 * side, side), 6, None),
        "untied, K = 12 of 6": (net(l1, 12, 1, retune.Truncated(), layers=6), (3, side, side), 4, None),
        "unrolled": (net(l12, 10, 0, retune.Unrolled()), (3, side, side), 4, None),
        "implicit": (net(l12, 10, 1, retune.Implicit(rtol=1e-2)), (3, side, side), 4, None),
        "shipped ridge, small images": (ridge, (3, side // 2, side // 2), 8, None),
        "motion blur": (net(l12, 10, 1, retune.Truncated()), (3, side, side), 4, retune.problems.deblur()),
    }


def main() -> None:
    options = arguments(__doc__)
    device = torch.device(options.device)
    table = Table(title=f"Predicted ÷ measured\n{where(options)}")
    for heading in ("", "step, MiB", f"predicted ÷\n(within {BAR:g})", "evaluation, MiB", "÷", "step, s", "÷"):
        table.add_column(heading, justify="right" if heading else "left")
    records = []
    for name, (net, size, batch, problem) in cases(options.quick).items():
        net.to(device)
        found = retune.plan(net, size, batch, problem=problem)  # pyright: ignore[reportArgumentType]
        x = torch.rand(batch, *size, generator=torch.Generator().manual_seed(1)).to(device)
        if problem is None:
            physics = deepinv.physics.Inpainting(size, mask=0.5, device=device)  # pyright: ignore[reportArgumentType]
            y = physics.A(x)
        else:
            y, physics = problem.measure(x, 1)  # pyright: ignore[reportAttributeAccessIssue]

        def step(net=net, x=x, y=y, physics=physics) -> None:
            net.train().zero_grad(set_to_none=True)
            (net(y, physics) - x).square().mean().backward()

        def evaluate(net=net, y=y, physics=physics) -> None:
            net.eval().solve(y, physics, stop=retune.Stop(0.0, net.depth * (net.restarts + 1)))

        step()
        net.zero_grad(set_to_none=True)
        bytes_step, bytes_evaluation = peak_of(step, device), peak_of(evaluate, device)
        seconds = []
        for _ in range(3):
            synchronize(device)
            start = time.perf_counter()
            step()
            synchronize(device)
            seconds.append(time.perf_counter() - start)
        ratios = (
            found.step_bytes / bytes_step,
            found.evaluation_bytes / bytes_evaluation,
            found.step_seconds / statistics.median(seconds),
        )
        table.add_row(
            name,
            f"{bytes_step / 2**20:.1f}",
            f"{ratios[0]:.3f}{verdict(abs(ratios[0] - 1) <= BAR)}",
            f"{bytes_evaluation / 2**20:.1f}",
            f"{ratios[1]:.3f}{verdict(abs(ratios[1] - 1) <= BAR)}",
            f"{statistics.median(seconds):.2f}",
            f"{ratios[2]:.2f}",
        )
        records.append(
            {"net": name, "step bytes": bytes_step, "evaluation bytes": bytes_evaluation}
            | {"seconds": statistics.median(seconds), "predicted / measured": ratios}
        )
    CONSOLE.print(table)
    write(options, "predicted against measured", records)


if __name__ == "__main__":
    main()
