"""Mirror descent with Burg's entropy: counts with their exact likelihood, and images that stay positive."""

from __future__ import annotations

import torch
from deepinv.optim import PoissonLikelihood
from deepinv.optim.data_fidelity import DataFidelity
from deepinv.optim.prior import Prior
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune._registry.entries import register
from retune._torch.batch import over_images
from retune.errors import InvalidParameterError, PhysicsError
from retune.guarantee import Guarantee
from retune.maps.base import BoundMap
from retune.maps.guarantees.smooth import mirror_guarantee
from retune.maps.with_prior import BoundWithPrior, MapWithPrior
from retune.operators.data_term import DataTerm
from retune.operators.kinds import is_nonnegative, reach
from retune.operators.pairs import random_like
from retune.parameters import Bounded, Positive
from retune.priors.capabilities import bind_cycle, part_of, require_grad, smoothness_of

__all__ = ["MirrorDescent"]

#: Entries of A below this share of its largest are negative, not rounding.
_NEGATIVE = 1e-5


@register
class MirrorDescent(MapWithPrior):
    r"""``∇h(x⁺) = ∇h(x) − s∇F(x)`` for ``F = f + λR`` and counts f, with ``h(x) = −Σ_j a_j log x_j + ½λL_R‖x‖²``.

    The NoLip algorithm (Bauschke, Bolte, Teboulle, *Math. Oper. Res.* 42(2), 2017) for the exact likelihood of counts,
    deepinv's ``PoissonLikelihood``: ``f(x) = Σ_i (Ax)_i + b − y_i log((Ax)_i + b)``. The gradient of f is unbounded
    where Ax = 0, so without a background b no step size of a gradient step is small enough. Burg's entropy
    ``−Σ log x`` bends there in the same way. So ``h − F`` is convex with known constants, which replace ‖A‖²:

    * ``a_j = Σ_i y_i`` over the counts i that see the pixel j, known for masks and for ``deepinv.physics.Blur``;
    * ``a_j = Σ_i y_i`` over all counts of the image for any other A without negative entries. This is safe for every
      such A, but then a layer moves an image of n pixels only by about 1/n of the way: use it for small images.

    Each pixel has a step in closed form, a positive root of a quadratic equation, so the image stays positive without a
    projection. With f and R convex, F never rises and tends to its smallest value, with ``F(x_k) − F(x) ≤ D_h(x, x_0)/
    (sk)`` for every x > 0 (Theorem 1 there). A minimiser with positive pixels is approached: the Bregman distance to it
    never grows. At an equilibrium the step s has no effect.

    Args:
        prior: a prior whose gradient has a known Lipschitz constant L_R, for example
            [`TV(smoothing=0.02)`][retune.priors.TV], [`Ridge`][retune.priors.Ridge] or deepinv's ``Tikhonov``.
        data_fidelity: deepinv's ``PoissonLikelihood``, or your own that states
            [`FidelityFacts.relative`][retune.FidelityFacts]; the default is ``PoissonLikelihood(bkg=0)``: y are counts.
        step_size: s, strictly between 0 and 1.
        reg: λ > 0.
        learn_step_size: whether s is trained.
        learn_reg: whether λ is trained.

    Raises:
        InvalidParameterError: a parameter out of range, a prior without such a gradient, or, when a measurement is
            given, another fidelity or negative counts.
        PhysicsError: when a measurement is given: A has negative entries.
    """

    def __init__(
        self,
        prior: Prior,
        data_fidelity: DataFidelity | None = None,
        step_size: float = 0.95,
        reg: float = 0.1,
        *,
        learn_step_size: bool = True,
        learn_reg: bool = True,
    ):
        able = require_grad(prior, "MirrorDescent")
        stated = smoothness_of(prior, torch.zeros(1))
        if stated is None or stated.lipschitz is None:
            raise InvalidParameterError(
                "MirrorDescent needs a prior whose gradient has a known Lipschitz constant, got "
                f"{type(prior).__name__}, for which none is known; for example "
                "retune.priors.TV(smoothing=0.02) or retune.priors.Ridge(). Your "
                "own prior states it in smoothness(like)"
            )
        own = able.per_layer(1)[0] if able.shares_layers else prior
        super().__init__(own, PoissonLikelihood(bkg=0) if data_fidelity is None else data_fidelity)
        self.nonexpansive = not able.may_expand
        self.step_size = Bounded(step_size, (1,), learn=learn_step_size, name="step_size")
        self.reg = Positive(reg, (1,), learn=learn_reg, name="reg")

    def data_term(self, y: Tensor, physics: LinearPhysics) -> DataTerm:
        """See [`AbstractMap`][retune.AbstractMap]."""
        term = DataTerm(y, physics, self.data_fidelity, relative=True)
        self._require(term)
        return term

    def bind(self, data_term: DataTerm) -> BoundMap:
        """See [`AbstractMap`][retune.AbstractMap]."""
        self._require(data_term)
        return _BoundMirrorDescent(self, data_term)

    @torch.no_grad()
    def guarantee(self, data_term: DataTerm) -> Guarantee:
        """See [`AbstractMap`][retune.AbstractMap]: the objective falls, and for convex F to its smallest value."""
        self._require(data_term)
        return mirror_guarantee(self, data_term)

    def objective(self, x: Tensor, data_term: DataTerm) -> Tensor:
        """``f(x) + λR(x)`` per image, shape (B,), for positive images x.

        Raises:
            InvalidParameterError: the prior has no value.
        """
        return self._objective(x, data_term)

    def prior_constant(self, like: Tensor) -> Tensor:
        """``L_R``, shape (1,) or (B,)."""
        stated = smoothness_of(self.prior, like)
        assert stated is not None
        return torch.as_tensor(stated.lipschitz).to(like).reshape(-1)

    def _require(self, term: DataTerm) -> None:
        if term.fidelity.relative is None:
            raise InvalidParameterError(
                f"MirrorDescent needs counts ≥ 0 with their likelihood, got {type(term.data_fidelity).__name__} for a "
                f"measurement from {float(term.y.min()):.3g} to {float(term.y.max()):.3g}; give "
                "data_fidelity=deepinv.optim.PoissonLikelihood(gain=..., bkg=...), or take retune.PrimalDual for any "
                "smooth fidelity. A fidelity of your own states FidelityFacts(relative=...)"
            )
        if is_nonnegative(term.physics) is True:
            return
        # Random points cannot prove that no entry is negative, but may refute it.
        points = random_like(term.adjoint_y).gt(1.0).to(term.dtype)
        made = term.physics.A(points)
        if is_nonnegative(term.physics) is False or bool((made < -_NEGATIVE * made.abs().max()).any()):
            raise PhysicsError(
                f"MirrorDescent needs an operator without negative entries, but {type(term.physics).__name__} has "
                "some: counts cannot be negative. Use retune.PrimalDual with a weighted fidelity (retune.NoiseWeighted)"
            )


class _BoundMirrorDescent(BoundWithPrior):
    """Cost per layer: the gradients of f and R, and a few vector operations."""

    def __init__(self, owner: MirrorDescent, data_term: DataTerm):
        super().__init__(owner, data_term)
        step, self._reg = (p().to(data_term.device, data_term.dtype) for p in (owner.step_size, owner.reg))
        self._step = step
        (bound,) = bind_cycle([owner.prior], data_term.shape, [step.new_ones(())])
        self._prior = part_of(owner.prior, bound, "grad")
        self._curvature = over_images(self._reg * owner.prior_constant(data_term.adjoint_y))  # λL_R
        self._weights = _weights(data_term)

    def init(self) -> Tensor:
        """``Aᵀ/‖A‖²`` of the values that fit each measured value best, at least their mean.

        A bright start is safe: dark pixels brighten slowly, because their steps are small.
        """
        term = self.data_term
        assert term.fidelity.relative is not None
        start = term.physics.A_adjoint(term.fidelity.relative.nearest) / over_images(term.sqnorm)
        mean = over_images(start.flatten(1).mean(1))
        return self.state(torch.maximum(start, torch.where(mean > 0, mean, 1.0)))

    def layer(self, u: Tensor, k: int = 0) -> Tensor:
        """``x(1 + δ)``, where 1 + δ is the positive root; without the cancellation of ``a/x − a/x⁺``.

        With ``c = s x∇F`` and ``m = λL_R x²``: ``mδ² + (a + m + c)δ + c = 0``.
        """
        x = self._positive(u)
        c = self._step * x * torch.addcmul(self._gradient(x), self._prior(x), self._reg)
        a, m = self._weights, self._curvature * x.square()
        b = a + m + c
        root = ((a + c - m).square() + 4 * a * m).sqrt()
        falls = b > 0
        one = torch.ones_like(b)
        return x * (1 + torch.where(falls, -2 * c / torch.where(falls, b + root, one), (root - b) / (2 * m)))

    def image(self, u: Tensor) -> Tensor:
        """``|u|``: an accelerating solver may leave the positive numbers."""
        return self._positive(u)

    def state(self, image: Tensor) -> Tensor:
        """The image itself, if it is positive; dark pixels are raised to a thousandth of its mean size."""
        image = self._require(image)
        least = over_images(image.detach().abs().flatten(1).mean(1)).clamp_min(torch.finfo(image.dtype).tiny) * 1e-3
        return torch.maximum(image, least)

    def image_adjoint(self, image: Tensor) -> Tensor:
        """The image itself: the state is the image."""
        return image

    @staticmethod
    def _positive(u: Tensor) -> Tensor:
        return u.abs().clamp_min(torch.finfo(u.dtype).tiny ** 0.25)


def _weights(data_term: DataTerm) -> Tensor:
    """a, broadcastable to the images: the weights that see each pixel, or all; at least one count's, the smallest."""
    relative = data_term.fidelity.relative
    assert relative is not None
    seen = reach(data_term.physics, relative.weights)
    if seen is None:
        seen = over_images(relative.weights.flatten(1).sum(1))
    # A pixel that no count sees only darkens, for any weight above 0.
    found = relative.weights[relative.weights > 0]
    least = found.min() if found.numel() else torch.ones((), dtype=seen.dtype, device=seen.device)
    return torch.maximum(seen, least)
