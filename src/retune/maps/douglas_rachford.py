"""Douglas–Rachford iterations: the data term and the prior, each by its prox."""

from __future__ import annotations

import torch
from torch import Tensor

from retune._registry.entries import register
from retune.guarantee import Guarantee
from retune.maps.base import BoundMap
from retune.maps.guarantees.proximal import douglas_rachford_guarantee
from retune.maps.with_prior import BoundWithTwoProxes, MapWithTwoProxes
from retune.operators.data_term import DataTerm

__all__ = ["DouglasRachford"]


@register
class DouglasRachford(MapWithTwoProxes):
    r"""``z⁺ = z + prox_{γλg}(2x − z) − x`` with ``x = prox_{γf∘D}(z)``; the image is ``D x``.

    It is for least squares and a convex prior with a prox. For convex f and g the map is ½-averaged in the Euclidean
    norm for every γ > 0, and x converges to a minimiser of ``f(Du) + λg(u)`` (Lions and Mercier, *SIAM J. Numer. Anal.*
    16, 1979; Eckstein and Bertsekas, *Math. Program.* 55, 1992). The step γ has no upper limit, which helps if A is
    badly conditioned. γ changes the speed, not the minimiser. With the same γ it is ADMM in other variables.

    ``γ = s/((1 − s)L)``; a sigmoid keeps the learned s in (0, 1). For a tight frame D (``D Dᵀ = I``) the prox of
    ``f∘D`` is exactly ``z + Dᵀ(prox_{γf}(Dz) − Dz)``. Where the prox of f needs conjugate gradients, their
    accuracy is a relative residual of 4e-6 in float32 and 1e-12 in float64, far below the tolerance of the stopping
    rule.

    If f∘D is μ-strongly convex and its prox is exact, the map has the factor ``½(1 + δ)``, ``δ = max((1 − γμ)/(1 + γμ),
    (γL − 1)/(γL + 1))`` (Giselsson and Boyd, *IEEE Trans. Automat. Control* 62, 2017). The factor is smallest for
    ``γ = 1/√(μL)``.

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

    def bind(self, data_term: DataTerm) -> BoundMap:
        """See [`AbstractMap`][retune.AbstractMap]."""
        return _BoundDouglasRachford(self, data_term)

    @torch.no_grad()
    def guarantee(self, data_term: DataTerm) -> Guarantee:
        """See [`AbstractMap`][retune.AbstractMap]: averaged, and a contraction for strongly convex f."""
        return douglas_rachford_guarantee(self, self.gamma(data_term), data_term)


class _BoundDouglasRachford(BoundWithTwoProxes):
    """Cost per layer: the prox of f, the frame in both directions, the prox of g, and a few vector operations."""

    def init(self) -> Tensor:
        """The state of ``Aᵀy/‖A‖²``. For a denoiser the holes of a mask are filled in."""
        return self.state(self._back_projection(filled=self._filled))

    def layer(self, u: Tensor, k: int = 0) -> Tensor:
        """``z + prox_{γλg}(2x − z) − x``."""
        x, _ = self._data_step(u)
        return u + self._prox(2 * x - u) - x

    def image(self, u: Tensor) -> Tensor:
        """``prox_{γf}(Dz)``."""
        return self._data_step(u)[1]

    def state(self, image: Tensor) -> Tensor:
        """The state with this image: ``x = prox_{γf}(z)`` where ``z = x + γ∇f(x)``."""
        step = self._gamma * self._gradient(self._require(image))
        return image + step if self._frame is None else self._frame.extension(image) + self._frame.analysis(step)
