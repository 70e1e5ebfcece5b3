"""A smooth U-Net whose output is squared: an explicit energy of the image, with value, gradient and curvature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from deepinv.models import Denoiser
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, pixel_shuffle, pixel_unshuffle

from retune._registry.describe import by_arguments
from retune._registry.entries import register
from retune._torch.function import Function
from retune.errors import InvalidParameterError
from retune.networks._layout import conv3, require_channels, require_layout
from retune.priors.noise_level import noise_level

__all__ = ["BoundEnergy", "EnergyNet"]

#: Number of pixels by which an image is extended on each side, so that its margin is regularised like the rest.
MARGIN = 4
#: An image is continued beyond its border by the mean of this number of pixels.
NEAR = 16


@register
class EnergyNet(Denoiser):
    r"""``R_σ(x) = σ² · ½‖N(Ex/σ)‖²``: N is a smooth U-Net, E extends the image beyond its border.

    R is bounded from below by 0 and infinitely differentiable, for any weights. So a descent with backtracking on
    ``f + λR`` never rises and settles, after any training. By construction ``R_{tσ}(tx) = t² R_σ(x)`` for every t > 0:
    one network serves all noise levels and intensity ranges. The biases act on the image in units of the noise.

    As a denoiser it takes one step, ``D_σ(x) = x − ∇R_σ(x)``, with the gradient

    ``∇R_σ(x) = σ Eᵀ J_N(Ex/σ)ᵀ N(Ex/σ)``.

    The gradient is computed by a pass through N and a pass through its transpose, both implemented explicitly. So it
    needs no graph, and training differentiates it once, like any other network.

    N has the layout of [`SmallUNet`][retune.networks.SmallUNet]: the image is folded to half its size; residual blocks
    ``h + W₂ a(W₁h + b)`` with ``a(t) = ½(t + √(t² + 1))`` at each scale; an output of four channels at half size for
    each channel of the image. Beyond the border, E has the mean of the 16 pixels next to it in each row and column. It
    is 4 pixels wide, and wider at the right and at the bottom, up to a multiple of ``2**len(features)``. E belongs to
    the energy.

    Sources: Hurault, Leclaire, Papadakis, *Gradient step denoiser for convergent Plug-and-Play*, ICLR 2022 (½‖N‖²);
    Zou, Liu, Wohlberg, Kamilov, *Deep equilibrium learning of explicit regularization functionals for imaging inverse
    problems*, IEEE TCI 9, 2023.

    Args:
        channels: channels of the image, 1 or 3 for the shipped weights.
        features: features at 1/2, 1/4, 1/8 … of the size.
        blocks: residual blocks per scale, on the way down and on the way up.

    Raises:
        InvalidParameterError: no features, no blocks or no channels.
    """

    #: noise levels that the shipped weights were trained for
    sigma_range = (2 / 255, 55 / 255)

    def __init__(self, channels: int = 1, features: Sequence[int] = (16, 32, 64), blocks: int = 1):
        super().__init__()
        channels, features, blocks = require_layout(channels, features, blocks)
        self.channels, self.features, self.blocks = channels, features, blocks
        scales = list(pairwise(features))
        self.head = conv3(4 * channels, features[0], bias=True)
        self.encoder = nn.ModuleList(_Stage(f, blocks) for f in features)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, 2, bias=False) for a, b in scales)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2, bias=False) for a, b in scales)
        self.decoder = nn.ModuleList(_Stage(f, blocks) for f in features[:-1])
        self.tail = conv3(features[0], 4 * channels, bias=True)
        self.to(memory_format=torch.channels_last)  # the layout in which convolutions are fastest

    describe = by_arguments

    @property
    def alignment(self) -> int:
        """Crops that begin at multiples of this number of pixels see the same grid as the whole image."""
        return 2 ** len(self.features)

    def at(self, sigma: float | Tensor, like: Tensor) -> BoundEnergy:
        """R at one noise level (one per image), for images of the shape, dtype and device of `like`.

        Args:
            sigma: noise level on the scale of the image: a number, or a tensor (), (B,) or (B, 1, 1, 1).
            like: an image (B, C, H, W).

        Raises:
            ShapeError: wrong number of channels, or not a batch of images.
            InvalidParameterError: a noise level that is not positive and finite, or has a wrong shape.
        """
        require_channels(like, self.channels, "this energy is for", "")
        own = self.tail.weight.dtype
        if like.dtype != own:
            raise InvalidParameterError(
                f"the images are {like.dtype} and the weights of this energy {own}: convert the network with "
                f".to({like.dtype}), or the images with .to({own})"
            )
        level = noise_level(sigma, like)
        if level.device.type == "cpu" and not bool((level > 0).all()):
            raise InvalidParameterError(f"sigma must be positive, because R is a function of x/σ; got {sigma}")
        return BoundEnergy(self, level, _Frame.around(like.shape[-2:], self.alignment))

    def forward(self, x: Tensor, sigma: float | Tensor, **_ignored) -> Tensor:
        """``x − ∇R_σ(x)``, a denoised image.

        Args:
            x: images (B, C, H, W), any height and width.
            sigma: noise level on the scale of x: a number, or a tensor (), (B,) or (B, 1, 1, 1).

        Raises:
            ShapeError: wrong number of channels.
            InvalidParameterError: a noise level that is not positive and finite.
        """
        return x - self.at(sigma, x).grad(x)

    def output(self, z: Tensor) -> Tensor:
        """``N(z)`` for an extended image in units of the noise, (B, 4C, H/2, W/2)."""
        return self._through(z)[0]

    def _through(self, z: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``N(z)``, and the slopes of the activations."""
        slopes: list[Tensor] = []
        *encoder, bottom = cast(list[_Stage], list(self.encoder))
        h, skips = self.head(pixel_unshuffle(z, 2)), []
        for stage, down in zip(encoder, self.down, strict=True):
            h = stage.through(h, slopes)
            skips.append(h)
            h = down(h)
        h = bottom.through(h, slopes)
        for stage, up in zip(cast(list[_Stage], reversed(self.decoder)), reversed(self.up), strict=True):
            h = stage.through(up(h) + skips.pop(), slopes)
        return self.tail(h), slopes

    def _back(self, g: Tensor, slopes: list[Tensor]) -> Tensor:
        """``J_N(z)ᵀ g``, from the slopes at z."""
        slopes = list(slopes)
        *encoder, bottom = cast(list[_Stage], list(self.encoder))
        downs, ups = cast(list[nn.Conv2d], list(self.down)), cast(list[nn.ConvTranspose2d], list(self.up))
        g, skips = _transposed(g, self.tail), []
        for stage, up in zip(cast(list[_Stage], list(self.decoder)), ups, strict=True):
            g = stage.back(g, slopes)
            skips.append(g)
            g = conv2d(g, up.weight, stride=2)
        g = bottom.back(g, slopes)
        for stage, down in zip(reversed(encoder), reversed(downs), strict=True):
            g = stage.back(conv_transpose2d(g, down.weight, stride=2) + skips.pop(), slopes)
        return pixel_shuffle(_transposed(g, self.head), 2)


@dataclass(frozen=True)
class BoundEnergy:
    """R at fixed noise levels, for images of one size: plain functions of the image (B, C, H, W)."""

    net: EnergyNet
    sigma: Tensor
    frame: _Frame

    def fn(self, x: Tensor) -> Tensor:
        """``R(x)`` per image, shape (B,)."""
        return self._value(self.net.output(self._scaled(x)))

    def grad(self, x: Tensor) -> Tensor:
        """``∇R(x)``, shape (B, C, H, W)."""
        out, slopes = self.net._through(self._scaled(x))
        return self._image(self.net._back(out, slopes))

    def fn_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient, at the cost of the gradient."""
        out, slopes = self.net._through(self._scaled(x))
        return self._value(out), self._image(self.net._back(out, slopes))

    def hessian(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """``v ↦ ∇²R(x) v``, without graph. The parts that depend on x are computed once."""
        with torch.inference_mode(False), torch.enable_grad():
            point = x.detach().clone().requires_grad_()
            here = replace(
                self, sigma=self.sigma.detach().clone()
            )  # autograd cannot store a tensor made in inference mode
            gradient = here.grad(point)

        def product(v: Tensor) -> Tensor:
            # ∇²R is symmetric, so the product with its transpose is the same.
            return torch.autograd.grad(gradient, point, v, retain_graph=True)[0]

        return product

    def _scaled(self, x: Tensor) -> Tensor:
        z = self.frame.extend(x) / self.sigma
        return z.contiguous(memory_format=torch.channels_last)

    def _value(self, out: Tensor) -> Tensor:
        # In double precision: a descent compares values that differ in their last digits.
        squares = out.flatten(1).square().sum(1, dtype=torch.float64)
        return 0.5 * (squares * self.sigma.flatten().double().square()).to(self.sigma.dtype)

    def _image(self, back: Tensor) -> Tensor:
        return self.frame.fold(back.to(self.sigma.dtype)) * self.sigma


class _Frame(NamedTuple):
    """The number of pixels by which an image of `height` × `width` is extended."""

    height: int
    width: int
    bottom: int
    right: int

    @classmethod
    def around(cls, size: Sequence[int], step: int) -> _Frame:
        height, width = size
        return cls(height, width, MARGIN + -(height + 2 * MARGIN) % step, MARGIN + -(width + 2 * MARGIN) % step)

    def extend(self, x: Tensor) -> Tensor:
        """``E x``: beyond a border stands the mean of the `NEAR` pixels next to it, in each row and column.

        Repeated or mirrored pixels would be counted several times, with their noise: the gradient would move those at
        the border several times too far. A mean carries little noise, and weighs each pixel by ``1/NEAR``.
        """
        for axis, after in ((-2, self.bottom), (-1, self.right)):
            size = x.shape[axis]
            near = min(NEAR, size)
            first = x.narrow(axis, 0, near).mean(axis, keepdim=True)
            last = x.narrow(axis, size - near, near).mean(axis, keepdim=True)
            x = torch.cat([first.repeat_interleave(MARGIN, axis), x, last.repeat_interleave(after, axis)], axis)
        return x

    def fold(self, z: Tensor) -> Tensor:
        """``Eᵀ z``: what stands beyond a border is divided among the pixels of its mean."""
        for axis, size, after in ((-2, self.height, self.bottom), (-1, self.width, self.right)):
            near = min(NEAR, size)
            before, inside, behind = z.split([MARGIN, size, after], axis)
            first, last = (part.sum(axis, keepdim=True) / near for part in (before, behind))
            head, tail = inside.narrow(axis, 0, near) + first, inside.narrow(axis, near, size - near)
            z = torch.cat([head, tail], axis)
            z = torch.cat([z.narrow(axis, 0, size - near), z.narrow(axis, size - near, near) + last], axis)
        return z


class _Smooth(Function):
    """``a(t) = ½(t + √(t² + 1))`` and its slope ``a'(t) = ½(1 + t/√(t² + 1))``; only t is kept for the derivative."""

    @staticmethod
    def forward(t: Tensor) -> tuple[Tensor, Tensor]:
        inverse = torch.rsqrt(torch.addcmul(t.new_ones(()), t, t))
        half = 0.5 * t
        return half + 0.5 / inverse, torch.addcmul(t.new_full((), 0.5), half, inverse)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        (t,) = ctx.saved_tensors
        of_value, of_slope = grads
        inverse = torch.rsqrt(torch.addcmul(t.new_ones(()), t, t))
        # a'' = ½ (t² + 1)^(−3/2)
        slope = 0.5 + 0.5 * t * inverse
        return of_value * slope + of_slope * (0.5 * inverse * inverse * inverse)

    @staticmethod
    def vmap(info, in_dims, t):  # pragma: no cover - every operation is elementwise
        return _Smooth.forward(t), (in_dims[0], in_dims[0])


def _activation(t: Tensor) -> tuple[Tensor, Tensor]:
    return _Smooth.run(t)


class _Residual(nn.Module):
    """``h + W₂ a(W₁ h + b)``."""

    def __init__(self, features: int):
        super().__init__()
        self.first, self.second = conv3(features, features, bias=True), conv3(features, features, bias=False)
        with torch.no_grad():  # the blocks start near the identity, for any number of them
            self.second.weight.mul_(0.1)


class _Stage(nn.Module):
    """Residual blocks at one scale, and their transpose."""

    def __init__(self, features: int, blocks: int):
        super().__init__()
        self.blocks = nn.ModuleList(_Residual(features) for _ in range(blocks))

    def through(self, h: Tensor, slopes: list[Tensor]) -> Tensor:
        """The blocks. Each appends the slope of its activation to the list."""
        for block in cast(list[_Residual], self.blocks):
            active, slope = _activation(block.first(h))
            slopes.append(slope)
            h = h + block.second(active)
        return h

    def back(self, g: Tensor, slopes: list[Tensor]) -> Tensor:
        """The transposed blocks. Each takes the slope of its activation from the end of the list."""
        for block in cast(list[_Residual], reversed(self.blocks)):
            g = g + _transposed(slopes.pop() * _transposed(g, block.second), block.first)
        return g


def _transposed(g: Tensor, conv: nn.Conv2d) -> Tensor:
    """The transpose of a 3×3 convolution with zero padding: a convolution with the mirrored kernel."""
    return conv2d(g, conv.weight.flip(2, 3).transpose(0, 1), padding=1)
