"""What a prior offers to a forward–backward map."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
from deepinv.optim.prior import Prior
from torch import Tensor, nn

from retune._registry.entries import kind_base
from retune.errors import InvalidParameterError
from retune.priors.wavelet_basis import WaveletFrame

__all__ = ["BoundPrior", "SynthesisPrior"]

kind_base("prior")(Prior)
kind_base("network")(nn.Module)


class BoundPrior(ABC):
    """A prior for one image shape and one strength γ, its constants computed once. A plain function of u."""

    @abstractmethod
    def prox(self, v: Tensor) -> Tensor:
        """``prox_{γ g}(v)``, same shape as v."""

    @abstractmethod
    def fn(self, u: Tensor) -> Tensor:
        """``γ g(u)`` per image, shape (B,)."""


class SynthesisPrior(Prior, ABC):
    r"""A deepinv prior on the coefficients u of a tight frame D, with ``x = D u`` and ``D Dᵀ = I``.

    Maps use :meth:`frame` and :meth:`bind`, which are exact for every image size. As an ordinary deepinv prior on
    images (:meth:`fn`, :meth:`prox`), it is the analysis form ``g(Dᵀx)``, whose prox is ``D prox_g(Dᵀ ·)`` exactly
    when D is orthonormal: one wavelet, sides divisible by ``2**levels``, and no margin.
    """

    explicit_prior = True

    def __init__(self):
        super().__init__()
        self.explicit_prior = True

    @abstractmethod
    def frame(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> WaveletFrame:
        """The frame for images of this shape (B, C, H, W)."""

    @abstractmethod
    def bind(self, frame: WaveletFrame, channels: int, gamma: Tensor) -> BoundPrior:
        """The prior with strength `gamma` ((), or (B, 1, 1, 1)), for images of `channels` channels."""

    @abstractmethod
    def describe(self) -> dict:
        """Constructor arguments, as plain data, from which the prior can be rebuilt."""

    def per_layer(self, layers: int) -> list[SynthesisPrior]:
        """`layers` priors for an untied cycle: copies with weights of their own."""
        return [copy.deepcopy(self) for _ in range(layers)]

    def fn(self, x: Tensor, *args, gamma: float | Tensor = 1.0, **kwargs) -> Tensor:
        """``γ g(Dᵀ x)`` per image, shape (B,)."""
        frame, bound = self._on_images(x, gamma)
        return bound.fn(frame.analysis(x))

    def prox(self, x: Tensor, *args, gamma: float | Tensor = 1.0, **kwargs) -> Tensor:
        """``prox_{γ g∘Dᵀ}(x)``, shape (B, C, H, W).

        Raises:
            InvalidParameterError: D is not orthonormal for this image size, so that no closed form exists.
        """
        frame, bound = self._on_images(x, gamma)
        if not frame.orthonormal:
            raise InvalidParameterError(
                f"the image-domain prox has no closed form for images {tuple(x.shape[-2:])}: it needs one wavelet, "
                "sides divisible by 2**levels and no margin. retune.ForwardBackward takes any, in the synthesis form"
            )
        return frame.synthesis(bound.prox(frame.analysis(x)))

    def _on_images(self, x: Tensor, gamma: float | Tensor) -> tuple[WaveletFrame, BoundPrior]:
        frame = self.frame(x.shape, x.dtype, x.device)
        strength = torch.as_tensor(gamma, dtype=x.dtype, device=x.device)
        strength = strength.reshape(-1, 1, 1, 1) if strength.ndim else strength
        return frame, self.bind(frame, x.shape[1], strength)
