"""The object of the examination: a copy of the physics, the image size, and probe images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from retune.diagnosis.findings import Finding, Severity
from retune.errors import InvalidParameterError, ShapeError, advice
from retune.guarantee import Known
from retune.operators.images import in_words, parts, unsupported
from retune.operators.kinds import makes_pictures, measured, resizable

__all__ = ["FAILURES", "Exam", "complex_images", "image_shape", "short"]

#: Errors that a physics raises on unsuitable input.
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError)
#: Side of the probe image for a physics that accepts any size.
SIDE = 32


@dataclass
class Exam:
    """A copy of the physics, the shape of its images, and the results of earlier checks.

    Attributes:
        physics: the copy under examination.
        shape: (B, C, H, W) of the image.
        y: the measurement; None if not given, or if it does not fit.
        linear, adjoint: whether A is linear, and whether A_adjoint is its adjoint; None until checked.
        sqnorm: ‖A‖² per image, once known.
        supported: whether its images are real and have shape (B, C, H, W).
        sigma: estimated noise level (B, C) of y, once known.
    """

    physics: Physics
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    y: Any = None
    linear: bool | None = None
    adjoint: bool | None = None
    sqnorm: Tensor | None = None
    sqnorm_kind: Known = Known.UNKNOWN
    sigma: Tensor | None = None
    supported: bool = True

    @property
    def name(self) -> str:
        """Class of the physics."""
        return type(self.physics).__name__

    @property
    def sound(self) -> bool:
        """Whether A is linear and A_adjoint is its adjoint."""
        return bool(self.supported and self.linear and self.adjoint)

    def probe(self, seed: int, dtype: torch.dtype | None = None) -> Tensor:
        """A standard normal image from its own random stream, the same for every image of the batch."""
        generator = torch.Generator().manual_seed(20260101 + seed)
        one = torch.randn(self.shape[1:], generator=generator, dtype=torch.float64)
        return one.to(self.device, dtype or self.dtype).expand(self.shape).clone()

    @cached_property
    def pictures(self) -> bool:
        """Whether y is a picture, so that the usual range and noise of images apply to it."""
        try:
            return bool(self.linear) and makes_pictures(self.physics, self.probe(0))
        except FAILURES:
            return False

    @cached_property
    def measured(self) -> Tensor | None:
        """Booleans of the shape of y: True where the image influences the value. None if everywhere, or unknown."""
        try:
            seen = measured(self.physics, [self.probe(6), self.probe(7)]) if self.linear else None
        except FAILURES:
            return None
        return None if seen is None or bool(seen.all()) else seen

    def back(self, y: Any) -> Tensor:
        """``Aᵀy``."""
        assert isinstance(self.physics, LinearPhysics)
        return self.physics.A_adjoint(y)


def short(error: Exception) -> str:
    """The first line of an error, short enough for a table."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def image_shape(
    physics: Physics, y: Any, x: Tensor | None, img_size: tuple[int, int, int] | None
) -> tuple[torch.Size, Finding | None]:
    """The image shape (B, C, H, W) and the finding about it. Sources: x, `img_size`, y, or the physics itself.

    Raises:
        InvalidParameterError: the size is unknown.
        ShapeError: y contains volumes or sequences, which are not supported.
    """
    batch = None if y is None else len(parts(y)[0])
    if x is not None:
        return torch.Size(x.shape), None
    if img_size is not None:
        return torch.Size([batch or _batch(physics), *img_size]), None
    trouble, volume = None, False
    if y is not None and isinstance(physics, LinearPhysics):
        try:
            back = physics.A_adjoint(y)
            reason = unsupported(back)
            if back.ndim == 4 and back.numel():
                return torch.Size(back.shape), None if reason is None else _unsupported(physics, reason)
            trouble, volume = reason and in_words(reason), back.ndim == 5
        except FAILURES as error:
            trouble = f"Aᵀy failed with «{short(error)}»"
    if volume:
        raise ShapeError(f"{type(physics).__name__} cannot be examined: {trouble}")
    finding = None
    if trouble is not None:
        shapes = [tuple(p.shape) for p in parts(y)]
        finding = Finding(
            "shape",
            Severity.PROBLEM,
            f"y of shape {shapes if len(shapes) > 1 else shapes[0]} does not fit {type(physics).__name__}: {trouble}",
            "Make y with physics(x), or rebuild the physics for this image size.",
            {"y": [list(s) for s in shapes]},
        )
    own = _own_size(physics)
    if own is None and resizable(physics):
        taps = getattr(physics, "filter", None)
        channels, side = (taps.shape[1], max(SIDE, 4 * max(taps.shape[-2:]))) if taps is not None else (1, SIDE)
        own = (channels, side, side)
        finding = finding or Finding(
            "shape",
            Severity.NOTE,
            f"no image size was given: the examination used images {channels}×{side}×{side}",
            f"Give {advice('y or img_size=(C, H, W)', 'an image, or --size 512x512,')} to examine the size that you "
            "will use.",
            {"img_size": list(own)},
        )
    if own is None:
        raise InvalidParameterError(
            f"the image size of {type(physics).__name__} is unknown"
            + (f" ({trouble})" if trouble else "")
            + ": give img_size=(C, H, W), or a measurement y that fits"
        )
    return torch.Size([_batch(physics), *own]), finding


def complex_images(exam: Exam) -> Finding | None:
    """The finding that ``AᵀA`` makes complex images of real ones; None if it does not, or cannot be tried."""
    if not isinstance(exam.physics, LinearPhysics):
        return None
    try:
        back = exam.back(exam.physics.A(exam.probe(0)))
    except FAILURES:
        return None
    reason = unsupported(back) if isinstance(back, Tensor) and back.is_complex() else None
    return None if reason is None else _unsupported(exam.physics, reason)


def _unsupported(physics: Physics, reason: tuple[str, str]) -> Finding:
    return Finding("images", Severity.PROBLEM, f"{type(physics).__name__}: {reason[0]}", reason[1])


def _own_size(physics: Physics) -> tuple[int, int, int] | None:
    for name in ("img_size", "imsize"):
        size = getattr(physics, name, None)
        if isinstance(size, tuple | list | torch.Size) and len(size) == 3:
            return (int(size[0]), int(size[1]), int(size[2]))
    mask = getattr(physics, "mask", None)
    if isinstance(mask, Tensor) and mask.ndim == 4:
        return (mask.shape[1], mask.shape[2], mask.shape[3])
    width = getattr(physics, "img_width", None)
    if width is None:  # deepinv's Tomography keeps it here
        held = getattr(physics, "_auto_grad_adjoint_input_shape", None)
        width = held[-1] if held else None
    return (1, int(width), int(width)) if width is not None else None


def _batch(physics: Physics) -> int:
    """The batch size that the physics expects: one image per mask or kernel, else 1."""
    held = [getattr(physics, name, None) for name in ("mask", "filter")]
    return max([1, *[t.shape[0] for t in held if isinstance(t, Tensor) and t.ndim >= 4]])
