"""What a prior can do, and how a map asks for it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from deepinv.optim.prior import Prior
from torch import Tensor, nn

from retune._registry.entries import kind_base
from retune._torch.batch import over_images
from retune.errors import InvalidParameterError
from retune.guarantee import Convexity, Smoothness
from retune.parameters import ScalarParameter

__all__ = ["AbstractPrior", "BoundPrior", "Frame", "SynthesisPrior"]

kind_base("prior")(Prior)
kind_base("network")(nn.Module)


class Frame(Protocol):
    """A tight frame ``x = D u`` with ``D Dᵀ = I``: how a state u that is not the image is turned into the image."""

    @property
    def orthonormal(self) -> bool:
        """Whether ``Dᵀ D = I``, too."""
        ...

    @property
    def cropped(self) -> bool:
        """Whether D cuts something off, so that several states have the same image."""
        ...

    def synthesis(self, u: Tensor) -> Tensor:
        """``D u``."""
        ...

    def analysis(self, x: Tensor) -> Tensor:
        """``Dᵀ x``."""
        ...

    def extension(self, x: Tensor) -> Tensor:
        """A state with the image x that is a good start: ``D u = x``."""
        ...


@dataclass
class BoundPrior:
    """A prior for one image shape, one layer and one strength γ: plain functions of the state u.

    Calling a function twice with the same u gives the same result. What a prior cannot do is None.

    Attributes:
        prox: ``v ↦ prox_{γg}(v)``, same shape as v.
        grad: ``u ↦ ∇g(u)`` (without γ), same shape as u.
        fn: ``u ↦ γ g(u)`` per image, shape (B,).
        fn_and_grad: ``u ↦ (γ g(u), ∇g(u))``, where both together cost less than one after the other.
        frame: how a state becomes an image; None where the state is the image.
    """

    prox: Callable[[Tensor], Tensor] | None = None
    grad: Callable[[Tensor], Tensor] | None = None
    fn: Callable[[Tensor], Tensor] | None = None
    fn_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    frame: Frame | None = None


class AbstractPrior(Prior, ABC):
    r"""A prior that says what it can do. Every prior of ReTune is one, and yours can be.

    It is an ordinary deepinv ``Prior``, too. Maps ask for the attributes below, and never for the class. A plain
    deepinv ``Prior`` works without any of this: [`adapt`][retune.priors.adapt] reads what it can do from its methods.

    A prior with a proximity operator of its own needs these few lines::

        class Shrink(retune.AbstractPrior):
            has_prox = True

            def bind(self, shape, layer, gamma):
                return retune.priors.BoundPrior(prox=lambda v: v / (1 + gamma))

            def convexity(self):
                return retune.Convexity(strong=1.0, how="½‖x‖²")

    Attributes:
        has_prox: whether [`bind`][retune.AbstractPrior.bind] gives a proximity operator (or what stands in its place,
        such as a denoiser).
        has_grad: whether it gives a gradient.
        has_value: whether it gives a value.
        may_expand: whether its prox (or the step along its gradient) may move two images apart, as a free denoiser
            may. The restarts of such a map are damped by default, and it starts from an image without holes.
        per_image: whether it treats every image of a batch as if it were alone.
        uses_strength: whether γ has an effect. It has none on a denoiser; λ is not learned then.
        on_coefficients: whether the state is not the image, but its coefficients in a frame (``BoundPrior.frame``).
        shares_layers: whether one object serves all layers of a cycle, with a table of parameters for each.
        alignment: tiles of a large image begin at multiples of this number of pixels, so that the prior does the same
            on a tile as on the whole image.
        trains_in_bfloat16: whether it computes in bfloat16 in train mode.
    """

    has_prox: bool = False
    has_grad: bool = False
    has_value: bool = False
    may_expand: bool = False
    per_image: bool = True
    uses_strength: bool = True
    on_coefficients: bool = False
    shares_layers: bool = False
    alignment: int = 1
    trains_in_bfloat16: bool = False

    @abstractmethod
    def bind(self, shape: Sequence[int], layer: int, gamma: Tensor) -> BoundPrior:
        """The prior for images of one shape, in one layer of a cycle, at one strength. Parameters are taken once.

        Args:
            shape: (B, C, H, W) of the images.
            layer: which layer of the cycle, from 0.
            gamma: γ = τλ, shape (), (1, 1, 1, 1) or (B, 1, 1, 1), with the dtype and the device of the images.

        Raises:
            ShapeError: images that this prior is not made for.
        """

    def bind_cycle(self, shape: Sequence[int], gammas: Sequence[Tensor]) -> Sequence[BoundPrior]:
        """[`bind`][retune.AbstractPrior.bind] for the layers 0, 1, …: override it where the layers can share what is
        computed."""
        return [self.bind(shape, layer, gamma) for layer, gamma in enumerate(gammas)]

    def per_layer(self, layers: int) -> Sequence[Prior]:
        """The priors of a cycle with `layers` layers: one that serves them all, or copies with weights of their own.

        Raises:
            InvalidParameterError: it has parameters for another number of layers.
        """
        return [self, *(copy.deepcopy(self) for _ in range(layers - 1))]

    def convexity(self) -> Convexity | None:
        """What is known of g; None if nothing is."""
        return None

    def smoothness(self, like: Tensor) -> Smoothness | None:
        """What is known of ∇g, for images with the dtype and the device of `like`; None if nothing is."""
        return None

    def networks(self, shape: Sequence[int]) -> Sequence[Callable[[Tensor], Tensor]]:
        """The denoiser of every layer, as a function of images of `shape`; empty for a prior without a denoiser."""
        return ()

    def tunables(self) -> dict[str, ScalarParameter]:
        """Scalars and small tables that can be tuned by hand or by a search (noise level, strength, weights)."""
        return {}

    def learned(self) -> dict[str, list]:
        """The values of [`tunables`][retune.AbstractPrior.tunables] as plain data, for reports."""
        return {name: p.value.flatten().tolist() for name, p in self.tunables().items()}

    def hold_scales(self) -> None:
        """Stop learning what weights the scales of an image against each other; without scales, nothing happens."""


class SynthesisPrior(AbstractPrior):
    r"""A prior on the coefficients u of a tight frame D, with ``x = D u`` and ``D Dᵀ = I``.

    Maps use [`bind`][retune.SynthesisPrior.bind], which is exact for every image size. As an ordinary deepinv prior on
    images ([`fn`][retune.SynthesisPrior.fn],
    [`prox`][retune.SynthesisPrior.prox]), it is the analysis form ``g(Dᵀx)``, whose prox is ``D prox_g(Dᵀ ·)`` exactly
    when D is orthonormal:
    one wavelet, sides divisible by ``2**levels``, and no margin.
    """

    explicit_prior = True
    has_prox = True
    has_value = True
    on_coefficients = True

    def __init__(self):
        super().__init__()
        self.explicit_prior = True

    @abstractmethod
    def frame(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Frame:
        """The frame for images of this shape (B, C, H, W)."""

    @abstractmethod
    def bind_coefficients(self, frame: Any, channels: int, gamma: Tensor) -> BoundPrior:
        """The prior with strength `gamma` ((), or (B, 1, 1, 1)), for coefficients in `frame` of `channels` channels."""

    def bind(self, shape: Sequence[int], layer: int, gamma: Tensor) -> BoundPrior:
        """See [`AbstractPrior`][retune.AbstractPrior]: functions of the coefficients."""
        return self.bind_cycle(shape, [gamma])[0]

    def bind_cycle(self, shape: Sequence[int], gammas: Sequence[Tensor]) -> Sequence[BoundPrior]:
        """See [`AbstractPrior`][retune.AbstractPrior]: the layers share one frame."""
        frame = self.frame(shape, gammas[0].dtype, gammas[0].device)
        return [self.bind_coefficients(frame, shape[1], gamma) for gamma in gammas]

    def fn(self, x: Tensor, *args, gamma: float | Tensor = 1.0, **kwargs) -> Tensor:
        """``γ g(Dᵀ x)`` per image, shape (B,)."""
        bound = self._on_images(x, gamma)
        assert bound.fn is not None
        assert bound.frame is not None
        return bound.fn(bound.frame.analysis(x))

    def prox(self, x: Tensor, *args, gamma: float | Tensor = 1.0, **kwargs) -> Tensor:
        """``prox_{γ g∘Dᵀ}(x)``, shape (B, C, H, W).

        Raises:
            InvalidParameterError: D is not orthonormal for this image size, so that no closed form exists.
        """
        bound = self._on_images(x, gamma)
        frame = bound.frame
        assert bound.prox is not None
        assert frame is not None
        if not frame.orthonormal:
            raise InvalidParameterError(
                f"the image-domain prox has no closed form for images {tuple(x.shape[-2:])}: it needs one wavelet, "
                "sides divisible by 2**levels and no margin. retune.ForwardBackward takes any, in the synthesis form"
            )
        return frame.synthesis(bound.prox(frame.analysis(x)))

    def _on_images(self, x: Tensor, gamma: float | Tensor) -> BoundPrior:
        strength = torch.as_tensor(gamma, dtype=x.dtype, device=x.device)
        return self.bind(x.shape, 0, over_images(strength, x.ndim) if strength.ndim else strength)
