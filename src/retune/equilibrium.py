"""What a solve returns: the restored image, and for every image of the batch how it got there."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import torch
from torch import Tensor

from retune.errors import DivergedError


class Status(enum.Enum):
    """How the iteration ended for one image, from the best end to the worst; ``status.advice`` says what to do."""

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
        """Whether the image can be used, but is no equilibrium: the tolerance that was asked for was not reached."""
        return self in (Status.MAX_LAYERS, Status.OSCILLATES)

    @property
    def advice(self) -> str:
        """One sentence: what it means, and what to do."""
        return _ADVICE[self]


_ADVICE = {
    Status.CONVERGED: (
        "The relative change is below the requested tolerance, over a block of K layers and over its last cycle."
    ),
    Status.DEPTH_REACHED: "The requested fixed number of layers was run; no tolerance was asked for.",
    Status.MAX_LAYERS: "The tolerance was not reached: raise Stop(max_layers=...) or loosen Stop(rtol=...).",
    Status.OSCILLATES: (
        "The iterates jump between several images and come back to the same one after K layers, so the image is no "
        "equilibrium: lower the step size, or find the equilibrium with solver=retune.solvers.Damped() or "
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
    """How accurate the gradient of a training step was; filled in by the backward pass.

    Attributes:
        rule: the rule that formed the gradient.
        target: what the gradient is the derivative of ("equilibrium" or "output at depth K").
        relative_error: (B,) estimated relative error of the adjoint state with respect to the exact one of the
            target, or None before the backward pass. An estimate from the measured decay of the adjoint
            increments (THEORY: tail ≤ ratio/(1 − ratio) × last increment), not a proved bound.
        decay: (B,) measured factor by which one block of K layers shrinks the adjoint increments.
        parameter_error: estimated relative error of the gradient of the parameters, summed over the batch; only where
            the rule looks at it (``Truncated(rtol=...)``), else None.
        blocks: number of adjoint blocks that were used.
        depth: layers that were recorded and differentiated.
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
        residual: (B,) relative change over K layers: the larger of ‖Φ(u) − u‖/‖Φ(u)‖ over the last block Φ, and of
            the change over its last cycle times the number of cycles in a block; inf where none was measured (an
            unrolled network in train mode runs one block, from its start).
        status: one [`Status`][retune.Status] per image.
        layers: (B,) layers run for each image; in train mode with the K that are differentiated.
        trace: residuals along the way, if asked for.
        gradient: the report of the gradient rule in train mode, else None.
    """

    image: Tensor
    state: Tensor
    residual: Tensor
    status: tuple[Status, ...]
    layers: Tensor
    trace: Trace | None = None
    gradient: GradientReport | None = field(default=None)

    @property
    def converged(self) -> Tensor:
        """(B,) booleans: which images reached the tolerance."""
        return torch.tensor([s is Status.CONVERGED for s in self.status])

    def raise_for_status(self) -> None:
        """Raise ``DivergedError`` if any image failed, naming the images and what to do."""
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
