"""The data term of ``y = A x + noise``, with all constants of the iteration."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable

import torch
from deepinv.optim import L2
from deepinv.optim.data_fidelity import DataFidelity
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune._torch.batch import over_images
from retune._torch.precision import without_autocast
from retune.errors import InvalidParameterError, NotFiniteError, PhysicsError, ShapeError, advice
from retune.operators.blur import continued
from retune.operators.data_prox import QuadraticProx
from retune.operators.facts import facts, normal_operator
from retune.operators.fidelity import facts_of_fidelity
from retune.operators.holes import holes_of, without_gaps
from retune.operators.images import other_precision, parts, require_images, require_precision
from retune.operators.kinds import phase_advice
from retune.operators.norm import FAILURE, SAFETY
from retune.operators.pairs import steepest
from retune.operators.restrict import Restrictable

__all__ = ["DataTerm"]

# The shapes and constants for which a fidelity was tested on random images.
_tried: weakref.WeakKeyDictionary[DataFidelity, set[tuple]] = weakref.WeakKeyDictionary()


class DataTerm:
    r"""The data term ``f(x; y) = d(Ax, y)`` of a linear restoration problem, bound to its measurement.

    For deepinv's ``L2(sigma)`` it is ``‖Ax − y‖² / (2σ²)``, with gradient ``(AᵀA x − Aᵀy)/σ²`` and Lipschitz constant
    ``L = ‖A‖²/σ²``. ``Aᵀy`` and ``‖A‖²`` are computed once.

    ``‖A‖²`` is exact if the physics is diagonalised (deepinv's ``DecomposablePhysics`` with orthonormal factors) or a
    circular convolution. Otherwise it is estimated: a Lanczos value times a safety factor of 1.05. The number of steps
    makes the probability that this product underestimates ‖A‖² smaller than 1e-6 for each image, for any spectrum, in
    exact arithmetic and for a random start (Kuczyński and Woźniakowski, SIAM J. Matrix Anal. Appl. 13(4), 1992; the
    start here is drawn once, independently of A). The norm is computed once per physics and image size. It is computed
    again when a tensor, an array, or a plain attribute of the physics changes. A change through ``.data`` is not
    noticed, because torch does not count it.

    Args:
        y: measurement, a tensor (B, ...) or a deepinv ``TensorList``, all finite.
        physics: any deepinv ``LinearPhysics``.
        data_fidelity: deepinv ``DataFidelity`` with a Lipschitz gradient; ``L2()`` if None. The constants of deepinv's
            fidelities are known; your own states them ([`FidelityFacts`][retune.FidelityFacts]).
        sqnorm: ‖A‖² if you know it (a float, or a tensor of shape (B,)); then nothing is estimated.
        relative: whether smoothness relative to Burg's entropy is enough, as for
            [`MirrorDescent`][retune.MirrorDescent]. Then `lipschitz` is infinite for a fidelity without the constant.
        lipschitz: Lipschitz constant of the gradient of ``d(·, y)``, for a fidelity that does not state it. It is
            tested on random images, which can refute it but not prove it.

    Attributes:
        shape: (B, C, H, W) of the image.
        adjoint_y: ``Aᵀy``, in the image's shape.
        sqnorm: ‖A‖², shape (1,) or (B,).
        sqnorm_kind: how that is known ([`Known`][retune.Known]): exact, estimated or given.
        sqnorm_safety, sqnorm_failure: for an estimate, its safety factor, and the probability that it is still too
            small.
        adjoint_mismatch: ``|⟨Aa, Ac⟩ − ⟨a, AᵀAc⟩|/(‖Aa‖ ‖Ac‖)`` for random images a and c. None if deepinv's
            construction ensures the adjoint, or if it was not tested (``sqnorm=...``).
        fidelity: the known facts about the fidelity.
        lipschitz: L, shape (1,) or (B,).
        strong_convexity: μ ≥ 0 such that ``f − (μ/2)‖·‖²`` is known to be convex, shape (1,) or (B,): ``min |m|²/σ²``
            for a diagonalised operator or a circular convolution; 0 if unknown.

    Raises:
        PhysicsError: the physics is not linear, its adjoint is wrong, its images are complex, or its numbers are too
            large or too small for the precision.
        ShapeError: ``y`` does not fit the physics, or the images are not (B, C, H, W).
        NotFiniteError: NaN or Inf in ``y`` or in ``Aᵀy``.
        InvalidParameterError: the gradient of the fidelity has no Lipschitz constant, or an unknown one, or a larger
            one than stated; or ``y`` has whole numbers, 16-bit floats, or a different precision than the physics.
    """

    def __init__(
        self,
        y: Tensor,
        physics: LinearPhysics,
        data_fidelity: DataFidelity | None = None,
        *,
        sqnorm: float | Tensor | None = None,
        lipschitz: float | None = None,
        relative: bool = False,
    ):
        if not isinstance(physics, LinearPhysics):
            phase = phase_advice(physics)
            raise PhysicsError(
                f"the forward operator must be a deepinv LinearPhysics, got {type(physics).__name__}"
                + (
                    f". {phase}"
                    if phase
                    else "; wrap a linear function as deepinv.physics.LinearPhysics(A=..., A_adjoint=...)"
                )
            )
        require_precision(y)
        y = without_gaps(y, physics)
        for part in parts(y):
            if not torch.isfinite(part.detach()).all():
                bad = int((~torch.isfinite(part.detach())).sum())
                raise NotFiniteError(
                    f"{bad} of {part.numel()} values of the measurement y are NaN or Inf; mask them out "
                    f"({advice('deepinv.physics.Inpainting', '--problem inpaint --mask FILE')}) or replace them before "
                    "restoring"
                )
        if isinstance(y, Tensor) and y.is_inference() and not torch.is_inference_mode_enabled():
            y = y.clone()  # autograd cannot store a tensor that was made in inference mode
        self.y = y
        self.physics = physics
        self.data_fidelity = L2() if data_fidelity is None else data_fidelity
        self.adjoint_y = without_autocast(self._adjoint)(y, physics)
        self.shape = torch.Size(self.adjoint_y.shape)
        require_images(self.adjoint_y)
        if not torch.isfinite(self.adjoint_y.detach()).all():
            raise NotFiniteError(
                "Aᵀy has NaN or Inf although y is finite: the adjoint of the physics is broken, or its numbers are "
                "too large for the precision (if so, divide A and y by ‖A‖)"
            )

        found = facts(physics, self.adjoint_y, y, known_sqnorm=sqnorm)
        self.sqnorm, self.sqnorm_kind = found.sqnorm, found.sqnorm_kind
        self.sqnorm_safety, self.sqnorm_failure = SAFETY, FAILURE
        self.adjoint_mismatch = found.mismatch
        # If A = √a·(an isometry), as in denoising, the normal operator is a multiplication by a number.
        self.normal_scale = found.normal_scale

        self.fidelity = facts_of_fidelity(self.data_fidelity, y, lipschitz, relative=relative)
        constant = torch.as_tensor(math.inf if self.fidelity.lipschitz is None else self.fidelity.lipschitz)
        constant = constant.to(self.sqnorm)
        self.lipschitz = self.sqnorm * constant
        if not bool((self.lipschitz > 0).all()):
            raise PhysicsError("the forward operator is zero: ‖A‖² = 0, so the measurement contains no information")
        known = torch.zeros_like(self.sqnorm) if found.floor is None else found.floor
        self.strong_convexity = known * self.fidelity.strong
        self._normal = normal_operator(physics, found)
        self._chosen: Tensor | None = None  # the images of the batch that this data term is for; None: all
        self._try_constant()

    def _try_constant(self) -> None:
        """Refuse an unchecked fidelity constant that random images refute. Each constant is tested once."""
        if self.fidelity.checked:
            return
        tried = _tried.setdefault(self.data_fidelity, set())
        key = (tuple(self.shape), tuple(self.lipschitz.tolist()))
        if key in tried:
            return
        low, high = self.fidelity.domain
        around = self.adjoint_y.detach() / over_images(self.sqnorm, self.adjoint_y.ndim)
        if low == -math.inf and high == math.inf:
            found = steepest(self.grad, around)
            if bool((found > self.lipschitz).any()):
                worst = float((found / self.lipschitz).max())
                raise InvalidParameterError(
                    f"the gradient of {type(self.data_fidelity).__name__} changes {worst:.3g} times faster than its "
                    f"Lipschitz constant allows ({self.fidelity.how}): give a larger constant; if its gradient has "
                    "jumps, use a smooth fidelity such as deepinv.optim.L2"
                )
        tried.add(key)

    @staticmethod
    def _adjoint(y: Tensor, physics: LinearPhysics) -> Tensor:
        try:
            return physics.A_adjoint(y)
        except Exception as error:  # the operator may be the user's own, and raise anything
            derived = type(physics).A_adjoint is LinearPhysics.A_adjoint and physics.A_adj is None
            if derived and physics.img_size is None:
                raise PhysicsError(
                    f"{type(physics).__name__} has no adjoint: give A_adjoint=..., or img_size=(C, H, W), from which "
                    "deepinv derives it by automatic differentiation"
                ) from error
            precision = other_precision(y, physics)
            if precision is not None:
                raise InvalidParameterError(f"Aᵀy failed with «{error}»: {precision}") from error
            shapes = [tuple(p.shape) for p in parts(y)]
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
        """Whether ``f`` is ``‖Ax − y‖²/(2σ²)``, with gradient ``(AᵀA x − Aᵀy)/σ²``."""
        return self.fidelity.quadratic

    @property
    def inverse_variance(self) -> float:
        """``1/σ²`` of the quadratic data term."""
        return self.fidelity.strong

    @property
    def normal(self) -> Callable[[Tensor], Tensor]:
        """The normal operator ``x ↦ AᵀA x`` of shape (B, C, H, W) → (B, C, H, W)."""
        return self._normal

    @property
    def holes(self) -> Tensor | None:
        """The pixels that a mask blocks, broadcastable to the images; None if unknown."""
        holes = holes_of(self.physics)
        if holes is None or self._chosen is None or len(holes) == 1:
            return holes
        return holes[self._chosen]

    @property
    def continued(self) -> Tensor | None:
        """The measurement continued to the size (B, C, H, W) of the image, for a blur with a valid boundary."""
        return continued(self.physics, self.y, self._chosen)

    @without_autocast
    def grad(self, x: Tensor) -> Tensor:
        """``∇f(x)``, shape (B, C, H, W)."""
        if self.quadratic:
            moved = self._normal(x) - self.adjoint_y
            return moved if self.inverse_variance == 1 else moved * self.inverse_variance
        # deepinv's Potential.grad calls requires_grad_ on its input, so it gets a separate view.
        return self.data_fidelity.grad(x.view_as(x), self.y, self.physics)

    @property
    def has_prox(self) -> bool:
        """Whether [`prox`][retune.DataTerm.prox] is known: whether f is a convex quadratic function of x."""
        return self.quadratic or (self.fidelity.affine and self.fidelity.convex)

    @without_autocast
    def prox_at(self, gamma: Tensor) -> QuadraticProx:
        """The function ``v ↦ prox_{γf}(v)`` for one γ, its constants computed once; see [`prox`][retune.DataTerm.prox].

        Its ``exact`` and ``accuracy`` say how accurate it is.

        Args:
            gamma: γ > 0, shape (), (1, 1, 1, 1) or (B, 1, 1, 1).

        Raises:
            InvalidParameterError: f is not a quadratic function.
        """
        if not self.has_prox:
            raise InvalidParameterError(
                f"the prox of the data term is known for least squares (deepinv.optim.L2, retune.NoiseWeighted), got "
                f"{type(self.data_fidelity).__name__}; use a map that takes gradient steps on it: "
                "retune.ForwardBackward or retune.PrimalDual. A fidelity of your own with an affine gradient says so: "
                "FidelityFacts(affine=True)"
            )
        gamma = gamma.to(self.device, self.dtype)
        if not self.quadratic:
            offset = self.grad(torch.zeros_like(self.adjoint_y))
            return QuadraticProx(lambda x: self.grad(x) - offset, -offset, gamma, self.lipschitz)
        # The protocol of normal operators does not demand the method: one without a closed form lacks it.
        resolve: Callable[[Tensor], Callable[[Tensor], Tensor] | None] | None = getattr(self._normal, "resolve", None)
        shift = gamma * self.inverse_variance
        inverse = None if resolve is None else resolve(over_images(shift) if shift.ndim else shift)
        return QuadraticProx(self._normal, self.adjoint_y, shift, self.sqnorm, inverse)

    def prox(self, v: Tensor, gamma: float | Tensor = 1.0) -> Tensor:
        r"""``prox_{γf}(v) = argmin_x ½‖x − v‖² + γ f(x)`` for a quadratic f, shape (B, C, H, W).

        For least squares it is ``(I + γAᵀA/σ²)⁻¹(v + γAᵀy/σ²)``. It is exact for masks and other diagonalised
        operators, and for circular convolutions. Otherwise it is computed by conjugate gradients, with a relative
        residual of at most 4e-6 in float32 and 1e-12 in float64, and with an implicit derivative.

        Args:
            v: images (B, C, H, W).
            gamma: γ > 0, a number, or a tensor (B, 1, 1, 1).

        Raises:
            InvalidParameterError: f is not a quadratic function.
        """
        return self.prox_at(torch.as_tensor(gamma, dtype=self.dtype, device=self.device))(v)

    def select(self, index: Tensor) -> DataTerm | None:
        """The data term of the images `index` (n,) only; None if the operator cannot be restricted.

        It has everything that an iteration needs. Its ``physics`` is still that of the whole batch.
        """
        # Restrictable is a protocol: this asks for the method `select`, not for a class.
        if not self.quadratic or not isinstance(self._normal, Restrictable):
            return None
        part, batch = copy.copy(self), self.batch
        part.adjoint_y, part._chosen = self.adjoint_y[index], index if self._chosen is None else self._chosen[index]
        part.y = self.y[index] if isinstance(self.y, Tensor) and len(self.y) == batch else self.y
        part.shape = torch.Size((len(index), *self.shape[1:]))
        part._normal = self._normal.select(index, batch)
        for name in ("sqnorm", "lipschitz", "strong_convexity"):
            constant = getattr(self, name)
            setattr(part, name, constant[index] if batch > 1 and len(constant) == batch else constant)
        return part

    @without_autocast
    def fn(self, x: Tensor) -> Tensor:
        """``f(x)`` per image, shape (B,): the function whose gradient is `grad`.

        For a data term that was restricted to some images by [`select`][retune.DataTerm.select], up to a constant.

        Raises:
            InvalidParameterError: the fidelity has no value per image.
        """
        if self._chosen is not None:  # the physics is that of the whole batch
            change = (x * (self._normal(x) - 2 * self.adjoint_y)).flatten(1).sum(1, dtype=torch.float64)
            return (0.5 * self.inverse_variance * change).to(x.dtype)
        if self.fidelity.value is not None:
            return self.fidelity.value(self.physics.A(x), self.y)
        value = self.data_fidelity.fn(x, self.y, self.physics)
        if value.numel() != self.batch:
            raise InvalidParameterError(
                f"fn(x, y, physics) of {type(self.data_fidelity).__name__} must return one value per image, shape "
                f"({self.batch},), got {tuple(value.shape)}: sum over all axes but the first"
            )
        return value.reshape(self.batch)
