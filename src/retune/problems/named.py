"""Denoising, inpainting, deblurring and super-resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from deepinv.physics import Blur, BlurFFT, Denoising, Downsampling, Inpainting, LinearPhysics
from torch import Tensor

from retune._registry.entries import register
from retune.errors import InvalidParameterError, ShapeError, require_whole, unknown_name
from retune.problems.base import Problem, SeedlessProblem, share
from retune.problems.counts import PoissonGaussian
from retune.problems.kernels import antialiasing
from retune.problems.kernels import kernel as make_kernel
from retune.problems.masks import parts_of_mask, read_mask
from retune.problems.noise import gaussian_noise

__all__ = ["Deblur", "Denoise", "Inpaint", "Superres"]

_BOUNDARIES = ("reflect", "circular", "valid")


@register
class Denoise(SeedlessProblem):
    """``y = x + ε``, by default with one level per colour channel: 0.1, 0.25, 0.5 (arXiv:2506.13239)."""

    name = "denoise"
    mirrors = only_noise = True
    usual_sigma = (0.1, 0.25, 0.5)

    def __init__(
        self,
        sigma: float | Sequence[float] | np.ndarray | Tensor | None = None,
        noise: PoissonGaussian | str | None = None,
    ):
        super().__init__(sigma, noise)

    def _make(self, img_size: tuple[int, int, int], dtype: torch.dtype, device: torch.device | str) -> LinearPhysics:
        return Denoising(self.noise_model(device), device=device)


@register
class Inpaint(Problem):
    """``y = m ⊙ (x + ε)``: a random share of the pixels is kept, all channels of a pixel together.

    Args:
        keep: share of pixels kept, in (0, 1].
        sigma: noise level, or one per channel.
        mask: the measured pixels, in place of a random share: an image file that is black where nothing was measured,
            or a tensor (H, W), (C, H, W) or (1, C, H, W) of zeros and ones. An image smaller than the mask gets a
            random part of the mask.
    """

    name = "inpaint"
    has_gaps = mirrors = True

    def __init__(
        self,
        keep: float = 0.5,
        sigma: float | Sequence[float] | np.ndarray | Tensor = 0.05,
        mask: str | Tensor | None = None,
    ):
        super().__init__(sigma)
        self.keep = share("keep", keep)
        self.mask = None if mask is None else read_mask(mask)
        self._mask_name = mask if isinstance(mask, str) else "custom"

    def physics(
        self,
        img_size: tuple[int, int, int],
        *,
        batch: int = 1,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> LinearPhysics:
        """One mask per image of the batch. It is drawn on the CPU, so it is the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        if self.mask is None:
            mask = (torch.rand(batch, 1, *img_size[1:], generator=generator) < self.keep).to(dtype)
        else:
            mask = parts_of_mask(self.mask, img_size, batch, generator).to(dtype)
        return self._masked(img_size, mask, device)

    def operator(self, y: Tensor) -> LinearPhysics:
        """See [`Problem`][retune.problems.Problem]; the mask must be known."""
        self.require_known()
        assert self.mask is not None
        if self.mask.shape[-2:] != y.shape[-2:] or self.mask.shape[1] not in (1, y.shape[1]):
            given, wanted = tuple(self.mask.shape[1:]), tuple(y.shape[1:])
            raise ShapeError(f"the mask has shape {given}, the image {wanted} (C, H, W); they must agree")
        return self._masked((y.shape[1], y.shape[2], y.shape[3]), self.mask.to(y), y.device)

    def require_known(self) -> None:
        """See [`Problem`][retune.problems.Problem]."""
        if self.mask is None:
            raise InvalidParameterError(
                "the mask is unknown: give an image file that is black where nothing was measured (--mask FILE, or "
                "mask= in the section [problem])"
            )

    def observed(self, y: Tensor) -> Tensor | None:
        """See [`Problem`][retune.problems.Problem]."""
        mask = self.operator(y).mask
        assert isinstance(mask, Tensor)
        return mask.expand(y.shape) > 0

    def crop(self) -> Problem:
        """See [`Problem`][retune.problems.Problem]; a crop keeps its part of the mask."""
        return self

    def part(self, rows: Tensor, cols: Tensor) -> Problem:
        """See [`Problem`][retune.problems.Problem]."""
        if self.mask is None:
            return self
        mask = self.mask[..., rows, :][..., cols]
        if not bool(mask.any()):
            raise InvalidParameterError(
                f"a tile of {len(rows)}×{len(cols)} pixels contains no measured pixel; use larger tiles (--tile)"
            )
        return Inpaint(mask=mask, sigma=self.sigma)

    def _masked(self, img_size: tuple[int, int, int], mask: Tensor, device: torch.device | str) -> LinearPhysics:
        size: Any = img_size  # deepinv annotates tuple[int], and documents (C, H, W)
        return Inpainting(size, mask=mask, device=device, noise_model=gaussian_noise(self.sigma, device))

    def describe(self) -> dict:
        """See [`Problem`][retune.problems.Problem]."""
        drawn = {"keep": self.keep} if self.mask is None else {"mask": self._mask_name}
        return {"name": self.name, **drawn, "sigma": self.sigma}


@register
class Deblur(SeedlessProblem):
    """``y = k * x + ε``.

    Args:
        kernel: see [`kernel`][retune.problems.kernel].
        boundary: "reflect" (deepinv ``Blur``), "circular" (deepinv ``BlurFFT``), or "valid": the image is larger than
            the measurement by the reach of the kernel.
        sigma: noise level, or one per channel; 0.05 by default.
        noise: noise that grows with the brightness, in place of sigma.
        kernel_background: ``background`` of [`kernel`][retune.problems.kernel].
        centre_kernel: ``centre`` of [`kernel`][retune.problems.kernel].
    """

    name = "deblur"
    keeps_operators = True
    added_later = ("kernel_background", "centre_kernel")

    def __init__(
        self,
        kernel: str | Tensor | np.ndarray = "three-motions",
        boundary: str = "reflect",
        sigma: float | Sequence[float] | np.ndarray | Tensor | None = None,
        noise: PoissonGaussian | str | None = None,
        *,
        kernel_background: float | str | None = None,
        centre_kernel: bool | None = None,
    ):
        super().__init__(sigma, noise)
        if boundary not in _BOUNDARIES:
            raise unknown_name("boundary", boundary, _BOUNDARIES)
        self.spec = kernel if isinstance(kernel, str) else "custom"
        self.kernel_background, self.centre_kernel = kernel_background, centre_kernel
        self.kernel = make_kernel(kernel, background=kernel_background, centre=centre_kernel)
        self.boundary = boundary
        self.wraps = boundary == "circular"

    def image_size(self, measured: tuple[int, int, int]) -> tuple[int, int, int]:
        """See [`Problem`][retune.problems.Problem]."""
        if self.boundary != "valid":
            return measured
        return measured[0], measured[1] + self.kernel.shape[-2] - 1, measured[2] + self.kernel.shape[-1] - 1

    def frame(self, image: Tensor) -> Tensor:
        """See [`Problem`][retune.problems.Problem]."""
        if self.boundary != "valid":
            return image
        height, width = self.kernel.shape[-2:]
        top, left = height // 2 - (height - 1) % 2, width // 2 - (width - 1) % 2  # where deepinv centres a kernel
        return image[..., top : image.shape[-2] - height // 2, left : image.shape[-1] - width // 2]

    def borderless(self) -> Problem:
        """See [`Problem`][retune.problems.Problem]: with a valid boundary, unless the image is periodic."""
        return self if self.wraps else self.crop()

    def crop(self) -> Problem:
        """See [`Problem`][retune.problems.Problem]: a crop has a valid boundary."""
        return Deblur(self.kernel, "valid", **self._noise())

    def part(self, rows: Tensor, cols: Tensor) -> Problem:
        """See [`Problem`][retune.problems.Problem]; a part of a periodic image is not periodic."""
        return Deblur(self.kernel, "reflect", **self._noise()) if self.wraps else self

    def _make(self, img_size: tuple[int, int, int], dtype: torch.dtype, device: torch.device | str) -> LinearPhysics:
        taps = self.kernel.to(device=device, dtype=dtype)
        _require_fit(taps, img_size, self.boundary)
        noise = self.noise_model(device)
        if self.boundary == "circular":
            return BlurFFT(img_size, filter=taps, device=device, noise_model=noise)
        large = max(taps.shape[2:]) > 7  # from this size on, convolution by FFT is faster
        return Blur(filter=taps, padding=self.boundary, use_fft=large, device=torch.device(device), noise_model=noise)


@register
class Superres(SeedlessProblem):
    """``y = S (k * x) + ε``: antialiasing, then every s-th row and column is kept (deepinv ``Downsampling``).

    x (H, W) may have any size. y has ⌈H/s⌉ × ⌈W/s⌉ pixels, from the rows and columns 0, s, 2s, …. The restored image
    has the size of x. If a side is not a multiple of s, the last sample stands for fewer than s pixels; nothing is
    cropped or resized. With a "circular" boundary and sides that are multiples of s, ‖A‖² is known exactly.

    For even s the named filters have even sides. deepinv centres them between two pixels. Compared with a resampling
    that aligns pixel areas, as in Pillow, y is shifted by (s − 2)/2 pixels of x.

    Args:
        factor: s ≥ 2, usually 2, 3 or 4.
        kernel: "bicubic", "bilinear", "sinc" (deepinv's filters for the factor s), None for subsampling without a
            filter, or any argument of [`kernel`][retune.problems.kernel].
        boundary: "reflect" or "circular".
        sigma: noise level, or one per channel; 0.01 by default.
        noise: noise that grows with the brightness, in place of sigma.
        kernel_background: ``background`` of [`kernel`][retune.problems.kernel]; not for the named filters.
        centre_kernel: ``centre`` of [`kernel`][retune.problems.kernel]; not for the named filters.
    """

    name = "superres"
    subsamples = keeps_operators = True
    usual_sigma = 0.01
    added_later = ("kernel_background", "centre_kernel")

    def __init__(
        self,
        factor: int = 2,
        kernel: str | Tensor | np.ndarray | None = "bicubic",
        boundary: str = "reflect",
        sigma: float | Sequence[float] | np.ndarray | Tensor | None = None,
        noise: PoissonGaussian | str | None = None,
        *,
        kernel_background: float | str | None = None,
        centre_kernel: bool | None = None,
    ):
        super().__init__(sigma, noise)
        self.factor = require_whole("factor", factor)
        if self.factor < 2:
            raise InvalidParameterError(f"factor must be at least 2, got {factor}; without subsampling use deblur")
        if boundary not in ("reflect", "circular"):
            raise unknown_name("boundary", boundary, ["reflect", "circular"])
        self.spec = kernel if isinstance(kernel, str) or kernel is None else "custom"
        self.kernel_background, self.centre_kernel = kernel_background, centre_kernel
        self.kernel = antialiasing(kernel, self.factor, kernel_background, centre_kernel)
        self.boundary = boundary
        self.wraps = boundary == "circular"

    def _make(self, img_size: tuple[int, int, int], dtype: torch.dtype, device: torch.device | str) -> LinearPhysics:
        taps = None if self.kernel is None else self.kernel.to(device=device, dtype=dtype)
        if taps is not None:
            _require_fit(taps, img_size, self.boundary)
        return Downsampling(
            tuple(img_size),
            filter=taps,  # pyright: ignore[reportArgumentType] - None is documented: no filter
            factor=self.factor,
            padding=self.boundary,
            device=device,
            noise_model=self.noise_model(device),
        )

    def image_size(self, measured: tuple[int, int, int]) -> tuple[int, int, int]:
        """See [`Problem`][retune.problems.Problem]; sides of x are rounded up to a multiple of s."""
        return measured[0], measured[1] * self.factor, measured[2] * self.factor

    def part(self, rows: Tensor, cols: Tensor) -> Problem:
        """See [`Problem`][retune.problems.Problem]; a part of a periodic image is not periodic."""
        made = self.spec == "custom" or self.kernel_background is not None or self.centre_kernel is not None
        return (
            Superres(self.factor, self.kernel if made else self.spec, "reflect", **self._noise())
            if self.wraps
            else self
        )


def _require_fit(taps: Tensor, img_size: tuple[int, int, int], boundary: str) -> None:
    """Refuse a kernel that does not fit the channels or the size of the images."""
    if taps.shape[1] not in (1, img_size[0]):
        raise ShapeError(f"the blur has kernels for {taps.shape[1]} channels, the image has {img_size[0]}")
    if any(k > n for k, n in zip(taps.shape[2:], img_size[1:], strict=True)):
        raise InvalidParameterError(
            f"the blur kernel {tuple(taps.shape[2:])} is too large for images {tuple(img_size[1:])} with "
            f"{boundary} boundary: the kernel may not be larger than the image; use larger images or crops, or crop "
            "the kernel (--centre-kernel removes rows and columns of zeros, --kernel-background auto makes them 0)"
        )
