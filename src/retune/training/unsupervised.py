r"""Losses without ground truth: unbiased estimates of the error of a restoration from its measurement alone.

For ``y = Ax + ε`` with ``ε ~ N(0, Σ)``, Stein's lemma gives, for any weakly differentiable f,

    E‖A f(y) − Ax‖² = E[ ‖A f(y) − y‖² − tr Σ + 2 tr(Σ ∂(A f)/∂y) ],

and pixels hidden from f give the error at these pixels, ``E‖f(y₁) − y₂‖² = E‖f(y₁) − x₂‖² + tr Σ₂``.

Equivariance covers the null space of A: shift a restored image, measure and restore it again; the result should match.

Sources: C. Stein, *Ann. Statist.* 9(6), 1981; S. Ramani, T. Blu, M. Unser, *IEEE TIP* 17(9), 2008 (the divergence
from one random direction); B. Yaman et al., *Magn. Reson. Med.* 84(6), 2020 (splitting); D. Chen, J. Tachella,
M. Davies, *Equivariant imaging*, ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import torch
from deepinv.loss import EILoss, Loss, R2RLoss, SplittingLoss
from deepinv.physics import GaussianNoise, LinearPhysics
from deepinv.transform import Shift
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from retune.errors import InvalidParameterError, ShapeError
from retune.problems.counts import PoissonGaussian
from retune.problems.noise import noise_levels

__all__ = ["ErrorEstimate", "Estimate", "Sure", "SureEquivariant", "SureSplit", "recorrupted"]

#: Step of the divergence, as a share of the smallest noise level: small compared with the noise, large compared with
#: rounding.
_SHARE = 0.1


class Estimate(StrEnum):
    """The loss; its value describes it in words."""

    SPLIT = "Stein's estimate where it was measured, splitting where it was not"
    EQUIVARIANT = "Stein's estimate for the measured part, equivariant imaging (EI) for the rest"
    RECORRUPTED = "recorrupted to recorrupted (R2R)"
    STEIN = "Stein's unbiased estimate (SURE)"

    @property
    def guesses(self) -> bool:
        """Whether it also judges the unmeasured part of an image, by restoring the restored image again."""
        return self is Estimate.EQUIVARIANT


class ErrorEstimate(Loss):
    """A loss whose expectation is a mean squared error. ``map`` gives it pixel by pixel.

    Args:
        sigma: noise level, or one per channel.
        noise: noise that grows with the brightness, an object with ``variance(y)``. sigma is then its level at half
            of white. Stein's lemma then holds with the variances of the pixels.
    """

    #: the basis of the estimate, in words that follow "estimated"
    words: str = "by Stein's lemma"
    #: whether the second of ``maps`` is the error of restoring the restored image again
    again: bool = False

    def __init__(self, sigma: float | Sequence[float], noise: PoissonGaussian | None = None):
        super().__init__()
        self._name, self.noise = type(self).__name__, noise
        levels = noise_levels(sigma)
        self.levels = levels if isinstance(levels, tuple) else (levels,)
        if min(self.levels) <= 0:
            raise InvalidParameterError(
                f"the error can be estimated only from noise of a known level above 0, got sigma={sigma!r}; without "
                "noise there is nothing to tune"
            )

    def map(self, x_net: Tensor, y: Tensor, physics: LinearPhysics, model: nn.Module) -> Tensor:
        """The estimate at every value of the measurement, (B, C, h, w)."""
        raise NotImplementedError

    def maps(self, x_net: Tensor, y: Tensor, physics: LinearPhysics, model: nn.Module) -> tuple[Tensor, Tensor]:
        """The estimated error of the measured part, and an estimate that ranks restorations."""
        found = self.map(x_net, y, physics, model)
        return found, found

    def forward(self, x_net: Tensor, y: Tensor, physics: LinearPhysics, model: nn.Module, **kwargs: Any) -> Tensor:
        """The estimated mean squared error of each image, (B,)."""
        return self.map(x_net, y, physics, model).flatten(1).mean(1)

    def _sigma(self, y: Tensor) -> Tensor:
        """The standard deviation of the noise, broadcastable to y."""
        if self.noise is not None:
            return self.noise.variance(y).sqrt()
        if len(self.levels) not in (1, y.shape[1]):
            raise ShapeError(f"noise levels for {len(self.levels)} channels, but the measurement has {y.shape[1]}")
        return y.new_tensor(self.levels).view(1, -1, 1, 1)

    def _sure(self, fit: Tensor, y: Tensor, physics: LinearPhysics, model: nn.Module) -> Tensor:
        """Stein's estimate at every value, given ``fit = A f(y)``."""
        sigma, step = self._sigma(y), _SHARE * min(self.levels)
        direction = torch.randn_like(y)
        change = (physics.A(model(y + step * direction, physics)) - fit) / step
        offset = 0.0 if self.noise is None else self.noise.offset
        return (fit - (y - offset)).square() - sigma**2 + 2 * sigma**2 * direction * change


class Sure(ErrorEstimate):
    """Stein's unbiased estimate of ``‖A f(y) − Ax‖²/m``; deepinv's ``SureGaussianLoss``, also per channel.

    It does not see the null space of A, which the prior fills in. ``SureEquivariant`` does.

    Args:
        sigma: noise level, or one per channel.
    """

    def map(self, x_net: Tensor, y: Tensor, physics: LinearPhysics, model: nn.Module) -> Tensor:
        """See ``ErrorEstimate``."""
        return self._sure(physics.A(x_net), y, physics, model)


class SureEquivariant(Sure):
    """Stein's estimate, plus the error of restoring the restored image again: deepinv's ``EILoss``, with shifts.

    The restored image is shifted at random, measured with fresh noise, and restored again. An error in the null space
    of A then becomes visible; Stein's estimate cannot see it. Alone, the second term would prefer images that are easy
    to restore, that is, smooth images. It is weighted by the gain ``‖A x̂‖²/‖x̂‖²`` of the operator. So both terms have
    the units of the measurement, and the second counts less if less of the image is measured. The network is called
    three times; ``Sure`` calls it twice.

    Args:
        sigma: noise level, or one per channel.
        noise: see ``ErrorEstimate``.
    """

    again = True

    def __init__(self, sigma: float | Sequence[float], noise: PoissonGaussian | None = None):
        super().__init__(sigma, noise)
        self._again = EILoss(Shift(), metric=_SquaredError(), apply_noise=False)

    def map(self, x_net: Tensor, y: Tensor, physics: LinearPhysics, model: nn.Module) -> Tensor:
        """See ``ErrorEstimate``; the second term is a mean over channels, and over pixels if y has fewer."""
        return self.maps(x_net, y, physics, model)[1]

    def maps(self, x_net: Tensor, y: Tensor, physics: LinearPhysics, model: nn.Module) -> tuple[Tensor, Tensor]:
        """See ``ErrorEstimate``: Stein's estimate alone, and with the second term."""
        # deepinv's transforms use their own generator; here they are seeded from the global one, like everything else.
        self._again.T.rng.manual_seed(int(torch.randint(2**62, ())))

        def noisy(y: Tensor, physics: LinearPhysics) -> Tensor:
            return model(y + self._sigma(y) * torch.randn_like(y), physics)

        again = self._again(x_net, physics, noisy).mean(1, keepdim=True)
        pooled = adaptive_avg_pool2d(again, (y.shape[-2], y.shape[-1]))
        # Overlapping pooling windows count some pixels twice; the mean is preserved.
        pooled = pooled * (_mean(again) / _mean(pooled).clamp_min(torch.finfo(y.dtype).tiny))
        with torch.no_grad():
            gain = _energy(physics.A(x_net)) / _energy(x_net).clamp_min(torch.finfo(y.dtype).tiny)
        measured = super().map(x_net, y, physics, model)
        return measured, measured + gain * pooled


def _mean(values: Tensor) -> Tensor:
    """Per image, (B, 1, 1, 1)."""
    return values.mean((1, 2, 3), keepdim=True)


def _energy(values: Tensor) -> Tensor:
    """``‖·‖²`` per image, (B, 1, 1, 1)."""
    return values.square().sum((1, 2, 3), keepdim=True)


class _SquaredError(nn.Module):
    """Pixel by pixel."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square()


class SureSplit(ErrorEstimate):
    """Error of an image with missing pixels: Stein's estimate at measured pixels, splitting at missing pixels.

    A share `hidden` of the measured pixels is hidden from the network. Their error estimates the error at the missing
    pixels. Stein's estimate at the other pixels estimates the error at the measured pixels. Both are weighted by their
    shares in the image. (Splitting alone measures only the inpainting error, and would oversmooth the measured pixels.)

    Args:
        sigma: noise level, or one per channel.
        hidden: share of hidden pixels among the measured ones, in (0, 1).
    """

    words = "by Stein's lemma, and from measured pixels that were hidden"

    def __init__(self, sigma: float | Sequence[float], hidden: float = 0.1):
        super().__init__(sigma)
        if not 0 < hidden < 1:
            raise InvalidParameterError(f"hidden must be a share in (0, 1), got {hidden}")
        self.hidden = hidden

    def adapt_model(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """The model on the pixels that are not hidden."""
        return model if callable(getattr(model, "shown", None)) else _Splitting(model, self.hidden)

    def map(self, x_net: Tensor, y: Tensor, physics: LinearPhysics, model: Any) -> Tensor:
        """See ``ErrorEstimate``; `x_net` is the last output of the adapted model for y."""
        shown, y_shown, physics_shown = model.shown(y)
        mask: Tensor = physics.mask  # pyright: ignore[reportAssignmentType]
        seen, hidden = (mask * shown).expand_as(y), (mask * (1 - shown)).expand_as(y)
        sure = self._sure(physics_shown.A(x_net), y_shown, physics_shown, model.model) * seen
        missed = ((x_net - y).square() - self._sigma(y) ** 2) * hidden
        share = mask.expand_as(y).mean((1, 2, 3), keepdim=True)
        total = sure * (share / _share(seen)) + missed * ((1 - share) / _share(hidden))
        return total


def _share(mask: Tensor) -> Tensor:
    """The number of ones per image, at least 1."""
    return mask.mean((1, 2, 3), keepdim=True).clamp_min(1 / mask[0].numel())


class _Splitting(nn.Module):
    """The model on a random part of the measured pixels. Each call draws a new part from the global generator."""

    def __init__(self, model: nn.Module, hidden: float):
        super().__init__()
        self.model, self.hidden = model, hidden
        self._last: tuple[Tensor, Tensor, LinearPhysics] | None = None

    def forward(self, y: Tensor, physics: LinearPhysics) -> Tensor:
        mask = (torch.rand(len(y), 1, *y.shape[-2:], device=y.device) >= self.hidden).to(y.dtype)
        y_shown, shown = SplittingLoss.split(mask, y, physics)
        assert isinstance(shown, LinearPhysics)  # the operator on fewer pixels has the same type
        self._last = mask, y_shown, shown
        return self.model(y_shown, shown)

    def shown(self, y: Tensor) -> tuple[Tensor, Tensor, LinearPhysics]:
        """Mask, measurement and operator of the last call."""
        if self._last is None or self._last[1].shape != y.shape:
            raise InvalidParameterError("call the adapted model with this measurement first")
        return self._last


def recorrupted(sigma: float | Sequence[float]) -> R2RLoss:
    """deepinv's recorrupted-to-recorrupted loss, for one level or one per channel; one call of the network per step.

    The training noise is 8 % stronger (α = 0.15). Like Stein's estimate, the loss needs the noise level.
    """
    levels = noise_levels(sigma)
    table = torch.tensor(levels if isinstance(levels, tuple) else (levels,), dtype=torch.get_default_dtype())
    return R2RLoss(noise_model=GaussianNoise(table.view(1, -1, 1, 1)))
