"""The result of a solve: the restored images, with status, residual and layers of each image."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retune.errors import DivergedError


class Status(enum.StrEnum):
    """How the iteration ended for one image, from best to worst. ``status.advice`` tells what to do."""

    CONVERGED = "converged"
    DEPTH_REACHED = "depth reached"
    MAX_LAYERS = "not settled"
    OSCILLATES = "oscillates"
    DIVERGED = "diverged"
    NOT_FINITE = "not finite"

    @property
    def failed(self) -> bool:
        """Whether the image must not be used."""
        return self in (Status.DIVERGED, Status.NOT_FINITE)

    @property
    def unsettled(self) -> bool:
        """Whether the image is usable but not an equilibrium, because the tolerance was not reached."""
        return self in (Status.MAX_LAYERS, Status.OSCILLATES)

    @property
    def advice(self) -> str:
        """The meaning of the status, and what to do, in one sentence."""
        return _ADVICE[self]


_ADVICE = {
    Status.CONVERGED: (
        "The relative change is below the requested tolerance, over a block of K layers and over its last cycle."
    ),
    Status.DEPTH_REACHED: "The requested fixed number of layers was run, without a tolerance.",
    Status.MAX_LAYERS: "The tolerance was not reached: raise Stop(max_layers=...) or loosen Stop(rtol=...).",
    Status.OSCILLATES: (
        "The iterates alternate between several images and return to the same one after K layers, so the image is "
        "not an equilibrium: lower the step size, or find the equilibrium with solver=retune.solvers.Damped() or "
        "retune.Anderson()."
    ),
    Status.DIVERGED: (
        "The iterates grew without bound, so the map is not contractive on this image: lower the step size, "
        "or damp the denoiser. The last finite iterate is returned."
    ),
    Status.NOT_FINITE: (
        "NaN or Inf appeared: check the operator and the parameters of the map (an overflowing regularisation "
        "strength, a denoiser that returns NaN). The last finite iterate is returned."
    ),
}


@dataclass(frozen=True)
class Trace:
    """The relative residuals along a solve.

    Attributes:
        layers: number of layers run at each record, length n.
        residual: relative residual of every image at each record, shape (n, B).
    """

    layers: tuple[int, ...]
    residual: Tensor


@dataclass
class GradientReport:
    """The accuracy of the gradient of a training step. The backward pass fills it in.

    Attributes:
        rule: the rule that formed the gradient.
        target: the differentiated quantity ("equilibrium" or "output at depth K").
        relative_error: (B,) estimated relative error of the adjoint state against the exact adjoint of the target; None
            before the backward pass. It is estimated from the measured decay of the adjoint increments (remainder ≤
            ratio/(1 − ratio) × last increment), and is not a proved bound.
        decay: (B,) measured factor by which one block of K layers shrinks the adjoint increments.
        parameter_error: estimated relative error of the gradient of the parameters, summed over the batch; None unless
            the rule measures it (``Truncated(rtol=...)``).
        blocks: number of adjoint blocks used.
        depth: number of layers recorded and differentiated.
    """

    rule: str
    target: str = "equilibrium"
    relative_error: Tensor | None = None
    decay: Tensor | None = None
    parameter_error: float | None = None
    blocks: int = 0
    depth: int = 0


@dataclass(frozen=True)
class Equilibrium:
    """The result of [`solve`][retune.Restarted.solve].

    Attributes:
        image: (B, C, H, W) restored images.
        state: the iterate of the map (wavelet coefficients for synthesis priors, else the image itself).
        residual: (B,) relative change over K layers: the larger of ‖Φ(u) − u‖/‖Φ(u)‖ over the last block Φ, and of the
            change over its last cycle times the number of cycles in a block; inf if it was not measured (an unrolled
            network in train mode runs a single block from its start).
        status: one [`Status`][retune.Status] per image.
        layers: (B,) number of layers run for each image; in train mode including the K differentiated layers.
        trace: residuals along the solve, if requested.
        gradient: the report of the gradient rule in train mode, else None.
        solver: the solver that found it; None if that is unknown.
    """

    image: Tensor
    state: Tensor
    residual: Tensor
    status: tuple[Status, ...]
    layers: Tensor
    trace: Trace | None = None
    gradient: GradientReport | None = field(default=None)
    solver: Any = field(default=None, repr=False)

    @property
    def converged(self) -> Tensor:
        """Booleans (B,): True for images that reached the tolerance."""
        return torch.tensor([s is Status.CONVERGED for s in self.status])

    def raise_for_status(self) -> None:
        """Raise ``DivergedError`` if any image failed. The message names the images and what to do."""
        bad = {i: s for i, s in enumerate(self.status) if s.failed}
        if bad:
            which = ", ".join(f"image {i}: {s.value}" for i, s in bad.items())
            advice = " ".join(dict.fromkeys(s.advice for s in bad.values()))
            raise DivergedError(f"{len(bad)} of {len(self.status)} images failed ({which}). {advice}")

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.image.shape))
        rows = [
            f"  image {i}: {s.value}, {int(n)} layers, residual {float(r):.1e}"
            for i, (s, n, r) in enumerate(zip(self.status, self.layers, self.residual, strict=True))
        ]
        return "\n".join([f"Equilibrium({shape})", *rows])
