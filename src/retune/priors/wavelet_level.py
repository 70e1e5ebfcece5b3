"""One level of a periodised orthonormal wavelet transform, as a few small matrix products.

The filters come from PyWavelets. The transform is implemented here for speed, because it dominates the cost of an
iteration. Along each axis it is a banded matrix, applied to overlapping windows of the images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pywt
import torch
from torch import Tensor

from retune.errors import InvalidParameterError, unknown_name

__all__ = ["AxisPlan", "analyse_level", "axis_plan", "filters", "synthesise_level"]

_DENSE = 64  # up to this length the product with the full periodised matrix is faster
# Short windows waste little work, but in much shorter windows the products are slow.
_BLOCKS = (16, 20, 24, 18, 22, 14, 12, 26, 28, 32, 30)


def filters(wavelet: str) -> tuple[np.ndarray, np.ndarray]:
    """Low- and high-pass filters (each of even length) of an orthogonal PyWavelets wavelet.

    Raises:
        UnknownNameError: no such wavelet; the message gives similar names.
        InvalidParameterError: the wavelet exists but is not orthogonal.
    """
    orthogonal = _orthogonal_names()
    if wavelet not in orthogonal:
        if wavelet in pywt.wavelist():  # pyright: ignore[reportAttributeAccessIssue]
            raise InvalidParameterError(
                f"wavelet {wavelet!r} is not orthogonal, so its transform has no exact prox; "
                "use one of the families haar, db, sym or coif"
            )
        raise unknown_name("wavelet", wavelet, orthogonal)
    found = pywt.Wavelet(wavelet)  # pyright: ignore[reportAttributeAccessIssue]
    return np.array(found.dec_lo)[::-1].copy(), np.array(found.dec_hi)[::-1].copy()


@lru_cache(maxsize=1)
def _orthogonal_names() -> tuple[str, ...]:
    names = pywt.wavelist(kind="discrete")  # pyright: ignore[reportAttributeAccessIssue]
    # dmey is a truncated filter: orthogonal to 1e-3 only, and an inexact frame would break every guarantee.
    return tuple(n for n in names if n != "dmey" and pywt.Wavelet(n).orthogonal)  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class AxisPlan:
    """The one-level transform along an axis of even length n: products of windows with a small matrix."""

    n: int
    block: int  # samples (and coefficients) per window
    count: int  # windows
    halo: int  # extra samples of an analysis window
    lead: int  # extra coefficients before those of a synthesis window
    analysis: Tensor  # (block, block + halo), low-pass rows first
    synthesis: Tensor  # (block, 2·window), low and high interleaved
    synthesis_apart: tuple[Tensor, ...]  # (window, block) for low and for high, or both stacked if there is one window

    @property
    def window(self) -> int:
        """Coefficients of each band in a synthesis window."""
        return self.block // 2 + self.lead

    @property
    def samples(self) -> int:
        """Samples covered by the windows, at least n."""
        return self.count * self.block

    @property
    def exact(self) -> bool:
        """Whether the windows end exactly at the end of the axis."""
        return self.samples == self.n


@lru_cache(maxsize=256)
def axis_plan(wavelet: str, n: int, dtype: torch.dtype, device: torch.device) -> AxisPlan:
    """The plan of an axis, cached by wavelet, length, dtype and device."""
    low, high = filters(wavelet)
    taps = len(low)
    if n <= max(_DENSE, 2 * taps):
        block, count, halo, lead = n, 1, 0, 0
        matrix = np.zeros((n, n))  # long filters wrap around several times
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
        return AxisPlan(
            n, block, count, halo, lead, tensor(matrix), tensor(interleaved), tuple(tensor(a) for a in apart)
        )


def analyse_level(x: Tensor, rows: AxisPlan, cols: AxisPlan) -> Tensor:
    """One level of images (n, H, W) → a view (n, 2, 2, ·, ·, ·, ·) of its four subbands, low before high.

    Each axis of a subband has the shape (windows, block/2), as the products return it.
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


def _analyse_rows(x: Tensor, rows: AxisPlan, cols: AxisPlan) -> Tensor:
    """(n, H, W) → (row windows, 2, block/2, n, W continued periodically for the pass along the columns)."""
    n, height, width = x.shape
    tall, wide = rows.samples + rows.halo, cols.samples + cols.halo
    line = n * wide
    # With the images side by side, all windows of a pass form one batch of products without a copy.
    buffer = x.new_empty(tall, n, wide)
    inner = buffer[:, :, :width]
    inner[:height].copy_(x.transpose(0, 1))
    if tall > height:
        inner[height:].copy_(inner[: tall - height])
    if wide > width:
        buffer[:, :, width:].copy_(buffer[:, :, : wide - width])
    windows = buffer.as_strided((rows.count, rows.block + rows.halo, line), (rows.block * line, line, 1))
    return torch.bmm(rows.analysis.expand(rows.count, -1, -1), windows)


def synthesise_level(coarse: Tensor, details: Tensor, rows: AxisPlan, cols: AxisPlan) -> Tensor:
    """The inverse: coarse (n, H/2, W/2) and details (n, 3, H/2, W/2) → a view (n, H, windows, block) of the images.

    W = windows·block. If the windows extend beyond the image, the extra rows and columns remain.
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


def _synthesise_rows(coarse: Tensor, details: Tensor, rows: AxisPlan, cols: AxisPlan) -> Tensor:
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
