"""Undecimated wavelets: a norm of the coefficients at every shift, declared for primal–dual maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from retune._registry.entries import register
from retune._torch.batch import over_images
from retune.errors import InvalidParameterError, ShapeError, TooManyLevelsError, require, require_whole, unknown_name
from retune.guarantee import Convexity
from retune.parameters import Positive, ScalarParameter
from retune.priors.base import AbstractPrior, Analysis, BoundPrior
from retune.priors.shrinkage import newton_steps
from retune.priors.total_variation import onto_balls
from retune.priors.wavelet import GROUP_AXES, GroupNorm
from retune.priors.wavelet_basis import max_levels
from retune.priors.wavelet_level import filters

__all__ = ["UndecimatedWavelet"]


@register
class UndecimatedWavelet(AbstractPrior):
    r"""Weighted ℓ1 norm of undecimated wavelet details: ``R(x) = Σ_{j,c,b,p} 2^−j α_j w_{cb} |(W_{jb} x)_{cp}|``.

    j counts scales from 1 (fine to coarse), c channels, b the three bands (horizontal, vertical, diagonal), and p all
    pixels. ``W_{jb}`` are periodic convolutions: the filters of the wavelet, spread by ``2^{j−1}`` pixels ("à trous";
    Holschneider et al., in *Wavelets*, Springer 1989). No coefficient is left out, so the prior is the same at every
    shift of the image: R is the mean of [`WaveletL1`][retune.priors.WaveletL1] with the same weights over all shifts,
    if the sides are divisible by ``2**levels``. The blocks and ringing that come with one grid of wavelets average out
    ("cycle spinning"; Coifman and Donoho, *Translation-invariant de-noising*, Springer 1995). Opposite borders are
    adjacent: a difference between them counts like an edge.

    All coefficients together, with the coarse approximation, are a tight frame, ``WᵀW = I``, for any height and width:
    the symbols of an orthogonal wavelet satisfy ``|ĥ|² + |ĝ|² = 1`` at every frequency. So W has the norm 1. The prior
    takes the details only. Their norm is exact, too: ``‖K‖² = 1 − min |Ĉ|²`` over the frequencies of the image, with
    the symbol Ĉ of the coarse approximation.

    R has a value, but neither a gradient nor a prox in closed form: W is redundant. [`PrimalDual`][retune.PrimalDual]
    uses it exactly, as ``λ g(Kx)``. A layer costs ``6·levels`` Fourier transforms of an image, and its state has
    ``3·levels`` further images.

    Args:
        wavelet: an orthogonal PyWavelets wavelet.
        levels: number of scales; the image has sides of at least ``2**levels`` pixels.
        over: the axes of a group, "channel", "band" or both. The Euclidean norm of a group is then in place of the
            absolute values, so that channels or orientations share their edges. The default has no groups.
        channels: number of channels with separate weights; None shares the weights between all channels.
        weights: initial ``w``, one positive number or a table (channels or 1, 3).
        scale_weights: initial ``α``, one positive number or a table (levels,).
        coarse: also penalise the coarse approximation, by a weighted ℓ1 norm.
        learn: whether the weights are trained.

    Raises:
        UnknownNameError: unknown wavelet or group axis; the message gives similar names.
        InvalidParameterError: the wavelet is not orthogonal, or a weight is not positive.
    """

    explicit_prior = True
    in_state_dict = ("weights", "scale_weights")
    has_value = True
    has_analysis = True

    def __init__(
        self,
        wavelet: str = "db4",
        levels: int = 4,
        over: str | Sequence[str] = (),
        *,
        channels: int | None = None,
        weights: float | Sequence | Tensor = 1.0,
        scale_weights: float | Sequence[float] | Tensor = 1.0,
        coarse: bool = False,
        learn: bool = True,
    ):
        super().__init__()
        self.explicit_prior = True
        require("wavelet", wavelet, str, "a name", 'for example "db4"')
        filters(wavelet)
        require("over", over, (str, Sequence), "a name or a sequence of names", 'for example "channel"')
        levels = require_whole("levels", levels)
        channels = None if channels is None else require_whole("channels", channels)
        if levels < 1:
            raise InvalidParameterError(f"levels must be at least 1, got {levels}")
        if channels is not None and channels < 1:
            raise InvalidParameterError(
                f"channels must be None (weights shared by all channels) or ≥ 1, got {channels}"
            )
        self.over = (over,) if isinstance(over, str) else tuple(over)
        for axis in self.over:
            if axis not in GROUP_AXES:
                raise unknown_name("group axis", axis, GROUP_AXES)
        if len(set(self.over)) != len(self.over):
            raise InvalidParameterError(f"over must name each of 'channel' and 'band' once at most, got {over!r}")
        self.wavelet, self.levels, self.channels, self.coarse, self.learn = wavelet, levels, channels, coarse, learn
        self.weights = Positive(weights, (channels or 1, 3), learn=learn, name="weights")
        self.scale_weights = Positive(scale_weights, (levels,), learn=learn, name="scale_weights")
        self.coarse_weights = Positive(1.0, (channels or 1,), learn=learn, name="coarse_weights") if coarse else None

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"wavelet={self.wavelet!r}, levels={self.levels}, over={self.over}"

    def tunables(self) -> dict[str, ScalarParameter]:
        """The weights of channels and bands, and the weights of the scales."""
        return {"weights": self.weights, "scale_weights": self.scale_weights}

    def learned(self) -> dict[str, list]:
        """The weights as a table (channels or 1, 3), and one number for each scale."""
        return {"weights": self.weights.value.tolist(), "scale_weights": self.scale_weights.value.tolist()}

    def hold_scales(self) -> None:
        """Stop training the weights of scales, channels and bands."""
        self.learn = False
        self.requires_grad_(False)

    def convexity(self) -> Convexity:
        """A sum of norms of linear functions is convex. The dual prox is a projection, which is exact."""
        how = "UndecimatedWavelet: norms of convolutions with positive weights; the dual prox is a projection"
        return Convexity(0.0, how, checked=True)

    def fn(self, x: Tensor, *args, **kwargs) -> Tensor:
        """``R(x)`` per image, shape (B,)."""
        bound = self.bind(x.shape, 0, x.new_ones(()))
        assert bound.fn is not None
        return bound.fn(x)

    def bind(self, shape: Sequence[int], layer: int, gamma: Tensor) -> BoundPrior:
        """See [`AbstractPrior`][retune.AbstractPrior]: the value, and the analysis form.

        Raises:
            ShapeError: weights for another number of channels, or not a shape (B, C, H, W).
            TooManyLevelsError: more levels than the image allows; the message gives the maximum.
        """
        if len(shape) != 4:
            raise ShapeError(f"expected images (B, C, H, W), got shape {tuple(shape)}")
        if self.channels is not None and shape[1] != self.channels:
            raise ShapeError(
                f"this prior has weights for {self.channels} channels, but the image has {shape[1]} (shape "
                f"{tuple(shape)}). Use a prior with channels=None, which shares its weights between all channels"
            )
        transform = _transform(
            self.wavelet, self.levels, (shape[-2], shape[-1]), self.coarse, gamma.dtype, gamma.device
        )
        prox, value = self._groups(transform, gamma) if self.over else self._separate(gamma)
        analysis = Analysis(
            forward=transform.analysis,
            adjoint=transform.adjoint,
            sqnorm=gamma.detach().new_tensor([transform.sqnorm]),
            dual_prox=prox,
            homogeneous=True,
            multiplier=16 * self._size(gamma),
            how="1, a tight frame" if self.coarse else "1 − min |Ĉ|², the details of a tight frame",
            checked=True,
        )
        return BoundPrior(fn=lambda x: value(transform.analysis(x)), analysis=analysis)

    def _scales(self, like: Tensor) -> Tensor:
        """``2^−j α_j``, (levels,)."""
        return self.scale_weights().to(like) * 0.5 ** torch.arange(1, self.levels + 1, device=like.device)

    def _size(self, like: Tensor) -> Tensor:
        """The root of the mean over channels of the sum of squares of all weights of a channel."""
        weights = self.weights().to(like).square().sum(1).mean()
        return (weights * self._scales(like).square().sum()).sqrt()

    def _coarse_weights(self, like: Tensor) -> Tensor:
        """The weights of the coarse approximation in the same units, (channels or 1,)."""
        assert self.coarse_weights is not None
        return self.coarse_weights().to(like) * 0.5**self.levels

    def _separate(self, gamma: Tensor):
        """Dual prox and value of the weighted ℓ1 norm."""
        details = self.weights().to(gamma)[..., None] * self._scales(gamma)  # (channels or 1, 3, levels)
        table = details.flatten(1)
        if self.coarse:
            table = torch.cat([table, self._coarse_weights(gamma)[:, None]], 1)
        radius = over_images(gamma, 5) * table[None, ..., None, None]
        return (
            lambda p, _: onto_balls(p, radius, ()),
            lambda z: (radius * z.abs()).flatten(1).sum(1),
        )

    def _groups(self, transform: _Transform, gamma: Tensor):
        """Dual prox and value of the weighted group norm, by Moreau's identity from its prox."""
        dims = tuple(sorted(GROUP_AXES[a] for a in self.over))
        weights = self.weights().to(gamma)[None, :, None, :, None]
        spread = weights.detach().amax(dims) / weights.detach().amin(dims)
        pixels = math.prod(transform.size)
        coarse = over_images(gamma) * self._coarse_weights(gamma)[None, :, None, None] if self.coarse else None
        norm = GroupNorm(
            threshold=over_images(gamma, 5) * self._scales(gamma).repeat_interleave(pixels),
            weights=weights,
            positions=self.levels * pixels,
            dims=dims,
            steps=newton_steps(float(spread.max()) ** 2, gamma.dtype),
            coarse=coarse,
        )

        def packed(z: Tensor) -> Tensor:
            """(B, C, bands, H, W) → (B, C, 1, N), as the prox takes it."""
            return z.flatten(2).unsqueeze(2)

        return lambda p, _: p - norm.prox(packed(p)).reshape(p.shape), lambda z: norm.fn(packed(z))


@dataclass(frozen=True)
class _Transform:
    """The undecimated transform of images of one size: products with the symbols of its filters.

    Attributes:
        size: (H, W).
        symbols: (bands, H, W/2 + 1): three bands, each with all levels from fine to coarse, then the coarse one if it
            is wanted. The bands are those of [`WaveletBasis`][retune.priors.WaveletBasis].
        sqnorm: ``‖K‖²``, exact.
    """

    size: tuple[int, int]
    symbols: Tensor
    sqnorm: float

    def analysis(self, x: Tensor) -> Tensor:
        """``Kx``: (…, H, W) → (…, bands, H, W)."""
        if tuple(x.shape[-2:]) != self.size:
            raise ShapeError(f"expected images (…, {self.size[0]}, {self.size[1]}), got {tuple(x.shape)}")
        return torch.fft.irfft2(torch.fft.rfft2(x).unsqueeze(-3) * self.symbols, s=self.size)

    def adjoint(self, z: Tensor) -> Tensor:
        """``Kᵀz``: (…, bands, H, W) → (…, H, W)."""
        return torch.fft.irfft2((torch.fft.rfft2(z) * self.symbols.conj()).sum(-3), s=self.size)


@lru_cache(maxsize=4)  # with four levels, symbols take 12 times the memory of a channel: few sizes are kept
def _transform(
    wavelet: str, levels: int, size: tuple[int, int], coarse: bool, dtype: torch.dtype, device: torch.device
) -> _Transform:
    """The transform, cached."""
    fit = max_levels(*size)
    if levels > fit:
        raise TooManyLevelsError(
            f"{levels} wavelet levels do not fit an image of {size[0]}×{size[1]}: at most {fit} "
            f"{'does' if fit == 1 else 'do'}; lower levels, or use larger images or crops"
        )
    rows, cols = (_of_axis(wavelet, levels, n) for n in size)
    cols = [tuple(s[: size[1] // 2 + 1] for s in level) for level in cols]
    found = [
        np.multiply.outer(rows[j][first], cols[j][second])
        for first, second in ((0, 1), (1, 0), (1, 1))
        for j in range(levels)
    ]
    last_rows, last_cols = rows[-1][0], cols[-1][0]
    if coarse:
        found.append(np.multiply.outer(last_rows, last_cols))
    # Of two symbols of one axis each, the smallest product is that of the smallest values.
    left_out = 0.0 if coarse else float((np.abs(last_rows) ** 2).min() * (np.abs(last_cols) ** 2).min())
    with torch.inference_mode(False):
        symbols = torch.tensor(np.stack(found), dtype=dtype.to_complex(), device=device)
    return _Transform(size, symbols, 1 - left_out)


def _of_axis(wavelet: str, levels: int, n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The symbols (low, high) of every level at the frequencies of n periodic samples, with ``|ĥ|² + |ĝ|² = 1``."""
    found, smooth, frequency = [], np.ones(n, complex), np.arange(n)
    for j in range(levels):
        low, high = (
            # reduced to one turn as whole numbers, so that no digit is lost
            sum(
                c / math.sqrt(2) * np.exp(2j * np.pi * (frequency * (2**j * t % n) % n) / n) for t, c in enumerate(taps)
            )
            for taps in filters(wavelet)
        )
        found.append((smooth * low, smooth * high))
        smooth = smooth * low
    return found
