"""Check whether this operator can have produced y, with and without the true image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from retune._torch.batch import over_images
from retune.diagnosis.copies import duplicate
from retune.diagnosis.exam import FAILURES, Exam
from retune.diagnosis.findings import Finding, Severity
from retune.operators.images import parts
from retune.operators.kinds import kernel_of, mask_of, with_kernel

__all__ = ["check_consistency", "check_pair", "check_shape"]

# Numbers of steps: the first confirms most correct operators, the second comes before any warning. For y = Ax, the
# residual after k steps is at most ‖A‖‖x‖/(2k + 1) (Nemirovskii, *USSR Comput. Math.* 26(2), 1986), for any texture.
_STEPS, _MORE = 20, 200
# With the right kernel, blurred photographs stay below 1.4 (texture). A wrong kernel exceeds 1.6 at low noise.
_MISFIT = 1.6  # times the residual of pure noise
_BORDER = 1.6  # times the misfit of the interior
_FLOOR = 2e-3  # of the range of y: rounding of 8-bit images


def check_shape(exam: Exam) -> Iterator[Finding]:
    """Check that A maps an image to the shape of y."""
    try:
        made = [tuple(p.shape) for p in parts(exam.physics.A(exam.probe(0)))]  # pyright: ignore[reportCallIssue]
    except FAILURES:
        return
    given = [tuple(p.shape) for p in parts(exam.y)]
    if made != given:
        one = len(given) == 1 == len(made)
        exam.y = None
        yield Finding(
            "shape",
            Severity.PROBLEM,
            f"A maps images {tuple(exam.shape)} to {made[0] if one else made}, but y is {given[0] if one else given}",
            "Make y with physics(x), or rebuild the physics for this image size.",
            {"made": [list(s) for s in made], "given": [list(s) for s in given]},
        )


def check_consistency(exam: Exam) -> Iterator[Finding]:
    """Compare the least-squares residual of y with that of white noise of the estimated level."""
    y = exam.y
    if not exam.sound or exam.sqnorm is None or not isinstance(y, Tensor) or y.ndim != 4 or y.is_complex():
        return
    mask = mask_of(exam.physics)
    if mask is not None:
        yield _mask_and_data(exam, y, mask.expand(y.shape))
        return
    generator = torch.Generator().manual_seed(20260102)
    white = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)
    fits_y, fits_w = _LeastSquares(exam, y), _LeastSquares(exam, white)
    left_y, left_w = fits_y.residual(_STEPS), fits_w.residual(_STEPS)
    share = float(left_w.square().mean() ** 0.5)
    if share < 0.05:
        yield Finding(
            "consistency",
            Severity.OK,
            "A can explain any y, so this check cannot find an error",
            "",
            {"share_of_noise_left": share},
        )
        return
    if exam.sigma is None:
        return
    sigma = exam.sigma.to(y).clamp_min(_FLOOR * float(y.amax() - y.amin()))[..., None, None]
    numbers = _misfit(exam, left_y / sigma, left_w, 0.0)
    numbers |= {"steps": _STEPS, "share_of_noise_left": share}
    if _contradicts(numbers):  # or y has fine texture without noise, which is fitted slowly
        unfitted = float((y.abs().amax() / sigma).max()) * (exam.shape.numel() / y.numel()) ** 0.5 / (2 * _MORE + 1)
        numbers |= _misfit(exam, fits_y.residual(_MORE) / sigma, fits_w.residual(_MORE), unfitted) | {"steps": _MORE}
    ratio, at_border, within = numbers["ratio"], numbers["border"], numbers["interior"]
    steps = numbers["steps"]
    about = f"{ratio:.1f} times what noise of the estimated level leaves after {steps} least-squares steps"
    if at_border > max(_MISFIT, _BORDER * within):
        yield Finding(
            "consistency",
            Severity.WARNING,
            f"y contradicts A at the borders: the residual is {at_border:.1f} times that of noise there, {within:.1f} "
            "times inside",
            "The boundary condition does not fit the scene: use valid, reflect or replicate padding, or crop.",
            numbers,
        )
    elif ratio > _MISFIT:
        yield Finding(
            "consistency",
            Severity.WARNING,
            f"y contradicts A: the residual is {about}",
            "The kernel is too wide or wrong, or y is saturated, or the noise is not white: compare with a measured "
            "point or edge.",
            numbers,
        )
    else:
        yield Finding("consistency", Severity.OK, f"y fits A: the residual is {about}", "", numbers)


def _misfit(exam: Exam, left: Tensor, noise: Tensor, unfitted: float) -> dict[str, float]:
    """The ratio of the residual to that of white noise, for all pixels, the border and the interior.

    The residual is in units of σ, minus the bound on the residual of a consistent y after these steps.
    """

    def ratio(where: Tensor) -> float:
        beyond = max(0.0, _rms(left[..., where]) ** 2 - unfitted**2) ** 0.5
        return beyond / _rms(noise[..., where])

    border, inside = _border(exam, left.shape[-2:])
    return {"ratio": ratio(border | inside), "border": ratio(border), "interior": ratio(inside)}


def _contradicts(numbers: dict[str, float]) -> bool:
    return numbers["ratio"] > _MISFIT or numbers["border"] > max(_MISFIT, _BORDER * numbers["interior"])


def check_pair(exam: Exam, x: Tensor) -> Iterator[Finding]:
    """Check a measured pair: compare y with ``a·Ax + b``, also with the kernel turned by 180°."""
    y = exam.y
    if not exam.linear or not isinstance(y, Tensor):
        return
    made = exam.physics.A(x.to(exam.device, exam.dtype))
    assert isinstance(made, Tensor)
    scale = float((y - y.mean()).norm())
    if scale == 0 or y.is_complex():
        return
    gain, offset, left = _fit(made, y)
    # Compare away from the borders: a wrong boundary condition would hide the effect of the kernel.
    inside = _border(exam, y.shape[-2:], 8)[1].to(y.device) if y.ndim == 4 else torch.ones(y.shape[-1:]).bool()
    rest = _fit(made[..., inside], y[..., inside])[2] / scale
    turned = _turned(exam, x.to(exam.device, exam.dtype), made.shape)
    other = None if turned is None else _fit(turned[..., inside], y[..., inside])[2] / scale
    shift, moved = _shift(made, y)
    moved /= scale
    numbers = {"gain": gain, "offset": offset, "residual": rest, "residual_turned": other, "shift": list(shift)}
    fits = f"y = {gain:.3g}·Ax {'+' if offset >= 0 else '−'} {abs(offset):.2g} to {left / scale:.1%} of its contrast"
    if other is not None and other < 0.7 * rest:
        yield Finding(
            "pair",
            Severity.PROBLEM,
            f"the kernel is applied flipped: it leaves {rest:.1%} of the contrast of y unexplained, turned by 180° "
            f"only {other:.1%}",
            "Give the physics kernel.flip(-2, -1): deepinv convolves, and your kernel was meant for a correlation.",
            numbers,
        )
    elif shift != (0, 0) and moved < 0.7 * rest:
        yield Finding(
            "pair",
            Severity.WARNING,
            f"y is shifted by {shift[0]:+d} rows and {shift[1]:+d} columns relative to Ax",
            "Register the two images, or roll the kernel by the same amount.",
            numbers,
        )
    elif abs(gain - 1) > 0.1 or abs(offset) > 0.05 * max(float(y.amax() - y.amin()), 1e-12):
        yield Finding(
            "pair",
            Severity.WARNING,
            fits,
            "Bring x and y to the same scale: subtract the black level and divide by the white level.",
            numbers,
        )
    elif exam.sigma is not None and left > 2 * _expected(exam, y):
        yield Finding(
            "pair",
            Severity.WARNING,
            f"{fits}, which is {left / _expected(exam, y):.1f} times what the noise explains",
            "The kernel, the boundary or the registration of the pair is wrong.",
            numbers,
        )
    else:
        yield Finding("pair", Severity.OK, fits, "", numbers)


def _mask_and_data(exam: Exam, y: Tensor, mask: Tensor) -> Finding:
    """Find values that contradict the mask: nonzero where nothing is observed, zero where something is."""
    unseen, seen = mask == 0, mask != 0
    sigma = 0.0 if exam.sigma is None else float(exam.sigma.max())
    outside = _rms(y[unseen]) if bool(unseen.any()) else 0.0
    inside = _rms(y[seen]) if bool(seen.any()) else 0.0
    zeros = float((y[seen] == 0).double().mean()) if bool(seen.any()) else 0.0
    numbers = {"rms_unobserved": outside, "rms_observed": inside, "zeros_observed": zeros}
    if outside > 3 * sigma + 0.01 * inside:
        return Finding(
            "consistency",
            Severity.PROBLEM,
            f"y is not 0 where the mask observes nothing (rms {outside:.3g}, observed pixels {inside:.3g})",
            "The mask does not belong to y, or it is inverted. If y is a whole picture, multiply it by the mask.",
            numbers,
        )
    if zeros > 0.05 and bool(unseen.any()):
        return Finding(
            "consistency",
            Severity.WARNING,
            f"{zeros:.1%} of the pixels that the mask observes are exactly 0",
            "The mask seems to mark pixels as measured that were not: a restoration would reproduce these zeros.",
            numbers,
        )
    return Finding("consistency", Severity.OK, "y fits the mask: 0 where nothing is observed", "", numbers)


class _LeastSquares:
    """Conjugate-gradient steps for ``min ‖Ax − y‖²`` from 0 (CGLS), per image. Later calls continue them."""

    def __init__(self, exam: Exam, y: Tensor):
        self._exam, self._left, self._steps = exam, y.clone(), 0
        self._direction = exam.back(self._left)
        self._size = _dot(self._direction, self._direction)

    def residual(self, steps: int) -> Tensor:
        """``y − A x_k`` after k steps in total."""
        tiny = torch.finfo(self._left.dtype).tiny
        p, r, size = self._direction, self._left, self._size
        for _ in range(self._steps, steps):
            q = self._exam.physics.A(p)
            alpha = size / _dot(q, q).clamp_min(tiny)
            r = r - alpha * q
            s = self._exam.back(r)
            new = _dot(s, s)
            p, size = s + new / size.clamp_min(tiny) * p, new
        self._direction, self._left, self._size, self._steps = p, r, size, steps
        return r


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return over_images((a * b).flatten(1).sum(1), a.ndim)


def _rms(t: Tensor) -> float:
    return float(t.double().square().mean().sqrt()) if t.numel() else 0.0


def _border(exam: Exam, size: torch.Size, share: int = 1000) -> tuple[Tensor, Tensor]:
    """Masks (H, W) of the border and the interior; the border is half a kernel (at least 1/share of a side) wide."""
    taps = getattr(exam.physics, "filter", None)
    wide = max(taps.shape[-2:]) // 2 if isinstance(taps, Tensor) else 0
    band = min(max(2, wide, min(size) // share), min(size) // 4)
    inside = torch.zeros(size, dtype=torch.bool)
    inside[band : size[0] - band, band : size[1] - band] = True
    return ~inside, inside


def _fit(made: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Least squares ``y ≈ a·made + b``: returns (a, b, norm of the residual)."""
    m, z = made.double().flatten(), y.double().flatten()
    centred = m - m.mean()
    gain = float((centred * z).sum() / centred.square().sum().clamp_min(1e-300))
    offset = float(z.mean() - gain * m.mean())
    return gain, offset, float((z - gain * m - offset).norm())


def _shift(made: Tensor, y: Tensor) -> tuple[tuple[int, int], float]:
    """The shift of y against `made` with the best correlation, and the residual's norm after undoing it."""
    if y.ndim != 4:
        return (0, 0), _fit(made, y)[2]
    a, b = (t.double() - t.double().mean((-2, -1), keepdim=True) for t in (made, y))
    cross = torch.fft.irfft2(torch.fft.rfft2(b) * torch.fft.rfft2(a).conj(), s=y.shape[-2:]).sum((0, 1))
    row, col = divmod(int(cross.argmax()), cross.shape[1])
    height, width = cross.shape
    shift = (row - height if row > height // 2 else row, col - width if col > width // 2 else col)
    rolled = torch.roll(made, shift, (-2, -1))
    rows = slice(max(shift[0], 0), height + min(shift[0], 0))
    cols = slice(max(shift[1], 0), width + min(shift[1], 0))
    kept = _fit(rolled[..., rows, cols], y[..., rows, cols])[2]
    return shift, kept


def _turned(exam: Exam, x: Tensor, shape: torch.Size) -> Tensor | None:
    """``A'x``, where A' is the operator with its kernel turned by 180°. It needs a kernel or a square adjoint."""
    taps = kernel_of(exam.physics)
    try:
        if taps is not None:
            twin = with_kernel(duplicate(exam.physics), taps.flip(-2, -1))
            return twin.A(x)  # pyright: ignore[reportReturnType, reportOptionalMemberAccess] - it has a kernel
        if exam.sound and x.shape == shape:
            return exam.back(x)
    except FAILURES:
        return None
    return None


def _expected(exam: Exam, y: Tensor) -> float:
    """The norm of noise of the estimated level, with an allowance for rounding to 8 bits."""
    assert exam.sigma is not None
    sigma = exam.sigma.clamp_min(_FLOOR * float(y.amax() - y.amin()))
    return float((sigma.square().sum() * y[0, 0].numel()) ** 0.5)
