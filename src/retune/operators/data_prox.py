"""``prox_{γf}`` of a quadratic data term: in closed form, or by conjugate gradients with an implicit derivative."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from retune._torch.batch import over_images
from retune._torch.function import Function, transformed

__all__ = ["ACCURACY", "QuadraticProx"]

#: Relative residual at which conjugate gradients stop.
ACCURACY = {torch.float32: 4e-6, torch.float64: 1e-12}
#: Iterations between two looks at the residuals. On an accelerator each look waits for it.
_LOOK = 4
#: Rounding slows conjugate gradients: iterations beyond those that exact arithmetic needs.
_MORE = 4


class QuadraticProx:
    r"""``v ↦ prox_{γf}(v) = (I + γN)⁻¹(v + γc)`` for ``f(x) = ½⟨x, Nx⟩ − ⟨c, x⟩ + const``, N positive semidefinite.

    For ``f = ‖Ax − y‖²/(2σ²)``: ``N = AᵀA/σ²`` and ``c = Aᵀy/σ²``.

    Without a closed form, conjugate gradients (Hestenes and Stiefel, *J. Res. Natl. Bur. Stand.* 49, 1952) run for each
    image until ``‖r‖ ≤ accuracy ‖v + γc‖`` with the residual ``r = v + γc − (I + γN)x``. Because ``I + γN ⪰ I``, the
    error is at most as large: ``‖x − prox(v)‖ ≤ accuracy ‖v + γc‖``, up to rounding. The number of iterations has the
    bound of Chebyshev polynomials for the condition number ``1 + γ‖N‖``.

    The derivative is implicit: ``dx = (I + γN)⁻¹ d(v + γc − γNx)`` with x held on the right. So the backward pass
    solves one more system, and no iteration is recorded. It covers v, γ, c and the parameters of N. It can be
    differentiated again, except if N has trained parameters; then torch says so.

    Args:
        normal: N, (B, C, H, W) → (B, C, H, W), symmetric.
        target: c, (B, C, H, W).
        gamma: γ > 0, shape (), or (1 or B, 1, 1, 1).
        largest: an upper bound of ‖N‖, shape (1,) or (B,).
        inverse: ``r ↦ (I + γN)⁻¹ r`` in closed form, if known.

    Attributes:
        exact: whether there is a closed form.
        accuracy: the bound above; 0 with a closed form, whose error is rounding.
        most: largest number of iterations of one solve; 0 with a closed form.
    """

    def __init__(
        self,
        normal: Callable[[Tensor], Tensor],
        target: Tensor,
        gamma: Tensor,
        largest: Tensor,
        inverse: Callable[[Tensor], Tensor] | None = None,
    ):
        self._normal, self._target, self._inverse = normal, target, inverse
        self._gamma = over_images(gamma) if gamma.ndim else gamma
        self.exact, self._learned = inverse is not None, False
        self.accuracy, self.most = 0.0, 0
        if inverse is None:
            self.accuracy = ACCURACY[target.dtype]
            # A trained operator has no derivative that _Inverse could return, because its parameters are unknown here.
            self._learned = torch.is_grad_enabled() and normal(target.detach()).requires_grad
            self.most = _iterations(1 + float((self._gamma.detach().flatten() * largest.detach()).max()), self.accuracy)

    def __call__(self, v: Tensor, start: Tensor | None = None, most: int | None = None) -> Tensor:
        """``prox_{γf}(v)``, shape (B, C, H, W).

        Args:
            v: images (B, C, H, W).
            start: where conjugate gradients begin, for example the prox of a neighbour of v; None begins at v. It has
                no derivative and, up to `accuracy`, no effect on the result.
            most: at most so many iterations, for a rough result without a derivative; None gives `accuracy`.
        """
        right = v + self._gamma * self._target
        if self._inverse is not None:
            return self._inverse(right)
        start = v if start is None else start
        if most is not None:
            return self.solve(right, start, most)
        if not self._learned:
            return _Inverse.run(right, start, self._gamma, self)  # type: ignore[return-value]
        found = self.solve(right, start)
        return _Attached.run(right - self._system(found), found, self) if torch.is_grad_enabled() else found  # type: ignore[return-value]

    def normal(self, x: Tensor) -> Tensor:
        """``N x``."""
        return self._normal(x)

    @torch.no_grad()
    def solve(self, right: Tensor, start: Tensor, most: int | None = None) -> Tensor:
        """``(I + γN)⁻¹ right`` by conjugate gradients, without a derivative.

        Each image stops by itself, so its result does not depend on the others of the batch.
        """
        looks = not transformed()  # a batched value cannot decide when to stop
        right, x = right.detach(), start.detach()
        tiny = torch.finfo(right.dtype).tiny
        least = self.accuracy**2 * _square(right)
        r = right - self._system(x)
        p, size = r, _square(r)
        for k in range(self.most if most is None else most):
            if looks and k % _LOOK == 0 and not bool((size > least).any()):
                break
            q = self._system(p)
            step = torch.where(size > least, size / (p * q).sum((1, 2, 3), keepdim=True).clamp_min(tiny), 0.0)
            x, r = x + step * p, r - step * q
            before, size = size, _square(r)
            p = r + size / before.clamp_min(tiny) * p
        return x

    def _system(self, x: Tensor) -> Tensor:
        return x + self._gamma * self._normal(x)


class _Inverse(Function):
    """``M⁻¹ right`` for ``M = I + γN``: ``dx = M⁻¹(d right − dγ N x)``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(right, start, gamma, by):
        return by.solve(right, start)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.by = inputs[3]
        ctx.save_for_backward(inputs[2], output)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        gamma, x = ctx.saved_tensors
        pulled: Tensor = _Inverse.run(grad, grad, gamma, ctx.by)
        grad_gamma = None
        if ctx.needs_input_grad[2]:
            inner = (pulled * ctx.by.normal(x)).sum((1, 2, 3), keepdim=True)
            grad_gamma = -inner.sum_to_size(gamma.shape) if gamma.ndim else -inner.sum()
        return pulled, None, grad_gamma, None


class _Attached(Function):
    """The solution of ``M x = right``, as a function of its residual: ``dx = M⁻¹ d(residual)``."""

    @staticmethod
    def forward(residual, found, by):
        return found.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.by = inputs[2]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        return ctx.by.solve(grad, grad), None, None


def _square(r: Tensor) -> Tensor:
    return r.square().sum((1, 2, 3), keepdim=True)


def _iterations(condition: float, accuracy: float) -> int:
    """Enough for ``‖r_k‖ ≤ accuracy ‖r_0‖``: ``‖r_k‖ ≤ 2√κ ((√κ − 1)/(√κ + 1))^k ‖r_0‖``.

    The start v has a residual of at most ``κ ‖v‖``, which adds another factor κ. So has any start of the size of v.
    """
    root = math.sqrt(max(condition, 1 + 1e-6))
    rate = -math.log((root - 1) / (root + 1))
    return _MORE + math.ceil(1.1 * math.log(2 * root * condition / accuracy) / rate)
