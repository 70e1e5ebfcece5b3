"""The automatic ratio of primal–dual steps: layers with half, with all and with twice of it.

``½‖Ax − y‖² + λR(x)`` on a grey photograph: noise (0.1), a Gaussian blur (0.02), and half of the pixels (0.05), with
total variation, smoothed total variation, and undecimated wavelets. λ is near the best for this photograph, a third of
that, and three times. A count is the number of layers to a relative gap of 1e-4 in the objective. The smallest
objective is that of many more layers in float64. The last column is the count of the automatic ratio, relative to the
least of the three.

Run ``python benchmarks/balance.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import torch
from deepinv.optim.prior import Prior
from deepinv.physics import BlurFFT, Denoising, Inpainting, LinearPhysics
from deepinv.physics.functional.blur import gaussian_blur
from torch import Tensor

import retune
from _timing import arguments
from retune.data import grey, photograph
from retune.priors import TV, UndecimatedWavelet

GAP, MOST = 1e-4, 1500
FACTORS = (0.5, 1.0, 2.0)
NOISE = {"denoising": 0.1, "deblurring": 0.02, "inpainting": 0.05}
PRIORS: dict[str, Callable[[], Prior]] = {
    "TV": TV,
    **{f"TV, ε = {e:g}": lambda e=e: TV(smoothing=e) for e in (0.005, 0.02, 0.1, 0.5)},
    "undecimated db4": UndecimatedWavelet,
}
#: Near the best for total variation and for wavelets.
REG = {"denoising": 0.09, "deblurring": 0.004, "inpainting": 0.03}


def problem(name: str, side: int) -> tuple[LinearPhysics, Tensor]:
    x = grey(photograph("chelsea"))[None, :, 60 : 60 + side, 100 : 100 + side].double()
    generator, size = torch.Generator().manual_seed(0), cast(Any, (1, side, side))  # deepinv's annotation: one number
    physics: LinearPhysics = Denoising()
    if name == "deblurring":
        physics = BlurFFT(img_size=size, filter=gaussian_blur(sigma=(1.5, 1.5)).double())
    if name == "inpainting":
        physics = Inpainting(size, mask=(torch.rand(1, 1, side, side, generator=generator) < 0.5).double())
    clean = physics.A(x)
    return physics, clean + NOISE[name] * torch.randn(clean.shape, generator=generator).double()


def values(map_: retune.PrimalDual, y: Tensor, physics: LinearPhysics, layers: int, every: int) -> list[float]:
    """The objective after every so many layers."""
    term = map_.data_term(y, physics)
    bound, found = map_.bind(term), []
    u = bound.init()
    for k in range(layers):
        u = bound.layer(u)
        if (k + 1) % every == 0:
            found.append(float(map_.objective(bound.image(u), term)))
    return found


def needed(map_: retune.PrimalDual, y: Tensor, physics: LinearPhysics, best: float) -> int:
    """The number of layers to the gap; MOST if it is not reached before."""
    term = map_.data_term(y, physics)
    bound = map_.bind(term)
    u = bound.init()
    for k in range(1, MOST):
        u = bound.layer(u)
        if (k < 60 or k % 4 == 0) and float(map_.objective(bound.image(u), term)) <= (1 + GAP) * best:
            return k
    return MOST


@torch.no_grad()
def main() -> None:
    options = arguments(__doc__, side={"type": int, "default": 128, "help": "side of the image (default 128)"})
    rows = []
    print("| problem | prior | λ | half | automatic | twice | relative to the least |\n" + "|---" * 7 + "|")
    for name, reg in REG.items():
        physics, y = problem(name, options.side)
        for label, prior in PRIORS.items():
            for strength in (reg,) if options.quick else (reg / 3, reg, 3 * reg):
                maps = [retune.PrimalDual(prior(), reg=strength, balance=c) for c in FACTORS]
                best = values(maps[1], y, physics, 2 * MOST, 2 * MOST)[-1]
                counts = [needed(m, y, physics, best) for m in maps]
                share = counts[1] / min(counts)
                rows.append({"problem": name, "prior": label, "reg": strength, "layers": counts, "share": share})
                print(
                    f"| {name} | {label} | {strength:.2g} | {' | '.join(map(str, counts))} | {share:.2f} |", flush=True
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
