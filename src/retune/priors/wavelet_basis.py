"""Orthonormal periodised wavelet bases for any image size. All coefficients are packed in one tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from retune._torch.function import Function
from retune.errors import InvalidParameterError, ShapeError, TooManyLevelsError
from retune.priors.wavelet_level import analyse_level, axis_plan, filters, synthesise_level

__all__ = ["WaveletBasis", "WaveletFrame", "max_levels"]

#: Levels of images with at most this many pixels are one product with a matrix of this many rows and columns.
_SMALL = 256


def max_levels(height: int, width: int) -> int:
    """The maximum number of levels of an image: the coarse approximation keeps at least one sample per axis."""
    return max(0, int(math.log2(max(1, min(height, width)))))


class WaveletBasis:
    r"""An orthonormal periodised 2-D wavelet basis for one image size, and its synthesis frame by cropping.

    The image (H, W) is zero-padded by `margin` pixels and to multiples of ``2**levels``; on that domain the transform W
    is orthonormal. ``analysis = W ∘ pad`` and ``synthesis = crop ∘ Wᵀ`` are each other's adjoint, and ``synthesis ∘
    analysis`` is the identity: the rows of ``D = crop ∘ Wᵀ`` are a tight frame, ``D Dᵀ = I``. Since W is periodised,
    the cropped pixels lie between opposite borders of the image. Without cropped pixels, opposite borders are adjacent.

    The packed coefficients have length ``N = H' W'``: first the details as (3, P), where P counts the positions of all
    levels from fine to coarse, then the coarse approximation. The three bands are (low, high), (high, low) and (high,
    high) filters along (rows, columns): vertical, horizontal and diagonal edges.

    Args:
        wavelet: name of an orthogonal PyWavelets wavelet ("db4", "sym8", "coif2", "haar", …).
        levels: number of levels, at least 1.
        size: (H, W).
        margin: minimum number of pixels between opposite borders.

    Raises:
        UnknownNameError, InvalidParameterError: see ``filters``.
        TooManyLevelsError: more levels than the image allows; the message gives the maximum.
    """

    def __init__(
        self,
        wavelet: str,
        levels: int,
        size: tuple[int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        margin: int = 0,
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
        self.padded = (-(-(height + margin) // step) * step, -(-(width + margin) // step) * step)
        shapes = [(self.padded[0] >> j, self.padded[1] >> j) for j in range(1, levels + 1)]
        self.band_shapes = tuple(shapes)
        counts = [a * b for a, b in shapes]
        self.offsets = tuple(int(c) for c in np.cumsum([0, *counts]))
        self.positions = self.offsets[-1]  # P
        self.coarse = counts[-1]
        self.length = 3 * self.positions + self.coarse
        # Levels of small images take longer to call than to compute: from some level on, they are one matrix product.
        areas = [(self.padded[0] >> j) * (self.padded[1] >> j) for j in range(levels)]
        alone = sum(area > _SMALL for area in areas)
        self._plans = [tuple(axis_plan(wavelet, m >> j, dtype, self.device) for m in self.padded) for j in range(alone)]
        inner = (self.padded[0] >> alone, self.padded[1] >> alone)
        self._rest = _matrix(wavelet, levels - alone, inner, dtype, self.device) if alone < levels else None
        self._whole = self if self.orthonormal else WaveletBasis(wavelet, levels, self.padded, dtype, device)

    @property
    def orthonormal(self) -> bool:
        """Whether also ``Dᵀ D = I``, because no padding was needed."""
        return self.padded == self.size

    def analysis(self, x: Tensor) -> Tensor:
        """``Dᵀ x``: images (..., H, W) → coefficients (..., N)."""
        if tuple(x.shape[-2:]) != self.size:
            raise ShapeError(f"expected images (..., {self.size[0]}, {self.size[1]}), got {tuple(x.shape)}")
        return _Transform.run(x, self, False)  # type: ignore[return-value]

    def extension(self, x: Tensor) -> Tensor:
        """Coefficients (..., N) of the image extended by mirroring: ``D u = x``, without a jump at the borders.

        ``Dᵀ x`` also has the image x, but corresponds to a scene that is black outside.
        """
        for axis in (-2, -1):
            n, cut = self.size[axis], self.padded[axis] - self.size[axis]
            if cut:
                behind, before = (x.index_select(axis, i) for i in _mirrors(n, cut, x.device))
                fade = torch.linspace(0, 1, cut + 2, dtype=x.dtype, device=x.device)[1:-1]
                x = torch.cat([x, torch.lerp(behind, before, fade if axis == -1 else fade[:, None])], axis)
        return self._whole.analysis(x)

    def synthesis(self, u: Tensor) -> Tensor:
        """``D u``: coefficients (..., N) → images (..., H, W)."""
        if u.shape[-1] != self.length:
            raise ShapeError(f"expected coefficients (..., {self.length}), got {tuple(u.shape)}")
        return _Transform.run(u, self, True)  # type: ignore[return-value]

    def unpack(self, u: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Views of the packed (..., N): coarse (..., h, w), and per level, fine to coarse, details (..., 3, h, w)."""
        details = u[..., : 3 * self.positions].unflatten(-1, (3, self.positions))
        coarse = u[..., 3 * self.positions :].unflatten(-1, self.band_shapes[-1])
        per_level = [
            details[..., a:b].unflatten(-1, shape)
            for a, b, shape in zip(self.offsets, self.offsets[1:], self.band_shapes, strict=False)
        ]
        return coarse, per_level

    def _parts(self, u: Tensor) -> tuple[list[Tensor], Tensor]:
        """Views of the packed (n, N): details (n, 3, h, w) per level, (n, 3, P') of those in one product; coarse."""
        cut, alone = 3 * self.positions, len(self._plans)
        sizes = [b - a for a, b in pairwise(self.offsets[: alone + 1])]
        if self._rest is not None:
            sizes.append(self.positions - self.offsets[alone])
        details = list(u[:, :cut].view(-1, 3, self.positions).split(sizes, 2))
        for j in range(alone):
            details[j] = details[j].unflatten(2, self.band_shapes[j])
        return details, u[:, cut:]

    def _forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:-2]
        current = x.reshape(-1, *self.size)
        if not self.orthonormal:
            current = F.pad(current, (0, self.padded[1] - self.size[1], 0, self.padded[0] - self.size[0]))
        out = x.new_empty(current.shape[0], self.length)
        bands_of, coarse = self._parts(out)
        for (rows, cols), details, shape in zip(self._plans, bands_of, self.band_shapes, strict=False):
            bands = analyse_level(current, rows, cols)
            if rows.exact and cols.exact:  # copy from the windows to the final place in one pass
                split = bands.shape[3:]
                details[:, 0].view(-1, *split).copy_(bands[:, 0, 1])
                details[:, 1:].view(-1, 2, *split).copy_(bands[:, 1])
                current = bands[:, 0, 0].reshape(-1, *shape)
            else:
                bands = bands.reshape(-1, 2, 2, rows.samples // 2, cols.samples // 2)[..., : shape[0], : shape[1]]
                details[:, 0].copy_(bands[:, 0, 1])
                details[:, 1:].copy_(bands[:, 1])
                current = bands[:, 0, 0]
        if self._rest is None:
            coarse.copy_(current.flatten(1))
        else:
            rest = torch.mm(current.reshape(len(out), -1), self._rest)
            cut = rest.shape[1] - coarse.shape[1]
            bands_of[-1].copy_(rest[:, :cut].view(-1, 3, cut // 3))
            coarse.copy_(rest[:, cut:])
        return out.view(*lead, self.length)

    def _inverse(self, u: Tensor) -> Tensor:
        lead = u.shape[:-1]
        bands_of, coarse = self._parts(u.reshape(-1, self.length))
        if self._rest is None:
            current = coarse.unflatten(1, self.band_shapes[-1])
        else:
            packed = torch.cat([bands_of.pop().flatten(1), coarse], 1)
            alone = len(self._plans)
            current = torch.mm(packed, self._rest.T).view(-1, self.padded[0] >> alone, self.padded[1] >> alone)
        for (rows, cols), details in zip(reversed(self._plans), reversed(bands_of), strict=True):
            current = synthesise_level(current, details, rows, cols).reshape(-1, rows.samples, cols.samples)
            current = current[:, : rows.n, : cols.n]
        return current[:, : self.size[0], : self.size[1]].reshape(*lead, *self.size).contiguous()


@lru_cache(maxsize=64)
def _mirrors(n: int, cut: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each of `cut` positions after n pixels, its pixel's index: mirrored at the end, then at the next start."""
    places = np.stack([np.arange(n, n + cut), np.arange(-cut, 0)]) % (2 * n)
    with torch.inference_mode(False):
        behind, before = torch.as_tensor(np.minimum(places, 2 * n - 1 - places), device=device)
    return behind, before


@lru_cache(maxsize=64)
def _matrix(wavelet: str, levels: int, size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal matrix whose product with flat images (n, h·w) has their packed coefficients."""
    height, width = size
    with torch.inference_mode(False), torch.no_grad():
        current = torch.eye(height * width, dtype=dtype, device=device).view(-1, height, width)
        details = []
        for j in range(levels):
            rows, cols = (axis_plan(wavelet, m >> j, dtype, device) for m in size)
            bands = analyse_level(current, rows, cols).reshape(len(current), 4, rows.samples // 2, cols.samples // 2)
            bands = bands[..., : rows.n // 2, : cols.n // 2]
            details.append(bands[:, 1:].flatten(2))
            current = bands[:, 0]
        return torch.cat([torch.cat(details, 2).flatten(1), current.flatten(1)], 1)


class _Transform(Function):
    """Analysis, or its adjoint, the synthesis. It is linear and saves nothing for the backward pass."""

    @staticmethod
    def forward(x, basis, adjoint):
        return basis._inverse(x) if adjoint else basis._forward(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.basis, ctx.adjoint = inputs

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        return _Transform.run(grad, ctx.basis, not ctx.adjoint), None, None

    @staticmethod
    def jvp(ctx, tangent, *_):  # type: ignore[override]
        return _Transform.run(tangent, ctx.basis, ctx.adjoint)

    @staticmethod
    def vmap(info, in_dims, x, basis, adjoint):  # type: ignore[override]
        return _Transform.run(x.movedim(in_dims[0], 0), basis, adjoint), 0


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
        margin: int = 0,
    ):
        self.bases = tuple(WaveletBasis(w, levels, size, dtype, device, margin) for w in wavelets)
        self._scale = 1 / math.sqrt(len(self.bases))

    @property
    def basis(self) -> WaveletBasis:
        """The first basis; all have the same layout."""
        return self.bases[0]

    @property
    def orthonormal(self) -> bool:
        """Whether ``Dᵀ D = I`` as well as ``D Dᵀ = I``."""
        return len(self.bases) == 1 and self.basis.orthonormal

    @property
    def complete(self) -> bool:
        """Whether the coefficients are those of one orthonormal basis, for images that D may crop."""
        return len(self.bases) == 1

    @property
    def cropped(self) -> bool:
        """Whether D crops the image; states of the same image can then differ outside of it."""
        return not self.basis.orthonormal

    def shape(self, batch: int, channels: int) -> tuple[int, int, int, int]:
        """Shape (B, C, M, N) of the coefficients."""
        return (batch, channels, len(self.bases), self.basis.length)

    def analysis(self, x: Tensor) -> Tensor:
        """``Dᵀ x``: (B, C, H, W) → (B, C, M, N)."""
        if len(self.bases) == 1:
            return self.basis.analysis(x).unsqueeze(2)
        return torch.stack([b.analysis(x) for b in self.bases], 2) * self._scale

    def extension(self, x: Tensor) -> Tensor:
        """Coefficients (B, C, M, N) of an image (B, C, H, W) extended by mirroring, as a start: ``D u = x``.

        This is ``Dᵀ x`` if D does not crop.
        """
        return torch.stack([b.extension(x) for b in self.bases], 2) * self._scale

    def synthesis(self, u: Tensor) -> Tensor:
        """``D u``: (B, C, M, N) → (B, C, H, W)."""
        if len(self.bases) == 1:
            return self.basis.synthesis(u.squeeze(2))
        parts = [b.synthesis(u[:, :, i]) for i, b in enumerate(self.bases)]
        return torch.stack(parts).sum(0) * self._scale
