"""The primal–dual iteration of Condat and Vũ on an analysis prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from deepinv.optim.data_fidelity import DataFidelity
from deepinv.optim.prior import Prior
from torch import Tensor

from retune._registry.entries import register
from retune._torch.batch import over_images, per_image_norm
from retune.errors import InvalidParameterError, require_real
from retune.guarantee import Guarantee
from retune.maps.base import BoundMap
from retune.maps.guarantees.proximal import primal_dual_guarantee
from retune.maps.with_prior import BoundWithPrior, MapWithPrior
from retune.operators.data_term import DataTerm
from retune.parameters import Bounded, Positive, require_box
from retune.priors.base import Analysis
from retune.priors.capabilities import bind_cycle, part_of, require_analysis

__all__ = ["PrimalDual"]


@register
class PrimalDual(MapWithPrior):
    r"""Condat–Vũ for ``min_x f(x) + λ g(Kx)`` with x in a box: total variation and other analysis priors.

    A multiplier p has the shape of ``Kx``. A layer computes ``x⁺ = P_box(x − τ(∇f(x) + Kᵀp))``, and then
    ``p⁺ = prox_{ς(λg)*}(p + ςK(2x⁺ − x))``.

    With b = `step_size`, the steps are ``ς/τ = r²`` and ``τL/2 + τς‖K‖² = b``. A sigmoid keeps the learned b in (0, 1),
    and r is positive, so training cannot leave the region ``1/τ − ς‖K‖² > L/2``. There the map is averaged in the
    metric ``[[I/τ, −Kᵀ], [−K, I/ς]]``, and its iterates converge to a minimiser and its multiplier (Condat, *J. Optim.
    Theory Appl.* 158, 2013, Theorem 3.1; Vũ, *Adv. Comput. Math.* 38, 2013). No factor below 1 is known, so no distance
    to the minimiser is proved.

    For least squares, ``f(x) = ½⟨x, Qx⟩ − …``, the step of x is a proximal step on f in the metric ``I/τ − Q``. So the
    two steps are a proximal point iteration in the metric ``[[I/τ − Q, −Kᵀ], [−K, I/ς]]``, and may be lengthened by any
    factor ρ < 2 (`relaxation`; Condat, Kitahara, Contreras, Hirabayashi, *SIAM Review* 65, 2023). A layer is
    ``u + ρ(T(u) − u)`` with ``τL + τς‖K‖² = b``, which needs about half of the layers.

    The ratio r changes the speed, not the minimiser. It balances the distances that x and p have to cover. For a norm
    g, p is about as large as λ, so ``r₀ = min(mλ/s, 2nL/‖K‖) + L/(2‖K‖)`` with the `multiplier` m of the prior, the
    standard deviation s of ``Aᵀy/‖A‖²`` (without the holes of a mask), and the longer side n of the image in pixels.
    The minimum serves images that λ flattens: there p stays far below λ. The last term hardly shortens the steps of x,
    and lets p move where A sees nothing. If the norm is smoothed by ε, ``r₁ = ¾√(λL/ε)`` is near the best ratio of
    strongly convex f and g* (Chambolle and Pock, *J. Math. Imaging Vis.* 40, 2011), and ``1/(1/r₀ + 1/r₁)`` takes the
    place of r₀. With c = `balance`, ``r = c r₀``; for other g, ``r = cλ``. At an equilibrium the gradient with respect
    to b and c is 0, so only a rule without restarts ([`Unrolled`][retune.Unrolled]) learns them.

    The state is one tensor (B, n + m): the image x, then the scaled multiplier ``q = p/r``. In these coordinates the
    metric is ``‖x‖² + ‖q‖² − 2√(τς)⟨Kx, q⟩`` (times 1/τ). It lies between ``1 ± √(τς)‖K‖`` times the Euclidean norm,
    so changes of q and of x count equally. The stopping rule compares the change of the whole state with ‖x‖: if the
    multiplier still moves, the image has not converged. A further variable w of the prior, as of
    [`TGV`][retune.priors.TGV], lies between x and q and is treated like x: the theorem is about (x, w).

    Args:
        prior: a prior with an analysis form, for example [`TV`][retune.priors.TV].
        data_fidelity: convex deepinv ``DataFidelity`` with a Lipschitz gradient, ``L2()`` by default.
        step_size: b, the share of the region of convergence that the steps use, strictly between 0 and 1.
        reg: λ > 0.
        balance: c > 0, a factor of the ratio r.
        box: (low, high), the allowed intensities; None does not restrict the image.
        relaxation: ρ, 1 or above and below 2; for other data terms than least squares it is 1.
        learn_step_size: whether b is trained.
        learn_reg: whether λ is trained.
        learn_balance: whether c is trained.
        lipschitz: Lipschitz constant of the gradient of ``d(·, y)``, for a fidelity that does not state it.

    Raises:
        InvalidParameterError: a parameter out of range, or a prior without an analysis form.
    """

    in_state_dict = ("step_size", "balance", "reg")
    added_later = ("relaxation",)

    def __init__(
        self,
        prior: Prior,
        data_fidelity: DataFidelity | None = None,
        step_size: float = 0.95,
        reg: float = 0.1,
        *,
        balance: float = 1.0,
        box: tuple[float, float] | None = None,
        relaxation: float = 1.8,
        learn_step_size: bool = True,
        learn_reg: bool = True,
        learn_balance: bool = True,
        lipschitz: float | None = None,
    ):
        require_analysis(prior, "PrimalDual")
        super().__init__(prior, data_fidelity, lipschitz)
        self.box = require_box(box)
        self.relaxation = require_real("relaxation", relaxation)
        if not 1 <= self.relaxation < 2:
            raise InvalidParameterError(f"relaxation must be at least 1 and below 2, got {relaxation}")
        self.step_size = Bounded(step_size, (1,), learn=learn_step_size, name="step_size")
        self.balance = Positive(balance, learn=learn_balance, name="balance")
        self.reg = Positive(reg, (1,), learn=learn_reg, name="reg")

    def bind(self, data_term: DataTerm) -> BoundMap:
        """See [`AbstractMap`][retune.AbstractMap]."""
        return _BoundPrimalDual(self, data_term)

    @torch.no_grad()
    def guarantee(self, data_term: DataTerm) -> Guarantee:
        """See [`AbstractMap`][retune.AbstractMap]: averaged in a metric, if f and g are convex."""
        return primal_dual_guarantee(self, self.steps(data_term), data_term)

    def objective(self, x: Tensor, data_term: DataTerm) -> Tensor:
        """``f(x) + λ g(Kx)`` per image, shape (B,), for images x in the box.

        Raises:
            InvalidParameterError: the prior has no value.
        """
        return self._objective(x, data_term)

    def steps(self, data_term: DataTerm, scale: Tensor | None = None) -> PrimalDualSteps:
        """The step sizes for a data term, and the prior bound to them.

        Args:
            data_term: the data term.
            scale: 1/r of another bound map, (B,), to use its coordinates.
        """
        share, balance, reg = (
            p().reshape(()).to(data_term.device, data_term.dtype) for p in (self.step_size, self.balance, self.reg)
        )
        analysis, half = self._analysis(data_term, reg), data_term.lipschitz / 2
        sqnorm = analysis.sqnorm.to(half)
        ratio = balance * _balanced(analysis, reg, data_term)
        first = data_term.lipschitz if data_term.quadratic else half
        # hypot(L, 2√b r‖K‖): squares of a large λ would overflow in float32
        tau = 2 * share / (first + torch.hypot(first, 2 * share.sqrt() * sqnorm.sqrt() * ratio))
        # A constant: at an equilibrium (x, p) the derivative with respect to the steps is then exactly 0.
        weight = (1 / ratio).detach() if scale is None else scale
        if analysis.homogeneous:  # w prox_{ς(λg)*}(q/w) is the dual prox for the strength wλ
            analysis = self._analysis(data_term, over_images(reg * weight))
        relaxation = self.relaxation if data_term.quadratic else 1.0
        return PrimalDualSteps(tau, ratio * (ratio * tau), weight, sqnorm, analysis, relaxation)

    def _analysis(self, data_term: DataTerm, strength: Tensor) -> Analysis:
        (bound,) = bind_cycle([self.prior], data_term.shape, [strength])
        return part_of(self.prior, bound, "analysis")


@dataclass
class PrimalDualSteps:
    """The constants of the iteration, each (1 or B,).

    Attributes:
        tau: τ.
        sigma: ς.
        scale: w, the scale of the multiplier in the state, ``q = wp``. It is 1/r, treated as a constant.
        sqnorm: an upper bound of ``‖K‖²``.
        analysis: the prior, bound to the strength λ (wλ if it is homogeneous).
        relaxation: ρ.
    """

    tau: Tensor
    sigma: Tensor
    scale: Tensor
    sqnorm: Tensor
    analysis: Analysis
    relaxation: float

    @property
    def dual_prox(self) -> Callable[[Tensor], Tensor]:
        """``q ↦ w prox_{ς(λg)*}(q/w)``."""
        prox, sigma = self.analysis.dual_prox, self.sigma
        if self.analysis.homogeneous:
            return lambda q: prox(q, sigma)
        return lambda q: over_images(self.scale, q.ndim) * prox(q / over_images(self.scale, q.ndim), sigma)


class _BoundPrimalDual(BoundWithPrior):
    """Cost per layer: the normal operator, K and its adjoint, the dual prox, and a few vector operations."""

    def __init__(self, owner: PrimalDual, data_term: DataTerm, scale: Tensor | None = None):
        super().__init__(owner, data_term)
        self._owner, self._box = owner, owner.box
        self._steps = steps = owner.steps(data_term, scale)
        self._analysis, self._dual = steps.analysis, steps.dual_prox
        self._minus_step = -over_images(steps.tau)
        self._minus_back = -over_images(steps.tau / steps.scale)  # of Kᵀq
        self._relaxation = steps.relaxation
        self._pixels = data_term.shape[1:].numel()
        with torch.no_grad():
            zero = torch.zeros_like(data_term.adjoint_y)
            further = steps.analysis.start(zero)
            self._further = 0 if further is None else further.shape[1]
            self._dual_shape = steps.analysis.of(zero, further).shape[1:]
        self._ahead = over_images(steps.sigma * steps.scale, len(self._dual_shape) + 1)  # of K(2x⁺ − x)

    def with_steps_of(self, other: BoundMap) -> BoundMap:
        """See [`BoundMap`][retune.BoundMap]: this map in the coordinates of the other map."""
        steps: PrimalDualSteps | None = getattr(other, "_steps", None)
        return self if steps is None else _BoundPrimalDual(self._owner, self.data_term, steps.scale)

    def init(self) -> Tensor:
        """``Aᵀy/‖A‖²`` with the holes of a mask filled in, projected onto the box; the multiplier is 0.

        For a blur with a valid boundary: the measurement, continued by its mirror image.
        """
        continued = self.data_term.continued
        return self.state(self._back_projection() if continued is None else continued)

    def layer(self, u: Tensor, k: int = 0) -> Tensor:
        """One step of x (and w), then one of q, at ``2x⁺ − x``; and ρ times both."""
        x, w, q = self._parts(u)
        back, back_w = self._analysis.back(q)
        moved = torch.addcmul(x, self._gradient(x), self._minus_step)
        new = self._project(torch.addcmul(moved, back, self._minus_back))
        if w is None or back_w is None:
            new_w, ahead = None, self._analysis.of(torch.lerp(x, new, 2.0), None)
        else:
            new_w = torch.addcmul(w, back_w, self._minus_back.reshape(-1, 1))
            ahead = self._analysis.of(torch.lerp(x, new, 2.0), torch.lerp(w, new_w, 2.0))
        new_q = self._dual(torch.addcmul(q, ahead, self._ahead))
        stepped = torch.cat([p.flatten(1) for p in (new, new_w, new_q) if p is not None], 1)
        return stepped if self._relaxation == 1 else torch.lerp(u, stepped, self._relaxation)

    def image(self, u: Tensor) -> Tensor:
        return self._project(self._parts(u)[0])  # a lengthened step may leave the box

    def state(self, image: Tensor) -> Tensor:
        return self.image_adjoint(self._project(self._require(image)))

    def image_adjoint(self, image: Tensor) -> Tensor:
        return torch.cat([image.flatten(1), image.new_zeros(len(image), self._further + self._dual_shape.numel())], 1)

    def size(self, u: Tensor) -> Tensor:
        """``‖x‖``."""
        return per_image_norm(u[:, : self._pixels])

    def norm(self, u: Tensor) -> Tensor:
        """``√(‖x‖² + ‖q‖² − 2√(τς)⟨Kx, q⟩)``, the metric times √τ; with w, (x, w) in place of x.

        For least squares, ``‖x‖² − τ⟨x, Qx⟩`` is in place of ``‖x‖²``.
        """
        x, w, q = self._parts(u)
        product = (self._analysis.of(x, w) * q).flatten(1).sum(1)
        square = u.square().sum(1) + 2 * self._minus_back.flatten() * product
        if self.data_term.quadratic:
            curved = self.data_term.normal(x) * self.data_term.inverse_variance
            square = square - self._steps.tau * (x * curved).flatten(1).sum(1)
        return square.abs().sqrt()  # a square below 0, of a wrong ‖A‖², must not hide a growth

    def visible(self, v: Tensor, u: Tensor) -> Tensor:
        """A change of the image; it moves the multiplier in the next layer.

        In flat parts of the image, a field q with ``Kᵀq = 0`` does not change the image, and no image moves it.
        """
        return self.image_adjoint(self._parts(v)[0])

    def _parts(self, u: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """The image, the further variable (flat) and the scaled multiplier of a state; views."""
        x, w, q = u.split([self._pixels, self._further, self._dual_shape.numel()], 1)
        return x.unflatten(1, self._shape[1:]), w if self._further else None, q.unflatten(1, self._dual_shape)

    def _project(self, x: Tensor) -> Tensor:
        return x if self._box is None else x.clamp(*self._box)


def _balanced(analysis: Analysis, reg: Tensor, data_term: DataTerm) -> Tensor:
    """The ratio of the steps for ``balance = 1``, (1 or B,); with constants that `benchmarks/balance.py` judges."""
    lipschitz, smoothing = data_term.lipschitz, analysis.smoothing
    if not analysis.homogeneous and smoothing is None:
        return reg * torch.ones_like(lipschitz)
    norm = analysis.sqnorm.to(lipschitz).sqrt()
    # Of a single pixel all differences are 0, and any ratio will do.
    scale = torch.where(norm > 0, lipschitz / norm, torch.ones_like(norm))
    # Where λ would flatten the image, p stays far below λ: ‖p‖ is at most about nL/‖K‖ times the contrast.
    most = 2 * max(data_term.shape[-2:]) * scale
    ratio = torch.minimum(reg * analysis.multiplier / _contrast(data_term), most) + scale / 2
    if smoothing is None:
        return ratio
    share = smoothing / (reg * lipschitz)
    # A sum with a norm has the smoothing 0, where a root would have the derivative NaN.
    return 1 / (1 / ratio + torch.where(share > 0, share, 1.0).sqrt() * (share > 0) / 0.75)


def _contrast(data_term: DataTerm) -> Tensor:
    """The standard deviation (B,) of ``Aᵀy/‖A‖²``, 1 for a constant image: the scale of the changes of x.

    Of a mask only the measured pixels count: its holes are filled in before the first layer.
    """
    start = data_term.adjoint_y.detach() / over_images(data_term.sqnorm)
    known = torch.ones_like(start) if data_term.holes is None else (~data_term.holes).to(start).expand_as(start)
    start, known = start.flatten(1), known.flatten(1)
    count = known.sum(1, keepdim=True).clamp_min(1)
    middle = (known * start).sum(1, keepdim=True) / count
    spread = ((known * (start - middle).square()).sum(1) / count.flatten()).sqrt()
    return torch.where(spread > 0, spread, torch.ones_like(spread))
