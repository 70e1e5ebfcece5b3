"""Total generalised variation of second order, declared for primal–dual maps with its field w as a further variable."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from retune._registry.entries import register
from retune.errors import InvalidParameterError, wrong_type
from retune.guarantee import Convexity
from retune.parameters import Positive, ScalarParameter
from retune.priors.base import AbstractPrior, Analysis, BoundPrior
from retune.priors.total_variation import differences, differences_adjoint, onto_balls, squared_norm

__all__ = ["TGV"]

_ROOT = math.sqrt(0.5)


@register
class TGV(AbstractPrior):
    r"""Total generalised variation of second order: ``TGV(x) = min_w Σ_p ‖(∇x − w)_p‖ + ρ Σ_p ‖(Ew)_p‖``.

    The field w takes the slopes of the image, and E is its symmetric derivative. So flat and sloped regions cost
    nothing, only their edges and bends do, and ramps do not become stairs as under [`TV`][retune.priors.TV] (Bredies,
    Kunisch, Pock, *SIAM J. Imaging Sci.* 3(3), 2010). ∇ are forward differences, and E those of w: ``∂_v w_v``,
    ``∂_h w_h`` and ``(∂_h w_v + ∂_v w_h)/√2``. Beyond the border there are no differences, so an image ``a + bi + cj``
    has the value 0.

    It has neither a gradient, nor a prox, nor a value in closed form. [`PrimalDual`][retune.PrimalDual] minimises over
    x and w at once, exactly; its state holds w. The norm of ``K(x, w) = (∇x − w, Ew)`` has the bound ``‖K‖² ≤ (2a + 1 +
    √(4a + 1))/2`` with ``a = ‖∇‖²``, because ``‖E‖ ≤ ‖∇‖``.

    Args:
        ratio: ρ > 0. A small one allows slopes everywhere; for a large one TGV is close to TV, up to a slope of the
            whole image.
        vectorial: whether the channels share their edges (see [`TV`][retune.priors.TV]).
        learn_ratio: whether ρ is trained.

    Raises:
        InvalidParameterError: ρ is not positive, or an option has another type.
    """

    explicit_prior = True
    in_state_dict = ("ratio",)
    has_analysis = True

    def __init__(self, ratio: float = 2.0, vectorial: bool = True, *, learn_ratio: bool = True):
        super().__init__()
        self.explicit_prior = True
        if not isinstance(vectorial, bool):
            raise wrong_type("vectorial", vectorial, "True or False")
        self.vectorial = vectorial
        self.ratio = Positive(ratio, learn=learn_ratio, name="ratio")

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"vectorial={self.vectorial}"

    def tunables(self) -> dict[str, ScalarParameter]:
        """ρ."""
        return {"ratio": self.ratio}

    def convexity(self) -> Convexity:
        """The minimum over w of a convex function of (x, w) is convex; the dual prox is a projection, exact."""
        return Convexity(0.0, "TGV: norms of differences of (x, w); the dual prox is a projection", checked=True)

    def fn(self, x: Tensor, *args, **kwargs) -> Tensor:
        """Refused: the value is itself a minimum.

        Raises:
            InvalidParameterError: always.
        """
        raise InvalidParameterError(
            "TGV has no value in closed form: it is a minimum over w. An upper bound for one w: TGV().fn_with(x, w)"
        )

    def fn_with(self, x: Tensor, w: Tensor) -> Tensor:
        """``Σ‖∇x − w‖ + ρΣ‖Ew‖`` per image, (B,), for w (B, 2, C, H, W): an upper bound of ``TGV(x)``."""
        z = forward(x, w)
        first, second = (
            torch.linalg.vector_norm(part, dim=self._dims).flatten(1).sum(1) for part in (z[:, :2], z[:, 2:])
        )
        return first + self.ratio().to(x) * second

    def bind(self, shape: Sequence[int], layer: int, gamma: Tensor) -> BoundPrior:
        """See [`AbstractPrior`][retune.AbstractPrior]: the analysis form, with w of shape (2, C, H, W)."""
        height, width = shape[-2:]
        radius, dims = (gamma.reshape(-1, 1, 1, 1, 1) if gamma.ndim else gamma), self._dims
        ratio = self.ratio().to(gamma)

        def dual_prox(p: Tensor, sigma: Tensor) -> Tensor:
            return torch.cat([onto_balls(p[:, :2], radius, dims), onto_balls(p[:, 2:], ratio * radius, dims)], 1)

        analysis = Analysis(
            forward=forward,
            adjoint=adjoint,
            sqnorm=gamma.detach().new_tensor([norm_bound(height, width)]),
            dual_prox=dual_prox,
            homogeneous=True,
            how=f"(2a + 1 + √(4a + 1))/2 with a = ‖∇‖² for H, W = {height}, {width}",
            checked=True,
            auxiliary=(2, *shape[1:]),
        )
        return BoundPrior(analysis=analysis)

    @property
    def _dims(self) -> tuple[int, ...]:
        """The axes of (B, direction, C, H, W) that form a group."""
        return (1, 2) if self.vectorial else (1,)


def norm_bound(height: int, width: int) -> float:
    """An upper bound of ``‖K‖²``: the largest eigenvalue of ``[[a, √a], [√a, 1 + a]]``."""
    a = squared_norm(height, width)
    return (2 * a + 1 + math.sqrt(4 * a + 1)) / 2


def forward(x: Tensor, w: Tensor) -> Tensor:
    """``(∇x − w, Ew)``: (B, C, H, W) and (B, 2, C, H, W) → (B, 5, C, H, W)."""
    bends = differences(w.flatten(1, 2)).unflatten(2, w.shape[1:3])  # (B, direction, component, C, H, W)
    mixed = (bends[:, 1, 0] + bends[:, 0, 1]) * _ROOT
    second = torch.stack([bends[:, 0, 0], bends[:, 1, 1], mixed], 1)
    return torch.cat([differences(x) - _inside(w), second], 1)


def adjoint(z: Tensor) -> tuple[Tensor, Tensor]:
    """The adjoint of `forward`: (B, 5, C, H, W) → (B, C, H, W) and (B, 2, C, H, W)."""
    first, mixed = z[:, :2], z[:, 4] * _ROOT
    bends = torch.stack([torch.stack([z[:, 2], mixed], 1), torch.stack([mixed, z[:, 3]], 1)], 1)
    w = differences_adjoint(bends.flatten(2, 3)).unflatten(1, bends.shape[2:4])
    return differences_adjoint(first), w - _inside(first)


def _inside(w: Tensor) -> Tensor:
    """w where there is a difference: not downwards from the last row, nor to the right from the last column."""
    down = torch.nn.functional.pad(w[:, 0, :, :-1, :], (0, 0, 0, 1))
    right = torch.nn.functional.pad(w[:, 1, :, :, :-1], (0, 1))
    return torch.stack([down, right], 1)
