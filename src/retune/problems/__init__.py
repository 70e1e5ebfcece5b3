"""Ready-made restoration problems by name, as deepinv physics.

```python
import retune

problem = retune.problems.get("inpaint", keep=0.5, sigma=0.05)
y, physics = problem.measure(retune.data.photograph("chelsea")[None], seed=0)
```
"""

from __future__ import annotations

from retune._registry.entries import find
from retune._registry.entries import names as _registered
from retune.errors import InvalidParameterError
from retune.problems.base import Problem
from retune.problems.counts import PoissonGaussian
from retune.problems.kernels import kernel
from retune.problems.named import Deblur, Denoise, Inpaint, Superres
from retune.problems.noise import ChannelGaussianNoise

__all__ = [
    "ChannelGaussianNoise",
    "Deblur",
    "Denoise",
    "Inpaint",
    "PoissonGaussian",
    "Problem",
    "Superres",
    "deblur",
    "denoise",
    "get",
    "inpaint",
    "kernel",
    "names",
    "superres",
]

denoise, inpaint, deblur, superres = Denoise, Inpaint, Deblur, Superres


def names() -> list[str]:
    """The registered names."""
    return _registered("problem")


def get(name: str, **options) -> Problem:
    """Make the problem of that name: a ready-made one, or one that you registered ([`register`][retune.register]).

    Raises:
        UnknownNameError: no such problem.
        InvalidParameterError: an unknown option, or a value out of range.
    """
    cls = find(name, "problem").cls
    try:
        return cls(**options)
    except TypeError as error:
        raise InvalidParameterError(f"problem {name!r}: {error}") from error
