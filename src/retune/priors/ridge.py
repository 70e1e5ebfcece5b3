r"""Ridge regularisers ``R_σ(x) = Σ_i ψ_i(w_i * x)`` with learned filters and potentials of known curvature.

Source: Goujon, Neumayer, Bohra, Ducotterd, Unser, *A neural-network-based convex regularizer for inverse problems*,
IEEE TCI 9, 2023 (convex); Goujon, Neumayer, Unser, *Learning weakly convex regularizers for convergent
image-reconstruction algorithms*, SIAM J. Imaging Sci. 17(1), 2024 (weakly convex); Ducotterd, Unser, *Multivariate
fields of experts*, arXiv 2508.06490, 2025 (potentials of several filters).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retune._registry.describe import by_arguments
from retune._registry.entries import register
from retune.guarantee import Convexity, Smoothness
from retune.parameters import Positive, ScalarParameter
from retune.priors.base import AbstractPrior, BoundPrior
from retune.priors.filters import BoundFilters, FilterBank
from retune.priors.noise_level import noise_level
from retune.priors.profile import CONVEX, SIGMA_0, BoundProfile, Profile

__all__ = ["BoundRidge", "Ridge"]


@register
class Ridge(AbstractPrior):
    r"""``R_σ(x) = Σ_i Σ_p ψ_{i,σ}((w_i * x)_p)``, a smooth function whose gradient has known constants.

    With ``‖W‖ ≤ 1`` (``FilterBank``) and ``m ≤ ψ'' ≤ M`` (``Profile``), ``∇R = Wᵀψ'(W·)`` is ``max(M, −m)``-Lipschitz
    and R is ``−m``-weakly convex. R is convex for ``convexity="convex"``; for ``"weakly convex"``, ``R + ½‖·‖²`` is
    convex. So ``½‖x − y‖² + R`` is convex in both cases. This holds by construction, for any trained weights.

    With ``group`` = d > 1, d consecutive filters share a potential of d variables: the responses of an edge in several
    directions are judged together. The constants are the same, see `retune.priors.profile`.

    It is also an ordinary deepinv ``Prior``: ``fn(x, sigma)`` and ``grad(x, sigma)``.

    Args:
        channels: channels of the image (1 grey, 3 colour).
        features: intermediate features and number of filters.
        sizes: sides of the kernels of the multi-convolution.
        knots: pieces of the spline on each side of 0.
        convexity: "convex" or "weakly convex".
        powers: number of coefficients of the polynomials in log σ for the potentials.
        group: number of filters that share a potential.
        sigma: noise level of the potentials, on the scale of the image; learnable.
        learn_sigma: whether σ is trained.
        learn_filters: whether filters and potentials are trained.
    """

    explicit_prior = True
    in_state_dict = ("sigma",)
    added_later = ("group",)
    has_grad = True
    has_value = True

    def __init__(
        self,
        channels: int = 1,
        features: Sequence[int] = (8, 32),
        sizes: Sequence[int] = (7, 3),
        knots: int = 4,
        convexity: str = "weakly convex",
        sigma: float = SIGMA_0,
        *,
        powers: int = 3,
        group: int = 1,
        learn_sigma: bool = True,
        learn_filters: bool = True,
    ):
        super().__init__()
        self.explicit_prior = True
        self.channels = channels
        self.filters = FilterBank((channels, *features), sizes)
        self.profile = Profile(self.filters.channels[-1], knots, convexity, powers, group)
        self.sigma = Positive(sigma, (), learn=learn_sigma, name="sigma")
        for part in (self.filters, self.profile):
            part.requires_grad_(learn_filters)

    @property
    def learn_filters(self) -> bool:
        """Whether filters and potentials are trained."""
        return any(p.requires_grad for part in (self.filters, self.profile) for p in part.parameters())

    def describe(self) -> dict:
        """Constructor arguments as plain data; weights and σ are in the state dict."""
        return by_arguments(
            self,
            features=self.filters.channels[1:],
            sizes=self.filters.sizes,
            **{name: getattr(self.profile, name) for name in ("knots", "convexity", "powers", "group")},
        )

    def at(self, sigma: float | Tensor | None, like: Tensor) -> BoundRidge:
        """R at one noise level (or one per image), with constants computed once, for images shaped as `like`.

        Args:
            sigma: noise level: a number, a tensor () or (B,); None takes the prior's own.
            like: an image (B, C, H, W) with the dtype and device to use.
        """
        level = self.sigma().to(like).reshape(1, 1, 1, 1) if sigma is None else noise_level(sigma, like)
        return BoundRidge(self.filters.bind(like.dtype, like.device), self.profile.bind(level))

    def bind(self, shape: Sequence[int], layer: int, gamma: Tensor) -> BoundPrior:
        """See [`AbstractPrior`][retune.AbstractPrior]."""
        return self.bind_cycle(shape, [gamma])[0]

    def bind_cycle(self, shape: Sequence[int], gammas: Sequence[Tensor]) -> Sequence[BoundPrior]:
        """See [`AbstractPrior`][retune.AbstractPrior]: filters and potentials are bound once for all layers.

        Raises:
            ShapeError: the channels differ, or the images are smaller than a filter.
        """
        ridge = self.at(None, gammas[0])
        ridge.filters.check(shape)
        return [BoundPrior(grad=ridge.grad, fn=lambda u, g=g: ridge.fn(u) * g.flatten()) for g in gammas]

    def convexity(self) -> Convexity | None:
        """A sum of convex potentials of linear filters is convex, for any learned weights."""
        return Convexity(0.0, self._how, checked=True) if self.profile.convexity == CONVEX else None

    def smoothness(self, like: Tensor) -> Smoothness:
        """See [`AbstractPrior`][retune.AbstractPrior]: by construction, at the prior's own σ."""
        profile = self.profile.bind(self.sigma().to(like).reshape(1, 1, 1, 1))
        low, high = profile.curvature
        row = f"{self.profile.convexity} ridge regulariser"
        return Smoothness(torch.maximum(-low, high), -low, self._how, checked=True, row=row)

    def tunables(self) -> dict[str, ScalarParameter]:
        """The noise level."""
        return {"sigma": self.sigma}

    _how = "normalised filters, bounded spline slopes"

    def fn(self, x: Tensor, sigma: float | Tensor | None = None, *args, **kwargs) -> Tensor:
        """``R_σ(x)`` per image, shape (B,)."""
        return self.at(sigma, x).fn(x)

    def grad(self, x: Tensor, sigma: float | Tensor | None = None, *args, **kwargs) -> Tensor:
        """``∇R_σ(x)``, shape (B, C, H, W)."""
        return self.at(sigma, x).grad(x)

    def lipschitz(self, sigma: float | Tensor | None = None) -> Tensor:
        """Lipschitz constant of ``∇R_σ``, proved, shape (1,) or (B,)."""
        return self.at(sigma, self._like(sigma)).lipschitz

    def weak_convexity(self, sigma: float | Tensor | None = None) -> Tensor:
        """The smallest known ρ ≥ 0 such that ``R_σ + ½ρ‖·‖²`` is convex, shape (1,) or (B,)."""
        return self.at(sigma, self._like(sigma)).weak_convexity

    def _like(self, sigma: float | Tensor | None) -> Tensor:
        batch = sigma.numel() if isinstance(sigma, Tensor) else 1
        return self.sigma.raw.new_empty(batch, 1, 1, 1)


@dataclass(frozen=True)
class BoundRidge:
    """A ridge regulariser at fixed noise levels: plain functions of the image."""

    filters: BoundFilters
    profile: BoundProfile

    def fn(self, x: Tensor) -> Tensor:
        """``R(x)`` per image, shape (B,)."""
        return self.profile.value(self.filters(x))

    def grad(self, x: Tensor) -> Tensor:
        """``∇R(x) = Wᵀ ψ'(W x)``, shape (B, C, H, W)."""
        return self.filters.adjoint(self.profile.derivative(self.filters(x)))

    def hessian(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """``v ↦ ∇²R(x) v = Wᵀ (ψ''(W x) · W v)``. The parts that depend on x are computed once."""
        curvature = self.profile.second_derivative(self.filters(x))
        return lambda v: self.filters.adjoint(curvature(self.filters(v)))

    @property
    def lipschitz(self) -> Tensor:
        """Lipschitz constant of the gradient, per image."""
        low, high = self.profile.curvature
        return torch.maximum(-low, high)

    @property
    def weak_convexity(self) -> Tensor:
        """ρ with ``R + ½ρ‖·‖²`` convex, per image."""
        return -self.profile.curvature[0]
