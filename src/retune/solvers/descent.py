"""Descent with backtracking: the step size is found for each image, so the objective never rises."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from retune._registry.entries import register
from retune._torch.batch import over_images
from retune.errors import InvalidParameterError, require_real
from retune.operators.curvature import largest_curvature
from retune.solvers._backtracking import CLEAR, FIRST, FORGET, ROUNDING, confirmed, inner, norm, usable_or
from retune.solvers.base import AbstractSolver, Objective, SolverState

__all__ = ["Descent"]


@register
class Descent(AbstractSolver):
    r"""Monotone accelerated proximal gradient descent with backtracking, independently for each image.

    For an objective ``F = f + h`` with smooth f and simple h (a box, or a convex function with a prox). From
    ``z = x + β(x − x⁻)`` it tries ``x⁺ = prox_{h/L}(z − ∇f(z)/L)`` and accepts it if

    ``f(x⁺) ≤ f(z) + ⟨∇f(z), d⟩ + (L/2)‖d‖²`` with ``d = x⁺ − z``,

    and if ``F(x⁺) ≤ F(x)``. If the first fails, L grows by the factor `growth`. If the second fails, the next step is a
    plain step from x. After an accepted step, L shrinks by the factor `shrink`. The momentum ``β = k/(k + 3)`` restarts
    if it points uphill (O'Donoghue and Candès, *Found. Comput. Math.* 15, 2015).

    The Lipschitz constant need not be known, and need not exist on the whole space. So this solver suits learned
    energies, whose curvature may change by any factor in training. F never rises, up to rounding, for any weights.

    Close to the minimum the decrease of F is smaller than the rounding of its values. Then L is tested with gradients:
    ``⟨∇f(z) − ∇f(z'), z − z'⟩ ≤ L ‖z − z'‖²`` for the last two points z, z' with known gradients. The quadratic part of
    f is always compared by its gradients, because ``q(a) − q(b) = ½⟨∇q(a) + ∇q(b), a − b⟩``.

    A step costs a gradient and a value of the part that is not quadratic, and one gradient of the quadratic part. A
    refused step costs the same, and does not change the image. The start costs three more gradients: L begins at the
    curvature measured there, if this is below the stated constant.

    L may be far larger than the curvature: because the stated constant is pessimistic, after refused steps, or if the
    values of F do not fit its gradients. Then steps of length 1/L are short, although the gradient is not small. So
    the residual is that of a step of length 1/M. M is the curvature of the last steps: the largest
    ``‖∇f(z) − ∇f(z')‖/‖z − z'‖``, or the curvature of a refused step. Each later step multiplies M by 0.97.
    Before an image counts as converged, its curvature is measured at the image itself, by a few products with the
    Hessian. The residual must be small for that curvature, too.

    Sources: Beck, Teboulle, *A fast iterative shrinkage-thresholding algorithm*, SIAM J. Imaging Sci. 2, 2009
    (backtracking); Li, Lin, *Accelerated proximal gradient methods for nonconvex programming*, NeurIPS 2015 (monotone).

    Args:
        growth: factor > 1 on L after a refused step.
        shrink: factor in (0, 1] on L after an accepted step.

    Raises:
        InvalidParameterError: an argument is out of range; or, in use, the map has no objective.
    """

    unit = "cycle"
    monotone = True

    def __init__(self, growth: float = 1.5, shrink: float = 0.97):
        growth, shrink = require_real("growth", growth), require_real("shrink", shrink)
        if not (growth > 1 and 0 < shrink <= 1):
            raise InvalidParameterError(
                f"Descent needs growth > 1 and 0 < shrink ≤ 1, got growth={growth}, shrink={shrink}"
            )
        self.growth, self.shrink = growth, shrink

    def bind(self, objective: Callable[[], Objective | None]) -> AbstractSolver:
        """See [`AbstractSolver`][retune.AbstractSolver]."""
        found = objective()
        if found is None:
            raise InvalidParameterError(
                "Descent needs the value of the objective, but this map has none: its prior has no value (a "
                "denoiser, RED), or its layers minimise different functions. Use retune.Damped() or retune.Anderson()"
            )
        return _BoundDescent(self, found)

    def init(self, u: Tensor) -> SolverState:
        """See [`AbstractSolver`][retune.AbstractSolver]."""
        raise InvalidParameterError("Descent was not bound to an objective: call bind(...) first, as Restarted does")

    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        """See [`AbstractSolver`][retune.AbstractSolver]."""
        return self.init(state.u)


class _Memory(NamedTuple):
    """The memory between steps; everything has the leading axis B.

    Attributes:
        before: x⁻.
        age: k, steps since the momentum started.
        constant: L.
        value: value at x of the parts of F that are not quadratic, in float64.
        quadratic: gradient at x of the quadratic part.
        quadratic_before: the same at x⁻.
        point: z', the point of the last gradient.
        gradient: ∇f(z').
        curvature: M, measured on the last steps.
    """

    before: Tensor
    age: Tensor
    constant: Tensor
    value: Tensor
    quadratic: Tensor
    quadratic_before: Tensor
    point: Tensor
    gradient: Tensor
    curvature: Tensor


class _BoundDescent(AbstractSolver):
    unit = "cycle"
    monotone = True

    def __init__(self, options: Descent, objective: Objective):
        self._options, self._objective = options, objective

    def select(self, index: Tensor) -> AbstractSolver | None:
        part = self._objective.select(index)
        return None if part is None else _BoundDescent(self._options, part)

    def init(self, u: Tensor) -> SolverState:
        f = self._objective
        zero = u.new_zeros(len(u))
        constant = f.lipschitz.detach().to(u).reshape(-1).expand(len(u))
        found = largest_curvature(f.gradient, u, products=FIRST)
        curvature = usable_or(found, constant)
        quadratic = f.quadratic(u)
        memory = _Memory(
            before=u,
            age=zero,
            constant=torch.minimum(constant, 2 * curvature),
            value=f.value(u),
            quadratic=quadratic,
            quadratic_before=quadratic,
            point=u,
            gradient=torch.zeros_like(u),
            curvature=curvature,
        )
        return SolverState(u, torch.zeros_like(u), tuple(memory))

    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        f, x, m = self._objective, state.u, _Memory(*state.memory)
        eps, options = torch.finfo(x.dtype).eps, self._options
        momentum = over_images(m.age / (m.age + 3), x.ndim)
        z = torch.addcmul(x, x - m.before, momentum)
        # The gradient of a quadratic form is affine, so that at z follows from those at x and x⁻.
        quadratic_z = torch.addcmul(m.quadratic, m.quadratic - m.quadratic_before, momentum)
        smooth_z, gradient_z = f.smooth(z)
        gradient = quadratic_z + gradient_z
        step = over_images(1 / m.constant, x.ndim)
        new = f.backward(torch.addcmul(z, gradient, step, value=-1), step)
        d = new - z
        quadratic_new = f.quadratic(new)
        smooth_new, rest_new = f.parts(new)
        value = smooth_new + rest_new

        # The excess of f(x⁺) over its linearisation at z, and the allowed excess.
        excess = 0.5 * inner(quadratic_new - quadratic_z, d) + smooth_new - smooth_z - inner(gradient_z, d)
        allowed = 0.5 * m.constant * inner(d, d)
        noise = 2 * ROUNDING * eps * smooth_z.abs()
        seen = allowed > noise
        # If rounding hides the values, the curvature between the last two points decides.
        moved, turned = z - m.point, gradient - m.gradient
        length = inner(moved, moved)
        blur = ROUNDING * eps * m.constant * (inner(z, z) * length).sqrt()
        steep = (m.age > 0) & (inner(turned, moved) > m.constant * length + blur)
        clear = (m.age > 0) & (length > (CLEAR * eps) ** 2 * inner(z, z))
        ratio = norm(turned) / norm(moved).clamp_min(torch.finfo(x.dtype).tiny)
        ratio = ratio.to(x.dtype)
        clear = clear & torch.isfinite(ratio)
        curvature = torch.where(clear, torch.maximum(ratio, FORGET * m.curvature), m.curvature)
        # A refused step shows a curvature that no pair of gradients has shown yet.
        met = (2 * excess / inner(d, d).clamp_min(torch.finfo(x.dtype).tiny)).to(x.dtype)
        met = torch.where(seen & torch.isfinite(met), met, 0).clamp_max(m.constant * options.growth)
        curvature = torch.maximum(curvature, met)
        fits = torch.where(seen, excess <= allowed + noise, ~steep) & torch.isfinite(value)

        step_x = new - x
        rise = 0.5 * inner(quadratic_new + m.quadratic, step_x) + value - m.value
        slack = 2 * ROUNDING * eps * m.value.abs()
        slack = slack + ROUNDING * eps * (inner(m.quadratic, m.quadratic) * inner(step_x, step_x)).sqrt()
        falls = rise <= slack
        fits = fits & (falls | (m.age > 0))  # a plain step that rises was too long
        taken = fits & falls
        uphill = inner(d, step_x) < 0  # ⟨z − x⁺, x⁺ − x⟩ > 0

        constant = torch.where(fits, m.constant, m.constant * options.growth)
        constant = torch.where(taken & (seen | (constant > curvature)), constant * options.shrink, constant)
        # The momentum may leave the domain of f, for example the logarithm of Poisson noise. Then L is not too small.
        lost = (m.age > 0) & ~(torch.isfinite(smooth_z) & torch.isfinite(gradient).flatten(1).all(1))
        constant = torch.where(lost, m.constant, constant.clamp_max(1e-3 * torch.finfo(x.dtype).max))
        # If the momentum increased F, it restarts; if L was too small, the step is tried again with a larger L.
        again = (taken & ~uphill).to(m.age)
        age = torch.where(fits, (m.age + 1) * again, torch.where(lost, 0, m.age))
        take, keep = over_images(taken, x.ndim), over_images(taken | fits, x.ndim)
        # A short step shows nothing if L is larger than the curvature: see the class.
        reach = over_images(1 / torch.minimum(m.constant, curvature), x.ndim)
        far = f.backward(torch.addcmul(z, gradient, reach, value=-1), reach) - z
        change = torch.where(over_images(lost, x.ndim), state.change, far)
        return SolverState(
            torch.where(take, new, x),
            change,
            tuple(
                _Memory(
                    before=torch.where(keep, x, m.before),
                    age=age,
                    constant=constant,
                    value=torch.where(taken, value, m.value),
                    quadratic=torch.where(take, quadratic_new, m.quadratic),
                    quadratic_before=torch.where(keep, m.quadratic, m.quadratic_before),
                    point=torch.where(over_images(lost, x.ndim), m.point, z),
                    gradient=torch.where(over_images(lost, x.ndim), m.gradient, gradient),
                    curvature=curvature,
                )
            ),
        )

    def confirm(self, state: SolverState, settled: Tensor) -> tuple[SolverState, Tensor] | None:
        m = _Memory(*state.memory)
        found = confirmed(self._objective, state.u, m.constant, m.curvature, settled)
        if found is None:
            return None
        constant, curvature, moved = found
        return state._replace(memory=tuple(m._replace(constant=constant, curvature=curvature))), moved
