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

from retune.errors import InvalidParameterError, PhysicsError, did_you_mean
from retune.problems.base import Restoration
from retune.problems.noise import gaussian_noise

__all__ = ["OwnPhysics"]


class OwnPhysics(Restoration):
    """``y = A x + ε`` with a physics that a function of yours makes.

    The function is called as ``function(img_size=(C, H, W), device=..., **options)`` and returns a deepinv
    ``LinearPhysics``; it is imported, that is, executed, so name only code that you trust. Modules of the working
    directory are found.

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
        """See :class:`~retune.problems.base.Restoration`."""
        try:
            physics = self._function(img_size=img_size, device=device, **self.options)
        except TypeError as error:
            raise InvalidParameterError(
                f"{self.name} was called as function(img_size={img_size}, device={str(device)!r}, …), with the options "
                f"{self.options}, and failed: {error}"
            ) from error
        if not isinstance(physics, LinearPhysics):
            raise PhysicsError(f"{self.name} must return a deepinv LinearPhysics, got {type(physics).__name__}")
        physics.set_noise_model(gaussian_noise(self.sigma, device))
        return physics.to(device)  # not dtype: that would drop the imaginary part of its spectra

    def part(self, rows: Tensor, cols: Tensor) -> Restoration:
        """Refused: what a physics of yours does to a part of an image is not known."""
        raise InvalidParameterError(f"{self.name} is known for whole images only: restore without tiles (--tile 0)")

    def describe(self) -> dict:
        """See :class:`~retune.problems.base.Restoration`."""
        return {"name": self.name, "options": self.options, "sigma": self.sigma}


def _find(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InvalidParameterError(
            f"cannot import the module {module_name!r} of {name!r}: {error}; expected module:function, with the module "
            "installed or in the working directory"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        hint = did_you_mean(function_name, [k for k, v in vars(module).items() if callable(v)])
        raise InvalidParameterError(f"the module {module_name!r} has no function {function_name!r}{hint}")
    return function
