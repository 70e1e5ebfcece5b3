r"""Exact prox of weighted ℓ1 and weighted group norms, with closed-form derivatives.

Coefficients are packed as in [`WaveletBasis`][retune.priors.WaveletBasis]: the last axis holds the details
(3, P), then the coarse approximation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retune._torch.function import Function
from retune._torch.write import write

__all__ = ["group_shrink", "newton_steps", "powers_of", "soft_threshold"]

#: Larger values of a dimensionless threshold mean the same.
_HUGE = 1e6


class _SoftThreshold(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(v, threshold):
        return v - torch.clamp(v, -threshold, threshold)

    @staticmethod
    def setup_context(ctx, inputs, output):
        # The output alone determines both derivatives, and the next layer needs it anyway.
        ctx.save_for_backward(output, inputs[1])

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        u, threshold = ctx.saved_tensors
        grad_threshold = None
        if ctx.needs_input_grad[1]:
            grad_threshold = -_times(torch.sign(u), grad).sum_to_size(threshold.shape)
        kept = (u != 0) | (threshold == 0)
        return grad * kept, grad_threshold


def soft_threshold(v: Tensor, threshold: Tensor) -> Tensor:
    r"""``prox_{t|·|}(v) = sign(v) max(|v| − t, 0)`` elementwise; ``t ≥ 0`` broadcasts to v.

    ``∂u/∂v`` is 1 on the support and 0 elsewhere, ``∂u/∂t = −sign(u)``; for ``t = 0`` the prox is the identity.
    """
    return _SoftThreshold.run(v, threshold)  # type: ignore[return-value]


def newton_steps(ratio: float, dtype: torch.dtype) -> int:
    """Number of Newton steps that solve the group prox to rounding, if squared weights in a group differ by `ratio`.

    It covers the worst group in a search over groups of 2 to 27 entries, with weights at both ends of the range and
    entries that differ by up to three decades, half of them near the edge of becoming 0. Most groups need fewer steps.
    """
    if ratio <= 1.0 + 1e-7:
        return 0
    table = ((1.44, 1), (9.0, 2), (25.0, 3), (100.0, 4), (400.0, 7), (1e3, 8), (1e5, 10), (1e6, 12))
    steps = next((count for limit, count in table if ratio <= limit), 14)
    return steps if dtype != torch.float64 else steps + 2


def _root(power: Tensor, threshold: Tensor, powers: Tensor, reach: Tensor, steps: int, dims: tuple[int, ...]) -> Tensor:
    r"""The s ≥ 0 with ``Σ power/(s + reach)² = 1`` (0 without a root), reach = t w², by Newton on ``1/√Σ − 1``.

    That function of s is concave and increasing (and linear when all w are equal), so Newton's method increases
    monotonically to the root after its first step, from any start. Moré and Sorensen (1983) solve the secular equation
    in this way. On ``φ(s) = Σ − 1`` itself Newton's method also increases monotonically, but far below the root it
    gains only a factor 3/2 per step.
    """
    tiny = torch.finfo(power.dtype).tiny
    if steps == 0:
        return (power.sum(dims, keepdim=True).sqrt() - reach.amax(dims, keepdim=True)).clamp_min(0)
    s = _start(power, threshold, powers, dims)
    # On a CPU reading the numbers is free, but a compiled layer must not depend on them. After a last step δ the error
    # is at most 1.5 δ²/(s + smallest reach).
    read = power.device.type == "cpu" and not torch.compiler.is_compiling()
    least = reach.amin(dims, keepdim=True) * _last_step(power.dtype) if read else None
    for left in reversed(range(steps)):
        inverse = (s + reach).reciprocal_()
        term = inverse.square().mul_(power)
        total = term.sum(dims, keepdim=True)
        slope = term.mul_(inverse).sum(dims, keepdim=True)
        step = (total.sqrt() - 1).mul_(total).div_(slope.clamp_min_(tiny))  # a group of zeros has slope 0
        following = (s + step).clamp_min_(0)
        # A single maximum: comparing every group and calling `all` takes four times as long.
        if least is not None and left:
            moved = (following - s).abs_()
            if float(moved.sub_(s, alpha=_last_step(s.dtype)).sub_(least).amax()) <= 0:
                return following
        s = following
        del inverse, term  # otherwise two of these would be in memory at once
    return s


def _start(power: Tensor, threshold: Tensor, powers: Tensor, dims: tuple[int, ...]) -> Tensor:
    r"""The root of a hyperbola near ``h(s) = 1/√Σ − 1``, with the value and slope of h at 0, and the asymptote of h.

    In units of ``√Σpower``, the asymptote is ``s + b``, and the hyperbola is ``s + b − (b − h(0)) d/(s + d)``. It has
    no positive root where h has none.
    """
    total, first, minus_second, minus_third = _sums(power, powers, dims)
    unit, inverse = total.rsqrt(), minus_second.rsqrt()
    # Both are huge for a group of zeros, and their squares must be finite.
    at_0 = (threshold * inverse).clamp_max_(_HUGE)  # h(0) + 1
    b = (first / total).mul_(unit).mul(threshold).clamp_max_(_HUGE)  # b + 1
    # Nearly equal weights make this and b − h(0) rounding, and their quotient must stay small.
    bend = (minus_third / minus_second).mul_(inverse).div_(unit).sub_(1).clamp_min_(4 * torch.finfo(power.dtype).eps)
    d = (b - at_0).clamp_min_(0).div_(bend)
    half = torch.add(b, d).sub_(1).mul_(-0.5)
    root = half.square().addcmul_(1 - at_0, d).clamp_min_(0).sqrt_()
    return root.add_(half).div_(unit).clamp_min_(0)


def powers_of(weight2: Tensor) -> Tensor:
    """``w^{2n}`` for n = 0, 1, −2, −3, in a new first axis: constants of the prox, without graph."""
    d = weight2.detach()
    inverse = d.reciprocal()
    second = inverse * inverse
    return torch.stack([torch.ones_like(d), d, second, second * inverse])


def _sums(power: Tensor, powers: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, ...]:
    """``Σ power · w^{2n}`` over each group, for each n of `powers_of`; positive."""
    tiny = torch.finfo(power.dtype).tiny
    *batch, channels, bases, bands, positions = power.shape
    if len(dims) == 1 or bases > 1 or powers[0].numel() != channels * bands:
        return tuple((power * w).sum(dims, keepdim=True).clamp_min_(tiny) for w in powers)
    # One product with a small matrix reads the coefficients once.
    found = powers.view(len(powers), -1) @ power.view(*batch, channels * bands, positions)
    return found.clamp_min_(tiny).view(*batch, len(powers), 1, 1, 1, positions).unbind(len(batch))


def _last_step(dtype: torch.dtype) -> float:
    return 0.5 * torch.finfo(dtype).eps ** 0.5


class _GroupShrink(Function):
    """The group prox on a packed tensor: groups over `dims` of the details (B, C, M, 3, P); the rest is unchanged.

    If the weights are equal along an axis of the group, only the sum of squares along this axis matters.
    """

    @staticmethod
    def forward(v, threshold, weight2, powers, positions, dims, steps):
        cut = 3 * positions
        details = v[..., :cut].unflatten(-1, (3, positions))
        reach = (threshold * weight2).clamp_min_(torch.finfo(v.dtype).tiny)
        power = details.square()
        shared = _shared(weight2, dims)
        if shared:
            power = power.sum(shared, keepdim=True)
        s = _root(power.mul_(weight2), threshold, powers, reach, steps, dims)
        del power
        out = torch.empty_like(v)
        write(torch.mul, details, s / (s + reach), out[..., :cut].unflatten(-1, (3, positions)))
        out[..., cut:] = v[..., cut:]
        return out

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, threshold, weight2, _, ctx.positions, ctx.dims, _ = inputs
        ctx.save_for_backward(output, threshold, weight2)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        """Implicit derivative of the optimality condition ``u − v + t D u/s = 0``, ``D = diag(w²)``, ``s = ‖Wu‖``.

        With ``b = D u/s``: ``(diag(1 + t w²/s) − (t/s) b bᵀ) du = dv − b dt − t Σ_j ∂b/∂w²_j dw²_j``; the matrix is
        symmetric, and the Sherman–Morrison formula inverts it. The Newton steps are not differentiated.
        """
        out, t, d = ctx.saved_tensors
        positions, dims = ctx.positions, ctx.dims
        shared = _shared(d, dims)

        def gather(x: Tensor) -> Tensor:
            return x.sum(shared, keepdim=True) if shared else x

        cut = 3 * positions
        tiny = torch.finfo(out.dtype).tiny
        u = out[..., :cut].unflatten(-1, (3, positions))
        g = grad[..., :cut].unflatten(-1, (3, positions))
        squares = gather(u * u)
        total = (d * squares).sum(dims, keepdim=True)
        alive = total > 0
        safe = torch.where(
            alive, total, torch.ones_like(total)
        ).sqrt()  # s; the square root of 0 has no second derivative
        # 1/(1 + t w²/s); it is 0 in a group that is 0, unless t = 0, where the prox is the identity
        shrink = torch.where(alive | (t == 0), safe, torch.zeros_like(safe)) / (safe + t * d).clamp_min(tiny)
        # The whole graph is still in memory when this runs for the last layer, so its tensors set the peak of a step.
        det = _times(d * shrink, squares).sum(dims, keepdim=True) / (safe * safe)
        det = torch.where(alive, det, torch.ones_like(det)).clamp_min(tiny)
        zb = _times(_times(gather(u * g), shrink), d).sum(dims, keepdim=True) / (safe * det)  # ⟨z, b⟩
        grad_t = grad_d = None
        if ctx.needs_input_grad[1]:
            grad_t = -zb.sum_to_size(t.shape)
        if ctx.needs_input_grad[2]:
            grad_d = _times(squares, 0.5 * t * zb / (safe * safe)).sum_to_size(d.shape)
        del squares
        z = _times(_plus(_times(d * (t * zb / (safe * safe)), u), g), shrink)
        del shrink
        if grad_d is not None:
            grad_d = grad_d + _times(gather(z * u), -t / safe).sum_to_size(d.shape)
        grad_v = torch.cat([z.flatten(-2), grad[..., cut:]], -1)
        return grad_v, grad_t, grad_d, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, v, threshold, weight2, powers, positions, dims, steps):  # type: ignore[override]
        def batched(x: Tensor, dim: int | None, ndim: int) -> Tensor:
            x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            return x.reshape(len(x), *[1] * (ndim - x.ndim), *x.shape[1:])  # broadcast after the new axis

        v = batched(v, in_dims[0], 0)
        threshold, weight2 = (
            batched(x, d, v.ndim + 1) for x, d in zip((threshold, weight2), in_dims[1:3], strict=True)
        )
        return _GroupShrink.run(v, threshold, weight2, powers_of(weight2), positions, dims, steps), 0


def _times(fresh: Tensor, other: Tensor) -> Tensor:
    """``fresh * other``, in place unless a second derivative may need `fresh`, or the product is larger."""
    if torch.is_grad_enabled() or torch.broadcast_shapes(fresh.shape, other.shape) != fresh.shape:
        return fresh * other
    return fresh.mul_(other)


def _plus(fresh: Tensor, other: Tensor) -> Tensor:
    """``fresh + other``, in place under the same conditions as ``_times``."""
    if torch.is_grad_enabled() or torch.broadcast_shapes(fresh.shape, other.shape) != fresh.shape:
        return fresh + other
    return fresh.add_(other)


def _shared(weight2: Tensor, dims: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of the group along which the weights are the same."""
    return tuple(d for d in dims if weight2.ndim < -d or weight2.shape[d] == 1)


def group_shrink(
    v: Tensor,
    threshold: Tensor,
    weight2: Tensor,
    positions: int,
    dims: tuple[int, ...],
    steps: int,
    powers: Tensor | None = None,
) -> Tensor:
    r"""``prox_{t‖W·‖}`` of every group, exact.

    For each group ``prox(v) = 0`` if ``‖W⁻¹v‖ ≤ t``, else ``u_i = s v_i/(s + t w_i²)``, where ``s = ‖Wu‖`` is the only
    root s > 0 of ``Σ_i w_i² v_i²/(s + t w_i²)² = 1``.

    Args:
        v: packed coefficients (B, C, M, 3P + coarse).
        threshold: ``t ≥ 0``, broadcastable to the details (B, C, M, 3, P), constant within a group.
        weight2: ``w²``, positive, broadcastable to the details.
        positions: P.
        dims: axes of (B, C, M, 3, P) that form a group, a subset of (1, 3).
        steps: Newton steps, see ``newton_steps``; 0 is exact for equal weights within the groups.
        powers: ``powers_of(weight2)``, if many calls share it.

    Returns:
        Tensor of the shape of v; the coarse part is unchanged.
    """
    from_end = tuple(d - 5 for d in dims)
    powers = powers_of(weight2) if powers is None else powers
    return _GroupShrink.run(v, threshold, weight2, powers, positions, from_end, steps)  # type: ignore[return-value]
