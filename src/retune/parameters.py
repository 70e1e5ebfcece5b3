"""Scalars and small tables that stay positive, or inside an interval, during any training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from retune.errors import InvalidParameterError, require_real, wrong_type

__all__ = ["Bounded", "Positive", "ScalarParameter", "require_box", "require_damping", "scalars"]


_LOG_LIMIT = 40.0  # beyond this, products of such exponentials overflow in float32


class ScalarParameter(nn.Module, ABC):
    """Base of the constrained parameters: an unconstrained ``raw`` and the map to its constraint.

    ``fit`` gives these parameters their own learning rate: they have a logarithmic (or logistic) scale, on which a step
    has the same relative effect at any magnitude.

    Attributes:
        raw: the trained, unconstrained values.
        logarithmic: whether adding to ``raw`` multiplies the value.
    """

    raw: nn.Parameter
    logarithmic: bool = False

    @property
    def interval(self) -> tuple[float, float]:
        """The open interval (low, high) that the values stay in; every number by default."""
        return -math.inf, math.inf

    @property
    def learned(self) -> bool:
        """Whether it is trained."""
        return self.raw.requires_grad

    @property
    def value(self) -> Tensor:
        """The current value, detached."""
        return self().detach()

    @abstractmethod
    def forward(self) -> Tensor:
        """The constrained value, differentiable."""

    def extra_repr(self) -> str:
        """The values (of a large table its shape and range), for ``repr``."""
        values = self.value.flatten().tolist()
        if len(values) == 1:
            shown = f"{values[0]:.4g}"
        elif len(values) <= 6:
            shown = f"[{', '.join(f'{v:.4g}' for v in values)}]"
        else:
            shown = f"{min(values):.4g} to {max(values):.4g}, shape={tuple(self.raw.shape)}"
        return shown if self.raw.requires_grad else f"{shown}, learn=False"


def scalars(module: nn.Module, *, nested: bool = True) -> dict[str, ScalarParameter]:
    """The scalars and small tables in a map, a prior or a network, by name.

    Each states its open interval and whether it is trained, so that a search can try all of them:

    ```python
    import retune

    denoiser = retune.weights.load("denoiser-gray")
    map_ = retune.ForwardBackward(retune.priors.Denoiser(denoiser, sigma_range=(0.01, 0.2)))
    found = {name: p.interval for name, p in retune.parameters.scalars(map_).items()}
    assert found == {"priors.0.sigma": (0.01, 0.2), "step_size": (0.0, 1.0), "reg": (0.0, float("inf"))}
    ```

    Args:
        module: where to look.
        nested: whether to look inside its parts, such as the prior of a map, too. Names are then dotted.
    """
    # In a tree of modules only the class shows which ones are parameters, so this is the only check of a class.
    found = module.named_modules() if nested else module.named_children()
    return {name: m for name, m in found if isinstance(m, ScalarParameter)}


def _table(name: str, value: float | Sequence[float] | Tensor, shape: tuple[int, ...]) -> Tensor:
    if isinstance(value, bool):
        raise wrong_type(name, value, "a number or a table of numbers")
    try:
        table = torch.as_tensor(value, dtype=torch.get_default_dtype())
    except (TypeError, ValueError, RuntimeError) as error:
        raise wrong_type(name, value, "a number or a table of numbers") from error
    try:
        return table.expand(shape).clone()
    except RuntimeError as error:
        raise InvalidParameterError(
            f"{name} must be one number or have shape {shape}, got shape {tuple(table.shape)}"
        ) from error


class Positive(ScalarParameter):
    """``exp(raw)``, |raw| limited to 40: a positive, finite table of the given shape, during any training.

    Args:
        value: initial value(s), > 0 and finite.
        shape: shape of the table.
        learn: whether it is trained.
        name: its name in error messages.
    """

    logarithmic = True

    def __init__(
        self,
        value: float | Sequence[float] | Tensor,
        shape: tuple[int, ...] = (),
        *,
        learn: bool = True,
        name: str = "value",
    ):
        super().__init__()
        table = _table(name, value, shape)
        if not bool(((table > 0) & torch.isfinite(table)).all()):
            raise InvalidParameterError(f"{name} must be positive and finite, got {value}")
        self.raw = nn.Parameter(table.log(), requires_grad=learn)

    @property
    def interval(self) -> tuple[float, float]:
        """(0, ∞)."""
        return 0.0, math.inf

    def forward(self) -> Tensor:
        """``exp(raw)``, between 4e-18 and 2e17."""
        return self.raw.clamp(-_LOG_LIMIT, _LOG_LIMIT).exp()


class Bounded(ScalarParameter):
    """``low + (high − low)·sigmoid(raw)``: strictly inside an interval, so that training cannot leave it.

    Args:
        value: initial value(s), low < value < high.
        shape: shape of the table.
        low: lower end, excluded.
        high: upper end, excluded.
        learn: whether it is trained.
        name: its name in error messages.
    """

    def __init__(
        self,
        value: float | Sequence[float] | Tensor,
        shape: tuple[int, ...] = (),
        *,
        low: float = 0.0,
        high: float = 1.0,
        learn: bool = True,
        name: str = "value",
    ):
        super().__init__()
        table = _table(name, value, shape)
        if not bool(((table > low) & (table < high)).all()):
            raise InvalidParameterError(f"{name} must lie strictly between {low:g} and {high:g}, got {value}")
        self.low, self.high = low, high
        margin = _margin(table.dtype)
        unit = ((table - low) / (high - low) - margin) / (1 - 2 * margin)
        self.raw = nn.Parameter(torch.logit(unit, eps=torch.finfo(table.dtype).eps), requires_grad=learn)

    @property
    def interval(self) -> tuple[float, float]:
        """The ends that were given."""
        return self.low, self.high

    def forward(self) -> Tensor:
        """The value, kept away from the ends by a margin larger than rounding."""
        margin = _margin(self.raw.dtype)
        unit = torch.sigmoid(self.raw) * (1 - 2 * margin) + margin
        return self.low + (self.high - self.low) * unit


def _margin(dtype: torch.dtype) -> float:
    """Distance from the ends that always keeps τ < 2/L: in float32 sigmoid(17) is exactly 1."""
    return math.sqrt(torch.finfo(dtype).eps)


def require_damping(strong_convexity: float) -> float:
    """ε of the added ``½ε‖u‖²``, checked.

    Raises:
        InvalidParameterError: not a finite number ≥ 0.
    """
    strong_convexity = require_real("strong_convexity", strong_convexity)
    if not 0 <= strong_convexity < float("inf"):
        raise InvalidParameterError(f"strong_convexity must be finite and ≥ 0, got {strong_convexity}")
    return strong_convexity


def require_box(box: tuple[float, float] | None) -> tuple[float, float] | None:
    """(low, high), checked; None if there is no box.

    Raises:
        InvalidParameterError: not two numbers with low < high.
    """
    if box is None:
        return None
    try:
        low, high = (float(b) for b in box)
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(f"box must be None or two numbers (low, high), got {box!r}") from error
    if not low < high:
        raise InvalidParameterError(f"box must be (low, high) with low < high, got {box!r}")
    return low, high
