"""The normal operator of a blur, or of a blur and subsampling, by FFT: exact for every boundary condition."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from deepinv.physics import Blur, Downsampling, LinearPhysics
from torch import Tensor

from retune.operators.restrict import rows


def continued(physics: LinearPhysics, y: Tensor, chosen: Tensor | None = None) -> Tensor | None:
    """A first image for a blur with a valid boundary: `y` is continued by its mirror image, and smoothed.

    Aᵀy is dark beyond the border of `y`. A descent on a nonconvex energy may stay there, so `y` is continued. A descent
    may also stay at a noisy start, so the result is correlated with the kernel, as in Aᵀy.

    Args:
        physics: the operator.
        y: measurements (B, C, h, w).
        chosen: indices of the images that `y` has, in the batch of the physics; None means all.

    Returns:
        The image (B, C, H, W); None for other operators, and for a kernel whose sum is not positive.
    """
    if type(physics) is not Blur or physics.padding != "valid" or not isinstance(physics.filter, Tensor):
        return None
    kernel = physics.filter.to(y)
    if chosen is not None and len(kernel) > 1:
        kernel = kernel[chosen]
    gain = kernel.sum((-2, -1), keepdim=True)
    if not bool((gain > 0).all()):
        return None
    h, w = kernel.shape[-2:]
    left, above = w // 2, h // 2
    size = (left - (w - 1) % 2, left, above - (h - 1) % 2, above)  # see BlurNormal
    # The border is added twice: once for the image, and once because the correlation needs it.
    around = tuple(a + b for a, b in zip(size, (size[1], size[0], size[3], size[2]), strict=True))
    mirrors = max(around) < min(y.shape[-2:])
    wide = F.pad(y / gain, around, mode="reflect" if mirrors else "replicate")
    grid = (wide.shape[-2], wide.shape[-1])
    spectrum = torch.fft.rfft2(kernel / gain, s=grid)
    back = torch.fft.irfft2(torch.fft.rfft2(wide) * spectrum.conj(), s=grid)
    return back[..., : y.shape[-2] + h - 1, : y.shape[-1] + w - 1]


class BlurNormal:
    r"""``x ↦ AᵀA x`` for ``A = S ∘ C ∘ P``: pad, convolve circularly on the padded grid, keep the valid part.

    A 25×25 kernel costs two FFT pairs instead of two direct convolutions. For ``padding="circular"``, P and S are
    the identity, ``AᵀA`` is one FFT pair, and ``sqnorm = max |ĥ|²`` is exact.

    For a deepinv ``Downsampling`` by s, S also keeps only every s-th row and column. On a circular grid whose sides are
    multiples of s, ``AAᵀ`` is a circular convolution on the coarse grid. Its spectrum is the mean of ``|ĥ|²`` over the
    s² frequencies that alias to the same one, and ``sqnorm`` is exactly the maximum of this spectrum.

    Args:
        physics: a deepinv ``Blur`` or ``Downsampling`` with a filter (1 or B, 1 or C, h, w).
        shape: (B, C, H, W) of the image.

    Attributes:
        sqnorm: exact ‖A‖², shape (1,) or (B,), for circular boundaries; None otherwise.
    """

    def __init__(self, physics: Blur | Downsampling, shape: torch.Size):
        kernel = physics.filter
        assert isinstance(kernel, Tensor)
        h, w = kernel.shape[-2:]
        self.size = (shape[-2], shape[-1])
        self.mode = {"zeros": "constant", "zero": "constant"}.get(physics.padding, physics.padding)
        above, left = h // 2, w // 2
        # deepinv's even kernels need one sample less at the top and at the left.
        self.pad = (left - (w - 1) % 2, left, above - (h - 1) % 2, above)
        if self.mode in ("circular", "valid"):
            self.pad = (0, 0, 0, 0)
        padded = (self.size[0] + self.pad[2] + self.pad[3], self.size[1] + self.pad[0] + self.pad[1])
        self.padded = padded
        # The kept samples have no wrap-around on any grid that is large enough, so a fast size is free to be taken.
        grid = self.size if self.mode == "circular" else (fast_length(padded[0]), fast_length(padded[1]))
        self.grid = grid
        if self.mode == "circular":
            kernel = torch.roll(F.pad(kernel, (0, grid[1] - w, 0, grid[0] - h)), (-above, -left), (-2, -1))
        spectrum = torch.fft.rfft2(kernel, s=grid)
        self.spectrum, self.conjugate = spectrum, spectrum.conj().resolve_conj()
        self.power = (spectrum * self.conjugate).real
        self.step = int(physics.factor) if isinstance(physics, Downsampling) else 1
        self.sqnorm = _peak(kernel.detach(), grid, self.step) if self.mode == "circular" else None
        first = (0, 0) if self.mode == "circular" else (h - 1, w - 1)  # the first position without wrap-around
        self.kept = (slice(first[0], padded[0], self.step), slice(first[1], padded[1], self.step))

    @property
    def eigenvalues(self) -> Tensor | None:
        """The eigenvalues of AᵀA, if the grid is circular and keeps all samples; else None."""
        return self.power if self.mode == "circular" and self.step == 1 else None

    def one_of_each(self, x: Tensor) -> Tensor:
        """As many images and channels of x as there are kernels, which have the norm of all."""
        return x[: self.spectrum.shape[0], : self.spectrum.shape[1]]

    def __call__(self, x: Tensor) -> Tensor:
        """``AᵀA x``, shape (B, C, H, W) → (B, C, H, W)."""
        if self.eigenvalues is not None:
            return torch.fft.irfft2(torch.fft.rfft2(x) * self.power, s=self.grid)
        padded = F.pad(x, self.pad, mode=self.mode) if any(self.pad) else x
        blurred = torch.fft.irfft2(torch.fft.rfft2(padded, s=self.grid) * self.spectrum, s=self.grid)
        kept = torch.zeros_like(blurred)
        kept[..., self.kept[0], self.kept[1]] = blurred[..., self.kept[0], self.kept[1]]
        back = torch.fft.irfft2(torch.fft.rfft2(kept) * self.conjugate, s=self.grid)
        back = back[..., : self.padded[0], : self.padded[1]]
        return self._unpad(back) if any(self.pad) else back.contiguous()

    def resolve(self, shift: Tensor) -> Callable[[Tensor], Tensor] | None:
        """``r ↦ (I + shift · AᵀA)⁻¹ r`` by one FFT pair; None unless the blur is a circular convolution.

        Args:
            shift: ≥ 0, shape () or (1 or B, 1, 1, 1).
        """
        if self.eigenvalues is None:
            return None
        scale = 1 / (1 + shift * self.eigenvalues)
        return lambda r: torch.fft.irfft2(torch.fft.rfft2(r) * scale, s=self.grid)

    def select(self, index: Tensor, batch: int) -> BlurNormal:
        """The operator for some of the images; see ``retune.operators.restrict.Restrictable``."""
        chosen = copy.copy(self)
        chosen.spectrum, chosen.conjugate, chosen.power = (
            rows(t, index, batch) for t in (self.spectrum, self.conjugate, self.power)
        )
        return chosen

    def _unpad(self, z: Tensor) -> Tensor:
        """The adjoint of the padding: it adds the padded values back to the pixels they were copied from."""
        left, right, above, below = self.pad
        z = _fold(z, -2, above, below, self.mode)
        return _fold(z, -1, left, right, self.mode)


class SubsampleNormal:
    """``x ↦ AᵀA x`` for subsampling without filter: it keeps every s-th row and column and sets the rest to 0."""

    def __init__(self, step: int):
        self.step = step

    def __call__(self, x: Tensor) -> Tensor:
        """``AᵀA x``, shape (B, C, H, W) → (B, C, H, W)."""
        out = torch.zeros_like(x)
        out[..., :: self.step, :: self.step] = x[..., :: self.step, :: self.step]
        return out

    def resolve(self, shift: Tensor) -> Callable[[Tensor], Tensor]:
        """``r ↦ (I + shift · AᵀA)⁻¹ r``: division by 1 + shift at the kept pixels.

        Args:
            shift: ≥ 0, shape () or (1 or B, 1, 1, 1).
        """

        def divided(r: Tensor) -> Tensor:
            kept = r.new_zeros(r.shape[-2:])
            kept[:: self.step, :: self.step] = 1
            return r / (1 + shift * kept)

        return divided

    def select(self, index: Tensor, batch: int) -> SubsampleNormal:
        """The same operator for any images; see ``retune.operators.restrict.Restrictable``."""
        return self


def fast_length(least: int) -> int:
    """The smallest even length ≥ `least` without a prime factor above 11: FFTs of others take up to six times."""
    length = least + least % 2
    while not _is_smooth(length):
        length += 2
    return length


def _is_smooth(n: int) -> bool:
    for prime in (2, 3, 5, 7, 11):
        while n % prime == 0:
            n //= prime
    return n == 1


def _peak(kernel: Tensor, grid: tuple[int, int], step: int) -> Tensor | None:
    """``max |ĥ|²`` of a circular convolution that keeps every `step`-th sample, if the grid allows."""
    if grid[0] % step or grid[1] % step:
        return None
    spectrum = torch.fft.fft2(kernel, s=grid)
    power = (spectrum * spectrum.conj()).real
    aliased = power.unflatten(-1, (step, -1)).unflatten(-3, (step, -1)).mean((-4, -2))
    return aliased.flatten(1).amax(1)


def _fold(z: Tensor, dim: int, before: int, after: int, mode: str) -> Tensor:
    n = z.shape[dim] - before - after
    out = z.narrow(dim, before, n).clone()
    head, tail = z.narrow(dim, 0, before), z.narrow(dim, before + n, after)
    if mode == "reflect":
        if before:
            out.narrow(dim, 1, before).add_(head.flip(dim))
        if after:
            out.narrow(dim, n - 1 - after, after).add_(tail.flip(dim))
    elif mode == "replicate":
        if before:
            out.narrow(dim, 0, 1).add_(head.sum(dim, keepdim=True))
        if after:
            out.narrow(dim, n - 1, 1).add_(tail.sum(dim, keepdim=True))
    return out  # "constant": the padding was zeros, so nothing is added back
