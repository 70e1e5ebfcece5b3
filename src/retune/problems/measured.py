"""Real measurements, cut into crops for training."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.physics import Inpainting, LinearPhysics
from torch import Tensor

from retune.errors import InvalidParameterError, ShapeError
from retune.problems.base import Problem, SeedlessProblem
from retune.problems.noise import gaussian_noise

__all__ = ["Measurements"]


class Measurements(SeedlessProblem):
    """Real measurements: ``measure`` returns crops with their operator, and adds no noise.

    Light from beyond the border of a crop was blurred into it. So a crop of a blurred image is a "valid" blur of a
    larger image, for any boundary of the whole image. A crop of a masked image keeps its part of the mask, in the
    last channels of the result of ``pack``.

    Args:
        problem: the problem of the measurements.
        crops: whether crops will be drawn; if False, only whole measurements are available.

    Raises:
        InvalidParameterError: crops are wanted, but the operator works on whole images only; or the mask is unknown.
    """

    def __init__(self, problem: Problem, crops: bool = True):
        super().__init__(problem.sigma)
        self.name, self.of, self._crops = problem.name, problem, crops
        problem.require_known()
        self._part = problem.crop() if crops else problem

    @property
    def can_flip(self) -> bool:
        """Whether a mirrored scene gives the mirrored measurement."""
        return self.of.mirrors

    def pack(self, y: Tensor) -> Tensor:
        """A measurement (1, C, h, w) as an image (C or more, h, w) from which crops are drawn."""
        seen = self.of.observed(y)  # the shapes are compared here
        if seen is None:
            return y[0]
        mask = seen.to(y.dtype)
        return torch.cat([y * mask, mask], dim=1)[0]

    def measure(self, x: Tensor, seed: int = 0) -> tuple[Tensor, LinearPhysics]:
        """The measurements in a batch of packed crops, and their operator."""
        if not self.of.has_gaps:
            return x, self._part.operator(x)
        if x.shape[1] % 2:
            raise ShapeError(f"expected packed measurements with their masks, got {x.shape[1]} channels")
        y, mask = x.chunk(2, dim=1)
        size: Any = tuple(y.shape[1:])  # deepinv annotates tuple[int], and documents (C, H, W)
        noise = gaussian_noise(self.sigma, y.device)
        return y.contiguous(), Inpainting(size, mask=mask.contiguous(), device=y.device, noise_model=noise)

    def _make(self, img_size: tuple[int, int, int], dtype: torch.dtype, device: torch.device | str) -> LinearPhysics:
        raise InvalidParameterError("real measurements bring their own operators: call measure instead of physics")

    def describe(self) -> dict:
        """See [`Problem`][retune.problems.Problem]."""
        return {"name": "measurements", "of": self.of.describe(), "crops": self._crops}

    def identity(self) -> str:
        """See [`Problem`][retune.problems.Problem]."""
        return f"measurements(of={self.of.identity()}, crops={self._crops})"
