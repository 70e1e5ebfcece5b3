"""Derivatives of potentials of several variables: sums of projections onto balls of the ℓ1 norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from retune._torch.function import Function, folded
from retune._torch.write import write

__all__ = ["curvature_of_groups", "derivative_of_groups", "value_of_groups"]

#: On a CPU a few groups at a time, so that values read again are still in the processor's cache.
_SLICE = 2


def derivative_of_groups(r: Tensor, limits: Tensor, jumps: Tensor) -> Tensor:
    r"""``Σ_j c_j P_j(r)`` for each group: P_j projects onto the ball ``‖·‖₁ ≤ T_j``.

    Args:
        r: responses (B, N, H, W); consecutive channels form a group.
        limits: radii T of the G groups, (B or 1, G, J, 1, 1).
        jumps: c, shaped as `limits`.
    """
    return _Derivative.run(r, limits, jumps)


def value_of_groups(r: Tensor, limits: Tensor, jumps: Tensor) -> Tensor:
    r"""``Σ_j c_j M_j(r)`` per image, (B,). M_j has the gradient P_j: ``M_j(z) = ⟨z, P_j(z)⟩ − ½‖P_j(z)‖²``.

    M_j is the Moreau envelope of the ℓ∞ norm, ``M_j = T_j · env(‖·‖∞)`` with the parameter T_j.
    """
    z = _grouped(r, limits)
    total = r.new_zeros(len(r))
    for j, size in enumerate(_thresholds(z, limits)):
        p = z - z.clamp(-size, size)
        total = total + (jumps[:, :, j, None] * (p * (z - 0.5 * p))).sum((1, 2, 3, 4))
    return total


def curvature_of_groups(r: Tensor, limits: Tensor, jumps: Tensor) -> Callable[[Tensor], Tensor]:
    """``v ↦ Σ_j c_j P_j'(r) v``. The parts that depend on r are computed once."""
    z = _grouped(r, limits)
    parts = [(jumps[:, :, j, None], *_active(z, size)) for j, size in enumerate(_thresholds(z, limits))]

    def product(v: Tensor) -> Tensor:
        v = _grouped(v, limits)
        total = torch.zeros_like(v)
        for jump, inside, signs in parts:
            total = total + jump * _jacobian(v, inside, signs)
        return total.flatten(1, 2)

    return product


def _grouped(r: Tensor, limits: Tensor) -> Tensor:
    """(B, N, H, W) as (B, G, d, H, W)."""
    return r.unflatten(1, (limits.shape[1], -1))


def _thresholds(z: Tensor, limits: Tensor) -> Iterator[Tensor]:
    r"""For each radius T the threshold λ ≥ 0 with which ``P(z)_i = sign(z_i) max(|z_i| − λ, 0)``, (B, G, 1, H, W).

    With ``s_1 ≥ … ≥ s_d`` the sorted ``|z_i|``, ``λ = max(0, max_i (s_1 + … + s_i − T)/i)``: the quotients grow until
    i is the number of components that stay, and fall afterwards (Held, Wolfe, Crowder, *Math. Program.* 6, 1974).
    """
    sizes = [*z.abs().unbind(2)]
    # A network of comparisons: few components are sorted faster by it than by torch.sort along a strided axis.
    for last in range(len(sizes) - 1, 0, -1):
        for i in range(last):
            a, b = sizes[i], sizes[i + 1]
            sizes[i], sizes[i + 1] = torch.maximum(a, b), torch.minimum(a, b)
    means, total = sizes[:1], sizes[0]
    for i, size in enumerate(sizes[1:], 2):
        total = total + size
        means.append(total / i)
    for j in range(limits.shape[2]):
        radius = limits[:, :, j]
        threshold = (means[0] - radius).clamp_min(0)
        for i, mean in enumerate(means[1:], 2):
            threshold = torch.maximum(threshold, mean - radius / i)
        yield threshold.unsqueeze(2)


def _active(z: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """The components that stay, as 0 or 1, and their signs over the root of their number; 0 inside the ball."""
    inside = (z.abs() > threshold).to(z.dtype)
    outside = (threshold > 0).to(z.dtype)
    return inside + (1 - outside) * (1 - inside), outside * inside * z.sign() / inside.sum(2, keepdim=True).clamp_min(
        1
    ).sqrt()


def _jacobian(v: Tensor, inside: Tensor, signs: Tensor) -> Tensor:
    """``P'(z) v``, an orthogonal projection: onto the components that stay, and along the face of the ball."""
    return inside * v - signs * (signs * v).sum(2, keepdim=True)


class _Derivative(Function):
    """The derivative; autograd would store many states per radius, this stores r only."""

    @staticmethod
    def forward(r, limits, jumps):
        groups, width = limits.shape[1], r.shape[1] // limits.shape[1]
        step = _SLICE if r.device.type == "cpu" else groups
        out = torch.empty_like(r)
        for first in range(0, groups, step):
            here, channels = slice(first, first + step), slice(first * width, (first + step) * width)
            z = _grouped(r[:, channels], limits[:, here])
            total, part = z.new_zeros(z.shape), torch.empty_like(z)  # new memory costs more than the arithmetic
            for j, size in enumerate(_thresholds(z, limits[:, here])):
                write(torch.maximum, z, -size, part)
                write(torch.minimum, part, size, part)
                write(torch.sub, z, part, part)
                total.addcmul_(part, jumps[:, here, j, None])
            out[:, channels] = total.flatten(1, 2)
        return out

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        r, limits, jumps = ctx.saved_tensors
        learned = any(ctx.needs_input_grad[1:])
        z, g = _grouped(r, limits), _grouped(grad, limits)
        total, by_limit, by_jump = torch.zeros_like(z), [], []
        for j, size in enumerate(_thresholds(z, limits)):
            inside, signs = _active(z, size)
            jump = jumps[:, :, j, None]
            total = total + jump * _jacobian(g, inside, signs)
            if learned:
                # The threshold falls by 1/n for each unit of the radius, if n components stay.
                count = inside.sum(2, keepdim=True).clamp_min(1).sqrt()
                by_limit.append((jump * g * signs / count).sum((2, 3, 4))[..., None, None])
                by_jump.append((g * (z - z.clamp(-size, size))).sum((2, 3, 4))[..., None, None])
        if not learned:
            return total.flatten(1, 2), None, None
        sums = [torch.stack(t, 2).sum_to_size(limits.shape) for t in (by_limit, by_jump)]
        return total.flatten(1, 2), sums[0], sums[1]

    @staticmethod
    def vmap(info, in_dims, r, limits, jumps):  # type: ignore[override]
        batch, joined = folded(info.batch_size, in_dims, r, limits, jumps)
        return _Derivative.run(*joined).unflatten(0, (info.batch_size, batch)), 0

    @staticmethod
    def jvp(ctx, r_t, limits_t, jumps_t):  # type: ignore[override]
        r, limits, jumps = ctx.saved_tensors
        z = _grouped(r, limits)
        out = torch.zeros_like(z)
        for j, size in enumerate(_thresholds(z, limits)):
            inside, signs = _active(z, size)
            jump = jumps[:, :, j, None]
            if r_t is not None:
                out = out + jump * _jacobian(_grouped(r_t, limits), inside, signs)
            if limits_t is not None:
                count = inside.sum(2, keepdim=True).clamp_min(1).sqrt()
                out = out + jump * limits_t[:, :, j, None] * signs / count
            if jumps_t is not None:
                out = out + jumps_t[:, :, j, None] * (z - z.clamp(-size, size))
        return out.flatten(1, 2)
