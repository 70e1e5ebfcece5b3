"""Learned filter banks whose norm is known for every image size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, pad, pixel_shuffle

from retune.errors import InvalidParameterError, ShapeError, require_whole

__all__ = ["BoundFilters", "FilterBank"]

# Minimum number of sampled frequencies per axis, as a multiple of the degree of |ŵ|².
_OVERSAMPLING = 12
# Side of the blocks that the last transposed convolution writes at once: a single output channel is not vectorised.
_FOLD = 4


class FilterBank(nn.Module):
    r"""``W x = (w_i * x)_i`` with zero-mean filters and ``‖W‖ ≤ 1`` for images of every size.

    The filters are a multi-convolution ``W = W_J ∘ … ∘ W_1`` of small kernels: large filters with few weights (Goujon
    et al., IEEE TCI 2023). Responses are computed only where the whole filter fits into the image ("valid"), so no
    value outside the image is needed.

    ``‖W‖²`` is at most the maximum over all frequencies of the symbol ``λ_max(Σ_i ŵ_i ŵ_iᴴ)``, because the valid
    responses are part of those on the infinite grid. The symbol is sampled on a grid of M×M frequencies. For a unit
    vector v, ``vᴴ(Σ_i ŵ_i ŵ_iᴴ)v`` is a trigonometric polynomial of degree d in each variable, where d + 1 is the side
    of the filters. Such a polynomial exceeds its largest sample at most by the factor ``1/cos(πd/M)`` per variable
    (Ehlich and Zeller, Math. Z. 86, 1964). The filters are divided by the square root of this bound. So ``‖W‖ ≤ 1`` is
    proved, up to rounding, for any trained weights.

    Args:
        channels: channels of the image, intermediate features, number of filters.
        sizes: side of the kernels of each convolution, odd or even.

    Attributes:
        reach: side of the composed filters minus one.
    """

    def __init__(self, channels: Sequence[int] = (1, 8, 32), sizes: Sequence[int] = (7, 3)):
        super().__init__()
        channels = tuple(require_whole("channels", c) for c in channels)
        sizes = tuple(require_whole("sizes", s) for s in sizes)
        if len(channels) != len(sizes) + 1 or not sizes or min(channels) < 1 or min(sizes) < 1 or sizes[0] < 2:
            raise InvalidParameterError(
                "a filter bank needs n + 1 channel counts ≥ 1 and n kernel sides ≥ 1, the first at least 2 so that a "
                f"zero-mean filter exists; got channels={channels}, sizes={sizes}"
            )
        self.channels, self.sizes = channels, sizes
        self.reach = sum(sizes) - len(sizes)
        self.weights = nn.ParameterList()
        for a, b, s in zip(channels, channels[1:], sizes, strict=False):
            self.weights.append(nn.Parameter(torch.randn(b, a, s, s) / math.sqrt(a * s * s)))

    def kernels(self) -> Tensor:
        """The composed, normalised filters (N, C, reach + 1, reach + 1), as cross-correlations."""
        return _compose(self._normalised())

    def bind(self, dtype: torch.dtype, device: torch.device) -> BoundFilters:
        """Normalise once, for repeated use on images of this dtype and device."""
        weights = [w.to(device, dtype) for w in self._normalised()]
        return BoundFilters(tuple(weights), _folded(weights[0]), self.channels[0], self.reach)

    def _normalised(self) -> list[Tensor]:
        # If the first filters have zero mean, all composed filters have.
        first = self.weights[0] - self.weights[0].mean((2, 3), keepdim=True)
        weights = [first, *self.weights[1:]]
        scale = norm_bound(_compose(weights)).clamp_min(1e-20).rsqrt()
        return [*weights[:-1], weights[-1] * scale]


def norm_bound(kernels: Tensor) -> Tensor:
    """Upper bound of ``‖W‖²`` for filters (N, C, k, k) and images of every size, differentiable; see above."""
    degree = kernels.shape[-1] - 1
    grid = _OVERSAMPLING * (degree + 1)
    with torch.no_grad():
        spectrum = torch.fft.rfft2(kernels.double(), s=(grid, grid)).flatten(2)  # (N, C, frequencies)
        gram = torch.einsum("ncf,ndf->fcd", spectrum.conj(), spectrum)
        values, vectors = torch.linalg.eigh(gram)
        at = values[:, -1].argmax()
        direction = vectors[at, :, -1]
        rows, columns = at // (grid // 2 + 1), at % (grid // 2 + 1)
        steps = torch.arange(degree + 1, device=kernels.device, dtype=torch.float64)
        phase = -2 * math.pi / grid * (rows * steps[:, None] + columns * steps[None, :])
        probe = torch.polar(torch.ones_like(phase), phase) * direction[:, None, None]
    # At the largest sample the symbol is |Σ_c v_c ŵ_ic|². The derivative is the same for fixed v.
    parts = torch.view_as_real(probe).to(kernels.dtype)
    response = torch.einsum("ncij,cijr->nr", kernels, parts)
    return response.square().sum() / math.cos(math.pi * degree / grid) ** 2


@dataclass(frozen=True)
class BoundFilters:
    """The filter bank with its normalised weights: ``W`` and its exact adjoint ``Wᵀ``."""

    weights: tuple[Tensor, ...]
    folded: Tensor
    channels: int
    reach: int

    def __call__(self, x: Tensor) -> Tensor:
        """``W x``: (B, C, H, W) → (B, N, H − reach, W − reach).

        Raises:
            ShapeError: the channels differ, or the image is smaller than a filter.
        """
        self.check(x.shape)
        for w in self.weights:
            x = conv2d(x, w)
        return x

    def check(self, shape: Sequence[int]) -> None:
        """Refuse images of a shape that cannot be filtered.

        Raises:
            ShapeError: the channels differ, or the images are smaller than a filter.
        """
        if len(shape) != 4 or shape[1] != self.channels or min(shape[-2:]) <= self.reach:
            raise ShapeError(
                f"these filters need images (B, {self.channels}, H, W) with sides of at least {self.reach + 1} pixels, "
                f"got {tuple(shape)}"
            )

    def adjoint(self, r: Tensor) -> Tensor:
        """``Wᵀ r``: (B, N, H − reach, W − reach) → (B, C, H, W)."""
        for w in reversed(self.weights[1:]):
            r = conv_transpose2d(r, w)
        side = self.folded.shape[-1]
        height, width = (n + self.weights[0].shape[-1] - 1 for n in r.shape[-2:])
        rows, columns = -(-height // _FOLD) * _FOLD, -(-width // _FOLD) * _FOLD
        before = side - _FOLD
        r = pad(r, (before, columns - r.shape[-1], before, rows - r.shape[-2]))
        return pixel_shuffle(conv2d(r, self.folded, stride=_FOLD), _FOLD)[..., :height, :width]


def _compose(weights: Sequence[Tensor]) -> Tensor:
    """A single filter bank equal to the composition of the convolutions."""
    composed = weights[0]
    for w in weights[1:]:
        images = composed.transpose(0, 1)
        composed = conv2d(images, w.flip(-1, -2), padding=w.shape[-1] - 1).transpose(0, 1)
    return composed


def _folded(weight: Tensor) -> Tensor:
    """Filters that compute the transposed convolution for blocks of `_FOLD`×`_FOLD` pixels, as output channels."""
    filters, channels, k, _ = weight.shape
    before = -(-(k - 1) // _FOLD) * _FOLD
    side = before + _FOLD
    # Pixel _FOLD·y + a collects r[_FOLD·y + j − before] · weight[a + before − j].
    folded = weight.new_zeros(channels, _FOLD, _FOLD, filters, side, side)
    turned = weight.transpose(0, 1).flip(-1, -2)
    for a in range(_FOLD):
        for b in range(_FOLD):
            top, left = a + before - (k - 1), b + before - (k - 1)
            folded[:, a, b, :, top : top + k, left : left + k] = turned
    return folded.reshape(channels * _FOLD * _FOLD, filters, side, side)
