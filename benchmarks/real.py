"""``retune restore`` as a user calls it, beside classical methods whose parameters the truth has chosen.

Simulated measurements with unknown borders: a scene that is larger than its image is blurred, and noise is added. Each
is written as a TIFF of 16 bits. The command gets the image, the kernel and nothing else: no noise level, no network, no
white. Each classical method gets the parameter whose result is nearest to the truth, among those of a grid, and the
best of these methods is what ReTune is compared with. PSNR in dB; its peak is the largest value of the truth.

BM3D needs ``pip install bm3d`` and is left out without it.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve
from scipy.special import j1
from skimage.color import rgb2gray
from skimage.restoration import denoise_tv_chambolle, denoise_wavelet, unsupervised_wiener, wiener

Array = np.ndarray
WHITE = 65535
#: Pixels of a scene beyond each border of its image.
MARGIN = 20


@dataclass
class Measurement:
    """A measurement in the units of its file. `kernel` is None if there is no blur; `count` is the unit of a photon."""

    name: str
    truth: Array
    image: Array
    kernel: Array | None
    count: float | None


# --- kernels: odd side, sum 1 ---


def _square(function: Callable[[Array, Array], Array], radius: int) -> Array:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(float)
    kernel = function(y, x)
    return kernel / kernel.sum()


def gaussian(sigma: float) -> Array:
    """A Gaussian of the given standard deviation in pixels."""
    return _square(lambda y, x: np.exp(-(y**2 + x**2) / (2 * sigma**2)), int(4 * sigma) + 1)


def airy(first_zero: float) -> Array:
    """The Airy pattern of a round aperture; `first_zero` is the radius of its first dark ring in pixels."""

    def value(y: Array, x: Array) -> Array:
        v = np.maximum(np.hypot(y, x), 1e-6) * 3.8317 / first_zero
        return (2 * j1(v) / v) ** 2

    return _square(value, int(3 * first_zero))


def moffat(fwhm: float, beta: float = 2.5) -> Array:
    """The profile of a star behind the atmosphere."""
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    return _square(lambda y, x: (1 + (y**2 + x**2) / alpha**2) ** -beta, 15)


def disc(radius: float) -> Array:
    """A lens out of focus, with smooth edges."""
    return _square(lambda y, x: np.clip(radius + 0.5 - np.hypot(y, x), 0, 1), int(radius) + 2)


def motion(length: float, degrees: float) -> Array:
    """A straight line."""
    a = np.deg2rad(degrees)

    def value(y: Array, x: Array) -> Array:
        along, across = x * np.cos(a) + y * np.sin(a), -x * np.sin(a) + y * np.cos(a)
        return np.clip(length / 2 + 0.5 - np.abs(along), 0, 1) * np.clip(1 - np.abs(across), 0, 1)

    return _square(value, int(length / 2) + 2)


def shake(rng: np.random.Generator) -> Array:
    """The path of a hand during the exposure."""
    steps = gaussian_filter(rng.normal(size=(400, 2)), (40, 0))
    path = np.cumsum(steps, 0)
    path = (path - path.mean(0)) * 4 / path.std()
    radius = 12
    kernel, _, _ = np.histogram2d(*path.T, bins=2 * radius + 1, range=[[-radius - 0.5, radius + 0.5]] * 2)
    kernel = gaussian_filter(kernel, 0.6)
    return kernel / kernel.sum()


# --- scenes: arrays with values from 0 to 1 ---


def blobs(side: int, rng: np.random.Generator) -> Array:
    """Vesicles of several sizes on a dim background."""
    yy, xx = np.mgrid[:side, :side]
    x = np.full((side, side), 0.02)
    for _ in range(side * side // 600):
        (cy, cx), r = rng.uniform(0, side, 2), rng.uniform(0.8, 5)
        x += rng.uniform(0.1, 1) * np.exp(-((yy - cy) ** 2 + (xx - cx) ** 2) / (2 * r**2))
    return x / x.max()


def filaments(side: int, rng: np.random.Generator) -> Array:
    """Thin bent fibres, as of microtubules."""
    x = np.zeros((side, side))
    for _ in range(side // 6):
        angle = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.03, 3 * side))
        path = rng.uniform(0, side, 2) + 0.5 * np.stack([np.cumsum(np.sin(angle)), np.cumsum(np.cos(angle))], 1)
        drawn, _, _ = np.histogram2d(*path.T, bins=side, range=[[0, side]] * 2)
        x += rng.uniform(0.3, 1) * drawn
    x = gaussian_filter(x, 0.8) + 0.02 * np.percentile(x, 99)
    return np.minimum(x / np.percentile(x, 99.8), 1)


def cells(side: int, rng: np.random.Generator) -> Array:
    """Cells with a sharp membrane, a textured inside and a bright nucleus."""
    yy, xx = np.mgrid[:side, :side]
    x = np.full((side, side), 0.03)
    for _ in range(max(3, side * side // 2500)):
        (cy, cx), (a, b), turn = rng.uniform(0, side, 2), rng.uniform(12, 26, 2), rng.uniform(0, np.pi)
        u = (xx - cx) * np.cos(turn) + (yy - cy) * np.sin(turn)
        v = -(xx - cx) * np.sin(turn) + (yy - cy) * np.cos(turn)
        r = np.hypot(u / a, v / b)
        texture = 1 + 0.5 * gaussian_filter(rng.normal(size=x.shape), 2) * 4
        inside = 1 / (1 + np.exp((r - 1) * 25))
        x += inside * (
            0.25 * np.clip(texture, 0.2, None) + 0.6 * (r < 0.4) + 0.35 * np.exp(-(((r - 0.97) / 0.05) ** 2))
        )
    return x / x.max()


def stars(side: int, rng: np.random.Generator) -> Array:
    """Stars over a spiral galaxy and the light of the sky."""
    yy, xx = np.mgrid[:side, :side] - side * rng.uniform(0.4, 0.6, (2, 1, 1))
    r, turn = np.hypot(yy / 0.7, xx), np.arctan2(yy / 0.7, xx)
    x = 0.03 + 0.35 * np.exp(-r / (side / 9)) * (1 + 0.5 * np.cos(2 * turn - 5 * np.log(r + 5)))
    x += 0.3 * np.exp(-((r / 5) ** 2))
    for _ in range(side * side // 500):
        (cy, cx), flux = rng.uniform(0, side, 2), min(0.03 * (1 + rng.pareto(1.0)), 0.9)
        y, z = np.mgrid[:side, :side]
        x += flux * np.exp(-((y - cy) ** 2 + (z - cx) ** 2) / (2 * 0.8**2))
    return x / x.max()


def picture(name: str, side: int) -> Array:
    """The middle of a photograph that ships inside scikit-image, grey."""
    x = np.asarray(Image.open(Path(skimage.data.__file__).parent / name).convert("RGB")) / 255
    x = rgb2gray(x)
    top, left = ((n - side) // 2 for n in x.shape)
    if min(top, left) < 0:
        raise ValueError(f"{name} is {x.shape[0]} x {x.shape[1]}, less than {side} pixels")
    return x[top : top + side, left : left + side]


# --- the list ---


def every(side: int, seed: int) -> dict[str, Callable[[], Measurement]]:
    """What makes each measurement, by its name."""
    made: dict[str, Callable[[], Measurement]] = {}

    def add(name: str, scene: Callable[[int, np.random.Generator], Array], kernel: Array | None, **noise: float):
        number = len(made)

        def build() -> Measurement:
            rng = np.random.default_rng([seed, number])
            return measure(name, scene(side + 2 * MARGIN, rng), kernel, rng, **noise)

        made[name] = build

    psfs = {"gauss": gaussian(1.8), "airy": airy(4.0)}
    for i, scene in enumerate((blobs, filaments, cells)):
        for j, photons in enumerate((50, 200, 1000)):
            which = ("gauss", "airy")[(i + j) % 2]
            add(f"{scene.__name__}-{photons}-{which}", scene, psfs[which], photons=photons, read=0.0 if j else 1.5)
    for photons, read, fwhm in ((300, 4.0, 3.5), (2000, 8.0, 3.5), (20000, 12.0, 5.0)):
        add(f"stars-{photons}", stars, moffat(fwhm), photons=photons, read=read)
    shaken = shake(np.random.default_rng([seed, 1000]))
    blurs = {"gauss": gaussian(1.6), "defocus": disc(3.0), "motion": motion(9, 35), "shake": shaken}
    photographs = [
        ("camera.png", "coins.png"),
        ("astronaut.png", "moon.png"),
        ("chelsea.png", "coffee.png"),
        ("motorcycle_left.png", "rocket.jpg"),
    ]
    for (blur, kernel), pair in zip(blurs.items(), photographs, strict=True):
        for sigma, file in zip((0.01, 0.03), pair, strict=True):
            add(f"{Path(file).stem}-{blur}-{sigma}", lambda n, _, f=file: picture(f, n), kernel, sigma=sigma)
    for file, sigma, kernel in (("page.png", 0.02, gaussian(1.2)), ("text.png", 0.01, disc(2.0))):
        add(f"{Path(file).stem}-{sigma}", lambda n, _, f=file: picture(f, min(n, 170)), kernel, sigma=sigma)
    for file, sigma in (("brick.png", 0.05), ("camera.png", 0.1), ("coffee.png", 0.1), ("rocket.jpg", 0.2)):
        add(f"{Path(file).stem}-noise-{sigma}", lambda n, _, f=file: picture(f, n), None, sigma=sigma)
    add("cells-counts-30", cells, None, photons=30)
    add("blobs-counts-100", blobs, None, photons=100, read=2.0)
    return made


def measure(
    name: str,
    scene: Array,
    kernel: Array | None,
    rng: np.random.Generator,
    *,
    photons: float | None = None,
    read: float = 0.0,
    sigma: float = 0.0,
) -> Measurement:
    """Blur and noise; photons are those of the brightest pixel of the scene, `read` is in photons too."""
    blurred = scene if kernel is None else fftconvolve(scene, kernel, mode="same").clip(0)
    # Counts get a gain with which the camera uses most of its range; photographs are on the scale from black to white.
    inside = (slice(MARGIN, -MARGIN),) * 2
    if photons is not None:
        noisy = rng.poisson(blurred * photons) + read * rng.normal(size=scene.shape)
        unit = 0.9 * WHITE / max(noisy[inside].max(), photons)
        truth, noisy = scene * photons * unit, noisy * unit
    else:
        truth, noisy, unit = scene * WHITE, (blurred + sigma * rng.normal(size=scene.shape)) * WHITE, None
    image = noisy.clip(0, WHITE).round().astype(np.uint16)
    return Measurement(name, truth[inside], image[inside], kernel, unit)


# --- the classical methods, on images from 0 to 1, each with a grid of parameters ---


def classics(m: Measurement) -> Iterator[tuple[str, Array]]:
    """Results of every method and parameter, with the name of the method."""
    y = m.image / WHITE
    if m.kernel is None:
        yield from _denoised(y, None if m.count is None else m.count / WHITE)
        return
    r = m.kernel.shape[0] // 2 + 8
    padded = np.pad(y, r, mode="symmetric")

    def inner(x: Array) -> Array:
        return x[r:-r, r:-r].clip(0)

    for balance in np.geomspace(1e-4, 30, 18):
        yield "Wiener", inner(wiener(padded, m.kernel, balance, clip=False))  # pyright: ignore[reportArgumentType]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield "unsupervised Wiener", inner(np.asarray(unsupervised_wiener(padded, m.kernel, clip=False, rng=0)[0]))
    for x in _richardson_lucy(padded.clip(1e-6), m.kernel, 150):
        yield "Richardson-Lucy", inner(x)
    for weight in np.geomspace(1e-5, 3e-2, 11):
        yield "TV", inner(_tv_deblurred(padded, m.kernel, weight))


def _denoised(y: Array, count: float | None) -> Iterator[tuple[str, Array]]:
    level = np.abs((y[::2, ::2] - y[1::2, ::2])[: y.shape[0] // 2 - 1]).mean()  # only the middle of the grids
    for sigma in level * np.geomspace(0.3, 2, 8):
        for method in ("BayesShrink", "VisuShrink"):
            yield method, denoise_wavelet(y, sigma=sigma, method=method, rescale_sigma=True).clip(0)
    for weight in level * np.geomspace(0.2, 4, 10):
        yield "TV", denoise_tv_chambolle(y, weight=weight, eps=1e-5, max_num_iter=300)
    try:
        from bm3d import bm3d  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    for sigma in level * np.geomspace(0.5, 1.7, 6):
        yield "BM3D", np.asarray(bm3d(y, sigma)).clip(0)
    if count is not None:  # Anscombe's transform makes the noise of counts even
        z = 2 * np.sqrt(np.maximum(y / count + 0.375, 0))
        for sigma in np.geomspace(0.7, 1.6, 4):
            d = np.asarray(bm3d(z / z.max(), sigma / z.max())) * z.max()
            d = np.maximum(d, 1.3)
            back = d**2 / 4 + np.sqrt(1.5) / 4 / d - 1.375 / d**2 + 0.625 * np.sqrt(1.5) / d**3 - 0.125
            yield "BM3D, Anscombe", (back * count).clip(0)


def _transfer(kernel: Array, shape: tuple[int, ...]) -> Array:
    put = np.zeros(shape)
    put[: kernel.shape[0], : kernel.shape[1]] = kernel
    return np.fft.rfft2(np.roll(put, [-(n // 2) for n in kernel.shape], (0, 1)))


def _richardson_lucy(y: Array, kernel: Array, iterations: int) -> Iterator[Array]:
    k, x = _transfer(kernel, y.shape), np.full_like(y, y.mean())
    for _ in range(iterations):
        blurred = np.fft.irfft2(k * np.fft.rfft2(x), y.shape).clip(1e-9)
        x = x * np.fft.irfft2(k.conj() * np.fft.rfft2(y / blurred), y.shape).clip(0)
        yield x


def _tv_deblurred(y: Array, kernel: Array, weight: float, iterations: int = 60) -> Array:
    """``½‖k ∗ x − y‖² + weight · TV(x)`` by ADMM (periodic)."""
    k = _transfer(kernel, y.shape)
    d = [_transfer(v, y.shape) for v in (np.array([[0.0, 0, 0], [0, -1, 1], [0, 0, 0]]).T, np.array([[0, -1.0, 1]]))]
    rho = 10 * weight
    below = np.abs(k) ** 2 + rho * sum(np.abs(v) ** 2 for v in d) + 1e-12
    data = k.conj() * np.fft.rfft2(y)
    z, u = np.zeros((2, *y.shape)), np.zeros((2, *y.shape))
    x = y
    for _ in range(iterations):
        right = data + rho * sum(v.conj() * np.fft.rfft2(a) for v, a in zip(d, z - u, strict=True))
        f = right / below
        x = np.fft.irfft2(f, y.shape)
        g = np.stack([np.fft.irfft2(v * f, y.shape) for v in d]) + u
        size = np.sqrt((g**2).sum(0))
        z = g * (1 - (weight / rho) / np.maximum(size, weight / rho))
        u = g - z
    return x


# --- the comparison ---


def psnr(x: Array, truth: Array) -> float:
    """In dB, with the largest value of the truth as peak."""
    return float(10 * np.log10(truth.max() ** 2 / np.mean((x - truth) ** 2)))


def restored(measurements: list[Measurement], out: Path) -> dict[str, tuple[Array, float]]:
    """Results of the command line and their seconds; one command for all images of one kernel."""
    groups: dict[bytes, list[Measurement]] = {}
    for m in measurements:
        groups.setdefault(b"" if m.kernel is None else m.kernel.tobytes(), []).append(m)
    found = {}
    for number, group in enumerate(groups.values()):
        files = [out / "measured" / f"{m.name}.tif" for m in group]
        for file, m in zip(files, group, strict=True):
            tifffile.imwrite(file, m.image)
        kernel, problem = group[0].kernel, ["--problem", "denoise"]
        if kernel is not None:
            tifffile.imwrite(out / f"kernel-{number}.tif", kernel.astype(np.float32))
            problem = ["--problem", "deblur", "--kernel", str(out / f"kernel-{number}.tif")]
        command = [
            sys.executable,
            "-m",
            "retune",
            "restore",
            *map(str, files),
            *problem,
            "--out",
            str(out / "restored"),
        ]
        begin = time.perf_counter()
        done = subprocess.run([*command, "--no-certificate", "--no-report"], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        seconds = (time.perf_counter() - begin) / len(group)
        for m in group:
            found[m.name] = tifffile.imread(out / "restored" / f"{m.name}.tif").astype(float), seconds
    return found


def best_classic(m: Measurement) -> tuple[str, Array]:
    """The result nearest to the truth, and its method."""
    method, image = max(classics(m), key=lambda pair: psnr(pair[1] * WHITE, m.truth))
    return method, image * WHITE


def save_picture(file: Path, images: list[Array], peak: float) -> None:
    """Images side by side, brightened by a square root for counts."""
    row = np.concatenate([(x / peak).clip(0, 1) ** 0.6 for x in images], 1)
    Image.fromarray((255 * row).round().astype(np.uint8)).save(file)


def table(rows: list[dict]) -> str:
    """The rows as a table, and what follows from them."""
    lines = [
        "| measurement | measured | best classic | | ReTune | difference | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        ours, classic = (f"{r[k]:.2f}" for k in ("ours", "classic"))
        ours, classic = (f"**{ours}**", classic) if r["difference"] > 0 else (ours, f"**{classic}**")
        lines.append(
            f"| {r['name']} | {r['measured']:.2f} | {classic} | {r['method']} | {ours} | {r['difference']:+.2f} | "
            f"{r['seconds']:.0f} |"
        )
    wins, below = sum(r["difference"] > 0 for r in rows), [r["name"] for r in rows if r["ours"] < r["measured"]]
    mean = sum(r["difference"] for r in rows) / len(rows)
    lines.append(
        f"\nAhead of the best classical method in {wins} of {len(rows)}; mean difference {mean:+.2f} dB; below the "
        f"measured image: {', '.join(below) or 'never'}."
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="measurements whose name contains this; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("real"), help="folder for images, pictures and table.csv")
    parser.add_argument("--seed", type=int, default=19)
    parser.add_argument("--side", type=int, default=128, help="of the images, in pixels")
    given = parser.parse_args(arguments)
    for name in ("measured", "pictures"):
        (given.out / name).mkdir(parents=True, exist_ok=True)
    chosen = [f for n, f in every(given.side, given.seed).items() if not given.only or any(o in n for o in given.only)]
    if not chosen:
        raise SystemExit(
            f"no measurement is called {', '.join(given.only)}: {', '.join(every(given.side, given.seed))}"
        )
    measurements = [f() for f in chosen]
    ours = restored(measurements, given.out)
    rows = []
    for m in measurements:
        method, classic = best_classic(m)
        image, seconds = ours[m.name]
        row = {
            "name": m.name,
            "measured": psnr(m.image, m.truth),
            "classic": psnr(classic, m.truth),
            "method": method,
            "ours": psnr(image, m.truth),
            "seconds": seconds,
        }
        row["difference"] = row["ours"] - row["classic"]
        rows.append(row)
        print(f"{m.name:24} {row['measured']:6.2f} {row['classic']:6.2f} {row['ours']:6.2f} {method}", file=sys.stderr)
        shown = [m.image.astype(float), classic, image, m.truth]
        save_picture(given.out / "pictures" / f"{m.name}.png", shown, float(m.truth.max()))
    with (given.out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
