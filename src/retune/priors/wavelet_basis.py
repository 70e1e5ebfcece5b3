"""Orthonormal periodised wavelet bases of any image size, all coefficients packed in one tensor.

The filters come from PyWavelets. The transform is our own, because it is the whole cost of an iteration: along each
axis it is a banded matrix, applied as a few small matrix products on overlapping windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pywt
import torch
import torch.nn.functional as F
from torch import Tensor

from retune.errors import InvalidParameterError, ShapeError, TooManyLevelsError, unknown_name

__all__ = ["WaveletBasis", "WaveletFrame", "filters", "max_levels"]

_DENSE = 64  # up to this length the whole periodised matrix is the faster product
# Short windows do little superfluous work; much shorter, and the products run slowly.
_BLOCKS = (16, 20, 24, 18, 22, 14, 12, 26, 28, 32, 30)


def filters(wavelet: str) -> tuple[np.ndarray, np.ndarray]:
    """Low- and high-pass filters (each of even length) of an orthogonal PyWavelets wavelet.

    Raises:
        UnknownNameError: no such wavelet; the nearest names are given.
        InvalidParameterError: the wavelet exists but is not orthogonal.
    """
    orthogonal = _orthogonal_names()
    if wavelet not in orthogonal:
        if wavelet in pywt.wavelist():  # pyright: ignore[reportAttributeAccessIssue]
            raise InvalidParameterError(
                f"wavelet {wavelet!r} is not orthogonal, so its transform has no exact prox; "
                "take one of the families haar, db, sym or coif"
            )
        raise unknown_name("wavelet", wavelet, orthogonal)
    found = pywt.Wavelet(wavelet)  # pyright: ignore[reportAttributeAccessIssue]
    return np.array(found.dec_lo)[::-1].copy(), np.array(found.dec_hi)[::-1].copy()


@lru_cache(maxsize=1)
def _orthogonal_names() -> tuple[str, ...]:
    names = pywt.wavelist(kind="discrete")  # pyright: ignore[reportAttributeAccessIssue]
    # dmey is a truncated filter: orthogonal to 1e-3 only, and an inexact frame would break every guarantee.
    return tuple(n for n in names if n != "dmey" and pywt.Wavelet(n).orthogonal)  # pyright: ignore[reportAttributeAccessIssue]


def max_levels(height: int, width: int) -> int:
    """How many levels an image allows: the coarse approximation keeps at least one sample per axis."""
    return max(0, int(math.log2(max(1, min(height, width)))))


@dataclass(frozen=True)
class _AxisPlan:
    """The one-level transform along an axis of even length n, as windows times a small matrix."""

    n: int
    block: int  # samples (and coefficients) per window
    count: int  # windows
    halo: int  # further samples that an analysis window needs
    lead: int  # coefficients before its own that a synthesis window needs
    analysis: Tensor  # (block, block + halo), low-pass rows first
    synthesis: Tensor  # (block, 2·window), low and high interleaved
    synthesis_apart: tuple[Tensor, ...]  # (window, block) for low and for high, or both stacked if there is one window

    @property
    def window(self) -> int:
        return self.block // 2 + self.lead

    @property
    def samples(self) -> int:
        """Samples covered by the windows, at least n."""
        return self.count * self.block

    @property
    def exact(self) -> bool:
        return self.samples == self.n


@lru_cache(maxsize=256)
def _plan(wavelet: str, n: int, dtype: torch.dtype, device: torch.device) -> _AxisPlan:
    low, high = filters(wavelet)
    taps = len(low)
    if n <= max(_DENSE, 2 * taps):
        block, count, halo, lead = n, 1, 0, 0
        matrix = np.zeros((n, n))  # the filters wrap around as often as they need to
        for k in range(n // 2):
            for j in range(taps):
                matrix[k, (2 * k + j) % n] += low[j]
                matrix[n // 2 + k, (2 * k + j) % n] += high[j]
        synthesis = np.stack([matrix[: n // 2], matrix[n // 2 :]])
    else:
        block = next((b for b in _BLOCKS if n % b == 0), _BLOCKS[0])
        count, halo, lead = -(-n // block), taps - 2, taps // 2 - 1
        matrix = np.zeros((block, block + halo))
        for k in range(block // 2):
            matrix[k, 2 * k : 2 * k + taps] = low
            matrix[block // 2 + k, 2 * k : 2 * k + taps] = high
        synthesis = np.zeros((2, block // 2 + lead, block))
        for i in range(block // 2 + lead):
            for j in range(taps):
                sample = 2 * (i - lead) + j
                if 0 <= sample < block:
                    synthesis[0, i, sample] += low[j]
                    synthesis[1, i, sample] += high[j]

    def tensor(a: np.ndarray) -> Tensor:
        return torch.tensor(np.ascontiguousarray(a), dtype=dtype, device=device)

    interleaved = synthesis.transpose(1, 0, 2).reshape(-1, block).T
    apart = synthesis if count > 1 else synthesis.reshape(1, -1, block)
    with torch.inference_mode(False):
        return _AxisPlan(
            n, block, count, halo, lead, tensor(matrix), tensor(interleaved), tuple(tensor(a) for a in apart)
        )


def _analyse_level(x: Tensor, rows: _AxisPlan, cols: _AxisPlan) -> Tensor:
    """One level of images (n, H, W) → a view (n, 2, 2, ·, ·, ·, ·) of its four subbands, low before high.

    Each axis of a subband comes as (windows, block/2), because that is how the products leave it.
    """
    n = x.shape[0]
    if rows.count == cols.count == 1:
        full = torch.matmul(torch.matmul(rows.analysis, x), cols.analysis.T)
        return full.view(n, 2, 1, rows.n // 2, 2, 1, cols.n // 2).permute(0, 1, 4, 2, 3, 5, 6)
    half = _analyse_rows(x, rows, cols)
    wide = cols.samples + cols.halo
    windows = half.as_strided((cols.count, rows.samples * n, cols.block + cols.halo), (cols.block, wide, 1))
    full = torch.bmm(windows, cols.analysis.T.expand(cols.count, -1, -1))
    full = full.view(cols.count, rows.count, 2, rows.block // 2, n, 2, cols.block // 2)
    return full.permute(4, 2, 5, 1, 3, 0, 6)


def _analyse_rows(x: Tensor, rows: _AxisPlan, cols: _AxisPlan) -> Tensor:
    """(n, H, W) → (row windows, 2, block/2, n, W continued periodically for the pass along the columns)."""
    n, height, width = x.shape
    tall, wide = rows.samples + rows.halo, cols.samples + cols.halo
    line = n * wide
    # With the images side by side all windows of a pass are one batch of products, without a copy.
    buffer = x.new_empty(tall, n, wide)
    inner = buffer[:, :, :width]
    inner[:height].copy_(x.transpose(0, 1))
    if tall > height:
        inner[height:].copy_(inner[: tall - height])
    if wide > width:
        buffer[:, :, width:].copy_(buffer[:, :, : wide - width])
    windows = buffer.as_strided((rows.count, rows.block + rows.halo, line), (rows.block * line, line, 1))
    return torch.bmm(rows.analysis.expand(rows.count, -1, -1), windows)


def _synthesise_level(coarse: Tensor, details: Tensor, rows: _AxisPlan, cols: _AxisPlan) -> Tensor:
    """The inverse: coarse (n, H/2, W/2) and details (n, 3, H/2, W/2) → a view (n, H, windows, block) of the images.

    W = windows·block. Rows and columns beyond the image are left where the windows overshoot it.
    """
    n, _, height, width = details.shape
    if rows.count == cols.count == 1:
        bands = details.new_empty(n, 2, height, 2, width)
        bands[:, 0, :, 0] = coarse
        bands[:, 0, :, 1] = details[:, 0]
        bands[:, 1].transpose(1, 2).copy_(details[:, 1:])
        image = torch.matmul(torch.matmul(rows.analysis.T, bands.view(n, rows.n, cols.n)), cols.analysis)
        return image.unsqueeze(2)
    half = _synthesise_rows(coarse, details, rows, cols)
    lines = rows.samples * n
    wide = cols.samples // 2 + cols.lead
    if cols.count == 1:
        full = torch.mm(half.view(lines, 2 * wide), cols.synthesis_apart[0])
    else:
        shape, stride = (cols.count, lines, cols.window), (cols.block // 2, 2 * wide, 1)
        low, high = (m.expand(cols.count, -1, -1) for m in cols.synthesis_apart)
        full = torch.bmm(half.as_strided(shape, stride), low)
        full.baddbmm_(half.as_strided(shape, stride, wide), high)
    return full.view(cols.count, rows.samples, n, cols.block).permute(2, 1, 0, 3)


def _synthesise_rows(coarse: Tensor, details: Tensor, rows: _AxisPlan, cols: _AxisPlan) -> Tensor:
    """Subbands → (row windows, block, n, 2, W/2 preceded periodically for the pass along the columns)."""
    n, _, height, width = details.shape
    lead, left = rows.lead, cols.lead
    tall, wide = rows.samples // 2 + lead, cols.samples // 2 + left
    bottom, right = lead + height, left + width
    line = n * 2 * wide
    buffer = details.new_empty(tall, 2, n, 2, wide)  # row, row band, image, column band, column
    inner = buffer[lead:bottom, :, :, :, left:right].permute(2, 1, 3, 0, 4)  # image, bands, row, column
    inner[:, 0, 0].copy_(coarse)
    inner[:, 0, 1].copy_(details[:, 0])
    inner[:, 1].copy_(details[:, 1:])
    if lead:
        buffer[:lead, ..., left:right].copy_(buffer[height:bottom, ..., left:right])
    if tall > bottom:
        buffer[bottom:] = 0  # only samples beyond the image depend on these
    if left:
        buffer[..., :left].copy_(buffer[..., width:right])
    if wide > right:
        buffer[..., right:] = 0
    windows = buffer.as_strided((rows.count, 2 * rows.window, line), (rows.block * line, line, 1))
    return torch.bmm(rows.synthesis.expand(rows.count, -1, -1), windows)


class WaveletBasis:
    r"""An orthonormal periodised 2-D wavelet basis for one image size, and its synthesis frame by cropping.

    The image (H, W) is zero-padded to multiples of ``2**levels``; on that domain the transform W is orthonormal.
    ``analysis = W ∘ pad`` and ``synthesis = crop ∘ Wᵀ`` are each other's adjoint, and ``synthesis ∘ analysis`` is the
    identity: the rows of ``D = crop ∘ Wᵀ`` are a tight frame, ``D Dᵀ = I``.

    The packed coefficients have length ``N = H' W'``: first the details as (3, P), P counting the positions of all
    levels from fine to coarse, then the coarse approximation. The three bands are (low, high), (high, low) and
    (high, high) filters along (rows, columns): vertical, horizontal and diagonal edges.

    Args:
        wavelet: name of an orthogonal PyWavelets wavelet ("db4", "sym8", "coif2", "haar", …).
        levels: number of levels, at least 1.
        size: (H, W).

    Raises:
        UnknownNameError, InvalidParameterError: see :func:`filters`.
        TooManyLevelsError: more levels than the image allows; the message says how many fit.
    """

    def __init__(
        self,
        wavelet: str,
        levels: int,
        size: tuple[int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        filters(wavelet)
        height, width = size
        fit = max_levels(height, width)
        if levels < 1:
            raise InvalidParameterError(f"levels must be at least 1, got {levels}")
        if levels > fit:
            raise TooManyLevelsError(
                f"{levels} wavelet levels do not fit an image of {height}×{width}: at most {fit} "
                f"{'does' if fit == 1 else 'do'}; lower levels, or use larger images or crops"
            )
        self.wavelet, self.levels, self.size = wavelet, levels, (height, width)
        self.dtype, self.device = dtype, torch.device(device)
        step = 2**levels
        self.padded = (-(-height // step) * step, -(-width // step) * step)
        shapes = [(self.padded[0] >> j, self.padded[1] >> j) for j in range(1, levels + 1)]
        self.band_shapes = tuple(shapes)
        counts = [a * b for a, b in shapes]
        self.offsets = tuple(int(c) for c in np.cumsum([0, *counts]))
        self.positions = self.offsets[-1]  # P
        self.coarse = counts[-1]
        self.length = 3 * self.positions + self.coarse
        self._plans = [tuple(_plan(wavelet, m >> j, dtype, self.device) for m in self.padded) for j in range(levels)]

    @property
    def orthonormal(self) -> bool:
        """Whether ``Dᵀ D = I`` too: no padding was needed."""
        return self.padded == self.size

    def analysis(self, x: Tensor) -> Tensor:
        """``Dᵀ x``: images (..., H, W) → coefficients (..., N)."""
        if tuple(x.shape[-2:]) != self.size:
            raise ShapeError(f"expected images (..., {self.size[0]}, {self.size[1]}), got {tuple(x.shape)}")
        return _Analysis.apply(x, self)  # type: ignore[return-value]

    def synthesis(self, u: Tensor) -> Tensor:
        """``D u``: coefficients (..., N) → images (..., H, W)."""
        if u.shape[-1] != self.length:
            raise ShapeError(f"expected coefficients (..., {self.length}), got {tuple(u.shape)}")
        return _Synthesis.apply(u, self)  # type: ignore[return-value]

    def unpack(self, u: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Views of the packed (..., N): the coarse approximation (..., h, w), and per level, fine to coarse,
        the details (..., 3, h, w).
        """
        details = u[..., : 3 * self.positions].unflatten(-1, (3, self.positions))
        coarse = u[..., 3 * self.positions :].unflatten(-1, self.band_shapes[-1])
        per_level = [
            details[..., a:b].unflatten(-1, shape)
            for a, b, shape in zip(self.offsets, self.offsets[1:], self.band_shapes, strict=False)
        ]
        return coarse, per_level

    def _forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:-2]
        current = x.reshape(-1, *self.size)
        if not self.orthonormal:
            current = F.pad(current, (0, self.padded[1] - self.size[1], 0, self.padded[0] - self.size[0]))
        out = x.new_empty(current.shape[0], self.length)
        coarse, per_level = self.unpack(out)
        for (rows, cols), details, shape in zip(self._plans, per_level, self.band_shapes, strict=True):
            bands = _analyse_level(current, rows, cols)
            if rows.exact and cols.exact:  # straight from the windows to their place, in one pass
                split = bands.shape[3:]
                details[:, 0].view(-1, *split).copy_(bands[:, 0, 1])
                details[:, 1:].view(-1, 2, *split).copy_(bands[:, 1])
                current = bands[:, 0, 0].reshape(-1, *shape)
            else:
                bands = bands.reshape(-1, 2, 2, rows.samples // 2, cols.samples // 2)[..., : shape[0], : shape[1]]
                details[:, 0].copy_(bands[:, 0, 1])
                details[:, 1:].copy_(bands[:, 1])
                current = bands[:, 0, 0]
        coarse.copy_(current)
        return out.view(*lead, self.length)

    def _inverse(self, u: Tensor) -> Tensor:
        lead = u.shape[:-1]
        coarse, per_level = self.unpack(u.reshape(-1, self.length))
        current = coarse
        for (rows, cols), details in zip(reversed(self._plans), reversed(per_level), strict=True):
            current = _synthesise_level(current, details, rows, cols).reshape(-1, rows.samples, cols.samples)
            current = current[:, : rows.n, : cols.n]
        return current[:, : self.size[0], : self.size[1]].reshape(*lead, *self.size).contiguous()


class _Linear(torch.autograd.Function):
    """A linear map whose derivative is itself and whose adjoint is known: nothing is saved for the backward pass."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.basis = inputs[1]


class _Analysis(_Linear):
    @staticmethod
    def forward(x, basis):
        return basis._forward(x)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        return _Synthesis.apply(grad, ctx.basis), None

    @staticmethod
    def jvp(ctx, tangent, _):  # type: ignore[override]
        return _Analysis.apply(tangent, ctx.basis)

    @staticmethod
    def vmap(info, in_dims, x, basis):  # type: ignore[override]
        return _Analysis.apply(x.movedim(in_dims[0], 0), basis), 0


class _Synthesis(_Linear):
    @staticmethod
    def forward(u, basis):
        return basis._inverse(u)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        return _Analysis.apply(grad, ctx.basis), None

    @staticmethod
    def jvp(ctx, tangent, _):  # type: ignore[override]
        return _Synthesis.apply(tangent, ctx.basis)

    @staticmethod
    def vmap(info, in_dims, u, basis):  # type: ignore[override]
        return _Synthesis.apply(u.movedim(in_dims[0], 0), basis), 0


class WaveletFrame:
    r"""The tight frame ``D = [D_1 … D_M]/√M`` of M wavelet bases: ``x = D u``, ``D Dᵀ = I``, ``‖D‖ = 1``.

    Coefficients have shape (B, C, M, N), so a solver sees one tensor.
    """

    def __init__(
        self,
        wavelets: Sequence[str],
        levels: int,
        size: tuple[int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self.bases = tuple(WaveletBasis(w, levels, size, dtype, device) for w in wavelets)
        self._scale = 1 / math.sqrt(len(self.bases))

    @property
    def basis(self) -> WaveletBasis:
        """The first basis; all share the same layout."""
        return self.bases[0]

    @property
    def orthonormal(self) -> bool:
        """Whether ``Dᵀ D = I`` as well as ``D Dᵀ = I``."""
        return len(self.bases) == 1 and self.basis.orthonormal

    def shape(self, batch: int, channels: int) -> tuple[int, int, int, int]:
        """Shape (B, C, M, N) of the coefficients."""
        return (batch, channels, len(self.bases), self.basis.length)

    def analysis(self, x: Tensor) -> Tensor:
        """``Dᵀ x``: (B, C, H, W) → (B, C, M, N)."""
        if len(self.bases) == 1:
            return self.basis.analysis(x).unsqueeze(2)
        return torch.stack([b.analysis(x) for b in self.bases], 2) * self._scale

    def synthesis(self, u: Tensor) -> Tensor:
        """``D u``: (B, C, M, N) → (B, C, H, W)."""
        if len(self.bases) == 1:
            return self.basis.synthesis(u.squeeze(2))
        parts = [b.synthesis(u[:, :, i]) for i, b in enumerate(self.bases)]
        return torch.stack(parts).sum(0) * self._scale
