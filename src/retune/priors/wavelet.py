r"""Weighted wavelet priors ``g(u) = Σ_{scales, positions} α_scale ‖W u‖``, with learnable weights.

Source: L. Davy, L. M. Briceño-Arias, N. Pustelnik, *Restarted contractive operators to learn at equilibrium*,
arXiv:2506.13239, 2025.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from retune._registry.entries import register
from retune._torch.batch import over_images
from retune.errors import InvalidParameterError, ShapeError, require, require_whole, unknown_name
from retune.guarantee import Convexity
from retune.parameters import Positive, ScalarParameter
from retune.priors.base import BoundPrior, SynthesisPrior
from retune.priors.shrinkage import group_shrink, newton_steps, powers_of, soft_threshold
from retune.priors.wavelet_basis import WaveletFrame
from retune.priors.wavelet_level import filters

__all__ = ["GROUP_AXES", "GroupNorm", "WaveletL1", "WaveletL12"]

GROUP_AXES = {"channel": 1, "band": 3}


class _WaveletPrior(SynthesisPrior):
    """Common base of both priors: the frame, the weights, and their layout on the packed coefficients."""

    in_state_dict = ("weights", "scale_weights")
    added_later = ("margin",)

    def __init__(
        self,
        wavelet: str | Sequence[str] = "db4",
        levels: int = 4,
        *,
        channels: int | None = None,
        weights: float | Sequence | Tensor = 1.0,
        scale_weights: float | Sequence[float] | Tensor = 1.0,
        coarse: bool = False,
        margin: int = 0,
        learn: bool = True,
    ):
        super().__init__()
        require("wavelet", wavelet, (str, Sequence), "a name or a sequence of names", 'for example "db4"')
        levels = require_whole("levels", levels)
        margin = require_whole("margin", margin)
        channels = None if channels is None else require_whole("channels", channels)
        self.wavelets = (wavelet,) if isinstance(wavelet, str) else tuple(wavelet)
        if not self.wavelets:
            raise InvalidParameterError("wavelet must be a name or a non-empty sequence of names, got an empty one")
        for name in self.wavelets:
            filters(name)
        if levels < 1:
            raise InvalidParameterError(f"levels must be at least 1, got {levels}")
        if channels is not None and channels < 1:
            raise InvalidParameterError(
                f"channels must be None (weights shared by all channels) or ≥ 1, got {channels}"
            )
        if margin < 0:
            raise InvalidParameterError(f"margin must be a number of pixels, 0 or more, got {margin}")
        self.levels, self.channels, self.coarse, self.learn = levels, channels, coarse, learn
        self.margin = margin
        count = len(self.wavelets)
        self.weights = Positive(weights, (channels or 1, count, 3), learn=learn, name="weights")
        self.scale_weights = Positive(scale_weights, (count, levels), learn=learn, name="scale_weights")
        self.coarse_weights = (
            Positive(1.0, (channels or 1, count), learn=learn, name="coarse_weights") if coarse else None
        )

    @property
    def alignment(self) -> int:  # type: ignore[override]
        """Aligns the coarsest wavelets of a tile with those of the whole image."""
        return 2**self.levels

    def tunables(self) -> dict[str, ScalarParameter]:
        """The weights of channels and bands, and the weights of the scales."""
        return {"weights": self.weights, "scale_weights": self.scale_weights}

    def learned(self) -> dict[str, list]:
        """The weights of the first wavelet: a table (channels or 1, 3), and one number for each scale."""
        return {"weights": self.weights.value[:, 0].tolist(), "scale_weights": self.scale_weights.value[0].tolist()}

    def hold_scales(self) -> None:
        """Stop training the weights of scales, channels and bands."""
        self.learn = False
        self.requires_grad_(False)

    @property
    def wavelet(self) -> str | Sequence[str]:
        """The name of the wavelet, or the names of several."""
        return self.wavelets[0] if len(self.wavelets) == 1 else self.wavelets

    def convexity(self) -> Convexity:
        """A sum of norms with positive weights is convex, with an exact prox, for any learned weights."""
        return Convexity(0.0, f"{type(self).__name__}: norms with positive weights, prox in closed form", checked=True)

    def frame(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> WaveletFrame:
        """The tight frame for images (B, C, H, W)."""
        if self.channels is not None and shape[1] != self.channels:
            raise ShapeError(
                f"this prior has weights for {self.channels} channels, but the image has {shape[1]} (shape "
                f"{tuple(shape)}). Use a prior with channels=None, which shares its weights between all channels. On "
                "the command line, train on images with the same channels (data.grey = true makes them grey), or "
                "with prior.weights_per_channel = false"
            )
        return WaveletFrame(self.wavelets, self.levels, (shape[-2], shape[-1]), dtype, device, self.margin)

    def _scales_by_position(self, frame: WaveletFrame) -> Tensor:
        """The scale weights at every position, shape (1, 1, M, 1, P)."""
        basis = frame.basis
        counts = torch.tensor(
            [b - a for a, b in zip(basis.offsets, basis.offsets[1:], strict=False)], device=basis.device
        )
        table = self.scale_weights().to(basis.device, basis.dtype)
        spread = torch.repeat_interleave(table, counts, dim=1, output_size=basis.positions)
        return spread[None, None, :, None, :]

    def _weights(self, frame: WaveletFrame) -> Tensor:
        """The weights as (1, C, M, 3, 1)."""
        return self.weights().to(frame.basis.device, frame.basis.dtype)[None, ..., None]

    def _coarse_threshold(self, frame: WaveletFrame, gamma: Tensor) -> Tensor | None:
        """γ × coarse weights as (·, C, M, 1)."""
        if self.coarse_weights is None:
            return None
        weights = self.coarse_weights().to(frame.basis.device, frame.basis.dtype)
        return gamma * weights[None, ..., None]


@register
class WaveletL1(_WaveletPrior):
    r"""Weighted ℓ1 norm of wavelet details: ``g(u) = Σ_{j,c,b,p} α_j w_{cb} |u_{jcbp}|``, ``x = D u``.

    Its prox is a soft threshold per coefficient. j counts scales (fine to coarse), c channels, b the three bands
    (horizontal, vertical, diagonal), p positions; several wavelets have separate weights, and D is then the tight frame
    ``[D_1 … D_M]/√M``. The coarse approximation is not penalised by default.

    Args:
        wavelet: an orthogonal PyWavelets wavelet, or several for a union of bases.
        levels: number of scales.
        channels: number of channels with separate weights; None shares the weights between all channels.
        weights: initial ``w``, one positive number or a table (channels or 1, M, 3).
        scale_weights: initial ``α``, one positive number or a table (M, levels).
        coarse: also penalise the coarse approximation, with separate weights.
        margin: minimum number of pixels that are restored beyond the image and cropped. Periodic wavelets are
            orthonormal, but they make opposite borders adjacent. Without a margin, and with sides divisible by
            ``2**levels``, a difference between opposite borders causes ringing. 8 pixels are enough for "db4". With a
            margin D is redundant and convergence is slower: use few levels and an accelerated solver. Denoising is as
            fast with a margin (see [`ForwardBackward`][retune.ForwardBackward]).
        learn: whether the weights are trained.

    Raises:
        UnknownNameError: unknown wavelet; the message gives similar names.
        InvalidParameterError: a wavelet is not orthogonal, or a weight is not positive.
    """

    def bind_coefficients(self, frame: WaveletFrame, channels: int, gamma: Tensor) -> BoundPrior:
        """See [`SynthesisPrior`][retune.SynthesisPrior]."""
        details = (over_images(gamma, 5) * self._weights(frame) * self._scales_by_position(frame)).flatten(-2)
        coarse = self._coarse_threshold(frame, over_images(gamma))
        if coarse is None:
            coarse = details.new_zeros(1, 1, 1, 1)
        coarse = coarse.expand(*details.shape[:-1], frame.basis.coarse)
        threshold = torch.cat([details, coarse], -1)
        return BoundPrior(
            prox=lambda v: soft_threshold(v, threshold),
            fn=lambda u: (threshold * u.abs()).sum((1, 2, 3)),
            frame=frame,
        )


@register
class WaveletL12(_WaveletPrior):
    r"""Weighted mixed norm of wavelet details: ``g(u) = Σ_{j,p} α_j ‖W u_{jp}‖₂``, ``W = diag(w)``.

    A group collects, at one scale and position, the coefficients of all channels and of the three bands
    (``over=("channel", "band")``), or of either. Edges that are common to colour channels or orientations are kept
    together. The learned weights tell how far each channel and band is trusted. The prox is exact
    (``retune.priors.shrinkage.group_shrink``), so learned weights do not slow the iteration.

    Args:
        wavelet: an orthogonal PyWavelets wavelet, or several for a union of bases (groups do not mix bases).
        levels: number of scales.
        over: the axes of a group: ("channel", "band"), ("channel",) or ("band",).
        channels: number of channels with separate weights; None shares the weights between all channels.
        weights: initial ``w``, one positive number or a table (channels or 1, M, 3).
        scale_weights: initial ``α``, one positive number or a table (M, levels).
        coarse: also penalise the coarse approximation, by a weighted ℓ1 norm.
        margin: see [`WaveletL1`][retune.priors.WaveletL1].
        learn: whether the weights are trained.

    Raises:
        UnknownNameError: unknown wavelet or group axis; the message gives similar names.
        InvalidParameterError: a wavelet is not orthogonal, a weight is not positive, or there is no group axis.
    """

    def __init__(
        self,
        wavelet: str | Sequence[str] = "db4",
        levels: int = 4,
        over: str | Sequence[str] = ("channel", "band"),
        *,
        channels: int | None = None,
        weights: float | Sequence | Tensor = 1.0,
        scale_weights: float | Sequence[float] | Tensor = 1.0,
        coarse: bool = False,
        margin: int = 0,
        learn: bool = True,
    ):
        super().__init__(
            wavelet,
            levels,
            channels=channels,
            weights=weights,
            scale_weights=scale_weights,
            coarse=coarse,
            margin=margin,
            learn=learn,
        )
        require("over", over, (str, Sequence), "a name or a sequence of names", 'for example ("channel", "band")')
        self.over = (over,) if isinstance(over, str) else tuple(over)
        for axis in self.over:
            if axis not in GROUP_AXES:
                raise unknown_name("group axis", axis, GROUP_AXES)
        if not self.over or len(set(self.over)) != len(self.over):
            raise InvalidParameterError(
                f"over must name 'channel', 'band' or both, each once, got {over!r}; use WaveletL1 for a prior "
                "without groups"
            )

    def bind_coefficients(self, frame: WaveletFrame, channels: int, gamma: Tensor) -> BoundPrior:
        """See [`SynthesisPrior`][retune.SynthesisPrior]."""
        dims = tuple(sorted(GROUP_AXES[a] for a in self.over))
        weights = self._weights(frame)
        spread = weights.detach().amax(dims) / weights.detach().amin(dims)
        # The weights are read once per solve, to find the number of Newton steps of the prox in every layer.
        steps = newton_steps(float(spread.max()) ** 2, frame.basis.dtype)
        bound = GroupNorm(
            threshold=over_images(gamma, 5) * self._scales_by_position(frame),
            weights=weights,
            positions=frame.basis.positions,
            dims=dims,
            steps=steps,
            coarse=self._coarse_threshold(frame, over_images(gamma)),
        )
        return BoundPrior(prox=bound.prox, fn=bound.fn, frame=frame)


class GroupNorm:
    """``γ g`` of [`WaveletL12`][retune.priors.WaveletL12], its constants computed once.

    Args:
        threshold: γα at every position, broadcastable to the details (B, C, M, 3, P).
        weights: w, in the same way.
        positions: P.
        dims: axes of (B, C, M, 3, P) that form a group.
        steps: Newton steps, see ``newton_steps``.
        coarse: the thresholds of the coarse approximation (·, C, M, 1); None if it is not penalised.
    """

    def __init__(
        self,
        threshold: Tensor,
        weights: Tensor,
        positions: int,
        dims: tuple[int, ...],
        steps: int,
        coarse: Tensor | None,
    ):
        self._threshold, self._weights, self._weight2 = threshold, weights, weights * weights
        self._powers = powers_of(self._weight2)
        self._positions, self._dims, self._steps, self._coarse = positions, dims, steps, coarse

    def prox(self, v: Tensor) -> Tensor:
        """``prox_{γg}`` of packed coefficients (B, C, M, 3P + coarse)."""
        constants = self._positions, self._dims, self._steps, self._powers
        u = group_shrink(v, self._threshold, self._weight2, *constants)
        if self._coarse is None:
            return u
        cut = 3 * self._positions
        return torch.cat([u[..., :cut], soft_threshold(v[..., cut:], self._coarse)], -1)

    def fn(self, u: Tensor) -> Tensor:
        """``γ g`` of packed coefficients, (B,)."""
        cut = 3 * self._positions
        details = u[..., :cut].unflatten(-1, (3, self._positions))
        # vector_norm has the subgradient 0 at 0, where the square root of a sum would give NaN
        norms = torch.linalg.vector_norm(self._weights * details, dim=self._dims, keepdim=True)
        value = (self._threshold * norms).sum((1, 2, 3, 4))
        if self._coarse is not None:
            value = value + (self._coarse * u[..., cut:].abs()).sum((1, 2, 3))
        return value
