"""What the energy invents under blurs, and the weak pull towards the blurred image that prevents it.

A blur does not see some frequencies, those of a straight motion of nine pixels for example. There only the prior
decides, and the minimum of a learned energy can have strong stripes, far from every photograph. ``retune.restore`` adds
``½ε‖x − x₀‖²``, with ε = 0.001 and the measurement, blurred once more, as x₀. This program restores crops of validation
photographs without and with this term. It prints the gain in PSNR over the blurred image: its mean, its median, its
smallest value, and the number of crops that became worse than they were.

``OMP_NUM_THREADS=1 python benchmarks/stripes.py --data FOLDER`` (FOLDER has the subfolder val).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from deepinv.loss.metric import PSNR
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.signal import fftconvolve
from torch import Tensor

import retune
from real import MARGIN, disc, gaussian, motion, shake
from retune.config import from_dict
from retune.data import as_images, grey
from retune.instant import instant_network

#: Name → kernel and noise.
CASES = {
    "motion 9, σ 0.01": (motion(9, 35), 0.01),
    "motion 11, σ 0.03": (motion(11, 70), 0.03),
    "motion 17, σ 0.02": (motion(17, 90), 0.02),
    "square 7, σ 0.01": (np.full((7, 7), 1 / 49), 0.01),
    "shake, σ 0.03": (shake(np.random.default_rng(77)), 0.03),
    "disc 4, σ 0.01": (disc(4.0), 0.01),
    "Gaussian 2.2, σ 0.03": (gaussian(2.2), 0.03),
}


def scenes(folder: Path, count: int, side: int, seed: int) -> list[np.ndarray]:
    """Grey crops that are larger than their images by the margin."""
    images, rng = as_images(folder / "val"), np.random.default_rng(seed)
    found = []
    for i in rng.choice(len(images), count, replace=False):
        height, width = images[i].shape[-2:]
        top, left = rng.integers(0, height - side - 2 * MARGIN), rng.integers(0, width - side - 2 * MARGIN)
        crop = images[i][:, top : top + side + 2 * MARGIN, left : left + side + 2 * MARGIN]
        found.append(grey(crop)[0].double().numpy())
    return found


def measured(crops: list[np.ndarray], kernel: np.ndarray, noise: float) -> tuple[Tensor, Tensor]:
    """The blurred images with noise, and the sharp ones, (B, 1, h, w)."""
    inside = (slice(MARGIN, -MARGIN),) * 2
    blurred = [fftconvolve(x, kernel, mode="same")[inside] for x in crops]
    noisy = [x + noise * np.random.default_rng([9, i]).normal(size=x.shape) for i, x in enumerate(blurred)]
    return _stacked(noisy), _stacked([x[inside] for x in crops])


def _stacked(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).float()[:, None]


def restored(y: Tensor, kernel: np.ndarray, noise: float, pull: bool) -> Tensor:
    """The images of ``retune.restore`` (with one strength for all crops), or those without the pull."""
    problem = retune.problems.deblur(torch.from_numpy(kernel).float(), sigma=noise).borderless()
    told = {} if pull else {"map": {"options": {"strong_convexity": 0.0, "box": [0.0, 1e4]}}}
    net, _ = instant_network(from_dict(told, (), "this benchmark"), problem, y)
    with torch.no_grad():
        return problem.frame(net.solve(y, problem.operator(y)).image)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the subfolder val of photographs")
    parser.add_argument("--crops", type=int, default=20, help="number of crops (default 20)")
    parser.add_argument("--side", type=int, default=96, help="of a crop, in pixels (default 96)")
    parser.add_argument("--seed", type=int, default=0, help="of the crops")
    options = parser.parse_args()
    crops = scenes(options.data, options.crops, options.side, options.seed)
    table = Table("blur", "pull", "mean gain (dB)", "median", "smallest", "worse than measured", "processor s")
    for name, (kernel, noise) in track(CASES.items()):
        y, truth = measured(crops, kernel, noise)
        for pull in (False, True):
            start = time.process_time()
            gain = PSNR()(restored(y, kernel, noise, pull), truth) - PSNR()(y, truth)
            seconds = time.process_time() - start
            figures = [f"{float(v):.2f}" for v in (gain.mean(), gain.median(), gain.min())]
            table.add_row(name, "yes" if pull else "no", *figures, f"{int((gain < 0).sum())}", f"{seconds:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
