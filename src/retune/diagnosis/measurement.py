"""Checks of the measurement: finite values, range, clipping and noise level."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from deepinv.physics import GaussianNoise, NoiseModel, ZeroNoise
from torch import Tensor

from retune.diagnosis.correlation import ALIKE, REMEDY, correlation
from retune.diagnosis.exam import FAILURES, Exam
from retune.diagnosis.findings import Finding, Severity
from retune.errors import advice
from retune.operators.images import parts
from retune.operators.kinds import mask_of

__all__ = ["check_finite", "check_noise", "check_values", "noise_level"]

_MAD = 0.6744897501960817  # the median of |N(0, 1)|
_ENOUGH = 100  # samples for a median
_WHITE = (255, 1023, 4095, 16383, 65535)  # 8, 10, 12, 14 and 16 bits
_SMALL = 16  # smaller sides have too few wavelet coefficients


def check_finite(y) -> Iterator[Finding]:
    """NaN and Inf."""
    bad = sum(int((~torch.isfinite(p)).sum()) for p in parts(y))
    total = sum(p.numel() for p in parts(y))
    if bad:
        yield Finding(
            "finite",
            Severity.PROBLEM,
            f"{bad} of {total} values of y are NaN or Inf",
            f"Mask them out ({advice('deepinv.physics.Inpainting', '--problem inpaint --mask FILE')}) or replace them; "
            "the rest of y was not examined.",
            {"bad": bad, "total": total},
        )
    else:
        yield Finding("finite", Severity.OK, f"all {total} values of y are finite", "", {"bad": 0, "total": total})


def check_values(exam: Exam) -> Iterator[Finding]:
    """Compare the range of y with that of A applied to images in [0, 1], and check for clipping."""
    y = exam.y
    if not isinstance(y, Tensor) or y.is_complex():
        return
    if exam.linear and not exam.pictures:
        return  # Fourier data, random projections and differences have no white level and can be negative
    seen = _observed(exam)
    values = y if seen is None else y[seen]
    if values.numel() == 0:
        return
    low, high = float(values.min()), float(values.max())
    reach = _reach(exam)
    noise = 0.0 if exam.sigma is None else float(exam.sigma.max())
    numbers = {"min": low, "max": high, "reach": reach}
    if reach is not None:
        yield _range(low / reach, high / reach, low, high, noise / reach, numbers)
    yield from _clipping(values, low, high, noise)


def _range(low: float, high: float, shown_low: float, shown_high: float, noise: float, numbers: dict) -> Finding:
    """`low` and `high` are in units of A applied to a white image."""
    text = f"y lies in [{shown_low:.4g}, {shown_high:.4g}]"
    if high > 3 + 6 * noise and high > 4 * noise:
        # noise and overshoot may exceed the white level
        white = next((w for w in _WHITE if high <= 1.25 * w + 6 * noise), None)
        scale = "of some other unit" if white is None else f"0 to {white}"
        return Finding(
            "range",
            Severity.PROBLEM,
            f"{text}: this looks like the scale {scale}, but images in [0, 1] are expected",
            advice(
                f"Divide y by {white or 'its white level'}", f"Give the intensity of white: --white {white or 'NUMBER'}"
            )
            + ". λ, σ and denoisers assume [0, 1].",
            numbers,
        )
    if low < -0.3 - 6 * noise:
        return Finding(
            "range",
            Severity.WARNING,
            f"{text}: more negative than noise explains, as if y were standardised or in [−1, 1]",
            "Scale images to [0, 1] first, for example with (y + 1)/2 from [−1, 1]"
            + advice(".", " (--black and --white do so)."),
            numbers,
        )
    if 0 <= high < 0.05:
        return Finding(
            "range",
            Severity.WARNING,
            f"{text}: very dark, as if y had been divided by the white level twice",
            "Check the scale: images in [0, 1] are expected.",
            numbers,
        )
    return Finding("range", Severity.OK, f"{text}, as expected for images in [0, 1]", "", numbers)


def _clipping(values: Tensor, low: float, high: float, noise: float) -> Iterator[Finding]:
    total = values.numel()
    shares = {"low": float((values == low).sum()) / total, "high": float((values == high).sum()) / total}
    if high > low and max(shares.values()) > 0.01 and min(values.unique().numel(), 10) == 10:
        ends = " and ".join(
            f"{shares[k]:.1%} at {v:.4g}" for k, v in (("low", low), ("high", high)) if shares[k] > 0.01
        )
        noisy = noise > 2e-3 * (high - low)
        yield Finding(
            "clipping",
            Severity.WARNING if noisy else Severity.NOTE,
            f"{ends} exactly: y was clipped" + ("" if noisy else ", or the scene is flat there"),
            "Clipped values contradict y = Ax + noise: avoid saturation, keep values below 0, or mask the clipped "
            "pixels.",
            {"share_low": shares["low"], "share_high": shares["high"]},
        )
    else:
        yield Finding(
            "clipping",
            Severity.OK,
            f"{shares['low']:.2%} of the values equal the minimum, {shares['high']:.2%} the maximum",
            "",
            {"share_low": shares["low"], "share_high": shares["high"]},
        )


def check_noise(exam: Exam) -> Iterator[Finding]:
    """Compare the noise level of y, per channel, with the level of the physics."""
    y = exam.y
    if not isinstance(y, Tensor) or y.ndim != 4 or y.is_complex():
        yield _unknown("y is not a batch of real images")
        return
    if exam.linear and not exam.pictures:
        yield _unknown("y is not a picture: A maps nonnegative images to values of both signs")
        return
    sigma, how = noise_level(y, _observed(exam))
    if sigma is None:
        yield _unknown(how)
        return
    exam.sigma = sigma
    yield from _white(exam, y)
    spread = _spread(y) if _observed(exam) is None else None
    by_channel = sigma.mean(0)
    declared, kind = _declared(getattr(exam.physics, "noise_model", None), y.shape[1])
    numbers = {
        "sigma": [[float(s) for s in row] for row in sigma],
        "declared": None if declared is None else [float(s) for s in declared],
        "method": how,
        "spread": spread,
    }
    text = f"σ ≈ {_levels(by_channel)} ({how})"
    if spread is not None and spread > 2.5:
        text += (
            f"; unreliable: it varies {spread:.1f}-fold over the image, so texture or signal-dependent noise "
            "contributes"
        )
    if declared is None:
        note = kind is not None or (spread is not None and spread > 2.5)
        remedy = (
            f"The physics has {kind}: the estimate is an average over the image."
            if kind
            else (f"Give {advice('sigma', '--sigma')} yourself if you know it." if note else "")
        )
        yield Finding("noise", Severity.NOTE if note else Severity.OK, text, remedy, numbers)
        return
    unit = max(float(y.amax() - y.amin()), 1e-12)
    above = by_channel > 1.5 * declared + 0.02 * unit
    below = by_channel < declared / 1.5 - 5e-3 * unit
    if bool((above | below).any()):
        yield Finding(
            "noise",
            Severity.WARNING,
            f"{text}, but the physics says {_levels(declared)}",
            advice("Give the physics the noise level of y", "Give the noise level of the image (--sigma)")
            + ": data weights, denoisers and SURE use it"
            + (" (strong texture can also raise the estimate)." if bool(above.any()) else "."),
            numbers,
        )
    else:
        yield Finding("noise", Severity.OK, f"{text}; the physics says {_levels(declared)}", "", numbers)


def _white(exam: Exam, y: Tensor) -> Iterator[Finding]:
    """Correlated noise. White noise gives no finding."""
    if _observed(exam) is not None:
        return
    grown = [c for c in (correlation(one[None]) for one in y) if c is not None]
    if grown:
        yield Finding(
            "noise",
            Severity.WARNING,
            f"y {ALIKE}: the variance of differences grows {max(grown):.2g}-fold from distance 1 to 2",
            f"{REMEDY}.",
            {"growth": max(grown)},
        )


def noise_level(y: Tensor, seen: Tensor | None = None) -> tuple[Tensor | None, str]:
    """Standard deviation (B, C) of the noise in images (B, C, H, W), and the method; or None and the reason.

    Whole images: the median of the finest diagonal wavelet coefficients, scikit-image's ``estimate_sigma`` (Donoho
    and Johnstone, *Biometrika* 81(3), 1994). With a mask (`seen`, True where observed), only observed pixels are used:
    the median of ``|a − b − c + d|/2`` over fully observed 2×2 blocks; with fewer than 100 such blocks, the median of
    ``|a − b|/√2`` over observed neighbours, which image gradients raise. Texture raises all these estimates.
    """
    if seen is None:
        if min(y.shape[-2:]) < _SMALL:
            return None, f"{y.shape[-2]}×{y.shape[-1]} pixels are too few to tell noise from image"
        planes = y.detach().double().cpu().flatten(0, 1).numpy()
        levels = [_wavelet_level(plane) for plane in planes]
        return torch.tensor(levels, dtype=torch.float64).view(y.shape[:2]), "median of the diagonal wavelet details"
    levels, methods = [], set()
    for plane, mask in zip(y.detach().double().flatten(0, 1), seen.flatten(0, 1), strict=True):
        level, method = _masked_level(plane, mask)
        if level is None:
            return None, "too few neighbouring pixels are observed"
        levels.append(level)
        methods.add(method)
    how = "observed 2×2 blocks" if methods == {"blocks"} else "observed neighbours, which edges raise"
    return torch.tensor(levels, dtype=torch.float64).view(y.shape[:2]), f"median over {how}"


def _wavelet_level(plane: np.ndarray) -> float:
    if float(plane.max()) == float(plane.min()):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no coefficients are left for the median: there is no noise
        from skimage.restoration import estimate_sigma  # here, because its import takes a second, for scipy.stats

        level = float(np.asarray(estimate_sigma(plane)))
    return level if np.isfinite(level) else 0.0


def _masked_level(plane: Tensor, seen: Tensor) -> tuple[float | None, str]:
    a, b, c, d = plane[:-1, :-1], plane[:-1, 1:], plane[1:, :-1], plane[1:, 1:]
    whole = seen[:-1, :-1] & seen[:-1, 1:] & seen[1:, :-1] & seen[1:, 1:]
    samples = ((a - b - c + d) / 2)[whole]
    if samples.numel() >= _ENOUGH:
        return float(samples.abs().median()) / _MAD, "blocks"
    beside, below = seen[:, :-1] & seen[:, 1:], seen[:-1] & seen[1:]
    pairs = torch.cat([(plane[:, 1:] - plane[:, :-1])[beside], (plane[1:] - plane[:-1])[below]]) / 2**0.5
    return (float(pairs.abs().median()) / _MAD, "pairs") if pairs.numel() >= _ENOUGH else (None, "")


def _observed(exam: Exam) -> Tensor | None:
    """Booleans (B, C, H, W) of the measured values; None if all values are measured.

    In a mask with weights, only pixels of the largest weight count: the other weights scale the noise, too.
    """
    if not isinstance(exam.y, Tensor):
        return None
    mask = mask_of(exam.physics)
    if mask is None:
        seen = exam.measured
        return None if seen is None or seen.shape != exam.y.shape else seen.to(exam.y.device)
    mask = mask.abs().expand(exam.y.shape)
    seen = mask >= 0.99 * mask.max()
    return None if bool(seen.all()) else seen


def _reach(exam: Exam) -> float | None:
    """The largest value of A applied to a white image; None if it is near 0 (differences) and so tells nothing."""
    if not exam.linear:
        return None
    try:
        white = exam.physics.A(torch.ones(exam.shape, dtype=exam.dtype, device=exam.device))
    except FAILURES:
        return None
    top = max(float(p.abs().max()) for p in parts(white))
    scale = 1.0 if exam.sqnorm is None else float(exam.sqnorm.max()) ** 0.5
    return top if top > 1e-3 * scale else None


def _spread(y: Tensor) -> float | None:
    """Largest over smallest estimate on the four quarters of an image; the worst image of the batch counts."""
    height, width = (n // 2 for n in y.shape[-2:])
    if min(height, width) < _SMALL:
        return None
    quarters = [y[..., i : i + height, j : j + width] for i in (0, height) for j in (0, width)]
    levels = torch.stack([noise_level(q)[0] for q in quarters])  # pyright: ignore[reportArgumentType] - large enough
    floor = 1e-3 * float(y.amax() - y.amin()) + 1e-12
    return float((levels.amax(0).clamp_min(floor) / levels.amin(0).clamp_min(floor)).max())


def _declared(model: object, channels: int) -> tuple[Tensor | None, str | None]:
    if type(model) is GaussianNoise or getattr(model, "is_gaussian", False):
        sigma = cast(GaussianNoise, model).sigma.detach().double().cpu().flatten()
        return (sigma.expand(channels), None) if len(sigma) in (1, channels) else (None, None)
    if isinstance(model, ZeroNoise) or not isinstance(model, NoiseModel):
        return None, None  # deepinv's default: the noise level is not set
    return None, type(model).__name__


def _levels(sigma: Tensor) -> str:
    values = [f"{float(s):.3g}" for s in sigma]
    return values[0] if len(set(values)) == 1 else ", ".join(values)


def _unknown(why: str) -> Finding:
    return Finding("noise", Severity.NOTE, f"not estimated: {why}", f"Give {advice('sigma', '--sigma')} yourself.")
