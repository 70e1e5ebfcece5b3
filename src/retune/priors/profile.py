"""Learned potentials of one or several variables with bounded curvature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from retune._torch.function import Function, folded
from retune._torch.write import write
from retune.errors import InvalidParameterError, require_whole, unknown_name
from retune.priors.projection import curvature_of_groups, derivative_of_groups, value_of_groups

__all__ = ["BoundProfile", "Profile"]

CONVEX = "convex"
CONVEXITY = (CONVEX, "weakly convex")
#: The reference noise level of the parameters.
SIGMA_0 = 25 / 255
#: The polynomials are used between these noise levels, which the training covered. Beyond them they are unreliable.
SIGMA_RANGE = (2 / 255, 55 / 255)
# Powers of log(σ/σ₀) above the second are divided by powers of this, so that all are equally large at σ = σ₀/12.
_REACH = 2.5
_LOG_LIMIT = 40.0


class Profile(nn.Module):
    r"""N even potentials ``ψ_i`` whose derivative is an odd linear spline, with curvature bounded by construction.

    ``ψ_i'(t) = Σ_j c_ij clip(t, −T_ij, T_ij)``: linear between knots ``0 < T_i1 < … < T_iJ``, with slope ``s_ij`` on
    piece j, and constant beyond the last knot. The slopes are bounded,

    - convex: ``0 < s_ij < μ(σ)``, so ψ is convex;
    - weakly convex: ``−1 < s_ij < μ(σ)``, so ``ψ + ½t²`` is convex,

    and ``max_ij |s_ij|`` bounds ``|ψ''|``. Knots scale with the noise level, ``T_ij(σ) = T_j σ / a_i(σ)``, and ``log
    μ`` and ``log a_i`` are polynomials in ``log σ`` from 2/255 to 55/255, and constant outside. Above this range the
    potentials scale with the noise, ``ψ_σ(t) = s² ψ_{σ/s}(t/s)``. Below it they decrease with its variance, ``ψ_σ = s²
    ψ_{σ/s}``, so an image without noise stays unchanged. Source of the idea: Goujon, Neumayer, Unser, *Learning weakly
    convex regularizers for convergent image-reconstruction algorithms*, SIIMS 2024 (who use one profile with splines in
    σ).

    With ``group`` = d > 1, a potential has d consecutive responses as its variables, and the clipping becomes a
    projection onto a ball of the ℓ1 norm: ``∇ψ(z) = Σ_j c_j P_j(z)`` with ``P_j(z) = argmin_{‖p‖₁ ≤ T_j} ‖z − p‖``.
    So ψ is a sum of Moreau envelopes of the ℓ∞ norm. The bounds on the curvature are the same: where ``P_j`` is
    differentiable, its Jacobian projects onto a subspace, and the subspaces of larger balls contain those of smaller
    ones. So ``∇²ψ = Σ_j c_j P_j'`` has the eigenvalues ``s_j`` and 0. Source of these potentials: Ducotterd, Unser,
    *Multivariate fields of experts*, arXiv 2508.06490, 2025.

    Args:
        filters: N.
        knots: J.
        convexity: "convex" or "weakly convex".
        powers: number of coefficients of the polynomials in ``log σ``; 1 uses the same potentials, scaled, at all noise
            levels.
        group: d, the number of responses that share a potential.
    """

    def __init__(self, filters: int, knots: int = 4, convexity: str = "convex", powers: int = 3, group: int = 1):
        super().__init__()
        filters, knots = require_whole("filters", filters), require_whole("knots", knots)
        powers, group = require_whole("powers", powers), require_whole("group", group)
        if convexity not in CONVEXITY:
            raise unknown_name("convexity", convexity, CONVEXITY)
        if filters < 1 or knots < 1 or powers < 1:
            raise InvalidParameterError(
                f"filters, knots and powers must be at least 1, got {filters}, {knots} and {powers}"
            )
        if group < 1 or filters % group:
            raise InvalidParameterError(
                f"group must be at least 1 and divide the number of filters, {filters}; got {group}"
            )
        self.filters, self.knots, self.convexity, self.powers, self.group = filters, knots, convexity, powers, group
        potentials = filters // group
        self.spacing = nn.Parameter(torch.full((knots,), -0.5))
        self.scale = nn.Parameter(torch.zeros(potentials, powers))
        self.strength = nn.Parameter(torch.tensor([math.log(4.0), *[0.0] * (powers - 1)]))
        start = torch.linspace(1.5, -2.5, knots) if convexity == CONVEX else torch.linspace(1.5, -3.0, knots)
        self.slope = nn.Parameter(start.repeat(potentials, 1))
        with torch.no_grad():
            self.scale[:, 0] = math.log(4.0 / group)  # the ℓ1 norm of d responses is about d times as large as one

    def bind(self, sigma: Tensor) -> BoundProfile:
        """The potentials at noise levels σ (1 or B, 1, 1, 1), on the scale of the image."""
        low, high = SIGMA_RANGE
        share_of_low = (sigma / low).clamp(0, 1).reshape(-1, 1, 1)
        sigma = sigma.clamp_min(low)
        log = (sigma.clamp_max(high) / SIGMA_0).log().reshape(-1, 1)  # (B, 1)
        powers = torch.cat([log**p / _REACH ** max(p - 2, 0) for p in range(self.powers)], 1)  # (B, powers)
        scale = _exp(powers @ self.scale.to(powers).T)  # (B, N)
        strength = _exp(powers @ self.strength.to(powers)).reshape(-1, 1, 1)  # (B, 1, 1)
        share = torch.sigmoid(self.slope.to(powers))[None]  # (1, N, J)
        slopes = strength * share if self.convexity == CONVEX else (1 + strength) * share - 1
        slopes = slopes * share_of_low**2
        steps = torch.cumsum(softplus(self.spacing.to(powers)), 0)
        limits = steps * (sigma.reshape(-1, 1) / scale).unsqueeze(-1)  # (B, N, J)
        jumps = slopes - torch.cat([slopes[..., 1:], torch.zeros_like(slopes[..., :1])], -1)
        return BoundProfile(limits[..., None, None], jumps[..., None, None], slopes, self.group)


def _exp(exponent: Tensor) -> Tensor:
    """A positive and finite exponential, for any value that the optimiser reaches."""
    return exponent.clamp(-_LOG_LIMIT, _LOG_LIMIT).exp()


@dataclass(frozen=True)
class BoundProfile:
    """The potentials at fixed noise levels: plain functions of the responses (B, N, H, W).

    Attributes:
        limits: knots T (B, N/d, J, 1, 1).
        jumps: c (B, N/d, J, 1, 1).
        slopes: s (B, N/d, J).
        group: d, the number of variables of a potential.
    """

    limits: Tensor
    jumps: Tensor
    slopes: Tensor
    group: int = 1

    @property
    def curvature(self) -> tuple[Tensor, Tensor]:
        """(minimum, maximum) of the eigenvalues of ψ'' per image, shape (B,); beyond the last knot ψ'' has a 0."""
        flat = self.slopes.flatten(1)
        return flat.amin(1).clamp_max(0), flat.amax(1).clamp_min(0)

    def derivative(self, r: Tensor) -> Tensor:
        """``ψ_i'(r_i)``, same shape as r."""
        if self.group > 1:
            return derivative_of_groups(r, self.limits, self.jumps)
        return _Derivative.run(r, self.limits, self.jumps)  # type: ignore[return-value]

    def second_derivative(self, r: Tensor) -> Callable[[Tensor], Tensor]:
        """``v ↦ ψ''(r) v``, for v of the shape of r: for d = 1 the product with the slope of the piece."""
        if self.group > 1:
            return curvature_of_groups(r, self.limits, self.jumps)
        size, slope = r.abs(), torch.zeros_like(r)
        for j in range(self.limits.shape[2]):
            slope.addcmul_((size <= self.limits[:, :, j]).to(r.dtype), self.jumps[:, :, j])
        return lambda v: slope * v

    def value(self, r: Tensor) -> Tensor:
        """``Σ_i Σ_p ψ_i(r_ip)`` per image, shape (B,)."""
        if self.group > 1:
            return value_of_groups(r, self.limits, self.jumps)
        total = r.new_zeros(r.shape[0])
        size = r.abs()
        for j in range(self.limits.shape[2]):
            limit, jump = self.limits[:, :, j], self.jumps[:, :, j]
            inside = torch.minimum(size, limit)
            # ∫ clip = ½t² up to the knot, then linear
            total = total + (jump * inside * (size - 0.5 * inside)).sum((1, 2, 3))
        return total


# On a CPU a few channels at a time, so that values read again are still in the processor's cache.
_SLICE = 4


def _slices(r: Tensor) -> list[slice]:
    size = _SLICE if r.device.type == "cpu" else r.shape[1]
    return [slice(first, first + size) for first in range(0, r.shape[1], size)]


class _Derivative(Function):
    """``Σ_j c_j clip(r, −T_j, T_j)``. Autograd would store and mask one state per knot; this stores r only."""

    @staticmethod
    def forward(r, limits, jumps):
        out = torch.empty_like(r)
        for part in _slices(r):
            source, target = r[:, part], out[:, part]
            for j in range(limits.shape[2]):
                clipped = source.clamp(-limits[:, part, j], limits[:, part, j])
                if j:
                    target.addcmul_(clipped, jumps[:, part, j])
                else:
                    write(torch.mul, clipped, jumps[:, part, j], target)
        return out

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        r, limits, jumps = ctx.saved_tensors
        learned = any(ctx.needs_input_grad[1:])
        if torch.is_grad_enabled():  # a second derivative may be needed, or torch.func is active
            return _recorded_backward(grad, r, limits, jumps, learned)
        grad_r = torch.empty_like(r)
        by_limit = r.new_zeros(r.shape[0], *limits.shape[1:]) if learned else None
        by_jump = torch.zeros_like(by_limit) if by_limit is not None else None
        for part in _slices(r):
            source, incoming = r[:, part], grad[:, part].contiguous()
            slope = torch.zeros_like(source)
            for j in range(limits.shape[2]):
                clipped = source.clamp(-limits[:, part, j], limits[:, part, j])
                inside = (source == clipped).to(r.dtype)
                slope.addcmul_(inside, jumps[:, part, j])
                if by_limit is not None and by_jump is not None:
                    by_jump[:, part, j] = _inner(incoming, clipped)
                    outside = source.sign().mul_(1 - inside)
                    by_limit[:, part, j] = _inner(incoming, outside) * jumps[:, part, j]
            write(torch.mul, incoming, slope, grad_r[:, part])
        if by_limit is None or by_jump is None:
            return grad_r, None, None
        return grad_r, by_limit.sum_to_size(limits.shape), by_jump.sum_to_size(jumps.shape)

    @staticmethod
    def vmap(info, in_dims, r, limits, jumps):  # type: ignore[override]
        batch, joined = folded(info.batch_size, in_dims, r, limits, jumps)
        return _Derivative.run(*joined).unflatten(0, (info.batch_size, batch)), 0  # type: ignore[union-attr]

    @staticmethod
    def jvp(ctx, r_t, limits_t, jumps_t):  # type: ignore[override]
        r, limits, jumps = ctx.saved_tensors
        out = torch.zeros_like(r)
        for j in range(limits.shape[2]):
            limit, jump = limits[:, :, j], jumps[:, :, j]
            inside = (r.abs() <= limit).to(r.dtype)
            if r_t is not None:
                out = out + jump * inside * r_t
            if limits_t is not None:
                out = out + jump * (1 - inside) * r.sign() * limits_t[:, :, j]
            if jumps_t is not None:
                out = out + r.clamp(-limit, limit) * jumps_t[:, :, j]
        return out


def _recorded_backward(
    grad: Tensor, r: Tensor, limits: Tensor, jumps: Tensor, learned: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The same backward pass in operations that autograd records, without in-place changes."""
    slope, by_limit, by_jump = torch.zeros_like(r), [], []
    for j in range(limits.shape[2]):
        limit, jump = limits[:, :, j], jumps[:, :, j]
        inside = (r.abs() <= limit).to(r.dtype)
        slope = slope + jump * inside
        if learned:
            by_limit.append((grad * r.sign() * (1 - inside) * jump).sum((2, 3), keepdim=True))
            by_jump.append((grad * r.clamp(-limit, limit)).sum((2, 3), keepdim=True))
    if not learned:
        return grad * slope, None, None
    sums = [torch.stack(t, 2).sum_to_size(limits.shape) for t in (by_limit, by_jump)]
    return grad * slope, sums[0], sums[1]


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """``Σ_p a_p b_p`` per image and channel, (B, n, 1, 1)."""
    return torch.linalg.vecdot(a.flatten(2), b.flatten(2))[..., None, None]
