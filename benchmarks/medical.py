"""Tomography with 24 views and magnetic resonance with 4 coils: which prior restores best, with its best strength.

Tomography: parallel beams, 24 angles, noise of 1 % of the largest value. Magnetic resonance: 4 coils, 30 % of the lines
of k-space, noise of 1 % of the image's largest value; the phase of the image counts as part of the coil maps, so the
image is real. Operators are deepinv's. The images are slices that come with pydicom (``pip install pydicom``) and the
phantom of Shepp and Logan, at 128×128 pixels (one slice has 64×64), with values from 0 to 1.

Each prior has the strength of a grid with the best mean PSNR on the images to choose from: another slice, a picture of
random ellipses and a photograph. Then it restores the test images. Everything ends at its equilibrium, or after
``--layers`` layers. ``--plot FILE`` draws the restorations. Run ``python benchmarks/medical.py --help``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pydicom
import torch
from deepinv.loss.metric import PSNR, SSIM
from deepinv.physics import LinearPhysics, MultiCoilMRI, Tomography
from deepinv.utils.phantoms import generate_shepp_logan
from pydicom.data import get_testdata_file
from rich.console import Console
from rich.progress import track
from rich.table import Table
from skimage.transform import resize_local_mean
from torch import Tensor

import retune
from retune import priors, weights
from retune.data import grey, photograph
from retune.equilibrium import Status

SIDE, VIEWS, LINES, NOISE = 128, 24, 0.3, 0.01
CHANGE = 1e-4  # relative change over a block of ten layers at which an image is at rest
CONSOLE = Console()


@dataclass(frozen=True)
class Scan:
    """Measurements of images of one size, (B, 1, H, W); `simple` is the restoration without a prior."""

    names: tuple[str, ...]
    truth: Tensor
    physics: LinearPhysics
    y: Tensor
    simple: Tensor


# --- images ---


def slice_of(name: str, low: float | None = None) -> Tensor:
    """A slice (1, 1, H, W) of pydicom, with values from 0 (of `low` and less) to 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these files break a rule of DICOM
        x = pydicom.dcmread(str(get_testdata_file(name))).pixel_array.astype(float)
    x = np.maximum(x, x.min() if low is None else low)
    if min(x.shape) > SIDE:
        shorter = min(x.shape)
        top, left = ((n - shorter) // 2 for n in x.shape)
        x = resize_local_mean(x[top : top + shorter, left : left + shorter], (SIDE, SIDE))
    x = (x - x.min()) / (x.max() - x.min())
    return torch.from_numpy(x).float()[None, None]


def shepp_logan() -> Tensor:
    """The phantom of Shepp and Logan."""
    phantom = generate_shepp_logan(SIDE).float()
    return phantom.reshape(1, 1, SIDE, SIDE) / phantom.max()


def ellipses(seed: int) -> Tensor:
    """Ellipses of random size, place and intensity, inside a body."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    image = 0.3 * ((x / 0.7) ** 2 + (y / 0.9) ** 2 < 1)
    for _ in range(14):
        (cy, cx), (a, b), turn = rng.uniform(-0.5, 0.5, 2), rng.uniform(0.03, 0.3, 2), rng.uniform(0, np.pi)
        u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
        v = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        image[(u / a) ** 2 + (v / b) ** 2 < 1] += rng.uniform(-0.2, 0.3)
    image = np.clip(image, 0, None)
    return torch.from_numpy(image / image.max()).float()[None, None]


def round_photograph() -> Tensor:
    """A photograph inside a circle, as a scanner sees a body."""
    x = grey(photograph("coffee"))[None, :, 100:356, 150:406]
    x = torch.nn.functional.avg_pool2d(x, 2)
    row, column = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in x.shape[-2:]), indexing="ij")
    return x * (row**2 + column**2 < 0.9)


# --- operators ---


class RealImage(LinearPhysics):
    """Magnetic resonance of a real image (B, 1, H, W): deepinv's operator, which has a channel for each part."""

    def __init__(self, inner: MultiCoilMRI):
        super().__init__()
        self.inner = inner

    def A(self, x: Tensor, **_: object) -> Tensor:
        """The lines of k-space of each coil."""
        return self.inner.A(torch.cat([x, torch.zeros_like(x)], 1))

    def A_adjoint(self, y: Tensor, **_: object) -> Tensor:
        """The real part of the adjoint of deepinv's operator."""
        return self.inner.A_adjoint(y)[:, :1]


def coil_maps(height: int, width: int) -> Tensor:
    """Four smooth sensitivities at the corners, each with its phase; their squares sum to 1. (1, 4, H, W), complex."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    maps = []
    for i, (cy, cx) in enumerate(itertools.product((-1.0, 1.0), repeat=2)):
        size = torch.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 2.5)
        maps.append(torch.polar(size, 0.5 * math.pi * i + cy * y + 0.5 * cx * x))
    stacked = torch.stack(maps)
    return (stacked / stacked.abs().square().sum(0).sqrt())[None]


def lines(height: int, width: int, seed: int) -> Tensor:
    """The columns of k-space that are measured: the middle ones, and others that are rarer far from the middle."""
    rng = np.random.default_rng(seed)
    distance = np.abs(np.arange(width) - width // 2) / (width / 2)
    odds = (1 - distance) ** 3 + 1e-3
    middle = np.flatnonzero(distance <= 0.08)
    odds[middle] = 0
    count = int(LINES * width) - len(middle)
    chosen = rng.choice(width, count, replace=False, p=odds / odds.sum())
    mask = torch.zeros(1, 1, height, width)
    mask[..., torch.from_numpy(np.concatenate([middle, chosen]))] = 1
    return mask


def tomography(images: Mapping[str, Tensor], seed: int) -> Scan:
    """24 views of each image; without a prior: filtered back-projection."""
    x = torch.cat([*images.values()])
    physics = Tomography(VIEWS, x.shape[-1], circle=False, normalize=True)
    y = physics.A(x)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
    y = y + NOISE * y.amax((1, 2, 3), keepdim=True) * noise
    return Scan(tuple(images), x, physics, y, physics.A_dagger(y, fbp=True))


def resonance(images: Mapping[str, Tensor], seed: int) -> Scan:
    """30 % of the columns of k-space; without a prior: zeros in the others."""
    x = torch.cat([*images.values()])
    height, width = x.shape[-2:]
    coils = coil_maps(height, width)
    inner = MultiCoilMRI(mask=lines(height, width, seed), coil_maps=coils, img_size=(2, height, width))
    physics = RealImage(inner)
    y = physics.A(x)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
    y = y + NOISE * noise * (y != 0)
    return Scan(tuple(images), x, physics, y, physics.A_adjoint(y))


# --- methods ---


def _ridge(sigma: float, reg: float) -> retune.AbstractMap:
    ridge = cast(priors.Ridge, weights.load("ridge-weakly-convex-gray").prior)
    ridge.sigma = retune.parameters.Positive(sigma, (), learn=False, name="sigma")
    return retune.GradientStep(ridge, reg=reg, box=(0, 1))


def _energy(sigma: float, reg: float) -> retune.AbstractMap:
    return retune.GradientStep(priors.Energy(weights.load("energy-gray"), sigma=sigma), reg=reg, box=(0, 1))


def _plug_and_play(sigma: float) -> retune.AbstractMap:
    return retune.ForwardBackward(priors.Denoiser(weights.load("denoiser-gray"), sigma=sigma))


_REG = tuple(1e-5 * 10 ** (i / 2) for i in range(8))
_SIGMA = (0.01, 0.02, 0.04)
_WEIGHT = tuple(1e-3 * 10 ** (i / 2) for i in range(8))

#: Name → the map at a strength, and the grid: an axis for each number, in ascending order.
METHODS: dict[str, tuple[Callable[..., retune.AbstractMap], tuple[Sequence[float], ...]]] = {
    "wavelet": (lambda reg: retune.ForwardBackward(priors.WaveletL1("db4", levels=4, channels=1), reg=reg), (_REG,)),
    "undecimated wavelet": (
        lambda reg: retune.PrimalDual(priors.UndecimatedWavelet("db4", levels=4), reg=reg, box=(0, 1)),
        (_REG,),
    ),
    "TV": (lambda reg: retune.PrimalDual(priors.TV(), reg=reg, box=(0, 1)), (_REG,)),
    "TGV": (lambda reg: retune.PrimalDual(priors.TGV(), reg=reg, box=(0, 1)), (_REG,)),
    "ridge": (_ridge, (_SIGMA, _WEIGHT)),
    "Plug-and-Play": (_plug_and_play, (tuple(0.002 * 10 ** (i / 4) for i in range(9)),)),
    "energy": (_energy, (_SIGMA, _WEIGHT)),
}


def restore(map_: retune.AbstractMap, scan: Scan, layers: int) -> tuple[Tensor, int]:
    """The images, and how many are at rest."""
    net = retune.Restarted(map_, stop=retune.Stop(CHANGE, layers)).eval().accelerated()
    found = net.solve(scan.y, scan.physics)
    return found.image, sum(s is Status.CONVERGED for s in found.status)


def score(image: Tensor, truth: Tensor) -> float:
    return float(PSNR()(image.clamp(0, 1), truth).mean())


def choose(name: str, scan: Scan, layers: int) -> tuple[float, ...]:
    """The strength whose mean PSNR is the best of the grid, by steps to better neighbours from its middle."""
    make, axes = METHODS[name]
    known: dict[tuple[int, ...], float] = {}

    def value(at: tuple[int, ...]) -> float:
        if any(not 0 <= i < len(axis) for i, axis in zip(at, axes, strict=True)):
            return -math.inf
        if at not in known:
            strength = [axis[i] for i, axis in zip(at, axes, strict=True)]
            known[at] = score(restore(make(*strength), scan, layers)[0], scan.truth)
        return known[at]

    best = tuple(len(axis) // 2 for axis in axes)
    while True:
        near = [tuple(i + d * (k == axis) for k, i in enumerate(best)) for axis in range(len(axes)) for d in (-1, 1)]
        better = max(near, key=value)
        if value(better) <= value(best):
            return tuple(axis[i] for i, axis in zip(best, axes, strict=True))
        best = better


# --- the table ---


def scans(kind: str, seed: int) -> tuple[Scan, list[Scan]]:
    """The images to choose from, and those of the test."""
    photo, drawn = round_photograph(), ellipses(1)
    head, skull = slice_of("693_J2KI.dcm", low=-1100), slice_of("J2K_pixelrep_mismatch.dcm", low=-1000)
    if kind == "tomography":
        known = {"a head": head, "ellipses": drawn, "coffee": photo}
        test = {"CT_small": slice_of("CT_small.dcm"), "J2K_pixelrep": skull, "Shepp-Logan": shepp_logan()}
        return tomography(known, seed), [tomography(test, seed + 1)]
    known = {"a skull": skull, "ellipses": drawn, "coffee": photo}
    test = {"examples_overlay": slice_of("examples_overlay.dcm"), "Shepp-Logan": shepp_logan()}
    return resonance(known, seed), [resonance({"MR_small": slice_of("MR_small.dcm")}, seed), resonance(test, seed + 1)]


def main() -> None:
    """Print a table for each kind of measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1000, help="largest number of layers (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of noise and lines")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--only", choices=("tomography", "resonance"), help="one of the two tables")
    parser.add_argument("--plot", help="file for a picture of the restorations; the table's name is added")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for kind in ("tomography", "resonance") if options.only is None else (options.only,):
        names, pictures = table_of(kind, options.seed, options.layers)
        if options.plot:
            file = Path(options.plot)
            draw(file.with_stem(f"{file.stem}-{kind}"), names, pictures)


def table_of(kind: str, seed: int, layers: int) -> tuple[list[str], dict[str, list[Tensor]]]:
    """Print the table. Returns the names of the images, and the images of each method."""
    known, tests = scans(kind, seed)
    names = [n for scan in tests for n in scan.names]
    table = Table("prior", "strength", *names, "mean", "SSIM", "at rest", "s", title=kind)
    pictures = {"truth": [scan.truth for scan in tests]}

    def add(name: str, images: list[Tensor], strength: str = "", rest: str = "", seconds: str = "") -> None:
        pairs = [(x.clamp(0, 1), s.truth) for x, s in zip(images, tests, strict=True)]
        psnr, ssim = (torch.cat([metric(x, truth).flatten() for x, truth in pairs]) for metric in (PSNR(), SSIM()))
        cells = [f"{float(v):.2f}" for v in (*psnr, psnr.mean())]
        table.add_row(name, strength, *cells, f"{float(ssim.mean()):.3f}", rest, seconds)
        pictures[name] = images

    add("filtered back-projection" if kind == "tomography" else "zeros", [scan.simple for scan in tests])
    for name in track(METHODS, kind, console=CONSOLE):
        strength = choose(name, known, layers)
        start, found = time.process_time(), []
        for scan in tests:
            found.append(restore(METHODS[name][0](*strength), scan, layers))
        seconds, rest = time.process_time() - start, f"{sum(n for _, n in found)} of {len(names)}"
        add(name, [x for x, _ in found], ", ".join(f"{v:.2g}" for v in strength), rest, f"{seconds:.0f}")
    CONSOLE.print(table)
    return names, pictures


def draw(file: Path, names: Sequence[str], pictures: Mapping[str, Sequence[Tensor]]) -> None:
    """A row for each image, a column for each method."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(names), len(pictures), figsize=(2.4 * len(pictures), 2.5 * len(names)))
    for column, (title, parts) in enumerate(pictures.items()):
        images = [x for part in parts for x in part.clamp(0, 1)]
        for row, image in enumerate(images):
            axes[row, column].imshow(image[0], cmap="gray", vmin=0, vmax=1)
            axes[row, column].set_axis_off()
        axes[0, column].set_title(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
