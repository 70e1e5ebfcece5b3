"""Whole commands on whole files: processor seconds, peak memory and PSNR of ``retune restore`` and of other packages.

Photographs of scikit-image with noise (σ = 0.1), or under a blur (Gaussian, 1.6 pixels) with noise of 0.02; the scene
continues beyond the image. Every contender is a process of its own that imports its package, reads one file, restores
it and writes the result, so start-up counts for all. All are told the noise level and the kernel, except that the
unsupervised Wiener filter finds the noise itself and Richardson-Lucy does not use it. Nobody sees the truth: the
parameters of the others are those of their documentation, or for a strength the value in this file, which is the same
for all photographs. PSNR is that of the result, cut to [0, 1].

BM3D needs ``pip install bm3d`` and is left out without it. Run ``python benchmarks/whole.py``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from scipy.ndimage import gaussian_filter

PHOTOGRAPHS = ("chelsea.png", "astronaut.png", "camera.png")
NOISE, BLUR, BLURRED_NOISE = 0.1, 1.6, 0.02
RESTORE = ("-m", "retune", "restore")
DENOISE = ("--problem", "denoise", "--sigma", str(NOISE))
DEBLUR = ("--problem", "deblur", "--kernel", f"gaussian:{BLUR}", "--sigma", str(BLURRED_NOISE))
PLAIN = ("--no-certificate", "--no-report")

#: How the programs of the others begin and end. `y` is (h, w) or (h, w, 3), and so is their result `x`.
BEGIN = "import sys, numpy as np; y = np.load(sys.argv[1]); c = -1 if y.ndim == 3 else None\n"
END = "\nnp.save(sys.argv[2], np.asarray(x, dtype=np.float32))"
CHANNELS = "each = lambda f: np.stack([f(v) for v in np.moveaxis(y, 2, 0)], 2) if y.ndim == 3 else f(y)\n"
KERNEL = f"t = np.arange(-7, 8); k = np.exp(-t**2 / (2 * {BLUR}**2)); k = np.outer(k, k); k /= k.sum()\n"
MIRROR = "pad = lambda v: np.pad(v, 15, mode='symmetric')\n"
TENSOR = (
    "import torch, deepinv; torch.set_grad_enabled(False)\n"
    "t = torch.as_tensor(y.reshape(*y.shape[:2], -1)).permute(2, 0, 1)[None].float()\n"
)
ARRAY = "\nx = r[0].permute(1, 2, 0).numpy().reshape(y.shape)"

DENOISERS = {
    "scikit-image, wavelets (BayesShrink)": "from skimage.restoration import denoise_wavelet\n"
    f"x = denoise_wavelet(y, sigma={NOISE}, method='BayesShrink', rescale_sigma=True, channel_axis=c)",
    "scikit-image, TV (Chambolle)": "from skimage.restoration import denoise_tv_chambolle\n"
    "x = denoise_tv_chambolle(y, weight=0.1, channel_axis=c)",
    "scikit-image, non-local means": "from skimage.restoration import denoise_nl_means\n"
    f"x = denoise_nl_means(y, 5, 6, h=0.8 * {NOISE}, sigma={NOISE}, fast_mode=True, channel_axis=c)",
    "BM3D": f"import bm3d; x = (bm3d.bm3d_rgb if y.ndim == 3 else bm3d.bm3d)(y, {NOISE})",
    "deepinv, wavelets": TENSOR
    + f"r = deepinv.models.WaveletDenoiser(level=4, wv='db4')(t, ths=1.5 * {NOISE})"
    + ARRAY,
}
DEBLURRERS = {
    "scikit-image, Richardson-Lucy, 20 iterations": KERNEL
    + CHANNELS
    + MIRROR
    + "from skimage.restoration import richardson_lucy\n"
    "x = each(lambda v: richardson_lucy(pad(v).clip(1e-3), k, num_iter=20)[15:-15, 15:-15])",
    "scikit-image, unsupervised Wiener": KERNEL
    + CHANNELS
    + MIRROR
    + "from skimage.restoration import unsupervised_wiener\n"
    "x = each(lambda v: unsupervised_wiener(pad(v), k, clip=False, rng=0)[0][15:-15, 15:-15])",
    "deepinv, PGD with wavelets, 100 iterations": KERNEL
    + TENSOR
    + "physics = deepinv.physics.Blur(filter=torch.as_tensor(k)[None, None].float(), padding='reflect')\n"
    "prior = deepinv.optim.prior.WaveletPrior(level=4, wv='db4')\n"
    "solve = deepinv.optim.PGD(data_fidelity=deepinv.optim.L2(), prior=prior, stepsize=1.0, lambda_reg=0.003, "
    "max_iter=100, early_stop=False)\n"
    "r = solve(t, physics, init=t)" + ARRAY,
}


@dataclass(frozen=True)
class Row:
    """One contender on one file."""

    problem: str
    file: str
    contender: str
    seconds: float
    memory: float  # MiB
    psnr: float


def photograph(name: str, side: int) -> np.ndarray:
    """The whole photograph in [0, 1], at least `side` pixels high and wide."""
    x = np.asarray(Image.open(Path(skimage.data.__file__).parent / name), dtype=np.float64) / 255
    if min(x.shape[:2]) < side:
        raise SystemExit(f"{name} is {x.shape[1]} × {x.shape[0]}, less than --side {side}")
    return x


def middle(x: np.ndarray, side: int) -> np.ndarray:
    top, left = ((n - side) // 2 for n in x.shape[:2])
    return x[top : top + side, left : left + side]


def command(arguments: list[str], threads: int) -> tuple[float, float]:
    """Processor seconds and peak MiB of a Python process."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, *arguments], stdout=said, stderr=said, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{arguments}\n{said.read().decode()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def psnr(x: np.ndarray, truth: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((x.clip(0, 1) - truth) ** 2)))


def race(
    problem: str, name: str, y: np.ndarray, truth: np.ndarray, others: Mapping[str, str], place: Path, threads: int
) -> list[Row]:
    """All contenders on one file."""
    file = place / f"{problem}-{Path(name).stem}.npy"
    np.save(file, y.astype(np.float32))
    told = DENOISE if problem == "noise" else DEBLUR
    rows = [Row(problem, name, "the measurement", 0.0, 0.0, psnr(y, truth))]
    for label, more in (("ReTune, restore", ()), ("ReTune, restore, no certificate, no report", PLAIN)):
        out = place / ("plain" if more else "whole")
        took = command([*RESTORE, str(file), *told, *more, "--out", str(out)], threads)
        rows.append(Row(problem, name, label, *took, psnr(np.load(out / file.name), truth)))
    for label, program in others.items():
        if label.startswith("BM3D") and importlib.util.find_spec("bm3d") is None:
            continue
        out = place / "other.npy"
        took = command(["-c", BEGIN + program + END, str(file), str(out)], threads)
        rows.append(Row(problem, name, label, *took, psnr(np.load(out), truth)))
    return rows


def table(rows: list[Row]) -> str:
    """Means over the files, the best PSNR first."""
    lines = []
    for problem in dict.fromkeys(r.problem for r in rows):
        lines += [f"\n| {problem} | PSNR (dB) | processor s | peak MiB |", "|---|---|---|---|"]
        groups: dict[str, list[Row]] = {}
        for r in rows:
            if r.problem == problem:
                groups.setdefault(r.contender, []).append(r)
        mean = {
            k: [statistics.mean(getattr(r, f) for r in g) for f in ("psnr", "seconds", "memory")]
            for k, g in groups.items()
        }
        for label, (quality, seconds, memory) in sorted(mean.items(), key=lambda pair: -pair[1][0]):
            cost = "| | |" if seconds == 0 else f"| {seconds:.1f} | {memory:.0f} |"
            lines.append(f"| {label} | {quality:.2f} {cost}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256, help="side of the files in pixels")
    parser.add_argument("--files", type=int, default=len(PHOTOGRAPHS), help="number of photographs")
    parser.add_argument("--threads", type=int, default=1, help="threads of every contender")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        for name in PHOTOGRAPHS[: options.files]:
            x = photograph(name, options.side)
            truth = middle(x, options.side)
            noisy = truth + NOISE * rng.normal(size=truth.shape)
            axes = (BLUR, BLUR, 0)[: x.ndim]
            blurred = middle(gaussian_filter(x, axes, mode="nearest"), options.side)
            blurred = blurred + BLURRED_NOISE * rng.normal(size=truth.shape)
            rows += race("noise", name, noisy, truth, DENOISERS, Path(place), options.threads)
            rows += race("blur", name, blurred, truth, DEBLURRERS, Path(place), options.threads)
    print(f"{options.files} photographs of {options.side} × {options.side}, {options.threads} thread(s)")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
