"""The base class of restoration problems: a recipe that makes deepinv physics for any image size and seed."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepinv.physics import LinearPhysics, NoiseModel
from torch import Tensor

from retune._registry.describe import by_arguments
from retune._registry.entries import kind_base
from retune._torch.streams import seeded
from retune.errors import InvalidParameterError, ShapeError, advice, require, require_real, wrong_type
from retune.io import SUFFIXES
from retune.priors.noise_level import doubt_noise_level
from retune.problems.counts import PoissonGaussian, parse_noise
from retune.problems.noise import gaussian_noise, noise_levels

__all__ = ["Problem", "SeedlessProblem"]


@kind_base("problem")
class Problem(ABC):
    """A restoration problem by name. The same seed gives the same operator and the same noise.

    Attributes:
        name: the name under ``retune.problems``.
        sigma: noise standard deviation, or one per channel, in the units of the image. For noise that grows with the
            brightness, its level at half of white.
        noise: the model of noise that grows with the brightness; None for Gaussian noise of level sigma.
    """

    name: str
    noise: PoissonGaussian | None = None
    #: the noise level of a problem for which neither sigma nor noise is given
    usual_sigma: float | tuple[float, ...] = 0.05

    def __init__(
        self,
        sigma: float | Sequence[float] | np.ndarray | Tensor | None = None,
        noise: PoissonGaussian | str | None = None,
    ):
        if sigma is not None and noise is not None:
            raise InvalidParameterError(f"sigma = {sigma} and noise = {noise} say the noise twice: give one of them")
        sigma = self.usual_sigma if sigma is None else sigma
        known = parse_noise(noise) if isinstance(noise, str) else noise
        if known is not None and not callable(getattr(known, "fidelity", None)):
            hint = "retune.problems.PoissonGaussian(gain, read), or as text"
            raise wrong_type("noise", noise, "the noise of photon counts", f"{hint}: poisson:GAIN,READ")
        if known is not None and not known.grows:  # gaussian:SIGMA
            sigma, known = known.read, None
        self.noise = known
        self.sigma = noise_levels(sigma if known is None else known.level)
        doubt_noise_level(self.sigma)

    def noise_model(self, device: torch.device | str = "cpu") -> NoiseModel:
        """The deepinv model of the noise, with its own generator."""
        return gaussian_noise(self.sigma, device) if self.noise is None else self.noise.simulated(device)

    def variance(self, y: Tensor) -> Tensor:
        """The variance of the noise at every value of a measurement (B, C, h, w), broadcastable to it."""
        if self.noise is not None:
            return self.noise.variance(y)
        levels = self.sigma if isinstance(self.sigma, tuple) else (self.sigma,)
        if len(levels) not in (1, y.shape[1]):
            raise InvalidParameterError(
                f"the noise has levels for {len(levels)} channels, but the measurement has {y.shape[1]}: give one "
                "level for all channels, e.g. sigma=0.1"
            )
        return y.new_tensor(levels).square().view(1, -1, 1, 1)

    @property
    def noise_words(self) -> str:
        """The noise as ``--noise`` takes it: ``poisson:GAIN,READ`` or ``gaussian:SIGMA``."""
        levels = self.sigma if isinstance(self.sigma, tuple) else (self.sigma,)
        return str(self.noise) if self.noise is not None else f"gaussian:{'/'.join(f'{v:.6g}' for v in levels)}"

    def _noise(self) -> dict[str, Any]:
        """The noise as arguments of a problem."""
        return {"sigma": self.sigma} if self.noise is None else {"noise": self.noise}

    @abstractmethod
    def physics(
        self,
        img_size: tuple[int, int, int],
        *,
        batch: int = 1,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> LinearPhysics:
        """The deepinv physics for images (C, H, W). A random operator is drawn from `seed`."""

    def operator(self, y: Tensor) -> LinearPhysics:
        """The physics of a real measurement (B, C, h, w), for its restoration.

        Raises:
            InvalidParameterError: the operator is random, so the one behind a real measurement is unknown.
            ShapeError: the measurement does not fit the operator.
        """
        size = self.image_size((y.shape[1], y.shape[2], y.shape[3]))
        return self.physics(size, batch=len(y), dtype=y.dtype, device=y.device)

    #: whether a measurement is the image itself, with noise
    only_noise: bool = False
    #: whether the boundary is periodic: opposite borders of an image are neighbours
    wraps: bool = False
    #: whether measurements have missing values; ``observed`` then tells where
    has_gaps: bool = False
    #: whether an image has more pixels than its measurement
    subsamples: bool = False
    #: whether a mirrored scene gives the mirrored measurement
    mirrors: bool = False
    #: whether a part of a measurement can be restored by itself; see ``part``
    has_parts: bool = True

    def observed(self, y: Tensor) -> Tensor | None:
        """Where a real measurement (B, C, h, w) has values: booleans of its shape, or None if everywhere.

        Raises:
            InvalidParameterError: the observed pixels are unknown.
            ShapeError: the measurement does not fit the problem.
        """
        return None

    def require_known(self) -> None:
        """Refuse a problem with a random operator: it cannot restore real measurements.

        Raises:
            InvalidParameterError: the message says what is missing and how to give it.
        """
        return None

    def crop(self) -> Problem:
        """The problem of a crop of a real measurement. The boundary of the whole does not matter.

        Raises:
            InvalidParameterError: a part cannot be restored by itself.
        """
        return self.part(torch.arange(1), torch.arange(1))

    def part(self, rows: Tensor, cols: Tensor) -> Problem:
        """The problem of a part of the measurement, ``y[..., rows, :][..., cols]``, to restore in tiles.

        Raises:
            InvalidParameterError: a part cannot be restored by itself.
        """
        return self

    def image_size(self, measured: tuple[int, int, int]) -> tuple[int, int, int]:
        """The size (C, H, W) of the image behind a measurement of size (C, h, w)."""
        return measured

    def borderless(self) -> Problem:
        """The same problem without an assumption about what lies beyond the border of the image.

        Its restored image may be larger than the measurement; `frame` cuts it to that size.
        """
        return self

    def frame(self, image: Tensor) -> Tensor:
        """The part of a restored image (B, C, H, W) that the measurement shows."""
        return image

    def measure(self, x: Tensor, seed: int = 0) -> tuple[Tensor, LinearPhysics]:
        """A simulated measurement of images (B, C, H, W), and the physics that made it.

        Raises:
            ShapeError: not a batch of images, or not as many channels as noise levels.
            InvalidParameterError: images that are not floats.
        """
        require("x", x, Tensor, "a tensor (B, C, H, W)", "retune.data.as_images makes tensors of files and arrays")
        if x.ndim != 4:
            raise ShapeError(f"expected a batch of images (B, C, H, W), got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise InvalidParameterError(f"images must be floats, got {x.dtype}; scale them to floats in [0, 1]")
        if isinstance(self.sigma, tuple) and len(self.sigma) != x.shape[1]:
            raise ShapeError(
                f"{self.name} has noise levels for {len(self.sigma)} channels, but the image has {x.shape[1]}; "
                f"give one level, e.g. {advice(f'{self.name}(sigma=0.1)', '--sigma 0.1')}"
            )
        size = (x.shape[1], x.shape[2], x.shape[3])
        physics = self.physics(size, batch=len(x), seed=seed, dtype=x.dtype, device=x.device)
        if getattr(physics.noise_model, "rng", None) is not None:
            return physics(x, seed=seed + 1), physics
        with seeded(seed + 1, x.device):  # a user's noise model may use torch's global generator only
            return physics(x), physics

    def describe(self) -> dict:
        """The name and the constructor's arguments as plain data, read from attributes of the same names.

        It includes sigma or noise, whichever was given. The attribute `spec`, if there is one, describes the kernel.
        """
        kept = {"noise": str(self.noise)} | ({"kernel": vars(self)["spec"]} if "spec" in vars(self) else {})
        left_out = ("type", "noise" if self.noise is None else "sigma")
        told = {k: v for k, v in by_arguments(self, **kept).items() if k not in left_out}
        return {"name": self.name} | told | ({"sigma": self.sigma} if "sigma" in told else {})

    def identity(self) -> str:
        """A text that identifies the measurement process; a kernel or mask from a file enters by content, not path."""
        told = self.describe()
        for key in ("kernel", "mask"):
            held, name = getattr(self, key, None), told.get(key)
            named = isinstance(name, str) and (name == "custom" or Path(name).suffix.lower() in SUFFIXES)
            if isinstance(held, Tensor) and named:
                content = f"{tuple(held.shape)}".encode() + held.detach().cpu().contiguous().numpy().tobytes()
                told[key] = hashlib.sha256(content).hexdigest()[:12]
        return _said(self.name, told)

    def __getstate__(self) -> dict:
        """Leave out the operators: they hold generators, which cannot be pickled. They are made again when needed."""
        return {k: v for k, v in vars(self).items() if k != "_made"}

    def __repr__(self) -> str:
        return _said(self.name, self.describe())


class SeedlessProblem(Problem):
    """A problem whose operator does not depend on the seed.

    Attributes:
        keeps_operators: whether all images of one size share an operator, with its norm and spectrum.
    """

    keeps_operators = False

    @abstractmethod
    def _make(self, img_size: tuple[int, int, int], dtype: torch.dtype, device: torch.device | str) -> LinearPhysics:
        """The operator for images (C, H, W)."""

    def physics(
        self,
        img_size: tuple[int, int, int],
        *,
        batch: int = 1,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> LinearPhysics:
        """See [`Problem`][retune.problems.Problem]; (C, H, W) is the size of the image to restore."""
        if not self.keeps_operators:
            return self._make(img_size, dtype, device)
        made: dict[tuple, LinearPhysics] = getattr(self, "_made", {})
        key = (tuple(img_size), dtype, str(device))
        if key not in made:
            with torch.inference_mode(False):  # autograd refuses tensors that were made in inference mode
                made[key] = self._make(img_size, dtype, device)
            self._made = made
        return made[key]


def _said(name: str, options: dict) -> str:
    return f"{name}({', '.join(f'{k}={v!r}' for k, v in options.items() if k != 'name')})"


def share(name: str, value: float) -> float:
    """A share in (0, 1]."""
    value = require_real(name, value)
    if not 0 < value <= 1:
        raise InvalidParameterError(f"{name} must be a share in (0, 1], got {value}")
    return value
