r"""Errors of restorations of photon counts. Some counts are held out, and the restoration is compared with them.

A random part p of the counts is restored. The result is compared with the other counts. The measurement is
``y = o + gain · n + N(0, read²)`` with n ~ Poisson. Binomial thinning splits n into two independent Poisson numbers.
Normal noise is split, too, so that the sum stays the same:

    y₁ = o + gain · B/p,   y₂ = o + gain · (c − B)/(1 − p),   B | c ~ Bin(c, p) + N(0, p(1 − p) (read/gain)²),

with ``c = (y − o)/gain``.

Both have the mean ``Ax + o`` and are uncorrelated. So ``E‖A f(y₁) − (y₂ − o)‖² = E‖A f(y₁) − Ax‖² + E‖y₂ − Ax − o‖²``,
and the second term is known. Unlike Stein's estimate, this needs no derivative and does not assume that the noise of
the counts is normal. The noise of y₂ is large, but it is the same for all restorations. So this estimate ranks the
restorations, and Stein's estimate gives the size of the error.

Sources: N. Oliveira, J. Lei, R. Tibshirani, *Unbiased risk estimation in the normal means problem via coupled bootstrap
techniques*, Electron. J. Statist. 18(2), 2024; A. Neufeld et al., *Data thinning for convolution-closed distributions*,
JMLR 25, 2024.
"""

from __future__ import annotations

from typing import Any

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from retune.errors import InvalidParameterError
from retune.problems.counts import PoissonGaussian
from retune.training.unsupervised import ErrorEstimate

__all__ = ["Thinned", "against", "thin"]

#: Share of the counts that are restored. Half of them would be noisier, and would need another strength.
KEPT = 0.9
#: A relative difference from a whole number below this counts as rounding.
_ROUNDING = 1e-5


class Thinned(ErrorEstimate):
    """The error of ``A f(y₁)``, estimated from the held-out counts y₂.

    Args:
        noise: the noise of the counts; its gain is known.
        kept: share of the counts that f gets, in (0, 1).
    """

    words = "by Stein's lemma; ranked by counts that were kept away from the restoration"

    def __init__(self, noise: PoissonGaussian, kept: float = KEPT):
        super().__init__(noise.level, noise)
        if not 0 < kept < 1:
            raise InvalidParameterError(f"kept must be a share in (0, 1), got {kept}")
        self._counts, self.kept = noise, kept

    def adapt_model(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """The model, applied to a part of the counts."""
        return model if callable(getattr(model, "split", None)) else _OnPart(model, self._counts, self.kept)

    def map(self, x_net: Tensor, y: Tensor, physics: LinearPhysics, model: Any) -> Tensor:
        """See ``ErrorEstimate``; `x_net` is the last output of the adapted model for y."""
        noise, rest = self._counts, model.split(y)
        gain, read = noise.values(y)
        known = (gain * (y - noise.offset) + read.square()) / (1 - self.kept)
        return (physics.A(x_net) - (rest - noise.offset)).square() - known

    def maps(self, x_net: Tensor, y: Tensor, physics: LinearPhysics, model: Any) -> tuple[Tensor, Tensor]:
        """See ``ErrorEstimate``: Stein's estimate for all counts, and ``map``."""
        ranking = self.map(x_net, y, physics, model)
        return self._sure(physics.A(model.model(y, physics)), y, physics, model.model), ranking


class _OnPart(nn.Module):
    """The model, applied to a part of the counts. Each call draws a new part with the global generator."""

    def __init__(self, model: nn.Module, noise: PoissonGaussian, kept: float):
        super().__init__()
        self.model, self._noise, self._kept = model, noise, kept
        self._rest: Tensor | None = None

    def forward(self, y: Tensor, physics: LinearPhysics) -> Tensor:
        part, self._rest = thin(y, self._noise, self._kept)
        return self.model(part, physics)

    def split(self, y: Tensor) -> Tensor:
        """The counts that the last call held out."""
        if self._rest is None or self._rest.shape != y.shape:
            raise InvalidParameterError("call the adapted model with this measurement first")
        return self._rest


def thin(y: Tensor, noise: PoissonGaussian, kept: float) -> tuple[Tensor, Tensor]:
    """Two uncorrelated measurements with the same mean: from the shares `kept` and 1 − `kept` of the counts."""
    gain, read = noise.values(y)
    light = y - noise.offset
    one = torch.where(gain > 0, gain, 1.0)
    counts = light / one
    nearest = counts.round()
    counts = torch.where((counts - nearest).abs() < _ROUNDING * (1 + nearest.abs()), nearest, counts)
    whole = torch.where(gain > 0, counts.clamp_min(0).floor(), 0.0)
    drawn = torch.binomial(whole, torch.full_like(whole, kept))
    rest = counts - whole
    # The conditional variance: of a binomial number of c counts, and of normal noise with a fixed sum.
    spread = torch.where(gain > 0, (rest + (read / one).square()).clamp_min(0), read.square())
    part = drawn + kept * rest + (kept * (1 - kept) * spread).sqrt() * torch.randn_like(y)
    return noise.offset + one * part / kept, noise.offset + one * (counts - part) / (1 - kept)


def against(fit: Tensor, y: Tensor, other: Tensor, offset: float = 0.0) -> Tensor:
    """The squared error of ``fit = A f(y)``, pixel by pixel, from another measurement of the same scene.

    ``E‖A f(y) − y'‖² = E‖A f(y) − Ax‖² + σ²``, and ``‖y − y'‖²/2`` has the mean σ². No noise level is needed.
    """
    return (fit - (other - offset)).square() - (y - other).square() / 2
