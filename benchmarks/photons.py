"""Few photons: the exact likelihood of counts against weighted and plain least squares.

Counts ``y = Poisson(p (Ax + b))`` of grey photographs with p photons at white and a known background b = 0.1, through
no blur and through a Gaussian blur. Smoothed total variation is the prior of all methods:

* mirror descent and primal–dual steps for the exact likelihood: the same objective, two algorithms;
* primal–dual steps for squares weighted by the variances that the counts show (``NoiseWeighted``);
* primal–dual steps for plain least squares.

λ is chosen at every p by a grid on two photographs, once for the exact likelihood, once for each kind of squares; the
table is about four others.

Run ``python benchmarks/photons.py``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from deepinv.optim import L2, PoissonLikelihood
from deepinv.physics import Blur, Denoising, LinearPhysics
from deepinv.physics.functional.blur import gaussian_blur
from torch import Tensor

import retune
from _timing import arguments
from retune.comparison.search import line_search
from retune.data import grey, photograph
from retune.priors import TV

BACKGROUND = 0.1  # as a share of white
TUNED_ON, TESTED_ON = ("chelsea", "coffee"), ("astronaut", "camera", "motorcycle", "rocket")
BOX = (1e-6, 2.0)
METHODS = ("mirror descent", "primal–dual", "weighted squares", "squares")
#: The λ that are tried, for the logarithm of the likelihood.
RANGE = (1.0, 100.0)


@dataclass(frozen=True)
class Case:
    """Measurements: counts of images, through an operator, with `photons` at white."""

    x: Tensor
    counts: Tensor
    physics: LinearPhysics
    photons: float

    @property
    def scaled(self) -> Tensor:
        """The counts on the scale of the image."""
        return self.counts / self.photons


def case(names: Sequence[str], problem: str, photons: float, side: int, seed: int) -> Case:
    """Measurements of photographs, shrunk by four."""
    physics: LinearPhysics = Denoising()
    if problem == "blur":
        physics = Blur(gaussian_blur(sigma=(1.0, 1.0)).double(), padding="reflect")
    parts = []
    for name in names:
        small = torch.nn.functional.avg_pool2d(grey(photograph(name))[None].double(), 4)
        row, column = (n // 2 - side // 2 for n in small.shape[-2:])
        parts.append(small[..., row : row + side, column : column + side])
    x = torch.cat(parts)
    mean = photons * (physics.A(x) + BACKGROUND)
    return Case(x, torch.poisson(mean, generator=torch.Generator().manual_seed(seed)), physics, photons)


def restored(method: str, case: Case, strength: float, rtol: float, most: int) -> Tensor:
    """The restoration with the strength λ, relative to the likelihood of p photons."""
    prior, photons = TV(smoothing=0.02), case.photons
    exact = PoissonLikelihood(gain=1 / photons, bkg=BACKGROUND * photons, denormalize=False)
    if method == "mirror descent":
        map_, y = retune.MirrorDescent(prior, exact, reg=strength / photons**2), case.counts
    elif method == "primal–dual":
        map_, y = retune.PrimalDual(prior, exact, reg=strength / photons**2, box=BOX), case.counts
    elif method == "weighted squares":
        noise = retune.NoiseWeighted(1 / photons, (BACKGROUND / photons) ** 0.5, BACKGROUND)
        map_, y = retune.PrimalDual(prior, noise, reg=strength, box=BOX), case.scaled
    else:
        map_ = retune.PrimalDual(prior, L2(), reg=strength / photons, box=BOX)
        y = case.scaled - BACKGROUND
    net = retune.Restarted(map_.requires_grad_(False), depth=10, stop=retune.Stop(rtol, most)).eval()
    return net.solve(y, case.physics).image


def psnr(found: Tensor, x: Tensor) -> float:
    """The mean over the images."""
    return float(-10 * (found.clamp(0, 1) - x).square().flatten(1).mean(1).log10().mean())


def tuned(method: str, training: Case, tries: int) -> float:
    """The strength with the best mean PSNR."""

    def score(strength: float) -> float:
        return psnr(restored(method, training, strength, 1e-3, 300), training.x)

    return line_search(score, RANGE, tries).best


def row(problem: str, photons: float, side: int, tries: int) -> dict:
    """The mean PSNR of every method, and the largest difference of the two algorithms for the exact likelihood."""
    training, test = (case(names, problem, photons, side, seed) for names, seed in ((TUNED_ON, 0), (TESTED_ON, 100)))
    found: dict = {"problem": problem, "photons": photons, "measurement": psnr(test.scaled - BACKGROUND, test.x)}
    images, strengths = {}, {}
    for method in METHODS:
        same = "mirror descent" if method == "primal–dual" else method
        if same not in strengths:
            strengths[same] = tuned(same, training, tries)
        images[method] = restored(method, test, strengths[same], 1e-5, 3000)
        found[method] = psnr(images[method], test.x)
    first, second = (images[m].flatten(1) for m in ("mirror descent", "primal–dual"))
    found["difference"] = float(((first - second).norm(dim=1) / second.norm(dim=1)).max())
    found["λ"] = strengths
    return found


def main() -> None:
    options = arguments(__doc__, side={"type": int, "default": 32, "help": "side of the images (default 32)"})
    levels, tries = ((20, 1000), 5) if options.quick else ((20, 50, 200, 1000), 8)
    rows = []
    print(f"| problem | photons | measurement | {' | '.join(METHODS)} | difference of the first two |")
    print("|" + "---|" * (4 + len(METHODS)))
    for problem in ("noise", "blur"):
        for photons in levels:
            rows.append(found := row(problem, photons, options.side, tries))
            values = " | ".join(f"{found[m]:.2f}" for m in ("measurement", *METHODS))
            print(f"| {problem} | {photons} | {values} | {found['difference']:.0e} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
