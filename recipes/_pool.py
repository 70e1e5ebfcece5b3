"""Noisy crops that keep their equilibrium and their adjoint from one epoch to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from recipes._data import noisy_crops
from retune.networks.ridge import Denoising
from retune.priors.ridge import Ridge
from retune.solve import Stop, solve
from retune.solvers import Anderson

__all__ = ["Pool", "conjugate_gradients"]


@dataclass
class Pool:
    """A fixed set of noisy crops, each with its last equilibrium and the adjoint there.

    The noise of a crop stays the same, so only the change of the weights moves its equilibrium. A few layers follow
    this movement; a fresh crop needs dozens. So the same time suffices for several times as many steps, and the error
    of each gradient is smaller. A regulariser has a few thousand weights, and the pool millions of pixels: it cannot
    learn the noise by heart.

    Attributes:
        clean, sigma: crops (N, C, h, w) and their noise levels (N, 1, 1, 1).
        noisy: crops extended by the reach of the filters, (N, C, h + 2·reach, w + 2·reach).
        state: ``image`` and ``adjoint``, shaped as `noisy`; what a saved state has to hold.
    """

    clean: Tensor
    sigma: Tensor
    noisy: Tensor
    state: dict[str, Tensor]

    @classmethod
    def draw(cls, images: Sequence[Tensor], count: int, size: int, sigma: tuple[float, float], reach: int, seed: int):
        """Draw the crops, 64 at a time so that not all come from images of one orientation."""
        parts = [noisy_crops(images, min(64, count - i), size, sigma, seed, i) for i in range(0, count, 64)]
        clean, noisy, level = (torch.cat(t) for t in zip(*parts, strict=True))
        noisy = pad(noisy, (reach,) * 4, mode="reflect")
        return cls(clean, level, noisy, {"image": noisy.clone(), "adjoint": torch.zeros_like(noisy)})

    def choose(self, step: int, batch: int, seed: int) -> Tensor:
        """The crops of a step. Every epoch has another order, which follows from (seed, step)."""
        epoch, at = divmod(step - 1, len(self.noisy) // batch)
        order = torch.randperm(len(self.noisy), generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
        return order[at * batch : (at + 1) * batch]

    def loss(
        self, prior: Ridge, chosen: Tensor, stop: Stop, rtol: float, device: torch.device, error: Callable
    ) -> Tensor:
        r"""The loss of the chosen crops at their equilibria, with its implicit gradient.

        With ``x = argmin ½‖x − y‖² + R_θ(x)`` and ``(I + ∇²R(x)) w = ∂L/∂x``, ``dL/dθ = −wᵀ ∂_θ∇R_θ(x)``. The system
        is symmetric and positive definite. Conjugate gradients solve it, from the adjoint of the last visit.

        Args:
            prior: the regulariser.
            chosen: indices into the pool.
            stop: when the denoising problem counts as solved.
            rtol: relative residual of the adjoint.
            device: where to compute.
            error: ``(restored, clean, σ) -> loss``.
        """
        reach = prior.filters.reach
        y, x = self.noisy[chosen].to(device), self.clean[chosen].to(device)
        level = self.sigma[chosen].to(device)
        bound = Denoising(prior.at(level.flatten(), y), y)
        with torch.no_grad():
            u = solve(bound.layer, self.state["image"][chosen].to(device), solver=Anderson(), depth=1, stop=stop).u
        restored = u[..., reach:-reach, reach:-reach].clone().requires_grad_()
        value = error(restored, x, level)
        (wanted,) = torch.autograd.grad(value, restored)
        with torch.no_grad():
            hessian = bound.prior.hessian(u)
            w = conjugate_gradients(
                lambda p: p + hessian(p),
                pad(wanted, (reach,) * 4),
                self.state["adjoint"][chosen].to(device),
                rtol,
            )
            self.state["image"][chosen], self.state["adjoint"][chosen] = u.cpu(), w.cpu()
        implicit = -(w * bound.prior.grad(u)).sum()
        return value.detach() + implicit - implicit.detach()


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, x: Tensor, rtol: float, most: int = 30) -> Tensor:
    """Solve ``A x = b`` per image for a symmetric positive definite A, from x (Hestenes and Stiefel, 1952).

    If A is not positive along a direction, the image stops there and keeps its result so far.
    """
    r = b - apply(x)
    p, rho = r, _dot(r, r)
    target = rtol**2 * _dot(b, b)
    for _ in range(most):
        active = rho > target
        if not bool(active.any()):
            break
        q = apply(p)
        curvature = _dot(p, q)
        active &= curvature > 0
        step = torch.where(active, rho / curvature.clamp_min(torch.finfo(b.dtype).tiny), 0)
        x, r = x + step * p, r - step * q
        rho, before = torch.where(active, _dot(r, r), 0), rho
        p = torch.where(active, r + rho / before.clamp_min(torch.finfo(b.dtype).tiny) * p, 0)
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2, 3), keepdim=True)
