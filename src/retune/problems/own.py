"""Any deepinv physics of the user's, by ``module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune.errors import InvalidParameterError, PhysicsError, ShapeError, did_you_mean
from retune.problems.base import Problem
from retune.problems.noise import gaussian_noise

__all__ = ["OwnPhysics"]


class OwnPhysics(Problem):
    """``y = A x + ε`` with a physics that a function of yours makes.

    The function is called as ``function(img_size=(C, H, W), device=..., **options)`` and returns a deepinv
    ``LinearPhysics``; it is imported, that is, executed, so name only code that you trust. Modules of the working
    directory are found.

    To restore, only the measurement is known. An image of its size is presumed; where the sizes differ (subsampling,
    tomography), give the function an attribute ``image_size``, itself a function from the size (C, h, w) of a
    measurement to that of the image: ``function.image_size = lambda c, h, w: (c, 2 * h, 2 * w)``.

    Args:
        name: ``"module:function"``.
        sigma: noise level, or one per channel; it replaces the noise model of the physics.
        options: further arguments of the function.

    Raises:
        InvalidParameterError: no such module, or no such function in it.
        PhysicsError: it returns something else.
    """

    def __init__(self, name: str, sigma: float | Sequence[float] = 0.05, options: dict[str, Any] | None = None):
        super().__init__(sigma)
        self.name, self.options = name, dict(options or {})
        self._function = _find(name)

    def physics(
        self,
        img_size: tuple[int, int, int],
        *,
        batch: int = 1,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> LinearPhysics:
        """See :class:`~retune.problems.base.Problem`."""
        try:
            physics = self._function(img_size=img_size, device=device, **self.options)
        except Exception as error:  # code of the user's: whatever it raises is told, and stops one file, not all
            raise InvalidParameterError(
                f"{self.name} was called as function(img_size={img_size}, device={str(device)!r}, …), with the options "
                f"{self.options}, and failed: {_told(error)}"
            ) from error
        if not isinstance(physics, LinearPhysics):
            raise PhysicsError(f"{self.name} must return a deepinv LinearPhysics, got {type(physics).__name__}")
        physics.set_noise_model(gaussian_noise(self.sigma, device))
        return physics.to(device)  # not dtype: that would drop the imaginary part of its spectra

    def image_size(self, measured: tuple[int, int, int]) -> tuple[int, int, int]:
        """What the function's own ``image_size`` says, else the size of the measurement.

        Raises:
            InvalidParameterError: it fails, or gives no size (C, H, W).
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
        """See :class:`~retune.problems.base.Problem`."""
        physics = super().operator(y)
        size = self.image_size((y.shape[1], y.shape[2], y.shape[3]))
        made = tuple(physics.A(y.new_zeros(1, *size)).shape[1:])
        if made != tuple(y.shape[1:]):
            raise ShapeError(
                f"{self.name} makes measurements {made} of images {size}, but this one is {tuple(y.shape[1:])}; tell "
                "the size of the image behind a measurement: function.image_size = lambda c, h, w: (c, 2 * h, 2 * w)"
            )
        return physics

    def part(self, rows: Tensor, cols: Tensor) -> Problem:
        """Refused: what a physics of yours does to a part of an image is not known."""
        raise InvalidParameterError(f"{self.name} is known for whole images only: restore without tiles (--tile 0)")

    def describe(self) -> dict:
        """See :class:`~retune.problems.base.Problem`."""
        return {"name": self.name, "options": self.options, "sigma": self.sigma}


def _told(error: Exception) -> str:
    """The kind of an error and what it says, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _find(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InvalidParameterError(
            f"cannot import the module {module_name!r} of {name!r}: {_told(error)}; expected module:function, with "
            "the module installed or in the working directory"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        hint = did_you_mean(function_name, [k for k, v in vars(module).items() if callable(v)])
        raise InvalidParameterError(f"the module {module_name!r} has no function {function_name!r}{hint}")
    return function
