"""What the solvers that search for step sizes share: sums per image, and the check of images that seem to be done."""

from __future__ import annotations

import torch
from torch import Tensor

from retune._torch.batch import over_images, per_image_norm
from retune.operators.curvature import largest_curvature
from retune.solvers.base import Objective

__all__ = ["CLEAR", "FIRST", "FORGET", "ROUNDING", "confirmed", "inner", "norm", "usable_or"]

#: Two values of the objective count as equal if they differ by fewer units in the last place than this.
ROUNDING = 4.0
#: Two points show the curvature if their distance exceeds this number of units in the last place.
CLEAR = 32.0
#: Number of products with the Hessian for a measurement of the curvature, at the start and at the end.
FIRST, LAST = 2, 6
#: Each step multiplies the earlier measured curvature by this factor.
FORGET = 0.97


def inner(a: Tensor, b: Tensor) -> Tensor:
    """``⟨a, b⟩`` per image, summed in float64."""
    return (a * b).flatten(1).sum(1, dtype=torch.float64)


def norm(a: Tensor) -> Tensor:
    """``‖a‖`` per image, in float64."""
    return torch.linalg.vector_norm(a.flatten(1), dim=1, dtype=torch.float64)


def usable_or(curvature: Tensor, known: Tensor) -> Tensor:
    """The measured curvature. Where it is unusable (outside the domain of F, or F is linear), the known constant."""
    largest = torch.finfo(curvature.dtype).max ** 0.5  # its square must not overflow
    return torch.where(curvature > 0, curvature.clamp_max(largest), known)


def confirmed(
    objective: Objective, u: Tensor, constant: Tensor, curvature: Tensor, settled: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The curvature at images that seem to have converged, measured there.

    Args:
        objective: F.
        u: the states.
        constant: (B,), L of the next step.
        curvature: (B,), M as known from the last steps.
        settled: (B,), the images to check.

    Returns:
        L, at most twice the curvature; the curvature; and the size (B,) of a step of length 1/M, 0 for the images that
        are not checked. None if there is nothing to check.
    """
    if not bool(settled.any()):
        return None
    rows = settled.nonzero().flatten()
    f = objective.select(rows)
    if f is None:  # computed for all images, even if only some need it
        f, rows = objective, torch.arange(len(settled), device=settled.device)
    x, known = u[rows], curvature[rows]
    found = usable_or(largest_curvature(f.gradient, x, products=LAST), known)
    reach = over_images(1 / found, x.ndim)
    moved = per_image_norm(f.backward(torch.addcmul(x, f.gradient(x), reach, value=-1), reach) - x)
    curvature = torch.where(settled, curvature.index_copy(0, rows, found), curvature)
    constant = torch.where(settled, torch.minimum(constant, 2 * curvature), constant)
    moved = torch.where(settled, torch.zeros_like(constant).index_copy(0, rows, moved), 0)
    return constant, curvature, moved
