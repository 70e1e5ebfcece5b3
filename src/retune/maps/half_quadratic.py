"""Half-quadratic splitting: the prox of the data term and the prox of the prior in turn."""

from __future__ import annotations

import torch
from torch import Tensor

from retune._registry.entries import register
from retune.guarantee import Guarantee
from retune.maps.base import BoundMap
from retune.maps.guarantees.proximal import half_quadratic_guarantee
from retune.maps.with_prior import BoundWithTwoProxes, MapWithTwoProxes
from retune.operators.data_term import DataTerm

__all__ = ["HalfQuadratic"]


@register
class HalfQuadratic(MapWithTwoProxes):
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

    def bind(self, data_term: DataTerm) -> BoundMap:
        """See [`AbstractMap`][retune.AbstractMap]."""
        return _BoundHalfQuadratic(self, data_term)

    @torch.no_grad()
    def guarantee(self, data_term: DataTerm) -> Guarantee:
        """See [`AbstractMap`][retune.AbstractMap]: averaged, and a contraction for strongly convex f or g."""
        return half_quadratic_guarantee(self, self.gamma(data_term), data_term)


class _BoundHalfQuadratic(BoundWithTwoProxes):
    """Cost per layer: the prox of f, the frame in both directions, and the prox of g."""

    def init(self) -> Tensor:
        """``Aᵀy/‖A‖²``; for a blur with a valid boundary the measurement, continued by its mirror image.

        For a denoiser the holes of a mask are filled in.
        """
        continued = self.data_term.continued
        return self.state(self._back_projection(filled=self._filled) if continued is None else continued)

    def layer(self, u: Tensor, k: int = 0) -> Tensor:
        """``prox_{γλg}(prox_{γf∘D}(u))``."""
        return self._prox(self._data_step(u)[0])

    def image(self, u: Tensor) -> Tensor:
        """``D u``."""
        return self._synthesis(u)

    def state(self, image: Tensor) -> Tensor:
        """The state with this image."""
        return self._extension(self._require(image))
