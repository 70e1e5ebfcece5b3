"""What all maps of a data term and a prior have in common."""

from __future__ import annotations

from abc import abstractmethod
from numbers import Real
from typing import Any

from deepinv.optim import L2
from deepinv.optim.data_fidelity import DataFidelity
from deepinv.optim.prior import Prior
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune._torch.batch import over_images
from retune.errors import InvalidParameterError, ShapeError, require
from retune.maps.base import AbstractMap, BoundMap
from retune.operators.data_term import DataTerm
from retune.operators.holes import fill
from retune.parameters import Bounded, Positive
from retune.priors.capabilities import adapt, bind_cycle, part_of, require_prox

__all__ = [
    "BoundWithPrior",
    "BoundWithProx",
    "BoundWithTwoProxes",
    "MapWithPrior",
    "MapWithProx",
    "MapWithTwoProxes",
    "fidelity_of",
]


def fidelity_of(given: DataFidelity | None) -> DataFidelity:
    """The data fidelity of a map; None means least squares.

    Raises:
        InvalidParameterError: not a deepinv ``DataFidelity``.
    """
    if given is None:
        return L2()
    number = isinstance(given, Real)
    hint = f"write step_size={given}" if number else "for example deepinv.optim.L2(sigma=0.1)"
    require("data_fidelity", given, DataFidelity, "a deepinv DataFidelity", hint)
    return given


class MapWithPrior(AbstractMap):
    """A map of a data term and one prior.

    Args:
        prior: the prior.
        data_fidelity: the data fidelity; None means least squares.
        lipschitz: Lipschitz constant of the gradient of ``d(·, y)``, for a fidelity that does not state it.
    """

    in_state_dict = ("step_size", "reg")
    reg: Positive

    def __init__(self, prior: Prior, data_fidelity: DataFidelity | None, lipschitz: float | None = None):
        super().__init__()
        self.data_fidelity = fidelity_of(data_fidelity)
        self.prior: Any = prior
        self.lipschitz = lipschitz

    @property
    def per_image(self) -> bool:  # type: ignore[override]
        """Whether the prior treats every image of a batch independently of the others."""
        return adapt(self.prior).per_image

    def data_term(self, y: Tensor, physics: LinearPhysics) -> DataTerm:
        """See [`AbstractMap`][retune.AbstractMap]."""
        return DataTerm(y, physics, self.data_fidelity, lipschitz=self.lipschitz)

    def _objective(self, x: Tensor, data_term: DataTerm) -> Tensor:
        """``f(x) + λR(x)`` per image, shape (B,).

        Raises:
            InvalidParameterError: the prior has no value.
        """
        if not adapt(self.prior).has_value:
            raise InvalidParameterError(f"{type(self.prior).__name__} has no value, so the objective is unknown")
        return data_term.fn(x) + self.reg().to(x) * self.prior.fn(x)


class MapWithProx(MapWithPrior):
    """A map with one prox of its prior in a layer, a learned step and a learned strength.

    Args:
        prior: a prior with a prox.
        data_fidelity: the data fidelity; None means least squares.
        step_size: a share, strictly between 0 and 1.
        reg: λ > 0.
        learn_step_size: whether the step is trained.
        learn_reg: whether λ is trained.
        lipschitz: see ``MapWithPrior``.
    """

    def __init__(
        self,
        prior: Prior,
        data_fidelity: DataFidelity | None,
        step_size: float,
        reg: float,
        *,
        learn_step_size: bool,
        learn_reg: bool,
        lipschitz: float | None = None,
    ):
        able = require_prox(prior, type(self).__name__)
        super().__init__(able.per_layer(1)[0], data_fidelity, lipschitz)
        self.nonexpansive = not able.may_expand
        self.step_size = Bounded(step_size, (1,), learn=learn_step_size, name="step_size")
        self.reg = Positive(reg, (1,), learn=learn_reg and able.uses_strength, name="reg")

    @abstractmethod
    def gamma(self, data_term: DataTerm) -> Tensor:
        """The step γ, shape (1 or B, 1, 1, 1)."""


class MapWithTwoProxes(MapWithProx):
    """A map with one prox of its prior and one of its data term in a layer, for the same γ > 0, without upper limit.

    ``γ = s/((1 − s)L)``; a sigmoid keeps the learned s in (0, 1).

    Args:
        prior: a prior with a prox.
        data_fidelity: a data fidelity that is quadratic in x; None means least squares.
        step_size: s, strictly between 0 and 1; ½ is ``γ = 1/L``.
        reg: λ > 0.
        learn_step_size: whether s is trained.
        learn_reg: whether λ is trained.
    """

    def __init__(
        self,
        prior: Prior,
        data_fidelity: DataFidelity | None = None,
        step_size: float = 0.5,
        reg: float = 0.1,
        *,
        learn_step_size: bool = True,
        learn_reg: bool = True,
    ):
        super().__init__(prior, data_fidelity, step_size, reg, learn_step_size=learn_step_size, learn_reg=learn_reg)

    def gamma(self, data_term: DataTerm) -> Tensor:
        """``γ = s/((1 − s)L)``, shape (1 or B, 1, 1, 1)."""
        share = self.step_size().to(data_term.device, data_term.dtype)
        return over_images(share / ((1 - share) * data_term.lipschitz))


class BoundWithPrior(BoundMap):
    """A bound map of a data term and a prior."""

    data_term: DataTerm

    def __init__(self, owner: AbstractMap, data_term: DataTerm):
        self.owner, self.data_term, self.layers = owner, data_term, owner.layers
        self.sources = tuple(t for t in (*owner.parameters(), data_term.adjoint_y) if t.requires_grad)
        self._shape, self._gradient = data_term.shape, data_term.grad

    def _back_projection(self, *, filled: bool = True) -> Tensor:
        """``Aᵀy/‖A‖²``, the usual first image; `filled` fills in the holes of a mask."""
        start = self.data_term.adjoint_y / over_images(self.data_term.sqnorm)
        holes = self.data_term.holes if filled else None
        return start if holes is None else fill(start, holes)

    def _require(self, image: Tensor) -> Tensor:
        """The image, if it has the shape of this data term.

        Raises:
            ShapeError: another shape.
        """
        if image.shape != self._shape:
            raise ShapeError(
                f"expected images of shape {tuple(self._shape)} for this data term, got {tuple(image.shape)}"
            )
        return image


class BoundWithProx(BoundWithPrior):
    """A bound ``MapWithProx``.

    Its state has the shape of the coefficients of the prior's frame D; without a frame, of the image.
    """

    def __init__(self, owner: MapWithProx, data_term: DataTerm):
        super().__init__(owner, data_term)
        self._gamma, self._filled = owner.gamma(data_term), not owner.nonexpansive
        strength = self._gamma * owner.reg().to(data_term.device, data_term.dtype)
        (bound,) = bind_cycle([owner.prior], data_term.shape, [strength])
        self._prox, self._frame = part_of(owner.prior, bound, "prox"), bound.frame

    def image_adjoint(self, image: Tensor) -> Tensor:
        """``Dᵀ`` of an image."""
        return image if self._frame is None else self._frame.analysis(image)

    def _synthesis(self, u: Tensor) -> Tensor:
        return u if self._frame is None else self._frame.synthesis(u)

    def _extension(self, image: Tensor) -> Tensor:
        """Coefficients with this image."""
        return image if self._frame is None else self._frame.extension(image)


class BoundWithTwoProxes(BoundWithProx):
    """A bound map that takes the data term, too, by its prox.

    Where that prox needs conjugate gradients, they begin anew in each layer. A start at the last solution would save a
    fifth of the products, but the error of the prox would then depend on the layer before: the map would no longer be a
    function of its state, and damped steps would differ from plain ones.
    """

    def __init__(self, owner: MapWithProx, data_term: DataTerm):
        super().__init__(owner, data_term)
        self._data_prox = data_term.prox_at(self._gamma)

    def _data_step(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``prox_{γf∘D}(z)``, and its image."""
        seen = self._synthesis(z)
        found = self._data_prox(seen)
        return found if self._frame is None else z + self.image_adjoint(found - seen), found
