"""The impulse response of an operator, and how it matches a kernel."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from retune.diagnosis.exam import FAILURES, Exam
from retune.operators.kinds import resizable

__all__ = ["Match", "Orientation", "Response", "best_match", "impulse_response", "padded_index"]


class Orientation(enum.StrEnum):
    """The eight orientations of a kernel."""

    AS_IT_IS = "as it is"
    TURNED = "rotated by 180° (a correlation instead of a convolution)"
    LEFT_RIGHT = "flipped left to right"
    UPSIDE_DOWN = "flipped upside down"
    TRANSPOSED = "transposed (rows and columns exchanged)"
    QUARTER = "rotated by 90°"
    THREE_QUARTERS = "rotated by 270°"
    OTHER_DIAGONAL = "mirrored along the other diagonal"

    @property
    def exchanges(self) -> bool:
        """Whether rows become columns."""
        return _LAID[self][0]

    def lay(self, kernel: Tensor) -> Tensor:
        """The kernel (..., h, w) in this orientation."""
        exchanges, flipped = _LAID[self]
        return (kernel.mT if exchanges else kernel).flip(flipped)


#: Whether rows and columns are exchanged, and the axes that are flipped afterwards.
_LAID: dict[Orientation, tuple[bool, tuple[int, ...]]] = {
    Orientation.AS_IT_IS: (False, ()),
    Orientation.TURNED: (False, (-2, -1)),
    Orientation.LEFT_RIGHT: (False, (-1,)),
    Orientation.UPSIDE_DOWN: (False, (-2,)),
    Orientation.TRANSPOSED: (True, ()),
    Orientation.QUARTER: (True, (-2,)),
    Orientation.THREE_QUARTERS: (True, (-1,)),
    Orientation.OTHER_DIAGONAL: (True, (-2, -1)),
}
# Two responses count as equal from this correlation on.
SAME = 0.999


@dataclass(frozen=True)
class Response:
    """The image under A of a point in the middle.

    Attributes:
        image: (C, H, W), the point at `centre` of the image grid; a subsampled blur is given at full resolution.
        centre: (row, column) of the point.
        kind: "same", "valid" or "subsampled": how the grid of the measurement relates to that of the image.
        step: subsampling factor.
        invariant: whether a point elsewhere gives the same response, shifted.
    """

    image: Tensor
    centre: tuple[int, int]
    kind: str
    step: int
    invariant: bool


@dataclass(frozen=True)
class Match:
    """The best fit of a kernel to a response."""

    orientation: Orientation
    correlation: float
    shift: tuple[int, int]
    gain: float

    def centred(self, kernel_size: torch.Size | tuple[int, ...]) -> bool:
        """Whether the kernel's middle lies on the point; for an even side, either middle sample will do."""
        rows, cols = kernel_size[-2:]
        if self.orientation.exchanges:
            rows, cols = cols, rows
        return all(s == 0 or (s == 1 and n % 2 == 0) for s, n in zip(self.shift, (rows, cols), strict=True))


def impulse_response(exam: Exam, kernel_size: tuple[int, int] | None) -> Response | None:
    """The response, or None if A does not map images to images with the same channels on the same grid."""
    exam = _roomy(exam, kernel_size)
    channels, height, width = exam.shape[1:]
    try:
        out = exam.physics.A(torch.zeros(exam.shape, dtype=exam.dtype, device=exam.device))
    except FAILURES:
        return None
    if not isinstance(out, Tensor) or out.ndim != 4 or out.is_complex() or out.shape[1] != channels:
        return None
    rows, cols = out.shape[-2:]
    step = _step_of(exam) if rows < height else 1
    if (rows, cols) == (height, width):
        kind = "same"
    elif step > 1:
        kind = "subsampled"
    elif rows <= height and cols <= width and 2 * rows > height and 2 * cols > width:
        kind = "valid"
    else:
        return None
    if kind == "subsampled" and not exam.adjoint:
        return None
    centre = (height // 2 // step * step, width // 2 // step * step)
    other = (centre[0] - max(1, height // 8 // step) * step, centre[1] - max(1, width // 8 // step) * step)
    first, second = (_response(exam, place, kind, step, (rows, cols)) for place in (centre, other))
    moved = torch.roll(second, (centre[0] - other[0], centre[1] - other[1]), (-2, -1))
    scale = float(first.norm())
    invariant = scale > 0 and float((moved - first).norm()) <= 1e-3 * scale
    return Response(first, centre, kind, step, invariant)


def _roomy(exam: Exam, kernel_size: tuple[int, int] | None) -> Exam:
    """A blur takes any size, so the image is made large enough to keep the borders out of the response."""
    taps = getattr(exam.physics, "filter", None)
    if not isinstance(taps, Tensor) or _step_of(exam) > 1 or not resizable(exam.physics):
        return exam
    sides = [max(t) for t in zip(taps.shape[-2:], kernel_size or (1, 1), strict=True)]
    size = [max(n, 4 * k) for n, k in zip(exam.shape[-2:], sides, strict=True)]
    shape = torch.Size([*exam.shape[:2], *size])
    return Exam(exam.physics, shape, exam.dtype, exam.device, adjoint=exam.adjoint)


def _step_of(exam: Exam) -> int:
    factor = getattr(exam.physics, "factor", 1)
    return factor if isinstance(factor, int) else 1


def _response(exam: Exam, place: tuple[int, int], kind: str, step: int, out: tuple[int, int]) -> Tensor:
    height, width = exam.shape[-2:]
    if kind == "subsampled":  # a row of A is the response turned by 180°: y_p = Σ_d h(d) x_{p − d}
        y = torch.zeros(exam.shape[0], exam.shape[1], *out, dtype=exam.dtype, device=exam.device)
        # In "valid" mode sample i stands at the full-resolution row s·i of the cropped image.
        row, col = (min(p // step, n - 1) for p, n in zip(place, out, strict=True))
        y[..., row, col] = 1
        turned = exam.back(y)[0].flip(-2, -1)
        down, right = _cropped(exam)
        return torch.roll(turned, (2 * row * step + down - height + 1, 2 * col * step + right - width + 1), (-2, -1))
    x = torch.zeros(exam.shape, dtype=exam.dtype, device=exam.device)
    x[..., place[0], place[1]] = 1
    found = exam.physics.A(x)[0]
    if kind == "valid":
        above, left = (height - out[0]) // 2, (width - out[1]) // 2
        found = F.pad(found, (left, width - out[1] - left, above, height - out[0] - above))
    return found


def _cropped(exam: Exam) -> tuple[int, int]:
    """Rows and columns that a "valid" blur crops at the top and at the left."""
    taps = getattr(exam.physics, "filter", None)
    if getattr(exam.physics, "padding", None) != "valid" or not isinstance(taps, Tensor):
        return 0, 0
    h, w = taps.shape[-2:]
    return h - 1 - h // 2, w - 1 - w // 2


def best_match(response: Response, kernel: Tensor) -> Match | None:
    """The orientation and the shift at which `kernel` (1 or C, h, w) correlates best with the response.

    If several orientations fit equally well (symmetric kernels), the unchanged kernel and a shift of zero are
    preferred. None if the image is too small to tell.
    """
    height, width = response.image.shape[-2:]
    image = response.image.double()  # the squares of large responses overflow in float32
    found: list[Match] = []
    for orientation in Orientation:
        laid = orientation.lay(kernel.to(image))
        h, w = laid.shape[-2:]
        if 2 * h > height or 2 * w > width:
            return None
        # the kernel's centre goes to the centre of the response; for an even side, the sample after the middle
        grid = F.pad(laid, (0, width - w, 0, height - h)).expand_as(image)
        grid = torch.roll(grid, (response.centre[0] - h // 2, response.centre[1] - w // 2), (-2, -1))
        spectra = torch.fft.rfft2(image) * torch.fft.rfft2(grid).conj()
        cross = torch.fft.irfft2(spectra, s=(height, width)).sum(0)
        norms = float(grid.norm() * image.norm())
        if not 0 < norms < float("inf"):
            return None
        # an even side has its centre between two pixels, and both count as centred
        middles = [(i, j) for i in range(2 - h % 2) for j in range(2 - w % 2)]
        for shift in dict.fromkeys([*middles, _peak(cross)]):
            value = float(cross[shift])
            found.append(Match(orientation, value / norms, shift, value / float(grid.square().sum())))
    centred = [m for m in found if m.correlation > SAME and m.centred(kernel.shape)]
    if centred:
        return centred[0]
    top = max(m.correlation for m in found)
    return next(m for m in found if m.correlation >= top - 1e-4)


def _peak(cross: Tensor) -> tuple[int, int]:
    height, width = cross.shape
    index = int(cross.argmax())
    row, col = divmod(index, width)
    return (row - height if row > height // 2 else row, col - width if col > width // 2 else col)


def padded_index(n: int, before: int, after: int, mode: str) -> Tensor:
    """For each position −before … n + after − 1, the index (0 … n − 1) of its sample under a boundary condition."""
    i = torch.arange(-before, n + after)
    if mode == "circular":
        return i % n
    if mode == "replicate":
        return i.clamp(0, n - 1)
    if mode == "reflect":  # … 2 1 | 0 1 2 …
        period = max(2 * (n - 1), 1)
        i = i % period
        return torch.minimum(i, period - i)
    i = i % (2 * n)  # "symmetric": … 1 0 | 0 1 2 …
    return torch.minimum(i, 2 * n - 1 - i)
