"""The kind of a deepinv physics. Only this file asks its type."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from deepinv.physics import (
    Blur,
    BlurFFT,
    DecomposablePhysics,
    Denoising,
    Downsampling,
    Inpainting,
    LinearPhysics,
    PhaseRetrieval,
    Physics,
    Upsampling,
)
from torch import Tensor

from retune.guarantee import Known
from retune.operators.facts import OperatorFacts

__all__ = [
    "eigenvalues",
    "kernel_of",
    "makes_pictures",
    "mask_of",
    "is_nonnegative",
    "measured",
    "phase_advice",
    "reach",
    "resizable",
    "with_kernel",
]

#: A picture may be negative by up to this share of its maximum (resampling filters, sharpening).
_UNDERSHOOT = 0.5
_POINTS = 8


def kernel_of(physics: Physics) -> Tensor | None:
    """The kernel (1 or B, 1 or C, h, w) of a blur, or of a blur and subsampling; None for any other operator."""
    taps = getattr(physics, "filter", None)
    blurs = isinstance(physics, Blur | BlurFFT | Downsampling) and not isinstance(physics, Upsampling)
    return taps.detach() if blurs and isinstance(taps, Tensor) and taps.ndim == 4 else None


def with_kernel(physics: Physics, taps: Tensor) -> Physics | None:
    """`physics` with another kernel, changed in place; None for an operator without one."""
    if kernel_of(physics) is None:
        return None
    physics.update(filter=taps)
    return physics


def mask_of(physics: Physics) -> Tensor | None:
    """The weights of the pixels of an inpainting; None for any other operator."""
    mask = physics.mask if isinstance(physics, Inpainting) else None
    return mask.detach() if isinstance(mask, Tensor) else None


def phase_advice(physics: object) -> str:
    """The alternative to a physics |Bx|², which is not linear; "" for any other physics."""
    if not isinstance(physics, PhaseRetrieval):
        return ""
    return (
        f"{type(physics).__name__} measures |Bx|² and loses the phase, but ReTune restores linear measurements. Where "
        "the phase of Bx is known, give the linear part physics.B with these measurements; where it is not, retrieve "
        "it first (deepinv.optim.phase_retrieval)."
    )


def resizable(physics: Physics) -> bool:
    """Whether the operator takes images of any size."""
    return isinstance(physics, Blur | Denoising | Downsampling)


def eigenvalues(physics: LinearPhysics, found: OperatorFacts) -> Tensor | None:
    """The eigenvalues of AᵀA if A is diagonalised exactly; else None."""
    power = getattr(found.normal, "eigenvalues", None)
    if power is not None:
        return power
    if (
        isinstance(physics, DecomposablePhysics)
        and found.sqnorm_kind == Known.EXACT
        and isinstance(physics.mask, Tensor)
    ):
        return physics.mask.detach().abs().square()
    return None


def measured(physics: Physics, probes: Sequence[Tensor]) -> Tensor | None:
    """The values of y that depend on the image: booleans of the shape of y; None if y is a list.

    A may set a value to 0 for any image (a masked pixel, also inside a composition; a ray beside the object). Such a
    value is 0 for every random image in `probes`; any other value is not, with probability 1.
    """
    seen: Tensor | None = None
    for probe in probes:
        made = physics.A(probe)
        if not isinstance(made, Tensor):
            return None
        seen = made != 0 if seen is None else seen | (made != 0)
    return seen


def is_nonnegative(physics: Physics) -> bool | None:
    """Whether A has no negative entries; None if its kind does not show it. The type must be exact."""
    if type(physics) is Denoising:
        return True
    known = kernel_of(physics) if type(physics) in (Blur, BlurFFT) else None
    known = mask_of(physics) if type(physics) is Inpainting else known
    return None if known is None else bool((known >= 0).all())


def reach(physics: Physics, values: Tensor) -> Tensor | None:
    """For every pixel, the sum of the `values` (shape of y) of the measured values that depend on it.

    None for an operator whose entries are unknown. The type must be exact: a subclass may do anything.
    """
    if type(physics) is Denoising:
        return values
    mask = mask_of(physics)
    if type(physics) is Inpainting and mask is not None:
        return values * (mask != 0)
    taps = kernel_of(physics)
    if type(physics) is Blur and taps is not None:
        indicator = Blur(filter=(taps != 0).to(values), padding=physics.padding, device=values.device)
        return indicator.A_adjoint(values)
    return None


def makes_pictures(physics: Physics, like: Tensor) -> bool:
    """Whether A maps nonnegative images to nonnegative measurements, up to the ringing of a filter.

    Random projections, Fourier data and differences do not: the usual range and noise of pictures do not apply.
    """
    generator = torch.Generator().manual_seed(20260105)
    pixels = like[0].numel()
    for _ in range(4):
        points = torch.zeros(pixels)
        points[torch.randint(pixels, (min(_POINTS, pixels),), generator=generator)] = 1
        made = physics.A(points.view(like.shape[1:]).expand(like.shape).to(like))
        if not isinstance(made, Tensor) or made.is_complex() or made.ndim != 4:
            return False
        if float(made.min()) < -_UNDERSHOOT * max(float(made.max()), 0.0):
            return False
    return True
