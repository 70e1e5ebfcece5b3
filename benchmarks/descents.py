"""Restorations with the shipped energy by two solvers: layers, processor seconds, distance, PSNR.

The restorations are those of ``retune.restore``, without training: two Gaussian blurs, a motion blur and missing
pixels, of photographs that come with scikit-image. Both solvers stop by the same rule, and run in turn. The distance is
that to the state after a run to 1e-7 by `Descent`, relative to its size.

    OMP_NUM_THREADS=1 python benchmarks/descents.py            # --size 256 --rounds 3
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from deepinv.loss.metric import PSNR

import retune
from retune.build import network_of
from retune.config import from_dict
from retune.data import photograph
from retune.instant import calibrated
from retune.problems.base import Problem

CASES = {
    "Gaussian blur 1.6, σ 0.02": ("astronaut", lambda: retune.problems.Deblur("gaussian:1.6", sigma=0.02)),
    "Gaussian blur 2.5, σ 0.005": ("chelsea", lambda: retune.problems.Deblur("gaussian:2.5", sigma=0.005)),
    "motion 15 taps, σ 0.02": ("coffee", lambda: retune.problems.Deblur("motion:15", sigma=0.02)),
    "half of the pixels, σ 0.05": ("rocket", lambda: retune.problems.Inpaint(keep=0.5, sigma=0.05)),
}
SOLVERS = {"Descent": retune.Descent, "QuasiNewton": retune.QuasiNewton}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| problem | solver | layers | seconds | distance | PSNR | faster |\n|---|---|---|---|---|---|---|")
    for name, (image, problem) in CASES.items():
        rows(name, image, problem(), options)


def rows(name: str, image: str, problem: Problem, options: argparse.Namespace) -> None:
    """The rows of one problem."""
    whole = photograph(image)
    top, left = ((n - options.size) // 2 for n in whole.shape[-2:])
    x = whole[None, :, top : top + options.size, left : left + options.size]
    y, physics = problem.measure(x, 0)
    net = network_of(calibrated(from_dict({}), problem, y), x.shape[1]).eval()
    net.solver = retune.Descent()
    reference = net.solve(y, physics, stop=retune.Stop(1e-7, 3000)).state
    seconds: dict[str, list[float]] = {key: [] for key in SOLVERS}
    found = {}
    for _ in range(options.rounds):
        for key, solver in SOLVERS.items():
            net.solver = solver()
            start = time.process_time()
            found[key] = net.solve(y, physics)
            seconds[key].append(time.process_time() - start)
    ratio = median(a / b for a, b in zip(*seconds.values(), strict=True))
    for key, result in found.items():
        distance = float((result.state - reference).norm() / reference.norm())
        cells = (name, key, int(result.layers[0]), f"{median(seconds[key]):.2f}", f"{distance:.1e}")
        psnr = float(PSNR()(result.image, x))
        last = f"{psnr:.2f}", f"{ratio:.2f}" if key == "QuasiNewton" else ""
        print(f"| {' | '.join(str(c) for c in (*cells, *last))} |", flush=True)


if __name__ == "__main__":
    main()
