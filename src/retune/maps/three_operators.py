"""The three-operator iteration of Davis and Yin: a smooth data term, a synthesis prior, and a box."""

from __future__ import annotations

import torch
from deepinv.optim.data_fidelity import DataFidelity
from deepinv.optim.prior import Prior
from torch import Tensor

from retune._registry.entries import register
from retune._torch.batch import over_images
from retune.errors import InvalidParameterError
from retune.guarantee import Guarantee
from retune.maps.base import BoundMap
from retune.maps.guarantees.proximal import three_operator_guarantee
from retune.maps.with_prior import BoundWithProx, MapWithProx
from retune.operators.data_term import DataTerm
from retune.parameters import require_box

__all__ = ["ThreeOperators"]

#: An iteration starts this far inside the box, as a share of its width.
_INSIDE = 0.01


@register
class ThreeOperators(MapWithProx):
    r"""``z⁺ = z + prox_{γλg}(2x − z − γDᵀ∇f(Dx)) − x`` with ``x = P(z)``; the image is ``D x``, inside a box.

    It minimises ``f(Du) + λg(u)`` over all u whose image Du has intensities in the box. So it combines wavelets with
    positivity; [`ForwardBackward`][retune.ForwardBackward] has no box. P is the projection on these u. For a tight
    frame D (``D Dᵀ = I``) it is exactly ``z + Dᵀ(clamp(Dz) − Dz)``.

    The step is ``γ = 2s/L``; a sigmoid keeps the learned s in (0, 1). For convex f and g the map is averaged in the
    Euclidean norm with ``α = 2/(4 − γL) = 1/(2 − s)``, and x converges to a minimiser (Davis and Yin, *Set-Valued Var.
    Anal.* 25, 2017). No rate is known. A certificate measures that of the image: if pixels are on a face of the box, z
    can have directions that stay for ever, and that the image does not see.

    Args:
        prior: a prior with an exact ``prox``, or a denoiser (then nothing is proved).
        data_fidelity: convex deepinv ``DataFidelity`` with a Lipschitz gradient, ``L2()`` by default.
        step_size: s, strictly between 0 and 1.
        reg: λ > 0.
        box: (low, high), the allowed intensities.
        learn_step_size: whether s is trained.
        learn_reg: whether λ is trained.
        lipschitz: Lipschitz constant of the gradient of ``d(·, y)``, for a fidelity that does not state it.

    Raises:
        InvalidParameterError: a parameter out of range, or a prior without a prox.
    """

    def __init__(
        self,
        prior: Prior,
        data_fidelity: DataFidelity | None = None,
        step_size: float = 0.9,
        reg: float = 0.1,
        *,
        box: tuple[float, float] = (0.0, 1.0),
        learn_step_size: bool = True,
        learn_reg: bool = True,
        lipschitz: float | None = None,
    ):
        limits = require_box(box)
        if limits is None:
            raise InvalidParameterError("box must be two numbers (low, high); without a box use ForwardBackward")
        super().__init__(
            prior, data_fidelity, step_size, reg,
            learn_step_size=learn_step_size, learn_reg=learn_reg, lipschitz=lipschitz,
        )  # fmt: skip
        self.box = limits

    def bind(self, data_term: DataTerm) -> BoundMap:
        """See [`AbstractMap`][retune.AbstractMap]."""
        return _BoundThreeOperators(self, data_term)

    def gamma(self, data_term: DataTerm) -> Tensor:
        """``γ = 2s/L``, shape (1 or B, 1, 1, 1)."""
        return over_images(2 * self.step_size().to(data_term.device, data_term.dtype) / data_term.lipschitz)

    @torch.no_grad()
    def guarantee(self, data_term: DataTerm) -> Guarantee:
        """See [`AbstractMap`][retune.AbstractMap]: averaged, if f and g are convex."""
        return three_operator_guarantee(self, self.gamma(data_term), data_term)


class _BoundThreeOperators(BoundWithProx):
    """Cost per layer: the normal operator, the frame in both directions, the prox of g, and a few vector operations."""

    def __init__(self, owner: ThreeOperators, data_term: DataTerm):
        super().__init__(owner, data_term)
        self._box = owner.box

    def init(self) -> Tensor:
        """The state of ``Aᵀy/‖A‖²``, well inside the box. For a denoiser the holes of a mask are filled in."""
        start = self._back_projection(filled=self._filled)
        # Black pixels would start on a face of the box, where the map is not differentiable.
        low, high = self._box
        inner = _INSIDE * min(high - low, 1.0)
        return self.state(start.clamp(low + inner, high - inner))

    def layer(self, u: Tensor, k: int = 0) -> Tensor:
        """``z + prox_{γλg}(2x − z − γDᵀ∇f(Dx)) − x``."""
        seen = self._synthesis(u)
        inside = seen.clamp(*self._box)
        x = u + self.image_adjoint(inside - seen)
        step = self.image_adjoint(self._gamma * self._gradient(inside))
        return u + self._prox(2 * x - u - step) - x

    def image(self, u: Tensor) -> Tensor:
        """``clamp(Dz)``."""
        return self._synthesis(u).clamp(*self._box)

    def visible(self, v: Tensor, u: Tensor) -> Tensor:
        """A change of the pixels that are inside the box.

        On a face of the box a pixel stays. Where the prox leaves no coefficient of such a change, z keeps it for ever,
        and no image moves it.
        """
        seen, (low, high) = self._synthesis(u), self._box
        return self.image_adjoint(self._synthesis(v) * ((seen > low) & (seen < high)))

    def state(self, image: Tensor) -> Tensor:
        return self._extension(self._require(image).clamp(*self._box))
