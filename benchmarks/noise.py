"""How well gain and read noise are found in images of known noise, and whether their stated errors hold.

    python benchmarks/noise.py --images 200

Sparse fluorescence images and parts of photographs of scikit-image, 256×256 pixels, with gains from 0.001 to 0.02 and
read noise from 0.003 to 0.02 (1 is white), both uniform in the logarithm.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from skimage import data

from retune.problems.found_noise import estimate_counts

SIDE = 256
PHOTOGRAPHS = ("camera", "astronaut", "chelsea", "coffee", "coins", "moon", "brick", "grass", "gravel", "page", "text")


def sparse(rng: np.random.Generator) -> np.ndarray:
    """Fluorescent spots on a dark background, the brightest of intensity 1."""
    image, (rows, columns) = np.zeros((SIDE, SIDE)), np.mgrid[:SIDE, :SIDE]
    for _ in range(SIDE * SIDE // 700):
        row, column, width = *rng.integers(0, SIDE, 2), rng.uniform(2, 6)
        near = np.s_[max(0, row - 24) : row + 25, max(0, column - 24) : column + 25]
        distance = (rows[near] - row) ** 2 + (columns[near] - column) ** 2
        image[near] += rng.uniform(0.2, 1) * np.exp(-distance / 2 / width**2)
    return image / image.max()


def photographs(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Parts of photographs, one after the other."""
    while True:
        for name in PHOTOGRAPHS:
            image = getattr(data, name)() / 255
            image = image.mean(-1) if image.ndim == 3 else image
            row, column = (rng.integers(0, max(1, n - SIDE)) for n in image.shape)
            yield image[row : row + SIDE, column : column + SIDE]


def main() -> None:
    """Print a line for each kind of image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="number of images of each kind")
    count = parser.parse_args().images
    rng = np.random.default_rng(7)
    photos = photographs(rng)
    for kind, make in (("sparse", lambda: sparse(rng)), ("photographs", lambda: next(photos))):
        off_gain, off_read, held_gain, held_read = [], [], [], []
        for _ in range(count):
            image = make()
            gain, read = np.exp(rng.uniform(np.log((0.001, 0.003)), np.log((0.02, 0.02))))
            y = gain * rng.poisson(image / gain) + read * rng.normal(size=image.shape)
            found = estimate_counts(torch.from_numpy(y)[None, None])
            assert found is not None
            off_gain.append(abs(found.gain[0] / gain - 1))
            off_read.append(abs(found.read[0] / read - 1))
            held_gain.append(abs(found.gain[0] - gain) <= 1.645 * found.gain_error[0])
            held_read.append(abs(found.read[0] - read) <= 1.645 * found.read_error[0])
        print(
            f"{kind}: gain within 5 % in {np.mean(np.array(off_gain) < 0.05):.1%} (median {np.median(off_gain):.1%}), "
            f"read noise within 10 % in {np.mean(np.array(off_read) < 0.1):.1%} (median {np.median(off_read):.1%}); "
            f"the interval of 90 % holds the gain in {np.mean(held_gain):.1%}, the read noise in "
            f"{np.mean(held_read):.1%}"
        )


if __name__ == "__main__":
    main()
