"""Douglas–Rachford iterations: the data term and the prior, each by its prox."""

from __future__ import annotations

import torch
from deepinv.optim import L2
from deepinv.optim.data_fidelity import DataFidelity
from deepinv.optim.prior import Prior
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune._registry.describe import by_arguments
from retune._registry.entries import register
from retune._torch.batch import over_images
from retune.errors import InvalidParameterError, ShapeError, require
from retune.guarantee import Guarantee
from retune.maps.base import AbstractMap, BoundMap
from retune.maps.guarantees import douglas_rachford_guarantee
from retune.operators.data_term import DataTerm
from retune.operators.holes import fill
from retune.parameters import Bounded, Positive
from retune.priors.capabilities import adapt, bind_cycle, require_prox

__all__ = ["DouglasRachford"]


@register
class DouglasRachford(AbstractMap):
    r"""``z⁺ = z + prox_{γλg}(2x − z) − x`` with ``x = prox_{γf∘D}(z)``; the image is ``D x``.

    For least squares and a convex prior with a prox. The step γ has no limit: for convex f and g the map is ½-averaged
    in the Euclidean norm for every γ > 0, and x converges to a minimiser of ``f(Du) + λg(u)`` (Lions and Mercier, *SIAM
    J. Numer. Anal.* 16, 1979; Eckstein and Bertsekas, *Math. Program.* 55, 1992). So it suits badly conditioned A. With
    the same γ it is ADMM in other variables. The minimiser does not depend on γ, the speed does.

    ``γ = s/((1 − s)L)``; a sigmoid keeps the learned s in (0, 1). For a tight frame D (``D Dᵀ = I``) the prox of
    ``f∘D`` is exactly ``z + Dᵀ(prox_{γf}(Dz) − Dz)``.

    If f∘D is μ-strongly convex and its prox is exact, the map has the factor ``½(1 + δ)``, ``δ = max((1 − γμ)/(1 + γμ),
    (γL − 1)/(γL + 1))`` (Giselsson and Boyd, *IEEE Trans. Automat. Control* 62, 2017), smallest for ``γ = 1/√(μL)``.

    Args:
        prior: a prior with an exact ``prox``, or a denoiser (then nothing is proved).
        data_fidelity: a deepinv ``DataFidelity`` that is quadratic in x: ``L2()`` (the default) or
            [`NoiseWeighted`][retune.NoiseWeighted].
        step_size: s, strictly between 0 and 1; ½ is ``γ = 1/L``.
        reg: λ > 0.
        learn_step_size: whether s is trained.
        learn_reg: whether λ is trained.

    Raises:
        InvalidParameterError: a parameter out of range, or a prior without a prox; when it is bound, a fidelity whose
            prox is unknown.
    """

    def __init__(
        self,
        prior: Prior,
        data_fidelity: DataFidelity | None = None,
        step_size: float = 0.5,
        reg: float = 0.1,
        *,
        learn_step_size: bool = True,
        learn_reg: bool = True,
    ):
        super().__init__()
        if data_fidelity is not None:
            require("data_fidelity", data_fidelity, DataFidelity, "a deepinv DataFidelity", "for example L2()")
        able = require_prox(prior, "DouglasRachford")
        self.prior = able.per_layer(1)[0]
        self.data_fidelity = L2() if data_fidelity is None else data_fidelity
        self.nonexpansive = not able.may_expand
        self.step_size = Bounded(step_size, (1,), learn=learn_step_size, name="step_size")
        self.reg = Positive(reg, (1,), learn=learn_reg and able.uses_strength, name="reg")

    @property
    def per_image(self) -> bool:  # type: ignore[override]
        """Whether the prior treats every image of a batch independently of the others."""
        return adapt(self.prior).per_image

    def describe(self) -> dict:
        """See [`AbstractMap`][retune.AbstractMap]."""
        return by_arguments(self, without=("step_size", "reg"))

    def data_term(self, y: Tensor, physics: LinearPhysics) -> DataTerm:
        """See [`AbstractMap`][retune.AbstractMap]."""
        return DataTerm(y, physics, self.data_fidelity)

    def bind(self, data_term: DataTerm) -> BoundMap:
        """See [`AbstractMap`][retune.AbstractMap]."""
        return _BoundDouglasRachford(self, data_term)

    def gamma(self, data_term: DataTerm) -> Tensor:
        """``γ = s/((1 − s)L)``, shape (1 or B, 1, 1, 1)."""
        share = self.step_size().to(data_term.device, data_term.dtype)
        return over_images(share / ((1 - share) * data_term.lipschitz))

    @torch.no_grad()
    def guarantee(self, data_term: DataTerm) -> Guarantee:
        """See [`AbstractMap`][retune.AbstractMap]: averaged, and a contraction for strongly convex f."""
        return douglas_rachford_guarantee(self, self.gamma(data_term), data_term)


class _BoundDouglasRachford(BoundMap):
    """Cost per layer: the prox of f, the frame in both directions, the prox of g, and a few vector operations."""

    layers = 1

    def __init__(self, owner: DouglasRachford, data_term: DataTerm):
        self.owner, self.data_term = owner, data_term
        self.sources = tuple(t for t in (*owner.parameters(), data_term.adjoint_y) if t.requires_grad)
        self._shape, self._gradient = data_term.shape, data_term.grad
        self._gamma = owner.gamma(data_term)
        self._data_prox = data_term.prox_at(self._gamma)
        reg = owner.reg().to(data_term.device, data_term.dtype)
        (bound,) = bind_cycle([owner.prior], data_term.shape, [self._gamma * reg])
        if bound.prox is None:
            raise InvalidParameterError(
                f"{type(owner.prior).__name__} declares has_prox = True, but its bind(...) returned a BoundPrior "
                "without prox: set prox there"
            )
        self._prox, self._frame = bound.prox, bound.frame
        self._holes = None if owner.nonexpansive else data_term.holes

    def init(self) -> Tensor:
        """The state of ``Aᵀy/‖A‖²``. For a denoiser the holes of a mask are filled in."""
        term = self.data_term
        assert term is not None
        start = term.adjoint_y / over_images(term.sqnorm)
        return self.state(start if self._holes is None else fill(start, self._holes))

    def layer(self, u: Tensor, k: int = 0) -> Tensor:
        """``z + prox_{γλg}(2x − z) − x``."""
        if self._frame is None:
            x = self._data_prox(u)
        else:
            seen = self._frame.synthesis(u)
            x = u + self._frame.analysis(self._data_prox(seen) - seen)
        return u + self._prox(2 * x - u) - x

    def image(self, u: Tensor) -> Tensor:
        """``prox_{γf}(Dz)``."""
        return self._data_prox(u if self._frame is None else self._frame.synthesis(u))

    def state(self, image: Tensor) -> Tensor:
        """The state with this image: ``x = prox_{γf}(z)`` where ``z = x + γ∇f(x)``."""
        if image.shape != self._shape:
            raise ShapeError(
                f"expected images of shape {tuple(self._shape)} for this data term, got {tuple(image.shape)}"
            )
        step = self._gamma * self._gradient(image)
        if self._frame is None:
            return image + step
        return self._frame.extension(image) + self._frame.analysis(step)

    def image_adjoint(self, image: Tensor) -> Tensor:
        """``Dᵀ`` of an image: the start of an adjoint solve, which needs no more."""
        return image if self._frame is None else self._frame.analysis(image)
