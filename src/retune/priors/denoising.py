"""What Plug-and-Play and RED have in common: a denoiser with its noise level, and the checks of both."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from deepinv.optim.prior import Prior
from torch import Tensor, nn

from retune._registry.describe import description
from retune._torch.graph import reaches
from retune._torch.precision import wants_coarse_networks, wants_full_precision
from retune.errors import CutGradientError, InvalidParameterError, ShapeError, require, wrong_type
from retune.parameters import Bounded, Positive, ScalarParameter
from retune.priors.base import AbstractPrior
from retune.priors.memory import is_steady, snapshot, steady
from retune.priors.noise_level import check_range, doubt_noise_level, noise_level
from retune.priors.origin import is_ours

__all__ = ["DenoiserPrior", "entry", "table_shape", "plain_values"]

#: A σ at an end of its range is moved inside by this share of the range. There it has a derivative and can be learned.
_INSIDE = 1e-3


class DenoiserPrior(AbstractPrior):
    """Common base of [`Denoiser`][retune.priors.Denoiser] and [`RED`][retune.priors.RED], with the checks.

    Attributes:
        denoiser: the network.
        sigma: its noise level on the scale of the image, one number or one per layer of the cycle; None for a denoiser
            without noise level.
        trains_in_bfloat16: whether the network computes in bfloat16 in train mode.
    """

    may_expand = True
    shares_layers = True

    def __init__(
        self,
        denoiser: nn.Module,
        sigma: float | Sequence[float] | None,
        *,
        learn_sigma: bool,
        learn_denoiser: bool,
        sigma_range: tuple[float, float] | None,
        bfloat16: bool,
    ):
        super().__init__()
        hint = "for example retune.weights.load('denoiser-color'), or any nn.Module called as net(x, sigma)"
        require("denoiser", denoiser, nn.Module, "a denoiser (nn.Module)", hint)
        if isinstance(denoiser, Prior):
            raise InvalidParameterError(
                f"denoiser must be a network, got the prior {type(denoiser).__name__}; give the network inside it "
                "(for deepinv's PnP, prior.denoiser)"
            )
        self.explicit_prior = False
        self.denoiser = denoiser.eval()
        self.learn_denoiser = learn_denoiser
        if not isinstance(bfloat16, bool):
            raise wrong_type(
                "bfloat16", bfloat16, "True or False", "True computes the network in bfloat16 in train mode"
            )
        self.trains_in_bfloat16 = bfloat16
        self.training = False  # deepinv's algorithms keep priors in lists, which train() and eval() do not reach
        for parameter in denoiser.parameters():
            parameter.requires_grad_(learn_denoiser)
        self.sigma: ScalarParameter | None = None
        if sigma is not None:
            self.sigma = _noise_levels(sigma, sigma_range or getattr(denoiser, "sigma_range", None), learn_sigma)

    def fn(self, x: Tensor, *args, **kwargs) -> Tensor:
        """Refused: a denoiser need not be the prox of a function.

        Raises:
            InvalidParameterError: always.
        """
        raise InvalidParameterError(
            f"{type(self).__name__} has no value, only a denoiser; retune.priors.Ridge has both"
        )

    def train(self, mode: bool = True):
        """The denoiser stays in eval mode: dropout or batch statistics would make every layer a different map."""
        super().train(mode)
        self.denoiser.eval()
        return self

    def tunables(self) -> dict[str, ScalarParameter]:
        """The noise level."""
        return {} if self.sigma is None else {"sigma": self.sigma}

    def per_layer(self, layers: int) -> Sequence[DenoiserPrior]:
        """The prior of a cycle: it shares the network and has one σ per layer. If this prior already fits, it is used.

        Raises: InvalidParameterError: σ was given for a different number of layers.
        """
        sizes = [table.raw.numel() for table in self.tunables().values()]
        if any(n not in (1, layers) for n in sizes):
            raise InvalidParameterError(
                f"the prior has parameters for {max(sizes)} layers, but the map has a cycle of {layers} layers: give "
                f"one number, or {layers} numbers"
            )
        if all(n == layers for n in sizes):
            return [self]
        own = copy.deepcopy(self, {id(self.denoiser): self.denoiser})
        for table in own.tunables().values():
            table.raw = nn.Parameter(table.raw.detach().expand(layers).clone(), table.raw.requires_grad)
        return [own]

    def networks(self, shape: Sequence[int]) -> Sequence[Callable[[Tensor], Tensor]]:
        """``D_σ`` for images of `shape`, at every noise level of a cycle."""
        count = 1 if self.sigma is None else self.sigma.raw.numel()
        return [self._network(shape, self._sigma(layer)) for layer in range(count)]

    @property
    def coarsens(self) -> bool:  # type: ignore[override]
        """Whether the network is known to compute in bfloat16 under ``autocast``, as those of this package do."""
        return is_ours(self.denoiser)

    @property
    def _sigma_range(self) -> tuple[float, float] | None:
        """The noise levels that the denoiser takes; None if any."""
        low, high = (0.0, math.inf) if self.sigma is None else self.sigma.interval
        return None if math.isinf(high) else (low, high)

    def _sigma(self, layer: int) -> Tensor | None:
        return None if self.sigma is None else entry(self.sigma(), layer)

    @abstractmethod
    def _function(self, shape: Sequence[int], layer: int, sigma: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The function that one layer applies to images of `shape` at noise level `sigma`. Parameters are read once."""

    def _at(self, x: Tensor, sigma: float | Tensor | None) -> Callable[[Tensor], Tensor]:
        """For calls from deepinv: their σ takes precedence over the prior's own."""
        given = None if sigma is None or self.sigma is None else self._level(x, sigma)
        return self._function(x.shape, 0, self._sigma(0) if given is None else given)

    def _level(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """A σ given with the images, checked. A tensor on an accelerator is not checked: that would stall it."""
        if self._sigma_range and (not isinstance(sigma, Tensor) or sigma.device.type == "cpu"):
            check_range(sigma, *self._sigma_range)
        return noise_level(sigma, x).flatten()

    def _network(self, shape: Sequence[int], sigma: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The denoiser for images of `shape`, with σ set and checked output. A grey network runs on every channel."""
        batch, channels = shape[:2]
        known = getattr(self.denoiser, "channels", None)
        known = known if isinstance(known, int) else None
        split = known == 1 and channels > 1
        if known is not None and known != channels and not split:
            raise ShapeError(
                f"{type(self.denoiser).__name__} denoises images with {known} channel(s), but the images "
                f"{tuple(shape)} have {channels}; use a denoiser for {channels} channel(s), or a grey denoiser, which "
                "is applied to every channel"
            )
        levels = () if sigma is None else (sigma.flatten(),)
        if levels and split:
            levels = (levels[0].expand(batch).repeat_interleave(channels),)
        elif levels:
            levels = (levels[0].expand(batch),)
        plain = partial(self._call, levels=levels)
        call: Callable[[Tensor], Tensor] | None = None  # set by the first call, whose output is checked

        def denoise(x: Tensor) -> Tensor:
            nonlocal call
            inside = x.reshape(-1, 1, *x.shape[2:]) if split else x
            if torch.compiler.is_compiling():  # the checks below are for the first call, and break the graph
                return (call or plain)(inside).reshape(x.shape)
            if torch.is_grad_enabled() and x.requires_grad and getattr(self.denoiser, "detach", None) is True:
                raise CutGradientError(  # deepinv's GSPnP: its output keeps a graph, whose tensors are freed
                    f"{type(self.denoiser).__name__} was made with detach=True and frees its graph, so it cannot be "
                    "differentiated: set denoiser.detach = False, or call the network in eval mode"
                )
            version = None if x.is_inference() else x._version
            undo = None if call or is_steady(self.denoiser) else snapshot(self.denoiser)
            out = (call or plain)(inside)
            if version is not None and x._version != version:
                raise InvalidParameterError(
                    f"{type(self.denoiser).__name__} changes its input in place, but the iteration still needs this "
                    "input: the equilibrium would change. Let it work on x.clone()"
                )
            if not isinstance(out, Tensor) or out.shape != inside.shape:
                given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise ShapeError(
                    f"{type(self.denoiser).__name__} must return an image of its input's shape {tuple(inside.shape)}, "
                    f"but returned {given}"
                )
            if out.dtype != inside.dtype:
                raise InvalidParameterError(
                    f"{type(self.denoiser).__name__} must return an image in floating point like its input, but "
                    f"returned {out.dtype}"
                )
            if torch.is_grad_enabled() and x.requires_grad and not reaches(out, x):
                raise CutGradientError(
                    f"the gradient is cut inside {type(self.denoiser).__name__}: its output does not depend on its "
                    "input for autograd (.detach(), torch.no_grad() or a gradient step without graph). A gradient "
                    "rule that differentiates would be silently wrong; use a differentiable denoiser"
                )
            if call is None:
                call = steady(self.denoiser, plain, inside.shape, inside, type(self.denoiser).__name__)
                if undo is not None and call is not plain:
                    undo()
                    out = call(inside)
            return out.reshape(x.shape)

        return denoise

    def _call(self, x: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """The network itself. torch's error about channels is explained in terms of images."""
        coarse = self.trains_in_bfloat16 and self.training and not wants_full_precision()
        coarse = coarse or wants_coarse_networks()
        try:
            # The iteration itself keeps the precision of the images. autocast does not change float64.
            with torch.autocast(x.device.type, torch.bfloat16) if coarse else nullcontext():
                out = self.denoiser(x, *(level.to(x) for level in levels))
            return out.to(x.dtype) if isinstance(out, Tensor) and out.is_floating_point() else out
        except RuntimeError as error:
            own = next(self.denoiser.parameters(), x).dtype
            if own != x.dtype:
                kind = type(self.denoiser).__name__
                raise InvalidParameterError(
                    f"{kind} has weights in {own}, but the images are {x.dtype}: convert one of them, with "
                    f"denoiser.to({x.dtype}) or images.to({own})"
                ) from error
            if "channels" not in str(error):
                raise
            raise ShapeError(
                f"{type(self.denoiser).__name__} cannot take images {tuple(x.shape)} with {x.shape[1]} channel(s): "
                f"{error}. Use a denoiser for this number of channels. A grey denoiser is applied to every channel if "
                "it has an attribute channels = 1"
            ) from error

    def describe(self) -> dict:
        """Constructor arguments as plain data; weights and noise levels are in the state dict.

        Raises:
            InvalidParameterError: the class of the network is not registered.
        """
        network = description(self.denoiser)
        given = {"type": type(self).__name__, "denoiser": network, "learn_denoiser": self.learn_denoiser}
        given |= {"bfloat16": True} if self.trains_in_bfloat16 else {}
        if self.sigma is None:
            return given | {"sigma": None}
        learned = {"learn_sigma": self.sigma.learned, "sigma": plain_values(self.sigma)}
        bounds = {} if self._sigma_range is None else {"sigma_range": list(self._sigma_range)}
        return given | learned | bounds


def table_shape(name: str, value: Any) -> tuple[int, ...]:
    """(1,) or (number of layers,)."""
    try:
        shape = torch.as_tensor(value).shape
    except (TypeError, ValueError, RuntimeError) as error:
        raise wrong_type(name, value, "a number, or one number per layer") from error
    if isinstance(value, bool) or len(shape) > 1 or 0 in shape:
        raise wrong_type(name, value, "a number, or one number per layer")
    return tuple(shape) or (1,)


def entry(table: Tensor, layer: int) -> Tensor:
    """The value for one layer, shape (1,)."""
    return table.reshape(-1)[layer % table.numel()][None]


def plain_values(table: ScalarParameter) -> float | list[float]:
    """The values as plain data: one number, or a list of one per layer."""
    values = table.value.flatten().tolist()
    return values[0] if len(values) == 1 else values


def _noise_levels(sigma: float | Sequence[float], bounds: Sequence[float] | None, learn: bool) -> ScalarParameter:
    shape = table_shape("sigma", sigma)
    if bounds is None:
        if isinstance(sigma, int | float | Sequence):
            doubt_noise_level(sigma)
        return Positive(sigma, shape, learn=learn, name="sigma")
    low, high = bounds
    if not 0 <= low < high:
        raise InvalidParameterError(f"sigma_range must be (low, high) with 0 ≤ low < high, got {tuple(bounds)}")
    check_range(sigma, low, high)
    inside = torch.as_tensor(sigma, dtype=torch.float64).clamp(
        low + _INSIDE * (high - low), high - _INSIDE * (high - low)
    )
    return Bounded(inside, shape, low=low, high=high, learn=learn, name="sigma")
