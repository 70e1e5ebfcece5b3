"""Your own deepinv physics, named as ``module:function``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from deepinv.physics import LinearPhysics, ZeroNoise
from torch import Tensor

from retune.errors import InvalidParameterError, PhysicsError, ShapeError
from retune.plugins import named_function
from retune.problems.base import Problem, SeedlessProblem
from retune.problems.noise import gaussian_noise

__all__ = ["OwnPhysics"]


class OwnPhysics(SeedlessProblem):
    """``y = A x + ε`` with physics from your own function.

    The function is called as ``function(img_size=(C, H, W), device=..., **options)`` and returns a deepinv
    ``LinearPhysics``. Importing its module executes it, so name only code that you trust. Python finds modules that are
    installed or in the working directory. A run or a model file cannot name a function without your consent: see
    [`require_accepted`][retune.plugins.require_accepted].

    A restoration knows only the measurement, and assumes that the image has the same size. If the sizes differ
    (subsampling, tomography), give the function an attribute ``image_size``. It maps the size (C, h, w) of a
    measurement to the size of the image, for example ``function.image_size = lambda c, h, w: (c, 2 * h, 2 * w)``.

    Args:
        name: ``"module:function"``.
        sigma: noise level, or one per channel. It applies to physics without a noise model (deepinv's default,
            ``ZeroNoise``). A noise model that your function sets is kept; error estimates then use sigma as the level.
        options: further keyword arguments of the function.

    Raises:
        InvalidParameterError: no such module, or no such function in it.
        PhysicsError: the function does not return a ``LinearPhysics``.
    """

    has_parts = False

    def __init__(self, name: str, sigma: float | Sequence[float] = 0.05, options: dict[str, Any] | None = None):
        super().__init__(sigma)
        self.name, self.options = name, dict(options or {})
        self._function = named_function(name)

    def _make(self, img_size: tuple[int, int, int], dtype: torch.dtype, device: torch.device | str) -> LinearPhysics:
        try:
            physics = self._function(img_size=img_size, device=device, **self.options)
        except Exception as error:  # the user's code may raise anything; an error must stop one file, not all
            raise InvalidParameterError(
                f"{self.name} was called as function(img_size={img_size}, device={str(device)!r}, …), with the options "
                f"{self.options}, and failed: {_told(error)}"
            ) from error
        if not isinstance(physics, LinearPhysics):
            raise PhysicsError(f"{self.name} must return a deepinv LinearPhysics, got {type(physics).__name__}")
        if type(physics.noise_model) is ZeroNoise:  # deepinv's default: the function did not set a noise model
            physics.set_noise_model(gaussian_noise(self.sigma, device))
        return physics.to(device)  # not dtype: that would drop the imaginary part of its spectra

    def image_size(self, measured: tuple[int, int, int]) -> tuple[int, int, int]:
        """The size from the function's attribute ``image_size``; without one, the size of the measurement.

        Raises:
            InvalidParameterError: ``image_size`` fails, or does not return (C, H, W).
        """
        rule = getattr(self._function, "image_size", None)
        if rule is None:
            return measured
        try:
            size = tuple(int(n) for n in rule(*measured))
        except Exception as error:
            raise InvalidParameterError(f"image_size{measured} of {self.name} failed: {_told(error)}") from error
        if len(size) != 3 or min(size) < 1:
            raise InvalidParameterError(f"image_size{measured} of {self.name} must be a size (C, H, W), got {size}")
        return size

    def operator(self, y: Tensor) -> LinearPhysics:
        """See [`Problem`][retune.problems.Problem]."""
        physics = super().operator(y)
        size = self.image_size((y.shape[1], y.shape[2], y.shape[3]))
        made = tuple(physics.A(y.new_zeros(1, *size)).shape[1:])
        if made != tuple(y.shape[1:]):
            raise ShapeError(
                f"{self.name} makes measurements {made} from images {size}, but this measurement is "
                f"{tuple(y.shape[1:])}; tell the size of the image behind a measurement: function.image_size = lambda "
                "c, h, w: (c, 2 * h, 2 * w)"
            )
        return physics

    def part(self, rows: Tensor, cols: Tensor) -> Problem:
        """Refused: it is unknown how your physics acts on a part of an image."""
        raise InvalidParameterError(f"{self.name} works on whole images only: restore without tiles (--tile 0)")

    def describe(self) -> dict:
        """See [`Problem`][retune.problems.Problem]."""
        return {"name": self.name, "options": self.options, "sigma": self.sigma}


def _told(error: Exception) -> str:
    """The kind of an error and its message, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
