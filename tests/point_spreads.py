"""Kernels as people have them: simulated, measured, stored in whole numbers; and broken ones."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import j1

from retune.problems import kernel


def radii(n, m=None, down=0.0, right=0.0):
    return np.meshgrid(np.arange(n) - (n - 1) / 2 - down, np.arange(m or n) - ((m or n) - 1) / 2 - right, indexing="ij")


def gauss(n, sigma, other=None, degrees=0, **place):
    y, x = radii(n, **place)
    t = np.radians(degrees)
    along, across = x * np.cos(t) + y * np.sin(t), y * np.cos(t) - x * np.sin(t)
    return np.exp(-(along**2) / 2 / sigma**2 - across**2 / 2 / (other or sigma) ** 2)


def airy(n, zero):
    r = 3.8317 / zero * np.hypot(*radii(n)) + 1e-9
    return (2 * j1(r) / r) ** 2


def moffat(n, width, power):
    return (1 + np.hypot(*radii(n)) ** 2 / width**2) ** -power


def disc(n, radius, hole=0.0, fine=8):
    r = np.hypot(*radii(n * fine)) / fine
    return ((r <= radius) & (r >= hole)).astype(float).reshape(n, fine, n, fine).mean((1, 3))


def box(n, side):
    weights = np.clip(side / 2 - np.abs(np.arange(n) - (n - 1) / 2) + 0.5, 0, 1)
    return np.outer(weights, weights)


def optics(n, coma=0.0, defocus=0.0, astigmatism=0.0, obstruction=0.0, side=128):
    """The diffraction of a pupil with aberrations, in radians."""
    y, x = (4 * v / (side / 2) for v in radii(side))
    r, t = np.hypot(y, x), np.arctan2(y, x)
    phase = coma * (3 * r**3 - 2 * r) * np.cos(t) + defocus * (2 * r**2 - 1) + astigmatism * r**2 * np.cos(2 * t)
    pupil = ((r <= 1) & (r >= obstruction)) * np.exp(1j * phase)
    image = np.abs(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(pupil)))) ** 2
    middle, reach = side // 2, n // 2
    return image[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1]


def shaken(n, seed, width=0.6):
    """The path of a hand-held camera."""
    steps = np.random.default_rng(seed).normal(size=(400, 2)).cumsum(0).cumsum(0)
    steps -= steps.mean(0)
    places = np.round(steps * n * 0.3 / np.abs(steps).max() + (n - 1) / 2).astype(int)
    k = np.zeros((n, n))
    np.add.at(k, tuple(places.T), 1)
    return gaussian_filter(k, width) if width else k


def motion(n, length, degrees, width=0.0):
    k = kernel(f"motion:{length}@{degrees}")[0, 0].double().numpy()
    k = np.pad(k, (n - k.shape[0]) // 2)
    return gaussian_filter(k, width) if width else k


def bits(k, depth=8):
    return np.round((2**depth - 1) * k / k.max())


def noisy(k, sigma, seed=0):
    return k / k.max() + sigma * np.random.default_rng(seed).normal(size=k.shape)


def over(k, pedestal):
    return k / k.max() + pedestal


def moved(k, down, right):
    return np.roll(k, (down, right), (0, 1))


FINE = {
    "a point": bits(gauss(9, 0.1)),
    "one pixel": np.ones((1, 1)),
    "a row": np.ones((1, 9)),
    "3×3": np.array([[0, 0.1, 0], [0.1, 0.6, 0.1], [0, 0.1, 0]]),
    "sharpening": np.array([[0, -0.2, 0], [-0.2, 1.8, -0.2], [0, -0.2, 0]]),
    "tent": np.outer([1, 2, 3, 2, 1.0], [1, 2, 3, 2, 1.0]),
    **{f"Gaussian {s} in {n}": gauss(n, s) for n, s in [(3, 1), (5, 2), (7, 4), (9, 1.5), (21, 1), (21, 6), (41, 3)]},
    **{f"8-bit Gaussian {s} in {n}": bits(gauss(n, s)) for n, s in [(11, 3), (21, 2), (31, 3)]},
    **{f"oblong {a}×{b}": gauss(21, a, b, d) for a, b, d in [(1.5, 5, 0), (1, 8, 45)]},
    "in 9×15": gauss(9, 1.5, m=15),
    "half a pixel off": gauss(21, 2, down=0.5, right=0.4),
    **{f"Airy {z} in {n}": airy(n, z) for n in (11, 15, 25, 41) for z in (2, 3, 4.5, 6.38, 9)},
    **{f"Moffat {w} {p} in {n}": moffat(n, w, p) for n in (15, 31) for w in (1, 2, 5) for p in (1, 1.5, 2.5, 4.765)},
    **{f"8-bit Moffat {w} {p}": bits(moffat(31, w, p)) for w, p in [(1.7, 1.2), (3, 2.5), (6, 1.8)]},
    "Kolmogorov": moffat(41, 3, 11 / 6),
    "exponential": np.exp(-np.hypot(*radii(21)) / 4),
    "core and halo": gauss(31, 1.5) + 0.05 * gauss(31, 8),
    **{f"disc {r} in {n}": disc(n, r) for n, r in [(7, 3), (11, 5.5), (21, 6), (21, 10)]},
    **{f"soft 8-bit disc {s}": bits(gaussian_filter(disc(31, 8), s)) for s in (0.5, 1, 2)},
    "ring": disc(31, 12, 4),
    "ring in its array": disc(21, 10, 8),
    **{f"box {s} in {n}": box(n, s) for n, s in [(3, 3), (9, 9), (9, 7.2), (15, 14.1), (21, 9), (21, 20.2)]},
    "soft 8-bit box": bits(gaussian_filter(box(25, 9), 1)),
    "box of boxes": np.outer(np.convolve(np.ones(9), np.ones(3)), np.convolve(np.ones(9), np.ones(3))),
    "noisy box": noisy(box(9, 9), 0.02),
    **{f"motion at {d}": motion(21, 15, d) for d in (0, 30, 45, 77)},
    **{f"soft 8-bit motion at {d}": bits(motion(31, 15, d, 1.0)) for d in (0, 30)},
    "motion of even length": motion(15, 8, 20),
    **{f"shaken {s}": shaken(27, s) for s in range(4)},
    **{f"noisy and shaken {s}": noisy(shaken(41, s), 0.004) for s in range(2)},
    **{f"coma {a}": optics(31, coma=a) for a in (0.3, 0.6, 1.0, 1.5)},
    "defocus": optics(31, defocus=3),
    "astigmatism": optics(31, defocus=1, astigmatism=1, coma=0.3),
    "a telescope": optics(31, obstruction=0.4),
    **{f"noise {s}": noisy(gauss(31, 2.5), s) for s in (0.001, 0.005, 0.02)},
    **{f"noise {s} cut at 0": noisy(gauss(31, 3), s).clip(0) for s in (0.001, 0.003)},
    "noisy Moffat": noisy(moffat(31, 3, 2.5), 0.003),
    "noisy Airy": noisy(airy(31, 9), 0.005),
    **{f"{n} photons": np.random.default_rng(n).poisson(n * gauss(25, 2)).astype(float) for n in (100, 1000)},
}

BROKEN = {
    **{
        f"Gaussian {s} over {p:.0%}": (over(gauss(n, s), p), "background")
        for p in (0.01, 0.03, 0.1)
        for n, s in [(15, 1.5), (21, 2), (31, 3)]
    },
    "camera offset": (np.round(4000 * gauss(21, 2) + 100), "background"),
    "camera offset, photons": (
        np.random.default_rng(0).poisson(2000 * gauss(25, 2) + 60).astype(float),
        "background",
    ),
    "offset and noise": (noisy(gauss(41, 2), 0.005) + 0.05, "background"),
    "Airy over 3 %": (over(airy(31, 4.5), 0.03), "background"),
    "Moffat over 3 %": (over(moffat(31, 2, 2.5), 0.03), "background"),
    "disc over 3 %": (over(disc(31, 6.5), 0.03), "background"),
    "motion over 3 %": (over(motion(25, 15, 30), 0.03), "background"),
    "shaken over 3 %": (over(shaken(27, 1), 0.03), "background"),
    "Gaussian 2 down": (moved(gauss(31, 2), 2, 0), "off-centre"),
    "disc 3 left": (moved(disc(31, 5), 0, -3), "off-centre"),
    "box 4 down and right": (moved(box(31, 9), 4, 4), "off-centre"),
    "motion 6 up": (moved(motion(31, 9, 30), -6, 2), "off-centre"),
    "noisy, 3 left": (noisy(moved(gauss(31, 2), 0, -3), 0.003), "off-centre"),
    "inverted 8-bit Gaussian": (255 - bits(gauss(21, 2)), "inverted"),
    "inverted disc": (255 - 0.8 * bits(disc(21, 5)), "inverted"),
    "saturated Gaussian": (np.minimum(gauss(31, 3), 0.6), "saturated"),
    "saturated 8-bit Gaussian": (np.minimum(2 * bits(gauss(31, 3)), 255), "saturated"),
    "saturated Airy": (np.minimum(airy(41, 7), 0.5), "saturated"),
    "saturated and noisy": (np.minimum(noisy(gauss(31, 3), 0.003).clip(0), 0.5), "saturated"),
    "20×20": (gauss(20, 2), "even"),
}
