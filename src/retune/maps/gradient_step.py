"""Gradient steps on a smooth prior."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from deepinv.optim.data_fidelity import DataFidelity
from deepinv.optim.prior import Prior
from torch import Tensor

from retune._registry.entries import register
from retune._torch.batch import over_images
from retune.errors import InvalidParameterError, require_real, require_whole
from retune.guarantee import Guarantee, Smoothness
from retune.maps.base import BoundMap
from retune.maps.guarantees.smooth import backtracking_guarantee, gradient_step_guarantee
from retune.maps.with_prior import BoundWithPrior, MapWithPrior
from retune.operators.curvature import largest_curvature
from retune.operators.data_term import DataTerm
from retune.parameters import Bounded, Positive, require_box, require_damping
from retune.priors.base import AbstractPrior, BoundPrior
from retune.priors.capabilities import adapt, bind_cycle, part_of, require_grad, smoothness_of
from retune.solvers.base import Objective

__all__ = ["GradientStep"]


@register
class GradientStep(MapWithPrior):
    r"""``T(x) = P_box(x − τ(∇f(x) + λ∇R(x) + εx))``: projected gradient descent on ``f + λR + ½ε‖·‖²``.

    With `towards_start` the last term is ``½ε‖· − x₀‖²``, and its gradient ``ε(x − x₀)``, here and below.

    The step size is ``τ = 2s/(L_f + λ L_R + ε)``. A sigmoid keeps the learned s in (0, 1). ``L_f = ‖A‖²/σ²`` comes from
    the problem, ``L_R`` from the prior; ε is 0 by default.

    If these are Lipschitz constants, every layer decreases the objective, for any learned values. If ``f + λR`` is
    also convex, T is averaged and the iterates converge to a minimiser. A convex ridge regulariser ensures both by
    construction. With a weakly convex one the objective still decreases, and every limit point is stationary (Attouch,
    Bolte, Svaiter, Math. Program. 137, 2013). For [`RED`][retune.priors.RED] the constant is a guess, and convergence
    is not guaranteed.

    An [`Energy`][retune.priors.Energy] has a value, but no known constant. For it,
    [`QuasiNewton`][retune.QuasiNewton] searches for the steps, and the objective decreases for any weights. Training
    differentiates layers with ``τ = 1/‖∇²F(u)‖`` at the reached state u, and certificates examine the same layers.

    Counts of photons have a noise that grows with the brightness. With ``root = c`` the state is ``t = √(x + c)`` of an
    image ``x ≥ −c``, and the map minimises ``f(t² − c) + λR(t) + ½ε‖t‖²``. With ``c = read²/gain`` the noise of t has
    the same level everywhere, ``½√gain`` (the idea of F. J. Anscombe, *Biometrika* 35, 1948). So one noise level of the
    prior suits dark and bright parts. No Lipschitz constant exists, and the step size is searched for as for an energy.

    Args:
        prior: a prior with a gradient: [`Ridge`][retune.priors.Ridge], [`RED`][retune.priors.RED], or any deepinv
            ``Prior`` with a gradient and `prior_lipschitz`.
        data_fidelity: deepinv ``DataFidelity`` with a Lipschitz gradient, ``L2()`` by default.
        step_size: s, strictly between 0 and 1; one number or one per layer.
        reg: λ > 0; one number or one per layer.
        layers: number of different layers in a cycle. The layers share filters and networks; each has its own s and λ
            (and σ).
        box: (low, high), the allowed intensities; None does not restrict the image.
        root: c ≥ 0, on the scale of the image; None minimises over the image itself.
        learn_step_size: whether s is trained.
        learn_reg: whether λ is trained.
        lipschitz: Lipschitz constant of the gradient of ``d(·, y)``, for a fidelity that does not state it.
        prior_lipschitz: Lipschitz constant of ``∇R`` for a prior that does not state it.
        strong_convexity: ε ≥ 0 adds ``½ε‖x‖²`` to the objective. With ε > 0 and a convex ridge regulariser the map is a
            contraction for any A. A ρ-weakly convex regulariser needs ``ε + μ > λρ``, where μ is the strong convexity
            of f. The term pulls the image towards 0, so keep ε small compared with ``‖A‖²/σ²``.
        towards_start: whether ε pulls towards the map's own start x₀ instead, ``½ε‖x − x₀‖²``. x₀ is about as bright as
            the image, so dark images stay dark and bright ones bright, also where A sees nothing.

    Raises:
        InvalidParameterError: a parameter out of range, or a prior without a gradient or without a known Lipschitz
            constant.
    """

    added_later = ("lipschitz", "prior_lipschitz", "root", "towards_start")

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
        towards_start: bool = False,
        root: float | None = None,
    ):
        able = require_grad(prior, "GradientStep")
        layers = require_whole("layers", layers)
        if layers < 1:
            raise InvalidParameterError(f"layers must be at least 1 (tied weights), got {layers}")
        super().__init__(able.per_layer(layers)[0] if able.shares_layers else prior, data_fidelity, lipschitz)
        self.layers = layers
        self.strong_convexity, self.towards_start = require_damping(strong_convexity), bool(towards_start)
        self.box = require_box(box)
        self.prior_lipschitz = None if prior_lipschitz is None else require_real("prior_lipschitz", prior_lipschitz)
        _check_constant(prior, self.prior_lipschitz)
        self.nonexpansive = not able.may_expand
        self.root = None if root is None else _require_root(root, self.box, able)
        self.backtracks = self.root is not None or (self.prior_lipschitz is None and _unbounded(prior))
        if self.backtracks and layers > 1:
            whose = f"the gradient of {type(prior).__name__}" if root is None else "the objective of a root"
            raise InvalidParameterError(
                f"layers={layers}, but {whose} has no known Lipschitz constant: its "
                "step size is searched for by the value of one objective, that of a single layer. Give layers=1"
            )
        self.symmetric = self.nonexpansive and not self.backtracks and layers == 1
        learn_step_size = learn_step_size and not self.backtracks  # the equilibrium does not depend on it
        self.step_size = Bounded(step_size, (layers,), learn=learn_step_size, name="step_size")
        self.reg = Positive(reg, (layers,), learn=learn_reg, name="reg")

    def bind(self, data_term: DataTerm) -> BoundMap:
        """See [`AbstractMap`][retune.AbstractMap]."""
        return _BoundGradientStep(self, data_term)

    @torch.no_grad()
    def guarantee(self, data_term: DataTerm) -> Guarantee:
        """See [`AbstractMap`][retune.AbstractMap]: facts from the prior's statement about its gradient."""
        if self.backtracks:
            return backtracking_guarantee(self, data_term)
        return gradient_step_guarantee(self, self._smoothness(data_term.adjoint_y), data_term)

    def _smoothness(self, like: Tensor) -> Smoothness:
        """The facts about ∇R: the given constant if there is one, else the prior's statement."""
        if self.prior_lipschitz is not None:
            how = f"{type(self.prior).__name__}: the constant was given"
            return Smoothness(like.new_tensor([self.prior_lipschitz]), how=how)
        known = smoothness_of(self.prior, like)
        assert known is not None
        return replace(known, lipschitz=torch.as_tensor(known.lipschitz).to(like).reshape(-1))

    def objective(self, x: Tensor, data_term: DataTerm, layer: int = 0) -> Tensor:
        """``f(x) + λR(x) + ½ε‖x‖²`` per image, shape (B,), for a prior with a value; for a root with t in R and ε.

        With `towards_start` the last term is ``½ε‖x − x₀‖²``.

        Raises:
            InvalidParameterError: the prior has no value (RED).
        """
        if not adapt(self.prior).has_value:
            raise InvalidParameterError(
                f"{type(self.prior).__name__} has a gradient but no value, so the objective is unknown"
            )
        u = x if self.root is None else (x + self.root).clamp_min(0).sqrt()
        value = data_term.fn(x) + self.reg().to(x)[layer] * self.prior.fn(u)
        if not self.strong_convexity:
            return value
        away = u - self.bind(data_term).init() if self.towards_start else u
        return value + 0.5 * self.strong_convexity * away.square().flatten(1).sum(1)

    def prior_constant(self, like: Tensor) -> Tensor:
        """``L_R``, shape (1,) or (B,). If it is unknown, the result is 1, and the search begins there."""
        if self.backtracks:
            return like.new_ones(1)
        return torch.as_tensor(self._smoothness(like).lipschitz)


@dataclass(frozen=True)
class _Layer:
    minus_step: Tensor  # −τ
    reg: Tensor
    prior: BoundPrior

    def gradient(self, u: Tensor) -> Tensor:
        """``∇R(u)``."""
        assert self.prior.grad is not None
        return self.prior.grad(u)


class _BoundGradientStep(BoundWithPrior):
    """Cost per layer: the normal operator, the gradient of the prior, and three vector operations."""

    def __init__(self, owner: GradientStep, data_term: DataTerm):
        super().__init__(owner, data_term)
        self._damping, self._root = owner.strong_convexity, owner.root
        self._box = owner.box if owner.root is None else _box_of_root(owner.box, owner.root)
        steps, regs = (t.to(data_term.device, data_term.dtype) for t in (owner.step_size(), owner.reg()))
        bound = bind_cycle([owner.prior], data_term.shape, [steps.new_ones(())] * self.layers)
        constant = owner.prior_constant(data_term.adjoint_y)
        self._layers = []
        for k in range(self.layers):
            part_of(owner.prior, bound[k], "grad")
            total = data_term.lipschitz + regs[k] * constant + self._damping  # (1 or B,)
            self._layers.append(_Layer(-over_images(2 * steps[k] / total), regs[k], bound[k]))
        fidelity = data_term.lipschitz
        if self._root is not None:
            self._gradient = self._of_root
            # The curvature of f(t² − c) where its gradient is small, at the brightest pixel of the first image.
            fidelity = fidelity * 4 * self.init().detach().flatten(1).amax(1).square()
        # ε(u − x₀) is εu − εx₀, and the second part does not change.
        self._pull = self._damping * self.init() if self._damping and owner.towards_start else None
        self._first_constant = fidelity + regs[0] * constant + self._damping
        self._backtracks = self._searches = owner.backtracks  # no step size is known yet

    def init(self) -> Tensor:
        """``Aᵀy/‖A‖²`` with the holes of a mask filled in, projected onto the box.

        For a blur with a valid boundary: the measurement, continued by its mirror image.
        """
        continued = self.data_term.continued
        return self.state(self._back_projection() if continued is None else continued)

    def layer(self, u: Tensor, k: int = 0) -> Tensor:
        """``P(u − τ(∇f(u) + λ∇R(u) + εu))``."""
        if self._searches:
            self._take_step(self.init())  # not at u: the layer must not depend on the first state
        step = self._layers[k % self.layers]
        return self._project(torch.addcmul(u, self._direction(u, step), step.minus_step))

    def _of_root(self, u: Tensor) -> Tensor:
        """The gradient of ``f(t² − c)``."""
        return 2 * u * self.data_term.grad(self.image(u))

    def _direction(self, u: Tensor, step: _Layer) -> Tensor:
        """``∇f(u) + λ∇R(u) + εu``."""
        direction = torch.addcmul(self._gradient(u), step.gradient(u), step.reg)
        return self._damped(direction, u)

    def _damped(self, direction: Tensor, u: Tensor) -> Tensor:
        """``direction + ε(u − x₀)``."""
        if not self._damping:
            return direction
        direction = torch.add(direction, u, alpha=self._damping)
        return direction if self._pull is None else direction - self._pull

    def at(self, u: Tensor) -> BoundMap:
        """See [`BoundMap`][retune.BoundMap]. If no constant is known, the copy has ``τ = 1/‖∇²F(u)‖``."""
        if not self._backtracks:
            return self
        here = copy.copy(self)
        here._take_step(u)
        return here

    def with_steps_of(self, other: BoundMap) -> BoundMap:
        """See [`BoundMap`][retune.BoundMap]."""
        steps = getattr(other, "_layers", None)
        if not self._backtracks or steps is None:
            return self
        here = copy.copy(self)
        here._layers = [replace(mine, minus_step=s.minus_step) for mine, s in zip(self._layers, steps, strict=True)]
        here._searches = False
        return here

    def _take_step(self, u: Tensor) -> None:
        (layer,) = self._layers
        with torch.no_grad():
            found = largest_curvature(lambda x: self._direction(x, layer), u.detach())
            step = 1 / torch.maximum(found, self._first_constant.min() * 1e-3)
        self._layers, self._searches = [replace(layer, minus_step=-over_images(step))], False

    def objective(self) -> Objective | None:
        """See [`BoundMap`][retune.BoundMap]: ``f + λR + ½ε‖·‖²`` and the box, for one layer."""
        layer = self._layers[0]
        prior, term = layer.prior, self.data_term
        if self.layers > 1 or prior.fn is None:
            return None
        reg = layer.reg.detach()
        form = self._gradient if term.quadratic and self._root is None else None
        value_and_gradient = prior.fn_and_grad or _one_by_one(prior)

        def quadratic(u: Tensor) -> Tensor:
            return self._damped(torch.zeros_like(u) if form is None else form(u), u)

        def smooth(u: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = value_and_gradient(u)
            value, gradient = reg.double() * value.double(), reg * gradient
            if form is not None:
                return value, gradient
            return value + term.fn(self.image(u)).double(), gradient + self._gradient(u)

        def smooth_value(u: Tensor) -> Tensor:
            assert prior.fn is not None
            value = reg.double() * prior.fn(u).double()
            return value if form is not None else value + term.fn(self.image(u)).double()

        def select(index: Tensor) -> Objective | None:
            part = self.select(index)
            return None if part is None else part.objective()

        return Objective(
            quadratic, smooth, smooth_value, self._first_constant, lambda v, _: self._project(v), select=select
        )

    def _project(self, x: Tensor) -> Tensor:
        return x if self._box is None else x.clamp(*self._box)

    def image(self, u: Tensor) -> Tensor:
        return u if self._root is None else u.square() - self._root

    def state(self, image: Tensor) -> Tensor:
        image = self._require(image)
        return self._project(image if self._root is None else (image + self._root).clamp_min(0).sqrt())


def _box_of_root(box: tuple[float, float] | None, root: float) -> tuple[float, float]:
    """The bounds of ``t = √(x + c)``."""
    return (0.0, math.inf) if box is None else (math.sqrt(box[0] + root), math.sqrt(box[1] + root))


def _require_root(root: float, box: tuple[float, float] | None, prior: AbstractPrior) -> float:
    """The pedestal of a root, if it suits the box and the prior."""
    root = require_real("root", root)
    if not 0 <= root < math.inf:
        raise InvalidParameterError(f"root must be a finite number of at least 0, got {root:g}")
    if box is not None and box[0] < -root:
        raise InvalidParameterError(
            f"root={root:g} describes images from {-root:g} on, but box={box} begins below: give box=({-root:g}, …)"
        )
    if not prior.has_value:
        raise InvalidParameterError(
            "root needs a prior with a value, because its step size is searched for: an Energy or a Ridge"
        )
    return root


def _one_by_one(prior: BoundPrior) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    value, gradient = prior.fn, prior.grad
    assert value is not None
    assert gradient is not None
    return lambda u: (value(u), gradient(u))


def _unbounded(prior: Prior) -> bool:
    """Whether the prior has a value, and states that its gradient has no known constant. Then the step is searched."""
    known = smoothness_of(prior, torch.zeros(1))
    return known is not None and known.lipschitz is None and adapt(prior).has_value


def _check_constant(prior: Prior, constant: float | None) -> None:
    """Require exactly one constant: a given one, or the one that the prior states."""
    name = type(prior).__name__
    if constant is not None and not 0 < constant < float("inf"):
        raise InvalidParameterError(f"prior_lipschitz must be a positive finite number, got {constant}")
    stated = smoothness_of(prior, torch.zeros(1))
    if (
        constant is not None
        and stated is not None
        and stated.lipschitz is not None
        and callable(getattr(prior, "smoothness", None))
    ):
        raise InvalidParameterError(
            f"prior_lipschitz={constant} was given, but {name} states its own constant (Ridge computes it, RED takes "
            "it as lipschitz=...); leave prior_lipschitz out"
        )
    if constant is None and stated is None:
        raise InvalidParameterError(
            f"the Lipschitz constant of ∇R of {name} is unknown; give it as prior_lipschitz=..., or state it in the "
            "prior's smoothness(like), so that the step size can be kept below 2/L"
        )
