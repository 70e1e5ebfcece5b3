"""An explicit learned energy as a prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast

from torch import Tensor, nn

from retune._registry.entries import register
from retune.errors import InvalidParameterError, ShapeError, require
from retune.guarantee import Smoothness
from retune.parameters import Positive, ScalarParameter
from retune.priors.base import AbstractPrior, BoundPrior
from retune.priors.noise_level import noise_level

__all__ = ["Energy"]


class _Bound(Protocol):
    def fn(self, x: Tensor) -> Tensor: ...

    def grad(self, x: Tensor) -> Tensor: ...

    def fn_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


class _Network(Protocol):
    channels: int
    alignment: int

    def at(self, sigma: float | Tensor, like: Tensor) -> _Bound: ...


@register
class Energy(AbstractPrior):
    r"""``R_σ(x)`` of an [`EnergyNet`][retune.networks.EnergyNet]: smooth, bounded from below, with value and gradient.

    No Lipschitz constant of its gradient is known or needed: ``retune.GradientStep(Energy(net))`` searches for its step
    sizes ([`QuasiNewton`][retune.QuasiNewton]). The objective ``f + λR_σ`` never rises, for any learned weights.

    For Gaussian noise of level s in the image, ``σ = s`` and ``λ = 1`` make ``½‖x − y‖² + λR_σ(x)`` a denoising
    problem. For another data term ``‖Ax − y‖²/(2s²)``, begin with ``λ = 1/σ²``.

    It is also an ordinary deepinv ``Prior``: ``fn(x, sigma)`` and ``grad(x, sigma)``.

    Args:
        network: the energy. A grey one is applied to every channel of a colour image, and the values are added.
        sigma: noise level of the energy, on the scale of the image.
        learn_sigma: whether σ is trained.
        learn_network: whether the weights of the network are trained.

    Raises:
        InvalidParameterError: the network has no energy, or σ is out of its range.
    """

    in_state_dict = ("sigma",)
    explicit_prior = True
    has_grad = True
    has_value = True

    def __init__(
        self, network: nn.Module, sigma: float = 25 / 255, *, learn_sigma: bool = True, learn_network: bool = False
    ):
        super().__init__()
        self.explicit_prior = True
        hint = "for example retune.networks.EnergyNet(channels=1)"
        require("network", network, nn.Module, "an energy (nn.Module)", hint)
        if not callable(getattr(network, "at", None)):
            raise InvalidParameterError(
                f"{type(network).__name__} has no energy: expected a network with at(sigma, like), whose result has "
                f"fn(x), grad(x) and fn_and_grad(x); {hint}"
            )
        self.network = network.requires_grad_(learn_network)
        self.sigma = Positive(sigma, (), learn=learn_sigma, name="sigma")

    @property
    def learn_network(self) -> bool:
        """Whether the weights of the network are trained."""
        return any(p.requires_grad for p in self.network.parameters())

    @property
    def alignment(self) -> int:  # type: ignore[override]
        """See [`AbstractPrior`][retune.AbstractPrior]: the network folds the image, so tiles must follow its grid."""
        return int(getattr(self.network, "alignment", 1))

    def at(self, sigma: float | Tensor | None, like: Tensor) -> BoundPrior:
        """R at one noise level (one per image), for images shaped as `like` (B, C, H, W).

        Args:
            sigma: noise level: a number, a tensor () or (B,); None takes the prior's own.
            like: an image with the shape, dtype and device to use.

        Raises:
            ShapeError: wrong number of channels.
        """
        network = cast(_Network, self.network)
        level = self.sigma().to(like).reshape(1, 1, 1, 1) if sigma is None else noise_level(sigma, like)
        if like.ndim != 4:
            raise ShapeError(f"an energy needs images (B, C, H, W), got shape {tuple(like.shape)}")
        batch, channels = like.shape[:2]
        if network.channels != 1 or channels == 1:
            bound = network.at(level, like)
            return BoundPrior(fn=bound.fn, grad=bound.grad, fn_and_grad=bound.fn_and_grad)
        # A grey network on every channel.
        one = like.reshape(batch * channels, 1, *like.shape[-2:])
        each = level.repeat_interleave(channels, 0) if len(level) == batch > 1 else level
        bound = network.at(each, one)

        def both(x: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = bound.fn_and_grad(x.reshape(one.shape))
            return value.reshape(batch, channels).sum(1), gradient.reshape(x.shape)

        return BoundPrior(
            fn=lambda x: bound.fn(x.reshape(one.shape)).reshape(batch, channels).sum(1),
            grad=lambda x: bound.grad(x.reshape(one.shape)).reshape(x.shape),
            fn_and_grad=both,
        )

    def bind(self, shape: Sequence[int], layer: int, gamma: Tensor) -> BoundPrior:
        """See [`AbstractPrior`][retune.AbstractPrior]."""
        bound = self.at(None, gamma.new_empty(()).expand(tuple(shape)))
        assert bound.fn is not None
        assert bound.fn_and_grad is not None
        if gamma.numel() == 1 and not gamma.requires_grad and float(gamma) == 1.0:
            return bound
        return BoundPrior(
            fn=_times(bound.fn, gamma), grad=bound.grad, fn_and_grad=_first_times(bound.fn_and_grad, gamma)
        )

    def smoothness(self, like: Tensor) -> Smoothness:
        """See [`AbstractPrior`][retune.AbstractPrior]: infinitely differentiable, without a known constant."""
        return Smoothness(None, None, "½‖N‖² of a smooth network", checked=True, row="explicit energy")

    def tunables(self) -> dict[str, ScalarParameter]:
        """The noise level."""
        return {"sigma": self.sigma}

    def fn(self, x: Tensor, sigma: float | Tensor | None = None, *args, **kwargs) -> Tensor:
        """``R_σ(x)`` per image, shape (B,)."""
        bound = self.at(sigma, x)
        assert bound.fn is not None
        return bound.fn(x)

    def grad(self, x: Tensor, sigma: float | Tensor | None = None, *args, **kwargs) -> Tensor:
        """``∇R_σ(x)``, shape (B, C, H, W)."""
        bound = self.at(sigma, x)
        assert bound.grad is not None
        return bound.grad(x)


def _times(fn: Callable[[Tensor], Tensor], gamma: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda u: fn(u) * gamma.flatten()


def _first_times(
    both: Callable[[Tensor], tuple[Tensor, Tensor]], gamma: Tensor
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def scaled(u: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = both(u)
        return value * gamma.flatten(), gradient

    return scaled
