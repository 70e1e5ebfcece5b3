"""A quasi-Newton descent: steps from the curvature of the last steps, checked so that the objective never rises."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from retune._registry.entries import register
from retune._torch.batch import over_images
from retune.errors import InvalidParameterError, require_whole
from retune.operators.curvature import largest_curvature
from retune.solvers._backtracking import CLEAR, FIRST, FORGET, ROUNDING, confirmed, inner, norm, usable_or
from retune.solvers.base import AbstractSolver, Objective, SolverState
from retune.solvers.descent import Descent

__all__ = ["QuasiNewton"]

#: Factors on L after a refused and after an accepted plain step.
_GROWTH, _SHRINK = 1.5, 0.97
#: L does not fall below this share of the stated constant by shrinking.
_LEAST = 1e-9
#: A quasi-Newton step must achieve this share of the decrease that its slope promises, and of ``L‖δ‖²``.
_SHARE, _LENGTH = 1e-4, 1e-6
#: A pair is kept if ``⟨s, y⟩`` exceeds this share of ``‖s‖ ‖y‖``, and ‖s‖ this number of units in the last place.
_POSITIVE, _EXACT = 1e-3, 4.0


@register
class QuasiNewton(AbstractSolver):
    r"""Limited-memory BFGS with checked steps, independently for each image.

    For an objective ``F = f + h`` with smooth f, where h is 0 or confines the image to a box. A step goes from x to
    ``x⁺ = P(x − H ∇f(x))``. P is the projection on the box. H is the L-BFGS matrix of the last pairs ``s = x⁺ − x`` and
    ``y = ∇f(x⁺) − ∇f(x)``. Values at a bound with a gradient that points outwards do not move. The step is accepted if

    ``F(x⁺) ≤ F(x) − max(10⁻⁴ |⟨∇f(x), x⁺ − x⟩|, 10⁻⁶ L ‖x⁺ − x‖²)``.

    Otherwise the next step is a projected gradient step of length 1/L, with a backtracking search of L as in
    [`Descent`][retune.Descent]. There is such a step at least once in `every` accepted steps, too. F never rises, for
    any weights. If F is definable and the iterates are bounded, the whole sequence converges to a stationary point. It
    is the argument of Attouch, Bolte and Svaiter (*Math. Program.* 137, 2013), applied to groups of at most `every`
    accepted steps (docs/theory.md).

    A step costs one value and one gradient, accepted or not, where `Descent` needs a further value. Near the minimum,
    where values are rounded, the mean of the slopes at both ends replaces them, ``½⟨∇f(x) + ∇f(x⁺), x⁺ − x⟩`` (Hager,
    Zhang, *A new conjugate gradient method*, SIAM J. Optim. 16, 2005). The residual is that of a step of length 1/M, as
    in [`Descent`][retune.Descent]. An objective with another h is given to `Descent`.

    Source: Liu, Nocedal, *On the limited memory BFGS method for large scale optimization*, Math. Program. 45, 1989.

    Args:
        memory: number of pairs, two states each.
        every: the largest number of accepted steps from one projected gradient step to the next.

    Raises:
        InvalidParameterError: an argument below 1; or, in use, the map has no objective.
    """

    unit = "cycle"
    monotone = True

    def __init__(self, memory: int = 6, every: int = 50):
        self.memory, self.every = require_whole("memory", memory), require_whole("every", every)
        if self.memory < 1 or self.every < 1:
            raise InvalidParameterError(
                f"QuasiNewton needs memory ≥ 1 and every ≥ 1, got memory={memory}, every={every}"
            )

    def bind(self, objective: Callable[[], Objective | None]) -> AbstractSolver:
        """See [`AbstractSolver`][retune.AbstractSolver]."""
        found = objective()
        if found is None or found.rest is not None:
            return Descent().bind(lambda: found)
        return _Bound(self, found)

    def init(self, u: Tensor) -> SolverState:
        """See [`AbstractSolver`][retune.AbstractSolver]."""
        raise InvalidParameterError(
            "QuasiNewton was not bound to an objective: call bind(...) first, as Restarted does"
        )

    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        """See [`AbstractSolver`][retune.AbstractSolver]."""
        return self.init(state.u)


class _Memory(NamedTuple):
    """The memory between steps; everything has the leading axis B.

    Attributes:
        gradient: ∇f(x).
        quadratic: its quadratic part.
        value: value at x of the part of f that is not quadratic, in float64.
        constant: L.
        curvature: M, measured on the last steps.
        age: accepted steps since the last projected gradient step, which counts; 0 if the next step must be one.
        scale: γ, the multiple of the identity in H.
        weights: (B, memory), ``1/⟨s, y⟩`` of the pairs, newest first; 0 for a pair that is not used.
    """

    gradient: Tensor
    quadratic: Tensor
    value: Tensor
    constant: Tensor
    curvature: Tensor
    age: Tensor
    scale: Tensor
    weights: Tensor


_FIELDS = len(_Memory._fields)


class _Bound(AbstractSolver):
    unit = "cycle"
    monotone = True

    def __init__(self, options: QuasiNewton, objective: Objective):
        self._options, self._objective = options, objective

    def select(self, index: Tensor) -> AbstractSolver | None:
        part = self._objective.select(index)
        return None if part is None else _Bound(self._options, part)

    def init(self, u: Tensor) -> SolverState:
        f, pairs = self._objective, self._options.memory
        constant = f.lipschitz.detach().to(u).reshape(-1).expand(len(u))
        curvature = usable_or(largest_curvature(f.gradient, u, products=FIRST), constant)
        value, gradient = f.smooth(u)
        quadratic = f.quadratic(u)
        memory = _Memory(
            gradient=quadratic + gradient,
            quadratic=quadratic,
            value=value.double(),
            constant=torch.minimum(constant, 2 * curvature),
            curvature=curvature,
            age=u.new_zeros(len(u)),
            scale=1 / curvature,
            weights=u.new_zeros(len(u), pairs),
        )
        # The pairs share one tensor of zeros until they are replaced.
        return SolverState(u, torch.zeros_like(u), (*memory, *[torch.zeros_like(u)] * (2 * pairs)))

    def step(self, block: Callable[[Tensor], Tensor], state: SolverState) -> SolverState:
        f, x, options = self._objective, state.u, self._options
        m, pairs = _Memory(*state.memory[:_FIELDS]), state.memory[_FIELDS:]
        eps, tiny = torch.finfo(x.dtype).eps, torch.finfo(x.dtype).tiny
        older = pairs[: options.memory], pairs[options.memory :]
        length = over_images(1 / m.constant, x.ndim)
        projected = f.backward(torch.addcmul(x, m.gradient, length, value=-1), length)
        held = projected == x  # at a bound, with a gradient that points outwards
        free = torch.where(held, 0, m.gradient)
        ahead = torch.where(held, 0, _product(free, m.scale, m.weights, *older))
        quasi = (m.age > 0) & (m.age < options.every) & (m.weights > 0).any(1)
        quasi = quasi & (inner(free, ahead) > eps * norm(free) * norm(ahead))
        new = torch.where(over_images(quasi, x.ndim), f.backward(x - ahead, length), projected)

        smooth, gradient = f.smooth(new)
        quadratic = f.quadratic(new)
        gradient, value = quadratic + gradient, smooth.double()
        s, y = new - x, gradient - m.gradient
        slope, moved = inner(m.gradient, s), inner(s, s)
        wanted = torch.maximum(_SHARE * slope.abs(), _LENGTH * m.constant * moved)
        # The decrease that is asked for: of a quasi-Newton step, and of a projected gradient step.
        bound = torch.where(quasi, -wanted, slope + 0.5 * m.constant * moved)
        rise = 0.5 * inner(quadratic + m.quadratic, s) + value - m.value
        noise = 2 * ROUNDING * eps * m.value.abs() + ROUNDING * eps * norm(m.quadratic) * moved.sqrt()
        blur = ROUNDING * eps * m.constant * norm(x) * moved.sqrt()
        seen = slope.abs() > 4 * noise
        by_slopes = 0.5 * (inner(gradient, s) + slope)
        falls = torch.where(seen, rise <= bound + torch.where(quasi, 0, noise), by_slopes <= bound + blur)
        taken = falls & (rise <= noise) & (slope <= 0)

        usable = torch.isfinite(value) & torch.isfinite(gradient).flatten(1).all(1)
        clear = usable & (moved > (CLEAR * eps * norm(x)) ** 2)
        ratio = (norm(y) / moved.sqrt().clamp_min(tiny)).to(x.dtype)
        curvature = torch.where(clear, torch.maximum(ratio, FORGET * m.curvature), m.curvature)
        plain, refused = ~quasi, ~taken
        shorter = plain & taken & (seen | (m.constant > curvature))
        least = _LEAST * f.lipschitz.detach().to(m.constant).reshape(-1)
        constant = torch.where(shorter & (m.constant > least), m.constant * _SHRINK, m.constant)
        constant = torch.where(plain & refused, m.constant * _GROWTH, constant)
        constant = constant.clamp_max(1e-3 * torch.finfo(x.dtype).max)

        # A refused step shows the curvature, too.
        product = inner(s, y)
        kept = usable & (moved > (_EXACT * eps * norm(x)) ** 2)
        kept = kept & (product > _POSITIVE * moved.sqrt() * norm(y))
        weight = torch.where(kept, 1 / product, 0).to(x.dtype)
        scale = torch.where(kept, (product / inner(y, y)).to(x.dtype), m.scale)
        known = over_images(kept, x.ndim)
        s, y = torch.where(known, s, 0), torch.where(known, y, 0)
        take = over_images(taken, x.ndim)
        u, at = torch.where(take, new, x), torch.where(take, gradient, m.gradient)
        reach = over_images(1 / torch.minimum(constant, curvature), x.ndim)
        change = f.backward(torch.addcmul(u, at, reach, value=-1), reach) - u
        memory = _Memory(
            gradient=at,
            quadratic=torch.where(take, quadratic, m.quadratic),
            value=torch.where(taken, value, m.value),
            constant=constant,
            curvature=curvature,
            age=torch.where(taken, torch.where(quasi, m.age + 1, 1), 0),
            scale=scale,
            weights=torch.cat([weight[:, None], m.weights[:, :-1]], 1),
        )
        return SolverState(u, change, (*memory, s, *older[0][:-1], y, *older[1][:-1]))

    def confirm(self, state: SolverState, settled: Tensor) -> tuple[SolverState, Tensor] | None:
        m, pairs = _Memory(*state.memory[:_FIELDS]), state.memory[_FIELDS:]
        found = confirmed(self._objective, state.u, m.constant, m.curvature, settled)
        if found is None:
            return None
        constant, curvature, moved = found
        memory = m._replace(constant=constant, curvature=curvature)
        return state._replace(memory=(*memory, *pairs)), moved


def _product(g: Tensor, scale: Tensor, weights: Tensor, s: tuple[Tensor, ...], y: tuple[Tensor, ...]) -> Tensor:
    """``H g`` by the two loops of L-BFGS, with the pairs from the newest to the oldest."""
    ndim, factors, q = g.ndim, [], g
    for i in range(len(s)):
        factor = (weights[:, i] * inner(s[i], q)).to(g.dtype)
        factors.append(factor)
        q = torch.addcmul(q, y[i], over_images(factor, ndim), value=-1)
    q = q * over_images(scale, ndim)
    for i in reversed(range(len(s))):
        factor = factors[i] - (weights[:, i] * inner(y[i], q)).to(g.dtype)
        q = torch.addcmul(q, s[i], over_images(factor, ndim))
    return q
