"""The restoration problem ``y = A x + noise``, with everything that is constant over the iterations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from deepinv.optim import L2
from deepinv.optim.data_fidelity import DataFidelity
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune.errors import InvalidParameterError, NotFiniteError, PhysicsError, ShapeError
from retune.operators.facts import facts, normal_operator
from retune.operators.holes import without_gaps
from retune.operators.norm import FAILURE, SAFETY
from retune.operators.restrict import Restrictable

__all__ = ["DataTerm"]


def _tensors(y: object) -> list[Tensor]:
    """The tensors of a measurement: one, or those of deepinv's TensorList for stacked physics."""
    if isinstance(y, Tensor):
        return [y]
    try:
        parts = list(y)  # type: ignore[call-overload]
    except TypeError:
        parts = []
    if not parts or not all(isinstance(p, Tensor) for p in parts):
        raise ShapeError(f"the measurement y must be a tensor (B, ...) or a deepinv TensorList, got {type(y).__name__}")
    return parts


class DataTerm:
    r"""A linear restoration problem, bound to its measurement.

    The data term is ``f(x; y) = d(Ax, y)``; for deepinv's ``L2(sigma)`` that is ``‖Ax − y‖² / (2σ²)``, with gradient
    ``(AᵀA x − Aᵀy)/σ²`` and Lipschitz constant ``L = ‖A‖²/σ²``. ``Aᵀy`` and ``‖A‖²`` are computed once.

    ``‖A‖²`` is exact where the physics is diagonalised (deepinv's ``DecomposablePhysics`` with orthonormal factors) or
    a circular convolution. Otherwise it is estimated: a Lanczos value times a safety factor of 1.05, with as many
    steps as make the probability that the product underestimates ‖A‖² smaller than 1e-6 for each image, for any
    spectrum, in exact arithmetic and for a random start (Kuczyński and Woźniakowski, SIAM J. Matrix Anal. Appl. 13(4),
    1992; the start here is drawn once, independently of A). It is computed once for a physics and an image size, and
    again when a tensor, an array, or a plain attribute of the physics changes (but not when a tensor is changed through
    ``.data``, which torch does not count).

    Args:
        y: measurement, a tensor (B, ...) or a deepinv ``TensorList``, all finite.
        physics: any deepinv ``LinearPhysics``.
        data_fidelity: deepinv ``DataFidelity``; ``L2()`` if None.
        sqnorm: ‖A‖² if you know it (a float, or a tensor of shape (B,)); then nothing is estimated.
        lipschitz: Lipschitz constant of the gradient of ``d(·, y)``, needed for any fidelity other than ``L2``.

    Attributes:
        shape: (B, C, H, W) of the image.
        adjoint_y: ``Aᵀy``, in the image's shape.
        sqnorm: ‖A‖², shape (1,) or (B,).
        sqnorm_kind: "exact", "estimated" or "given".
        sqnorm_safety, sqnorm_failure: of an estimate: the factor that is in it, and the probability that it is too
            small all the same.
        adjoint_mismatch: ``|⟨Aa, Ac⟩ − ⟨a, AᵀAc⟩|/(‖Aa‖ ‖Ac‖)`` for random images a and c; None where A and its
            adjoint are right by construction of deepinv, or where nothing was looked at (``sqnorm=...``).
        lipschitz: L, shape (1,) or (B,).
        strong_convexity: μ ≥ 0 such that ``f − (μ/2)‖·‖²`` is known to be convex, shape (1,) or (B,): ``min |m|²/σ²``
            for a diagonalised operator or a circular convolution; 0 where nothing is known.

    Raises:
        PhysicsError: the physics is not linear, or its adjoint is not one.
        ShapeError: ``y`` does not fit the physics.
        NotFiniteError: NaN or Inf in ``y`` or in ``Aᵀy``.
        InvalidParameterError: a fidelity whose Lipschitz constant is unknown.
    """

    def __init__(
        self,
        y: Tensor,
        physics: LinearPhysics,
        data_fidelity: DataFidelity | None = None,
        *,
        sqnorm: float | Tensor | None = None,
        lipschitz: float | None = None,
    ):
        if not isinstance(physics, LinearPhysics):
            raise PhysicsError(
                f"the forward operator must be a deepinv LinearPhysics, got {type(physics).__name__}; "
                "wrap a linear function as deepinv.physics.LinearPhysics(A=..., A_adjoint=...)"
            )
        y = without_gaps(y, physics)
        for part in _tensors(y):
            if not torch.isfinite(part.detach()).all():
                bad = int((~torch.isfinite(part.detach())).sum())
                raise NotFiniteError(
                    f"the measurement y has {bad} NaN or Inf of {part.numel()} values; mask them out "
                    "(deepinv.physics.Inpainting) or replace them before restoring"
                )
        self.y = y
        self.physics = physics
        self.data_fidelity = L2() if data_fidelity is None else data_fidelity
        self.adjoint_y = self._adjoint(y, physics)
        self.shape = torch.Size(self.adjoint_y.shape)
        if len(self.shape) != 4 or 0 in self.shape:
            raise ShapeError(
                f"Aᵀy must be a non-empty batch of images (B, C, H, W), got shape {tuple(self.shape)}; "
                "add the missing batch or channel dimension to y and to the physics"
            )
        if not torch.isfinite(self.adjoint_y.detach()).all():
            raise NotFiniteError("Aᵀy has NaN or Inf although y is finite: the adjoint of the physics is broken")

        found = facts(physics, self.adjoint_y, y, known_sqnorm=sqnorm)
        self.sqnorm, self.sqnorm_kind = found.sqnorm, found.sqnorm_kind
        self.sqnorm_safety, self.sqnorm_failure = SAFETY, FAILURE
        self.adjoint_mismatch = found.mismatch
        # A = √a·(an isometry) is common (denoising) and makes the normal operator a multiplication by a number.
        self.normal_scale = found.normal_scale

        self._is_l2 = type(self.data_fidelity) is L2
        if self._is_l2:
            # deepinv stores 1/σ² under this name
            self._inverse_variance = float(self.data_fidelity.norm)  # pyright: ignore[reportArgumentType]
            constant = self._inverse_variance
        elif lipschitz is None:
            raise InvalidParameterError(
                f"the Lipschitz constant of {type(self.data_fidelity).__name__} is not known; give it as "
                "ForwardBackward(..., lipschitz=...) or DataTerm(..., lipschitz=...) so that the step size can be kept "
                "below 2/L, or use deepinv.optim.L2"
            )
        else:
            constant = float(lipschitz)
        self.lipschitz = self.sqnorm * constant
        if not bool((self.lipschitz > 0).all()):
            raise PhysicsError("the forward operator is zero: ‖A‖² = 0, so there is nothing to restore from")
        known = found.floor if self._is_l2 and found.floor is not None else torch.zeros_like(self.sqnorm)
        self.strong_convexity = known * constant
        self._normal = normal_operator(physics, found)

    @staticmethod
    def _adjoint(y: Tensor, physics: LinearPhysics) -> Tensor:
        try:
            return physics.A_adjoint(y)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            derived = type(physics).A_adjoint is LinearPhysics.A_adjoint and physics.A_adj is None
            if derived and physics.img_size is None:
                raise PhysicsError(
                    f"{type(physics).__name__} has no adjoint: give A_adjoint=..., or img_size=(C, H, W), from which "
                    "deepinv derives it by automatic differentiation"
                ) from error
            shapes = [tuple(p.shape) for p in _tensors(y)]
            raise ShapeError(
                f"the measurement of shape {shapes if len(shapes) > 1 else shapes[0]} does not fit "
                f"{type(physics).__name__}: Aᵀy failed with «{error}». Make y with physics(x), or rebuild the "
                "physics for this image size and device."
            ) from error

    @property
    def batch(self) -> int:
        """Number of images B."""
        return self.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the images."""
        return self.adjoint_y.device

    @property
    def dtype(self) -> torch.dtype:
        """Real dtype of the images."""
        return self.adjoint_y.dtype

    @property
    def quadratic(self) -> bool:
        """Whether ``f`` is ``‖Ax − y‖²/(2σ²)``, so that its gradient is ``(AᵀA x − Aᵀy)/σ²``."""
        return self._is_l2

    @property
    def inverse_variance(self) -> float:
        """``1/σ²`` of the quadratic data term."""
        return self._inverse_variance

    @property
    def normal(self) -> Callable[[Tensor], Tensor]:
        """The normal operator ``x ↦ AᵀA x`` of shape (B, C, H, W) → (B, C, H, W)."""
        return self._normal

    def grad(self, x: Tensor) -> Tensor:
        """``∇f(x)``, shape (B, C, H, W)."""
        if self._is_l2:
            return (self._normal(x) - self.adjoint_y) * self._inverse_variance
        # deepinv's Potential.grad sets requires_grad_ on what it is given, so it gets a view of its own.
        return self.data_fidelity.grad(x.view_as(x), self.y, self.physics)

    def grad_of(self, images: Tensor) -> Callable[[Tensor], Tensor] | None:
        """``∇f`` for some of the images, by their index (n,); None where that can't be told for this operator."""
        if not self._is_l2 or not isinstance(self._normal, Restrictable):
            return None
        normal, target = self._normal.select(images, self.batch), self.adjoint_y[images]
        return lambda x: (normal(x) - target) * self._inverse_variance

    def fn(self, x: Tensor) -> Tensor:
        """``f(x)`` per image, shape (B,)."""
        return self.data_fidelity.fn(x, self.y, self.physics)
