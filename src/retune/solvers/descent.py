"""Descent with backtracking: the step size is found for each image, so the objective never rises."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from retune._registry.entries import register
from retune._torch.batch import over_images
from retune.errors import InvalidParameterError, require_real
from retune.solvers.base import AbstractSolver, Objective, SolverState

__all__ = ["Descent"]

#: Two values of the objective count as equal if they differ by fewer units in the last place.
ROUNDING = 4.0


@register
class Descent(AbstractSolver):
    r"""Monotone accelerated proximal gradient descent with backtracking, independently for each image.

    For an objective ``F = f + h`` with smooth f and simple h (a box, or a convex function with a prox). From
    ``z = x + β(x − x⁻)`` it tries ``x⁺ = prox_{h/L}(z − ∇f(z)/L)`` and accepts it if

    ``f(x⁺) ≤ f(z) + ⟨∇f(z), d⟩ + (L/2)‖d‖²`` with ``d = x⁺ − z``,

    and if ``F(x⁺) ≤ F(x)``. If the first fails, L grows by the factor `growth`. If the second fails, the next step is a
    plain step from x. After an accepted step, L shrinks by the factor `shrink`. The momentum ``β = k/(k + 3)`` restarts
    if it points uphill (O'Donoghue and Candès, *Found. Comput. Math.* 15, 2015).

    The Lipschitz constant need not be known, and need not exist on the whole space. So this solver fits learned
    energies: training may change their curvature by any factor. F never rises, up to rounding, for any weights.

    Close to the minimum the decrease of F is smaller than the rounding of its values. Then L is tested with gradients:
    ``⟨∇f(z) − ∇f(z'), z − z'⟩ ≤ L ‖z − z'‖²`` for the last two points z, z' with known gradients. The quadratic part of
    f is always compared by its gradients, because ``q(a) − q(b) = ½⟨∇q(a) + ∇q(b), a − b⟩``.

    A step costs one gradient and one value. A refused step costs the same, and does not change the image.

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
        point: z', the point of the last gradient.
        gradient: ∇f(z').
    """

    before: Tensor
    age: Tensor
    constant: Tensor
    value: Tensor
    quadratic: Tensor
    point: Tensor
    gradient: Tensor


class _BoundDescent(AbstractSolver):
    unit = "cycle"

    def __init__(self, options: Descent, objective: Objective):
        self._options, self._objective = options, objective

    def select(self, index: Tensor) -> AbstractSolver | None:
        part = self._objective.select(index)
        return None if part is None else _BoundDescent(self._options, part)

    def init(self, u: Tensor) -> SolverState:
        f = self._objective
        zero = u.new_zeros(len(u))
        constant = f.lipschitz.detach().to(u).reshape(-1).expand(len(u)).clone()
        quadratic = f.quadratic(u)
        memory = _Memory(u, zero, constant, f.value(u), quadratic, u, torch.zeros_like(u))
        return SolverState(u, torch.zeros_like(u), tuple(memory))

    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        f, x, m = self._objective, state.u, _Memory(*state.memory)
        eps = torch.finfo(x.dtype).eps
        z = torch.addcmul(x, x - m.before, over_images(m.age / (m.age + 3), x.ndim))
        quadratic_z = f.quadratic(z)
        smooth_z, gradient_z = f.smooth(z)
        gradient = quadratic_z + gradient_z
        step = over_images(1 / m.constant, x.ndim)
        new = f.backward(torch.addcmul(z, gradient, step, value=-1), step)
        d = new - z
        quadratic_new = f.quadratic(new)
        smooth_new, rest_new = f.parts(new)
        value = smooth_new + rest_new

        # By how much f(x⁺) exceeds its linearisation at z, and by how much it may.
        excess = 0.5 * _inner(quadratic_new - quadratic_z, d) + smooth_new - smooth_z - _inner(gradient_z, d)
        allowed = 0.5 * m.constant * _inner(d, d)
        noise = 2 * ROUNDING * eps * smooth_z.abs()
        seen = allowed > noise
        # If rounding hides the values, the curvature between the last two points decides.
        moved, turned = z - m.point, gradient - m.gradient
        length = _inner(moved, moved)
        blur = ROUNDING * eps * m.constant * (_inner(z, z) * length).sqrt()
        steep = (m.age > 0) & (_inner(turned, moved) > m.constant * length + blur)
        fits = torch.where(seen, excess <= allowed + noise, ~steep) & torch.isfinite(value)

        step_x = new - x
        rise = 0.5 * _inner(quadratic_new + m.quadratic, step_x) + value - m.value
        slack = 2 * ROUNDING * eps * m.value.abs()
        slack = slack + ROUNDING * eps * (_inner(m.quadratic, m.quadratic) * _inner(step_x, step_x)).sqrt()
        falls = rise <= slack
        fits = fits & (falls | (m.age > 0))  # a plain step that rises was too long
        taken = fits & falls
        uphill = _inner(d, step_x) < 0  # ⟨z − x⁺, x⁺ − x⟩ > 0

        options = self._options
        constant = torch.where(fits, m.constant, m.constant * options.growth)
        constant = torch.where(taken & seen, constant * options.shrink, constant)
        # If the momentum increased F, it restarts; if L was too small, the step is tried again with a larger L.
        again = (taken & ~uphill).to(m.age)
        age = torch.where(fits, (m.age + 1) * again, m.age)
        take, keep = over_images(taken, x.ndim), over_images(taken | fits, x.ndim)
        return SolverState(
            torch.where(take, new, x),
            d,
            tuple(
                _Memory(
                    before=torch.where(keep, x, m.before),
                    age=age,
                    constant=constant,
                    value=torch.where(taken, value, m.value),
                    quadratic=torch.where(take, quadratic_new, m.quadratic),
                    point=z,
                    gradient=gradient,
                )
            ),
        )

    def describe(self) -> dict:
        return self._options.describe()


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """``⟨a, b⟩`` per image, summed in float64."""
    return (a * b).flatten(1).sum(1, dtype=torch.float64)
