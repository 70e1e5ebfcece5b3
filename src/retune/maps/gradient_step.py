"""Gradient steps on a smooth prior."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from deepinv.optim import L2
from deepinv.optim import prior as deepinv_prior
from deepinv.optim.data_fidelity import DataFidelity
from deepinv.optim.potential import Potential
from deepinv.optim.prior import PnP, Prior
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune._registry.describe import description
from retune._registry.entries import register
from retune.errors import InvalidParameterError, ShapeError, require, require_real, require_whole
from retune.guarantee import Assumption, Guarantee
from retune.maps.base import AbstractMap, BoundMap
from retune.maps.guarantees import smooth_assumptions
from retune.operators.data_term import DataTerm
from retune.operators.holes import fill, holes_of
from retune.operators.restrict import rows
from retune.parameters import Bounded, Positive, require_damping
from retune.priors.denoiser import RED, DenoiserPrior
from retune.priors.ridge import Ridge

__all__ = ["GradientStep"]


@register
class GradientStep(AbstractMap):
    r"""``T(x) = P_box(x − τ(∇f(x) + λ∇R(x) + εx))``: projected gradient descent on ``f + λR + ½ε‖·‖²``.

    The step size is ``τ = 2s/(L_f + λ L_R + ε)`` with ``s ∈ (0, 1)`` learned through a sigmoid, ``L_f = ‖A‖²/σ²`` from
    the problem, ``L_R`` from the prior, and ε = 0 unless it is given. If those are Lipschitz constants, the objective
    decreases with every layer, whatever the training does; for convex ``f + λR`` T is averaged and the iterates
    converge to a minimiser. For a
    convex ridge regulariser that holds by construction; for a weakly convex one the objective still decreases and every
    limit point is stationary (Attouch, Bolte, Svaiter, Math. Program. 137, 2013). For :class:`retune.priors.RED` the
    constant is a guess, and nothing is promised.

    Args:
        prior: a prior with a gradient: :class:`retune.priors.Ridge`, :class:`retune.priors.RED`, or any deepinv
            ``Prior`` with a gradient and `prior_lipschitz`.
        data_fidelity: deepinv ``DataFidelity``, ``L2()`` by default.
        step_size: s, strictly between 0 and 1; one number or one per layer.
        reg: λ > 0; one number or one per layer.
        layers: number of different layers in a cycle; filters and networks are shared, s, λ (and σ) are per layer.
        box: (low, high), the intensities allowed; None leaves the image free.
        learn_step_size: whether s is trained.
        learn_reg: whether λ is trained.
        lipschitz: Lipschitz constant of the gradient of ``d(·, y)``, for a fidelity other than ``L2``.
        prior_lipschitz: Lipschitz constant of ``∇R`` for a prior that does not know it.
        strong_convexity: ε ≥ 0: adds ``½ε‖x‖²`` to the objective. With ε > 0 and a convex ridge regulariser the map is
            a contraction for any A; a ρ-weakly convex one needs ``ε + μ > λρ``, with μ the strong convexity of f. It
            pulls the image towards 0, so keep it small beside ``‖A‖²/σ²``.

    Raises:
        InvalidParameterError: a parameter out of range, or a prior without a gradient or without a known constant.
    """

    def __init__(
        self,
        prior: Prior,
        data_fidelity: DataFidelity | None = None,
        step_size: float | Sequence[float] = 0.9,
        reg: float | Sequence[float] = 1.0,
        layers: int = 1,
        *,
        box: tuple[float, float] | None = None,
        learn_step_size: bool = True,
        learn_reg: bool = True,
        lipschitz: float | None = None,
        prior_lipschitz: float | None = None,
        strong_convexity: float = 0.0,
    ):
        super().__init__()
        layers = require_whole("layers", layers)
        if layers < 1:
            raise InvalidParameterError(f"layers must be at least 1 (tied weights), got {layers}")
        if data_fidelity is not None:
            require("data_fidelity", data_fidelity, DataFidelity, "a deepinv DataFidelity", "for example L2()")
        self.layers, self.lipschitz = layers, lipschitz
        self.strong_convexity = require_damping(strong_convexity)
        self.data_fidelity = L2() if data_fidelity is None else data_fidelity
        self.box = None if box is None else _box(box)
        self.prior_lipschitz = None if prior_lipschitz is None else require_real("prior_lipschitz", prior_lipschitz)
        _check_prior(prior, self.prior_lipschitz)
        self.nonexpansive = not isinstance(prior, DenoiserPrior)
        self.prior = prior.per_layer(layers)[0] if isinstance(prior, DenoiserPrior) else prior
        self.step_size = Bounded(step_size, (layers,), learn=learn_step_size, name="step_size")
        self.reg = Positive(reg, (layers,), learn=learn_reg, name="reg")

    def describe(self) -> dict:
        """See :class:`~retune.maps.base.AbstractMap`."""
        return {
            "type": "GradientStep",
            "prior": description(self.prior),
            "data_fidelity": description(self.data_fidelity),
            "layers": self.layers,
            "box": None if self.box is None else list(self.box),
            "learn_step_size": self.step_size.raw.requires_grad,
            "learn_reg": self.reg.raw.requires_grad,
            "strong_convexity": self.strong_convexity,
            **({} if self.lipschitz is None else {"lipschitz": self.lipschitz}),
            **({} if self.prior_lipschitz is None else {"prior_lipschitz": self.prior_lipschitz}),
        }

    def data_term(self, y: Tensor, physics: LinearPhysics) -> DataTerm:
        """See :class:`~retune.maps.base.AbstractMap`."""
        return DataTerm(y, physics, self.data_fidelity, lipschitz=self.lipschitz)

    def bind(self, data_term: DataTerm) -> BoundMap:
        """See :class:`~retune.maps.base.AbstractMap`."""
        return _BoundGradientStep(self, data_term)

    @torch.no_grad()
    def guarantee(self, data_term: DataTerm) -> Guarantee:
        """See :class:`~retune.maps.base.AbstractMap`: the constants of a ridge regulariser are known, RED has none."""
        constant = self.prior_constant(data_term.adjoint_y)  # (1,)
        reg = self.reg().to(data_term.lipschitz)[:, None]  # (layers, 1)
        smooth = data_term.lipschitz + self.strong_convexity
        lipschitz = smooth + reg * constant  # (layers, 1 or B): each layer steps along an F of its own λ
        steps = 2 * self.step_size().to(lipschitz)[:, None] / lipschitz
        assumptions = smooth_assumptions(data_term)
        if not isinstance(self.prior, Ridge):
            return Guarantee(
                row="any denoiser" if isinstance(self.prior, RED) else "smooth prior with the constant that was given",
                lipschitz=lipschitz,
                lipschitz_kind=data_term.sqnorm_kind,
                step_sizes=steps,
                assumptions=(
                    *assumptions,
                    Assumption("∇R is L_R-Lipschitz", False, f"{type(self.prior).__name__}: a number that was given"),
                ),
            )
        weak = reg.max() * self.prior.at(None, data_term.adjoint_y).weak_convexity
        room = data_term.strong_convexity + self.strong_convexity - weak
        convex = bool((room >= 0).all())
        how = "normalised filters, bounded spline slopes"
        if convex:
            statement = "the iterates converge to a minimiser" if self.layers == 1 else "every layer is averaged"
        else:
            statement = "the objective decreases with every layer" if self.layers == 1 else ""
        return Guarantee(
            row=f"{self.prior.convexity} ridge regulariser",
            statement=statement,
            convex=convex,
            lipschitz=lipschitz,
            lipschitz_kind=data_term.sqnorm_kind,
            strong_convexity=room.clamp_min(0),
            strong_convexity_from=self._source(data_term, room, weak),
            step_sizes=steps,
            assumptions=(*assumptions, Assumption("∇R is L_R-Lipschitz", True, how)),
        )

    def _source(self, data_term: DataTerm, room: Tensor, weak: Tensor) -> str:
        """Where μ comes from."""
        if not bool((room > 0).any()):
            return "none is known"
        parts = ["A"] if bool((data_term.strong_convexity > 0).any()) else []
        if self.strong_convexity:
            parts.append(f"the added ½ε‖x‖², ε = {self.strong_convexity:g}")
        return " and ".join(parts) + (", less the weak convexity of the prior" if bool((weak > 0).any()) else "")

    def objective(self, x: Tensor, data_term: DataTerm, layer: int = 0) -> Tensor:
        """``f(x) + λR(x) + ½ε‖x‖²`` per image, shape (B,), for a prior with a value.

        Raises:
            InvalidParameterError: a prior without a value (RED).
        """
        if isinstance(self.prior, DenoiserPrior) or not _has_value(self.prior):
            raise InvalidParameterError(f"{type(self.prior).__name__} has a gradient but no value, so no objective")
        value = data_term.fn(x) + self.reg().to(x)[layer] * self.prior.fn(x)
        return value + 0.5 * self.strong_convexity * x.square().flatten(1).sum(1) if self.strong_convexity else value

    def prior_constant(self, like: Tensor) -> Tensor:
        """``L_R``, shape (1,)."""
        if self.prior_lipschitz is not None:
            return like.new_tensor([self.prior_lipschitz])
        if isinstance(self.prior, Ridge):
            return self.prior.at(None, like).lipschitz
        assert isinstance(self.prior, RED)
        return like.new_tensor([self.prior.lipschitz_guess])


@dataclass(frozen=True)
class _Layer:
    minus_step: Tensor  # −τ
    reg: Tensor
    gradient: Callable[[Tensor], Tensor]  # ∇R


class _BoundGradientStep(BoundMap):
    """Per layer: the normal operator, the gradient of the prior, and three vector operations."""

    def __init__(self, owner: GradientStep, data_term: DataTerm):
        self.layers = owner.layers
        self._data_term, self._shape, self._box = data_term, data_term.shape, owner.box
        self._images: Tensor | None = None  # which of the problem; None: all
        self._data_gradient = data_term.grad
        self._damping, self._prior = owner.strong_convexity, owner.prior
        like = data_term.adjoint_y
        steps, regs = (t.to(data_term.device, data_term.dtype) for t in (owner.step_size(), owner.reg()))
        shared = None
        if isinstance(owner.prior, Ridge):
            ridge = owner.prior.at(None, like)
            constant, shared = ridge.lipschitz, ridge.grad
            if min(data_term.shape[-2:]) <= ridge.filters.reach or data_term.shape[1] != ridge.filters.channels:
                ridge.filters(like)  # raises, before anything is computed
        else:
            constant = owner.prior_constant(like)
        self._layers = []
        for k in range(self.layers):
            total = data_term.lipschitz + regs[k] * constant + self._damping  # (1 or B,)
            tau = (2 * steps[k] / total).reshape(-1, 1, 1, 1)
            self._layers.append(_Layer(-tau, regs[k], shared or _gradient(owner.prior, data_term.shape, k)))

    def select(self, index: Tensor) -> BoundMap | None:
        """Known where the data term knows it, for our priors: another one may hold something for each image."""
        images = index if self._images is None else self._images[index]
        data_gradient = self._data_term.grad_of(images) if isinstance(self._prior, Ridge | DenoiserPrior) else None
        if data_gradient is None:
            return None
        chosen, batch = copy.copy(self), self._shape[0]
        chosen._images, chosen._data_gradient = images, data_gradient
        chosen._shape = torch.Size((len(index), *self._shape[1:]))
        chosen._layers = [
            _Layer(
                rows(step.minus_step, index, batch),
                step.reg,
                _gradient(self._prior, chosen._shape, k) if isinstance(self._prior, DenoiserPrior) else step.gradient,
            )
            for k, step in enumerate(self._layers)
        ]
        return chosen

    def init(self) -> Tensor:
        """``Aᵀy/‖A‖²``, the holes of a mask filled in, inside the box."""
        start = self._data_term.adjoint_y / self._data_term.sqnorm.reshape(-1, 1, 1, 1)
        holes = holes_of(self._data_term.physics)
        start = start if holes is None else fill(start, holes)
        return self._project(start if self._images is None else start[self._images])

    def layer(self, u: Tensor, k: int = 0) -> Tensor:
        """``P(u − τ(∇f(u) + λ∇R(u) + εu))``."""
        step = self._layers[k % self.layers]
        direction = torch.addcmul(self._data_gradient(u), step.gradient(u), step.reg)
        if self._damping:
            direction = torch.add(direction, u, alpha=self._damping)
        return self._project(torch.addcmul(u, direction, step.minus_step))

    def _project(self, x: Tensor) -> Tensor:
        return x if self._box is None else x.clamp(*self._box)

    def image(self, u: Tensor) -> Tensor:
        return u

    def state(self, image: Tensor) -> Tensor:
        if image.shape != self._shape:
            raise ShapeError(
                f"expected images of shape {tuple(self._shape)} for this problem, got {tuple(image.shape)}"
            )
        return self._project(image)


def _gradient(prior: Prior, shape: torch.Size, layer: int) -> Callable[[Tensor], Tensor]:
    if isinstance(prior, DenoiserPrior):
        return prior.bind(shape, layer, torch.ones(()))
    # deepinv's Potential.grad sets requires_grad_ on what it is given, so it gets a view of its own.
    return lambda u: prior.grad(u.view_as(u))


def _check_prior(prior: Prior, constant: float | None) -> None:
    hint = "retune.priors.Ridge or RED, or a deepinv Prior with a gradient and prior_lipschitz=..."
    require("prior", prior, Prior, "a prior with a gradient", hint)
    if isinstance(prior, DenoiserPrior) and not isinstance(prior, RED):
        raise InvalidParameterError(
            "GradientStep needs the gradient of a prior; wrap the denoiser as retune.priors.RED(denoiser, sigma), or "
            "give retune.priors.Denoiser to retune.ForwardBackward"
        )
    if isinstance(prior, PnP | deepinv_prior.RED):
        raise InvalidParameterError(
            f"deepinv's {type(prior).__name__} prior hides its noise level, so it cannot be learned; write "
            "retune.priors.RED(prior.denoiser, sigma=10 / 255)"
        )
    if type(prior).grad is Potential.grad and not _has_value(prior):
        raise InvalidParameterError(f"{type(prior).__name__} has neither a gradient nor a value; {hint}")
    if constant is not None and not 0 < constant < float("inf"):
        raise InvalidParameterError(f"prior_lipschitz must be a positive finite number, got {constant}")
    known = isinstance(prior, Ridge | RED)
    if known and constant is not None:
        raise InvalidParameterError(
            f"prior_lipschitz={constant} was given, but {type(prior).__name__} has a constant of its own (Ridge "
            "computes it, RED(lipschitz=...) is told); leave it out"
        )
    if constant is None and not known:
        raise InvalidParameterError(
            f"the Lipschitz constant of ∇R of {type(prior).__name__} is not known; give it as prior_lipschitz=..., so "
            "that the step size can be kept below 2/L"
        )


def _has_value(prior: Prior) -> bool:
    return type(prior).fn is not Potential.fn or prior._fn is not None


def _box(box: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(b) for b in box)
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(f"box must be None or two numbers (low, high), got {box!r}") from error
    if not low < high:
        raise InvalidParameterError(f"box must be (low, high) with low < high, got {box!r}")
    return low, high
