"""The interface of priors: their capabilities, and the functions that a map uses."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from deepinv.optim.prior import Prior
from torch import Tensor, nn

from retune._registry.describe import by_arguments
from retune._registry.entries import kind_base
from retune._torch.batch import over_images
from retune.errors import InvalidParameterError
from retune.guarantee import Convexity, Smoothness
from retune.parameters import ScalarParameter

__all__ = ["AbstractPrior", "Analysis", "BoundPrior", "Frame", "SynthesisPrior", "is_complete"]

kind_base("prior")(Prior)
kind_base("network")(nn.Module)


class Frame(Protocol):
    """A tight frame ``x = D u`` with ``D Dᵀ = I``. It turns a state u of coefficients into the image x."""

    @property
    def orthonormal(self) -> bool:
        """Whether ``Dᵀ D = I``, too."""
        ...

    @property
    def cropped(self) -> bool:
        """Whether D crops the image, so that several states have the same image."""
        ...

    def synthesis(self, u: Tensor) -> Tensor:
        """``D u``."""
        ...

    def analysis(self, x: Tensor) -> Tensor:
        """``Dᵀ x``."""
        ...

    def extension(self, x: Tensor) -> Tensor:
        """A good start: a state u with the image x, ``D u = x``."""
        ...


def is_complete(frame: Frame | None) -> bool:
    """Whether a state is an image in an orthonormal basis, possibly an image that continues beyond the restored one.

    A frame that crops such an image says so by an attribute `complete`. Its `extension` then has the coefficients of an
    image that continues x.
    """
    return frame is None or frame.orthonormal or getattr(frame, "complete", False)


@dataclass(frozen=True)
class Analysis:
    r"""The analysis form ``γ g(Kx)`` of a prior: K is linear, and g has a conjugate with a known prox.

    A prior may minimise over a further variable w: ``min_w γ g(K(x, w))``. Then `auxiliary` is the shape of w,
    `forward` takes (x, w), and `adjoint` returns both parts.

    Attributes:
        forward: ``x ↦ Kx``, (B, C, H, W) → (B, …); or ``(x, w) ↦ K(x, w)``.
        adjoint: ``z ↦ Kᵀz``, the part of x; or both parts.
        sqnorm: an upper bound of ``‖K‖²``, shape (1,) or (B,).
        dual_prox: ``(p, σ) ↦ prox_{σ(γg)*}(p)``, p of the shape of ``Kx``, σ > 0 of shape (1 or B,). It follows from
            the prox of g by Moreau's identity: ``prox_{σ(γg)*}(p) = p − σ prox_{γg/σ}(p/σ)``.
        homogeneous: whether ``g(tz) = t g(z)`` for t > 0, as for a norm. Then `dual_prox` is a projection, and σ has no
            effect.
        smoothing: ε > 0 for a norm that is smoothed around 0, so that ``(γg)*`` is ε/γ-strongly convex and finite on a
            bounded set only, as for Huber's function; None for other g. It serves the ratio of the steps, as does
            `multiplier`.
        multiplier: for norms, smoothed or not, the typical size of a multiplier that moves the image by its contrast,
            relative to γ. It changes the speed of primal–dual steps, and not their limit.
        how: where `sqnorm` comes from, in one phrase.
        checked: whether `sqnorm` and `adjoint` hold by construction; ignored for your own prior.
        auxiliary: shape of w for one image; None if there is no w.
    """

    forward: Callable[..., Tensor]
    adjoint: Callable[[Tensor], Any]
    sqnorm: Tensor
    dual_prox: Callable[[Tensor, Tensor], Tensor]
    homogeneous: bool = False
    smoothing: Tensor | float | None = None
    multiplier: Tensor | float = 8.5
    how: str = "stated by the prior"
    checked: bool = False
    auxiliary: tuple[int, ...] | None = None

    def of(self, x: Tensor, w: Tensor | None) -> Tensor:
        """``Kx``, or ``K(x, w)``; w is (B, n), flat, or None."""
        if self.auxiliary is None or w is None:
            return self.forward(x)
        return self.forward(x, w.unflatten(1, self.auxiliary))

    def back(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """``Kᵀz``: the part of x, and the part of w, (B, n), flat, or None."""
        found = self.adjoint(z)
        if self.auxiliary is None:
            return found, None
        x, w = found
        return x, w.flatten(1)

    def start(self, x: Tensor) -> Tensor | None:
        """``w = 0`` for images x, (B, n), flat; None if there is no w."""
        return None if self.auxiliary is None else x.new_zeros(len(x), math.prod(self.auxiliary))


@dataclass
class BoundPrior:
    """A prior for one image shape, one layer and one strength γ: plain functions of the state u.

    A function called twice with the same u gives the same result. Functions that the prior does not have are None.

    Attributes:
        prox: ``v ↦ prox_{γg}(v)``, same shape as v.
        grad: ``u ↦ ∇g(u)`` (without γ), same shape as u.
        fn: ``u ↦ γ g(u)`` per image, shape (B,).
        fn_and_grad: ``u ↦ (γ g(u), ∇g(u))``, where both together cost less than one after the other.
        frame: the frame that turns a state into an image; None if the state is the image.
        analysis: the analysis form ``γ g(Kx)``, for images x.
    """

    prox: Callable[[Tensor], Tensor] | None = None
    grad: Callable[[Tensor], Tensor] | None = None
    fn: Callable[[Tensor], Tensor] | None = None
    fn_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    frame: Frame | None = None
    analysis: Analysis | None = None


class AbstractPrior(Prior, ABC):
    r"""A prior that declares its capabilities. ReTune's priors derive from it, and yours may, too.

    It is also an ordinary deepinv ``Prior``. Maps ask for the attributes below, never for the class. A plain deepinv
    ``Prior`` works, too: [`adapt`][retune.priors.adapt] derives its capabilities from its methods. Your own prior with
    a proximity operator needs these few lines:

    ```python
    import retune

    class Shrink(retune.AbstractPrior):
        has_prox = True

        def bind(self, shape, layer, gamma):
            return retune.priors.BoundPrior(prox=lambda v: v / (1 + gamma))

        def convexity(self):
            return retune.Convexity(strong=1.0, how="½‖x‖²")

    net = retune.Restarted(retune.ForwardBackward(Shrink()))
    ```

    Attributes:
        has_prox: whether [`bind`][retune.AbstractPrior.bind] returns a proximity operator (or a substitute, such as a
            denoiser).
        has_grad: whether it returns a gradient.
        has_value: whether it returns a value.
        has_analysis: whether it returns an analysis form ``γ g(Kx)``: a linear operator K with its norm, and the
            prox of the conjugate of g.
        may_expand: whether its prox (or the step along its gradient) can increase the distance of two images, as an
            unconstrained denoiser can. The restarts of such a map are damped by default, and the start has its holes
            filled.
        per_image: whether it treats every image of a batch independently of the others.
        uses_strength: whether γ has an effect. It has none on a denoiser; λ is then not learned.
        on_coefficients: whether the state consists of coefficients in a frame (``BoundPrior.frame``) and not of the
            image itself.
        shares_layers: whether one object serves all layers of a cycle, with a table of parameters for each layer.
        combines: whether it consists of other priors, in lists, whose own statements it combines.
        alignment: tiles of a large image begin at multiples of this number of pixels, so that the prior acts on a tile
            as on the whole image.
        trains_in_bfloat16: whether it computes in bfloat16 in train mode.
        coarsens: whether it contains a network that can compute in bfloat16 far from the equilibrium.
        in_state_dict: constructor arguments that a description leaves out, because the state dict holds their values.
        added_later: constructor arguments that a description leaves out at their default, because an earlier version
            did not have them.
    """

    in_state_dict: tuple[str, ...] = ()
    added_later: tuple[str, ...] = ()
    has_prox: bool = False
    has_grad: bool = False
    has_value: bool = False
    has_analysis: bool = False
    may_expand: bool = False
    per_image: bool = True
    uses_strength: bool = True
    on_coefficients: bool = False
    shares_layers: bool = False
    combines: bool = False
    alignment: int = 1
    trains_in_bfloat16: bool = False
    coarsens: bool = False

    def describe(self) -> dict:
        """Constructor arguments as plain data, read from attributes of the same names; they rebuild the prior."""
        return by_arguments(self)

    @abstractmethod
    def bind(self, shape: Sequence[int], layer: int, gamma: Tensor) -> BoundPrior:
        """The prior for images of one shape, in one layer of a cycle, at one strength. Parameters are read once.

        Args:
            shape: (B, C, H, W) of the images.
            layer: index of the layer in the cycle, from 0.
            gamma: γ = τλ, shape (), (1, 1, 1, 1) or (B, 1, 1, 1), with the dtype and the device of the images.

        Raises:
            ShapeError: the prior does not support images of this shape.
        """

    def bind_cycle(self, shape: Sequence[int], gammas: Sequence[Tensor]) -> Sequence[BoundPrior]:
        """[`bind`][retune.AbstractPrior.bind] for the layers 0, 1, …. Override it if layers can share computations."""
        return [self.bind(shape, layer, gamma) for layer, gamma in enumerate(gammas)]

    def per_layer(self, layers: int) -> Sequence[Prior]:
        """The priors of a cycle with `layers` layers: one prior for all of them, or copies with separate weights.

        Raises:
            InvalidParameterError: the prior has parameters for a different number of layers.
        """
        return [self, *(copy.deepcopy(self) for _ in range(layers - 1))]

    def convexity(self) -> Convexity | None:
        """The known convexity of g; None if unknown."""
        return None

    def smoothness(self, like: Tensor) -> Smoothness | None:
        """The known constants of ∇g, for images with the dtype and the device of `like`; None if unknown."""
        return None

    def networks(self, shape: Sequence[int]) -> Sequence[Callable[[Tensor], Tensor]]:
        """The denoiser of every layer, as a function of images of `shape`; empty for a prior without a denoiser."""
        return ()

    def tunables(self) -> dict[str, ScalarParameter]:
        """Scalars and small tables for tuning by hand or by a search (noise level, strength, weights)."""
        return {}

    def learned(self) -> dict[str, list]:
        """The values of [`tunables`][retune.AbstractPrior.tunables] as plain data, for reports."""
        return {name: p.value.flatten().tolist() for name, p in self.tunables().items()}

    def hold_scales(self) -> None:
        """Stop training the weights of the scales; a prior without scales does nothing."""


class SynthesisPrior(AbstractPrior):
    r"""A prior on the coefficients u of a tight frame D, with ``x = D u`` and ``D Dᵀ = I``.

    Maps use [`bind`][retune.SynthesisPrior.bind], which is exact for every image size. As an ordinary deepinv prior on
    images ([`fn`][retune.SynthesisPrior.fn], [`prox`][retune.SynthesisPrior.prox]) it is the analysis form ``g(Dᵀx)``.
    The prox of this form is exactly ``D prox_g(Dᵀ ·)`` if D is orthonormal: one wavelet, sides divisible by
    ``2**levels``, and no margin.
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
            InvalidParameterError: D is not orthonormal for this image size, so there is no closed form.
        """
        bound = self._on_images(x, gamma)
        frame = bound.frame
        assert bound.prox is not None
        assert frame is not None
        if not frame.orthonormal:
            raise InvalidParameterError(
                f"the image-domain prox has no closed form for images {tuple(x.shape[-2:])}: it needs one wavelet, "
                "sides divisible by 2**levels and no margin. retune.ForwardBackward accepts any size, because it "
                "uses the synthesis form"
            )
        return frame.synthesis(bound.prox(frame.analysis(x)))

    def _on_images(self, x: Tensor, gamma: float | Tensor) -> BoundPrior:
        strength = torch.as_tensor(gamma, dtype=x.dtype, device=x.device)
        return self.bind(x.shape, 0, over_images(strength, x.ndim) if strength.ndim else strength)
