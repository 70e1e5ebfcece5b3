"""Half-quadratic splitting: the prox of the data term and the prox of the prior in turn."""

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
from retune.maps.guarantees import half_quadratic_guarantee
from retune.operators.data_term import DataTerm
from retune.operators.holes import fill
from retune.parameters import Bounded, Positive
from retune.priors.capabilities import adapt, bind_cycle, require_prox

__all__ = ["HalfQuadratic"]


@register
class HalfQuadratic(AbstractMap):
    r"""``u⁺ = prox_{γλg}(prox_{γf∘D}(u))``; the image is ``D u``. Half-quadratic splitting (HQS), as in DPIR.

    For least squares, and a denoiser (Plug-and-Play) or a prior with a prox. For convex f and g the iterates converge
    to a minimiser over u and v of

    ``f(Dv) + λg(u) + ‖u − v‖²/(2γ)``,

    if there is one: the map is ⅔-averaged for every γ > 0 (Geman and Yang, *IEEE Trans. Image Process.* 4(7), 1995;
    Bauschke, Combettes, Reich, *Nonlinear Anal.* 60, 2005). **This minimiser depends on γ.** It is not the minimiser of
    ``f(Du) + λg(u)``, which [`DouglasRachford`][retune.DouglasRachford] and [`ForwardBackward`][retune.ForwardBackward]
    find. The term in u and v replaces f by its Moreau envelope ``f_γ(Du)``, which approaches f for γ → 0. So γ is a
    parameter of the model, like λ, and is learned like one. DPIR (Zhang et al., *IEEE TPAMI* 44(10), 2022) lowers γ and
    the noise level of the denoiser in a few steps, so it has no fixed point. Here both stay, and the layers are
    iterated to an equilibrium.

    ``γ = s/((1 − s)L)``; a sigmoid keeps the learned s in (0, 1). For a tight frame D (``D Dᵀ = I``) the prox of
    ``f∘D`` is exactly ``u + Dᵀ(prox_{γf}(Du) − Du)``. If f∘D is μ-strongly convex and g m-strongly convex, and the prox
    of f is exact, the map has the factor ``1/((1 + γμ)(1 + γλm))``.

    Args:
        prior: a prior with an exact ``prox``, or a denoiser. Then nothing is proved in general; the iteration converges
            if the denoiser is firmly nonexpansive.
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
        able = require_prox(prior, "HalfQuadratic")
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
        return _BoundHalfQuadratic(self, data_term)

    def gamma(self, data_term: DataTerm) -> Tensor:
        """``γ = s/((1 − s)L)``, shape (1 or B, 1, 1, 1)."""
        share = self.step_size().to(data_term.device, data_term.dtype)
        return over_images(share / ((1 - share) * data_term.lipschitz))

    @torch.no_grad()
    def guarantee(self, data_term: DataTerm) -> Guarantee:
        """See [`AbstractMap`][retune.AbstractMap]: averaged, and a contraction for strongly convex f or g."""
        return half_quadratic_guarantee(self, self.gamma(data_term), data_term)


class _BoundHalfQuadratic(BoundMap):
    """Cost per layer: the prox of f, the frame in both directions, and the prox of g."""

    layers = 1

    def __init__(self, owner: HalfQuadratic, data_term: DataTerm):
        self.owner, self.data_term = owner, data_term
        self.sources = tuple(t for t in (*owner.parameters(), data_term.adjoint_y) if t.requires_grad)
        self._shape = data_term.shape
        gamma = owner.gamma(data_term)
        self._data_prox = data_term.prox_at(gamma)
        reg = owner.reg().to(data_term.device, data_term.dtype)
        (bound,) = bind_cycle([owner.prior], data_term.shape, [gamma * reg])
        if bound.prox is None:
            raise InvalidParameterError(
                f"{type(owner.prior).__name__} declares has_prox = True, but its bind(...) returned a BoundPrior "
                "without prox: set prox there"
            )
        self._prox, self._frame = bound.prox, bound.frame
        self._holes = None if owner.nonexpansive else data_term.holes

    def init(self) -> Tensor:
        """``Aᵀy/‖A‖²``; for a blur with a valid boundary the measurement, continued by its mirror image.

        For a denoiser the holes of a mask are filled in.
        """
        term = self.data_term
        assert term is not None
        if (continued := term.continued) is not None:
            return self.state(continued)
        start = term.adjoint_y / over_images(term.sqnorm)
        return self.state(start if self._holes is None else fill(start, self._holes))

    def layer(self, u: Tensor, k: int = 0) -> Tensor:
        """``prox_{γλg}(prox_{γf∘D}(u))``."""
        if self._frame is None:
            return self._prox(self._data_prox(u))
        seen = self._frame.synthesis(u)
        return self._prox(u + self._frame.analysis(self._data_prox(seen) - seen))

    def image(self, u: Tensor) -> Tensor:
        return u if self._frame is None else self._frame.synthesis(u)

    def state(self, image: Tensor) -> Tensor:
        if image.shape != self._shape:
            raise ShapeError(
                f"expected images of shape {tuple(self._shape)} for this data term, got {tuple(image.shape)}"
            )
        return image if self._frame is None else self._frame.extension(image)

    def image_adjoint(self, image: Tensor) -> Tensor:
        return image if self._frame is None else self._frame.analysis(image)
