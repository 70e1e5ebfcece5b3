"""Plug-and-Play: any denoiser in place of a proximity operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retune._registry.entries import register
from retune.parameters import Bounded, ScalarParameter
from retune.priors.base import BoundPrior
from retune.priors.denoising import DenoiserPrior, entry, plain_values, table_shape

__all__ = ["Denoiser"]


@register
class Denoiser(DenoiserPrior):
    r"""``prox ← (1 − α)x + α D_σ(x)``: Plug-and-Play.

    In [`ForwardBackward`][retune.ForwardBackward] this gives ``T(x) = D_σ(x − τ∇f(x))`` (PnP-FBS; Venkatakrishnan,
    Bouman, Wohlberg, *Plug-and-Play priors for model based reconstruction*, GlobalSIP 2013). The strength γ = τλ has no
    effect. A denoiser has two other parameters, learned through the equilibrium: its noise level σ, and α, the
    averaging of Ryu et al. (*Plug-and-Play methods provably converge with properly trained denoisers*, ICML 2019),
    which also adjusts denoisers without σ.

    For an unconstrained denoiser, convergence is not known in advance; the residual shows whether an image settled.

    Args:
        denoiser: any ``nn.Module(x, sigma)`` (deepinv denoisers, [`weights`][retune.weights]), or ``nn.Module(x)`` with
            ``sigma=None``. A denoiser known to be grey is applied to every channel of a colour image.
        sigma: noise level on the scale of the image. A sequence gives one per layer of an untied cycle; None calls the
            denoiser without a noise level.
        strength: α in (0, 1). A sequence gives one per layer; None means α = 1.
        learn_sigma: whether σ is trained.
        learn_strength: whether α is trained.
        learn_denoiser: whether the weights of the denoiser are trained; sets ``requires_grad`` of its parameters.
        sigma_range: (low, high), the allowed values of σ. Default: the denoiser's own ``sigma_range`` if it has one,
            else any positive number. A σ at an end of the range starts a thousandth of the range inside, so that it can
            be learned.
        bfloat16: compute the network in bfloat16 in train mode (autocast). This is up to twice as fast on hardware that
            supports it. State, operator, weights and their updates keep their precision, and so does everything in eval
            mode. Iterates in training then settle only to a relative change of 2e-3 to 3e-3 per block (measured with
            the shipped networks), so [`fit`][retune.fit] refuses bfloat16 together with a smaller tolerance. The
            gradient of the weights differs by about 10 % at an equilibrium.

    Raises:
        InvalidParameterError: no network, σ outside its range, α outside (0, 1).
    """

    has_prox = True
    uses_strength = False

    def __init__(
        self,
        denoiser: nn.Module,
        sigma: float | Sequence[float] | None = 10 / 255,
        strength: float | Sequence[float] | None = None,
        *,
        learn_sigma: bool = True,
        learn_strength: bool = True,
        learn_denoiser: bool = False,
        sigma_range: tuple[float, float] | None = None,
        bfloat16: bool = False,
    ):
        super().__init__(
            denoiser,
            sigma,
            learn_sigma=learn_sigma,
            learn_denoiser=learn_denoiser,
            sigma_range=sigma_range,
            bfloat16=bfloat16,
        )
        self.strength: Bounded | None = None
        if strength is not None:
            self.strength = Bounded(strength, table_shape("strength", strength), learn=learn_strength, name="strength")

    def tunables(self) -> dict[str, ScalarParameter]:
        """Noise level and strength."""
        return super().tunables() | ({} if self.strength is None else {"strength": self.strength})

    def bind(self, shape: Sequence[int], layer: int, gamma: Tensor) -> BoundPrior:
        """See [`AbstractPrior`][retune.AbstractPrior]; γ has no effect.

        Raises:
            ShapeError: the denoiser does not support the number of channels.
        """
        return BoundPrior(prox=self._function(shape, layer, self._sigma(layer)))

    def _function(self, shape: Sequence[int], layer: int, sigma: Tensor | None) -> Callable[[Tensor], Tensor]:
        network = self._network(shape, sigma)
        if self.strength is None:
            return network
        alpha = entry(self.strength(), layer)
        return lambda x: torch.lerp(x, network(x), alpha.to(x))

    def prox(self, x: Tensor, sigma: float | Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """``(1 − α)x + α D_σ(x)``, as deepinv's algorithms call it; γ has no effect.

        Args:
            x: images (B, C, H, W).
            sigma: a number, or one per image, in place of the prior's own.
        """
        return self._at(x, sigma)(x)

    def describe(self) -> dict:
        """See ``DenoiserPrior``."""
        if self.strength is None:
            return super().describe()
        return super().describe() | {
            "strength": plain_values(self.strength),
            "learn_strength": self.strength.learned,
        }
