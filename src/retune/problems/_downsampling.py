"""Super-resolution: blur by an antialiasing filter, then keep every f-th pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from deepinv.physics import Downsampling, LinearPhysics

from retune.errors import InvalidParameterError
from retune.problems.base import Restoration
from retune.problems.noise import gaussian_noise

__all__ = ["Superresolve"]


class Superresolve(Restoration):
    """``y = (h * x)↓f + ε``, with the bicubic antialiasing filter.

    Args:
        factor: f, 2, 3 or 4.
        sigma: noise level, or one per channel.
    """

    name = "superres"

    def __init__(self, factor: int = 2, sigma: float | Sequence[float] = 0.01):
        super().__init__(sigma)
        if factor not in (2, 3, 4):
            raise InvalidParameterError(f"factor must be 2, 3 or 4, got {factor}")
        self.factor = factor

    def physics(
        self,
        img_size: tuple[int, int, int],
        *,
        batch: int = 1,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> LinearPhysics:
        """See :class:`~retune.problems.base.Restoration`."""
        if img_size[1] % self.factor or img_size[2] % self.factor:
            raise InvalidParameterError(
                f"images of {img_size[1]}×{img_size[2]} cannot be reduced by {self.factor}: crop them to multiples of "
                "it (crop= in the section [data])"
            )
        noise = gaussian_noise(self.sigma, device)
        made = Downsampling(
            img_size, filter="bicubic", factor=self.factor, padding="reflect", device=device, noise_model=noise
        )
        if dtype != made.filter.dtype:  # not made.to(dtype): that would drop the imaginary part of its spectra
            made.filter = made.filter.to(dtype)
        return made

    def image_size(self, measured: tuple[int, int, int]) -> tuple[int, int, int]:
        """See :class:`~retune.problems.base.Restoration`."""
        return measured[0], measured[1] * self.factor, measured[2] * self.factor

    def describe(self) -> dict:
        """See :class:`~retune.problems.base.Restoration`."""
        return {"name": self.name, "factor": self.factor, "sigma": self.sigma}
