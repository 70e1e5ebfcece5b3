"""A small bias-free residual U-Net that denoises at any noise level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from deepinv.models import Denoiser
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle, relu

from retune._registry.describe import by_arguments
from retune._registry.entries import register
from retune.networks._layout import ON_EACH, conv3, require_channels, require_layout
from retune.priors.noise_level import noise_level

__all__ = ["SmallUNet"]


@register
class SmallUNet(Denoiser):
    r"""``D_σ(x)``: a noise-conditional residual U-Net without biases.

    The image is folded to half its size (four pixels become four channels, as in FFDNet), a constant map of value σ is
    appended, and a U-Net of residual blocks predicts the noise, which is subtracted. Without biases the network is
    homogeneous: ``D_{tσ}(t x) = t D_σ(x)`` for t > 0. So it is not tied to one intensity range, and it generalises to
    unseen noise levels (Mohan et al., *Robust and interpretable blind image denoising via bias-free convolutional
    neural networks*, ICLR 2020). The layout is that of DRUNet (Zhang et al., *Plug-and-Play image restoration with deep
    denoiser prior*, TPAMI 2021), thirty times smaller.

    Args:
        channels: channels of the image, 1 or 3 for the shipped weights.
        features: features at 1/2, 1/4, 1/8 … of the size.
        blocks: residual blocks per scale, on the way down and on the way up.

    Raises:
        InvalidParameterError: no features, no blocks or no channels.
    """

    #: noise levels that the shipped weights were trained for
    sigma_range = (0.0, 50 / 255)

    def __init__(self, channels: int = 1, features: Sequence[int] = (32, 64, 112), blocks: int = 2):
        super().__init__()
        channels, features, blocks = require_layout(channels, features, blocks)
        self.channels, self.features, self.blocks = channels, features, blocks
        scales = list(pairwise(features))
        self.head = conv3(4 * channels + 1, features[0])
        self.encoder = nn.ModuleList(_stage(f, blocks) for f in features)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, 2, bias=False) for a, b in scales)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2, bias=False) for a, b in scales)
        self.decoder = nn.ModuleList(_stage(f, blocks) for f in features[:-1])
        self.tail = conv3(features[0], 4 * channels)
        self.to(memory_format=torch.channels_last)  # the layout in which convolutions are fastest

    describe = by_arguments

    def forward(self, x: Tensor, sigma: float | Tensor, **_ignored) -> Tensor:
        """Denoise.

        Args:
            x: images (B, C, H, W), any height and width.
            sigma: noise level on the scale of x: a number, or a tensor (), (B,) or (B, 1, 1, 1).

        Raises:
            ShapeError: wrong number of channels.
            InvalidParameterError: a noise level that is negative, not finite, or has a wrong shape.
        """
        require_channels(x, self.channels, "this network denoises", ON_EACH)
        height, width = x.shape[-2:]
        step = 2 ** len(self.features)
        z = pad(x, (0, -width % step, 0, -height % step), mode="replicate")
        z = pixel_unshuffle(z, 2)
        level = noise_level(sigma, x).expand(len(x), 1, *z.shape[-2:])
        h = self.head(torch.cat([z, level], 1))
        skips = []
        for stage, down in zip(self.encoder, self.down, strict=False):
            h = stage(h)
            skips.append(h)
            h = down(h)
        h = self.encoder[-1](h)
        for stage, up in zip(reversed(self.decoder), reversed(self.up), strict=True):
            h = stage(up(h) + skips.pop())
        noise = pixel_shuffle(self.tail(h), 2)[..., :height, :width]
        return x - noise


class _Residual(nn.Module):
    """``h + W₂ max(W₁ h, 0)``."""

    def __init__(self, features: int):
        super().__init__()
        self.first, self.second = conv3(features, features), conv3(features, features)
        with torch.no_grad():  # the blocks start near the identity, for any number of them
            self.second.weight.mul_(0.1)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(relu(self.first(h)))


def _stage(features: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*[_Residual(features) for _ in range(blocks)])
