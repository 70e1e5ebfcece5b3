"""A penalty against expansive trained denoisers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from deepinv.loss import JacobianSpectralNorm, Loss, SupLoss
from deepinv.loss.metric import MSE
from torch import Tensor, nn

from retune.errors import InvalidParameterError, require_real, require_whole
from retune.priors.base import AbstractPrior
from retune.priors.capabilities import priors_of

__all__ = ["JacobianPenalty"]


class JacobianPenalty(Loss):
    r"""``ℓ + w · mean_k max(‖∂D_σk(x_i)‖₂, 1 − ε)``, for the denoisers D inside the network, at the restored images.

    The mean is over the noise levels σ_k of the layers of a cycle.

    A denoiser with ``‖∂D‖ ≤ 1`` makes the forward–backward map nonexpansive there. The spectral norm is deepinv's power
    iteration (``JacobianSpectralNorm``), so it is a lower bound, and only at the images of the batch. It is a penalty,
    not a guarantee. Source: Pesquet, Repetti, Terris, Wiaux, *Learning maximally monotone operators for image
    recovery*, SIAM J. Imaging Sci. 14(3), 2021.

    Args:
        weight: w > 0.
        loss: ℓ, a deepinv ``Loss``; mean squared error against the ground truth by default.
        margin: ε in [0, 1): the norm is pushed down to 1 − ε only.
        iterations: power iterations per step; each costs about three passes through the denoiser.

    Raises:
        InvalidParameterError: an argument is out of range, or (in training) the network has no denoiser.
    """

    def __init__(self, weight: float = 1e-3, loss: Loss | None = None, margin: float = 0.05, iterations: int = 3):
        super().__init__()
        self.weight, self.margin = require_real("weight", weight), require_real("margin", margin)
        iterations = require_whole("iterations", iterations)
        if not (self.weight > 0 and 0 <= self.margin < 1 and iterations >= 1):
            raise InvalidParameterError(
                f"JacobianPenalty needs weight > 0, 0 ≤ margin < 1 and iterations ≥ 1, got weight={weight}, "
                f"margin={margin}, iterations={iterations}"
            )
        self.loss = SupLoss(metric=MSE()) if loss is None else loss
        self.norm = JacobianSpectralNorm(max_iter=iterations, tol=0.0, reduction="none")

    @property
    def settings(self) -> str:
        """The weight, as text. `fit` stores it, and refuses to continue with another value."""
        return f"{self.weight:g}"

    def adapt_model(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """See deepinv's ``Loss``."""
        return self.loss.adapt_model(model, **kwargs)

    def forward(self, x_net: Tensor, model: nn.Module, **kwargs: Any) -> Tensor:
        """The loss per image, shape (B,)."""
        cycles = [(p, networks) for p in priors_of(model) if (networks := p.networks(x_net.shape))]
        if not cycles:
            raise InvalidParameterError("JacobianPenalty needs a network with a denoiser (retune.priors.Denoiser)")
        total = self.loss(x_net=x_net, model=model, **kwargs)
        if x_net.requires_grad and not total.requires_grad:
            raise InvalidParameterError(
                f"the loss {type(self.loss).__name__} has no gradient with respect to the restored images, so the "
                "training would minimise the penalty only (deepinv's PSNR has no gradient: use SNR)"
            )
        for prior, networks in cycles:
            for network in networks:
                norm = self._norm(prior, network, x_net).clamp_min(1 - self.margin)
                total = total + self.weight / len(networks) * norm
        return total

    def spectral_norm(self, prior: AbstractPrior, image: Tensor, layer: int = 0) -> Tensor:
        """``‖∂D_σ(x)‖₂`` per image (a lower bound) at the σ of a layer, differentiable in the weights of D, shape (B,).

        Raises:
            InvalidParameterError: the denoiser cannot be differentiated twice.
        """
        return self._norm(prior, prior.networks(image.shape)[layer], image)

    def _norm(self, prior: AbstractPrior, network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        with torch.enable_grad():
            x = image.detach().clone().requires_grad_()
            try:
                return self.norm(network(x), x)
            except RuntimeError as error:
                kind = type(getattr(prior, "denoiser", prior)).__name__
                raise InvalidParameterError(
                    f"JacobianPenalty differentiates the gradient of the denoiser, which {kind} does not allow "
                    f"({error}); leave the penalty out, or use a network such as SmallUNet"
                ) from error
