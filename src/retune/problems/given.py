"""A deepinv physics as a problem, for `fit` and `plan`."""

from __future__ import annotations

import torch
from deepinv.physics import Denoising, LinearPhysics
from torch import Tensor

from retune._torch.streams import seeded
from retune.errors import InvalidParameterError
from retune.priors.noise_level import doubt_noise_level
from retune.problems.base import Problem, SeedlessProblem
from retune.problems.counts import PoissonGaussian

__all__ = ["GivenPhysics", "as_problem"]


class GivenPhysics(SeedlessProblem):
    """``y = A x + ε`` with one fixed physics and its own noise model, for all images.

    Args:
        physics: a deepinv ``LinearPhysics``.

    Warns:
        DoubtfulWarning: a noise level above 1.
    """

    has_parts = False

    def __init__(self, physics: LinearPhysics):
        model = getattr(physics, "noise_model", None)
        levels, gain = getattr(model, "sigma", None), getattr(model, "gain", None)
        self.sigma = tuple(levels.detach().flatten().tolist()) if isinstance(levels, Tensor) else 0.0
        # deepinv's PoissonNoise and PoissonGaussianNoise; without normalisation, y has another unit than Ax.
        if isinstance(gain, Tensor) and getattr(model, "normalize", True):
            each = tuple(gain.detach().flatten().tolist())
            self.noise = PoissonGaussian(each, self.sigma)
            self.sigma = self.noise.level
        # The warning must name the line that called as_problem, fit or plan.
        doubt_noise_level(self.sigma, stacklevel=5)
        self.only_noise = isinstance(physics, Denoising)
        self.name, self._given = type(physics).__name__, physics

    def _make(self, img_size: tuple[int, int, int], dtype: torch.dtype, device: torch.device | str) -> LinearPhysics:
        # It raises its own error if the images do not fit.
        return self._given

    def measure(self, x: Tensor, seed: int = 0) -> tuple[Tensor, LinearPhysics]:
        """See [`Problem`][retune.problems.Problem]."""
        # Its noise model may use the global generator only.
        with seeded(seed, x.device), torch.no_grad():
            return self._given(x), self._given

    def describe(self) -> dict:
        """The name of the class: there is no more plain data of a physics."""
        return {"name": self.name}

    def identity(self) -> str:
        """The name of the class: the content of a physics has no names."""
        return self.name


def as_problem(given: Problem | LinearPhysics) -> Problem:
    """A given problem, or a given physics as a problem.

    Raises:
        InvalidParameterError: the argument is neither a problem nor a physics.
    """
    if not isinstance(given, type) and callable(getattr(given, "measure", None)):
        return given  # pyright: ignore[reportReturnType] - it has the methods of a problem
    if not isinstance(given, LinearPhysics):
        kind = given.__name__ if isinstance(given, type) else type(given).__name__
        raise InvalidParameterError(f"problem must be one of retune.problems or a deepinv LinearPhysics, got {kind}")
    return GivenPhysics(given)
