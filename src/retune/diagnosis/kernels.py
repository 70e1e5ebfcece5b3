"""Checks of the kernel, of how the physics applies it, and of the boundary condition."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from retune.diagnosis.exam import Exam
from retune.diagnosis.findings import Finding, Severity
from retune.diagnosis.impulse import SAME, Match, Orientation, Response, best_match, impulse_response, padded_index
from retune.diagnosis.psf import Fault, faults
from retune.errors import advice
from retune.problems.psf import middle_of_mass

__all__ = ["check_boundary", "check_convolution", "check_kernel"]

_SUM = 1e-3
_SEVERITY = {"even": Severity.NOTE}
_BOUNDARIES = {
    "reflect": (Severity.OK, "mirrors the image without repeating its edge: a good assumption on photographs", ""),
    "symmetric": (Severity.OK, "mirrors the image and repeats its edge: a good assumption on photographs", ""),
    "replicate": (Severity.OK, "continues the edge pixels outwards: a fair assumption on photographs", ""),
    "circular": (
        Severity.NOTE,
        "the image continues on the opposite side",
        "Correct for data that were simulated with this boundary. On photographs it causes ringing from the borders: "
        "use reflect or valid boundaries, or taper the edges.",
    ),
    "zeros": (
        Severity.NOTE,
        "assumes black outside the image",
        "Scenes are rarely black outside the image, so restored borders come out too bright: use reflect or valid "
        "boundaries.",
    ),
    "valid": (
        Severity.OK,
        "assumes nothing: the measurement is smaller than the image, and shows the border of the image only in part",
        "",
    ),
}


def check_kernel(kernel: Tensor) -> Iterator[Finding]:
    """Check the kernel (B, C, h, w): its sum, signs, background, top, centre and sides."""
    sums = [float(s) for s in kernel.double().sum((-2, -1)).flatten()]
    off, h, w = middle_of_mass(kernel.flatten(0, 1)), kernel.shape[-2], kernel.shape[-1]
    numbers = {"sum": sums, "centroid": off, "size": [h, w], "least": float(kernel.min())}
    good = True
    wrong = max(sums, key=lambda s: abs(s - 1))
    if abs(wrong - 1) > _SUM:
        good = False
        yield Finding(
            "kernel",
            Severity.WARNING,
            f"the kernel sums to {wrong:.4g}, not 1: it changes the brightness",
            "Divide each channel of the kernel by its sum, unless the camera really gains or loses light.",
            numbers,
        )
    if float(kernel.min()) < -1e-6 * float(kernel.abs().max()):
        good = False
        yield Finding(
            "kernel",
            Severity.NOTE,
            f"the kernel has negative values (minimum {float(kernel.min()):.2g})",
            "This is correct for a resampling filter. The blur of a lens or of motion is nonnegative.",
            numbers,
        )
    for fault in faults(kernel):
        good = False
        yield Finding(
            "kernel",
            _SEVERITY.get(fault.kind, Severity.WARNING),
            f"the kernel {fault.found}, {fault.harm}",
            _advice(fault),
            numbers | fault.numbers,
        )
    if good and off is not None and max(map(abs, off)) > 0.5 + 1e-3:
        good = False
        yield Finding(
            "kernel",
            Severity.NOTE,
            f"the kernel's centre of mass is {off[0]:+.2f} rows and {off[1]:+.2f} columns away from the middle of its "
            "array",
            "The restored image will be shifted by the same amount: centre the kernel, or expect the shift.",
            numbers,
        )
    if good:
        yield Finding("kernel", Severity.OK, f"{h}×{w}, sums to 1, nonnegative, centred, odd sides", "", numbers)


def _advice(fault: Fault) -> str:
    also = advice(f"; in Python, retune.problems.kernel(kernel, {fault.python}) does", "") if fault.python else ""
    return f"{fault.remedy[:1].upper()}{fault.remedy[1:]}{also}."


def check_convolution(exam: Exam, kernel: Tensor) -> Iterator[Finding]:
    """Check that A convolves with the kernel, not with a turned, shifted or scaled copy."""
    if exam.linear is False:
        return
    response = impulse_response(exam, (kernel.shape[-2], kernel.shape[-1]))
    if response is None or not response.invariant:
        yield Finding(
            "convolution",
            Severity.WARNING,
            f"{exam.name} is not a convolution:  "
            + ("its output is not an image" if response is None else "points at two places are blurred differently"),
            "A kernel describes a convolution only: leave the kernel out, or give the physics that uses it.",
        )
        return
    match = best_match(response, kernel[0])
    if match is None:
        yield Finding(
            "convolution",
            Severity.NOTE,
            f"the image is too small to test how A applies a kernel of {kernel.shape[-2]}×{kernel.shape[-1]}",
            "Give an image size of at least twice the kernel.",
        )
        return
    yield _judge(match, kernel)


def _judge(match: Match, kernel: Tensor) -> Finding:
    numbers = {
        "orientation": match.orientation.value,
        "correlation": match.correlation,
        "shift": list(match.shift),
        "gain": match.gain,
    }
    if match.correlation < SAME:
        return Finding(
            "convolution",
            Severity.PROBLEM,
            f"A blurs with a different kernel than the one given (best correlation {match.correlation:.3f}, "
            f"{match.orientation})",
            "Build the physics with your kernel, or give doctor the kernel of the physics.",
            numbers,
        )
    if match.orientation is not Orientation.AS_IT_IS:
        turned = match.orientation is Orientation.TURNED
        turn = "kernel.flip(-2, -1)" if turned else "the kernel turned back"
        name = "applied flipped: " if turned else ""
        return Finding(
            "convolution",
            Severity.PROBLEM,
            f"your kernel is {name}A uses it {match.orientation}",
            f"Give the physics {turn}: the image of a point must be the kernel itself.",
            numbers,
        )
    if not match.centred(kernel.shape):
        return Finding(
            "convolution",
            Severity.WARNING,
            f"A convolves with the kernel, but shifts the image:  {match.shift[0]:+d} rows, {match.shift[1]:+d} "
            "columns",
            "Roll the kernel to the middle of its array, or check where the FFT has its origin.",
            numbers,
        )
    if abs(match.gain - 1) > _SUM:
        return Finding(
            "convolution",
            Severity.WARNING,
            f"A convolves with the kernel times {match.gain:.4g}",
            "Normalise the kernel in one place only.",
            numbers,
        )
    symmetric = _turned_difference(kernel) < 1e-3
    text = "A convolves with the kernel, centred: the image of a point is the kernel"
    if symmetric:
        text += " (a rotation by 180° leaves this kernel unchanged, so a correlation would give the same result)"
    return Finding("convolution", Severity.OK, text, "", numbers | {"symmetric": symmetric})


def check_boundary(exam: Exam) -> Iterator[Finding]:
    """Find the boundary condition that reproduces A on a noise image."""
    if exam.linear is False:
        return
    response = impulse_response(exam, None)
    if response is None or not response.invariant:
        return
    support = _support(response)
    if support is None:
        return
    x = exam.probe(7)[:1]
    y = exam.physics.A(exam.probe(7))[:1]
    assert isinstance(y, Tensor)
    if response.kind == "valid" or getattr(exam.physics, "padding", None) == "valid":
        yield _boundary("valid", {"size": [*y.shape[-2:]]})
        return
    errors = {mode: _error(x, y, response, support, mode) for mode in _BOUNDARIES if mode != "valid"}
    mode = min(errors, key=lambda m: errors[m])
    if errors[mode] > 1e-3:
        yield Finding(
            "boundary",
            Severity.NOTE,
            f"no usual boundary condition reproduces A (closest: {mode}, relative error {errors[mode]:.1%})",
            "Check what A assumes beyond the border of the image.",
            {"errors": errors},
        )
        return
    yield _boundary(mode, {"errors": errors})


def _boundary(mode: str, numbers: dict) -> Finding:
    severity, meaning, advice = _BOUNDARIES[mode]
    return Finding("boundary", severity, f"{mode}: {meaning}", advice, {"boundary": mode, **numbers})


def _support(response: Response) -> tuple[int, int, int, int] | None:
    """How far the response reaches (up, down, left, right); None if it is a single point or fills the image."""
    strong = (response.image.abs() > 1e-5 * response.image.abs().max()).any(0)
    rows, cols = strong.any(1).nonzero().flatten(), strong.any(0).nonzero().flatten()
    row, col = response.centre
    reach = (row - int(rows[0]), int(rows[-1]) - row, col - int(cols[0]), int(cols[-1]) - col)
    height, width = response.image.shape[-2:]
    if max(reach) <= 0 or 2 * max(reach[:2]) >= height - 1 or 2 * max(reach[2:]) >= width - 1:
        return None
    return tuple(max(r, 0) for r in reach)  # pyright: ignore[reportReturnType] - four numbers


def _error(x: Tensor, y: Tensor, response: Response, support: tuple[int, int, int, int], mode: str) -> float:
    above, below, left, right = support
    row, col = response.centre
    taps = response.image[:, row - above : row + below + 1, col - left : col + right + 1]
    height, width = x.shape[-2:]
    # y_p = Σ_d h(d) x_{p − d}: the taps below the centre reach the pixels above it
    if mode == "zeros":
        padded = F.pad(x, (right, left, below, above))
    else:
        rows = padded_index(height, below, above, mode).to(x.device)
        cols = padded_index(width, right, left, mode).to(x.device)
        padded = x[..., rows, :][..., cols]
    predicted = F.conv2d(padded, taps.flip(-2, -1)[:, None], groups=x.shape[1])
    predicted = predicted[..., :: response.step, :: response.step]
    return float((predicted - y).norm() / y.norm().clamp_min(torch.finfo(y.dtype).tiny))


def _turned_difference(kernel: Tensor) -> float:
    return float((kernel - kernel.flip(-2, -1)).norm() / kernel.norm())
