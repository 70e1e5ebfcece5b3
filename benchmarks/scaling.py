"""The cost of a layer for sides of 64 to 2048 pixels, batches of 1 to 32, and one or two threads.

A layer of inpainting with the ℓ1,2 norm of db4 wavelets on colour images. With one thread the figure is processor time,
with two it is the time of the clock, so on a busy machine only the first is reliable. Ideal scaling is a flat line: the
same nanoseconds for every pixel. Run ``python benchmarks/scaling.py --plot scaling.png``.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from rich.table import Table

import retune
from _timing import CONSOLE, arguments, where, write
from retune._torch.allocator import keep_freed_memory

SIDES, BATCHES, SMALL = (64, 128, 256, 512, 1024, 2048), (1, 2, 4, 8, 16, 32), 64
PIXELS = 400_000  # of a timed call, at least


def layers(side: int, batch: int):
    """A function that runs whole layers, and the number of pixels that it treats."""
    problem = retune.problems.inpaint(0.5, sigma=0.05)
    y, physics = problem.measure(torch.rand(batch, 3, side, side))
    map_ = retune.ForwardBackward(retune.priors.WaveletL12("db4", 4, channels=3), reg=0.1)
    bound = map_.bind(map_.data_term(y, physics))
    u, count = bound.init(), max(1, PIXELS // (side * side * batch))
    return lambda: bound.block(u, count), count * batch * side * side


def nanoseconds(sizes: list[tuple[int, int]], threads: int, rounds: int) -> list[float]:
    """The median cost of a pixel in a layer, for every (side, batch); the sizes take turns."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    calls = [layers(*size) for size in sizes]
    found: list[list[float]] = [[] for _ in sizes]
    for r in range(rounds + 1):
        for (call, pixels), times in zip(calls, found, strict=True):
            start = clock()
            call()
            if r:
                times.append((clock() - start) * 1e9 / pixels)
    return [statistics.median(times) for times in found]


def plot(file: Path, sides: dict[int, list[float]], batches: dict[int, list[float]]) -> None:
    """Both sweeps side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), sharey=True)
    for ax, found, x, label in ((axes[0], sides, SIDES, "side"), (axes[1], batches, BATCHES, f"batch of {SMALL}²")):
        for threads, values in found.items():
            ax.plot(x, values, "o-", label=f"{threads} thread(s)")
        ax.set(xlabel=label, xscale="log", ylim=(0, None))
        ax.set_xticks(x, [str(v) for v in x])
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("ns per pixel and layer")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Run it."""
    options = arguments(__doc__, plot={"type": Path, "metavar": "FILE", "help": "write the plot to FILE"})
    rounds = 2 if options.quick else 5
    keep_freed_memory(torch.device("cpu"))
    sides, batches = {}, {}
    with torch.no_grad():
        for threads in (1, 2):
            sides[threads] = nanoseconds([(side, 1) for side in SIDES], threads, rounds)
            batches[threads] = nanoseconds([(SMALL, batch) for batch in BATCHES], threads, rounds)
    table = Table(title=f"Cost of a layer, ns per pixel\n{where(options)}")
    for heading in ("", *(f"{t} thread(s)" for t in sides)):
        table.add_column(heading, justify="right")
    rows = [(f"1 × {s}²", [sides[t][i] for t in sides]) for i, s in enumerate(SIDES)]
    rows += [(f"{b} × {SMALL}²", [batches[t][i] for t in batches]) for i, b in enumerate(BATCHES)]
    for label, values in rows:
        table.add_row(label, *(f"{v:.0f}" for v in values))
    CONSOLE.print(table)
    ratio = sides[1][-1] / sides[1][-2]
    CONSOLE.print(f"A pixel at {SIDES[-1]}² costs {ratio:.2f} times one at {SIDES[-2]}² (bar: 1.15), one thread")
    if options.plot:
        plot(options.plot, sides, batches)
    write(options, "cost of a layer", [{"size": k, "ns": v} for k, v in rows])


if __name__ == "__main__":
    main()
