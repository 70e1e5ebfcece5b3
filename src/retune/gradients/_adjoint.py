"""The adjoint series ``w = Σ_m (Jᵀ)^m v``, per image, with the measured decay of its terms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retune.equilibrium import GradientReport
from retune.gradients._residual import minimal_residual

__all__ = ["AdjointBlocks"]

# A term this many times larger than the first: the block is no contraction there, and the sum means nothing.
_RUNAWAY = 10.0


class AdjointBlocks:
    r"""Pulls a gradient v back through a recorded block ``Φ(u_in) = u_out`` several times.

    ``w_0 = v``, ``w_m = v + Jᵀ w_{m−1}`` with J the Jacobian of the block, so ``w_{M−1}`` in place of v gives the
    gradient of M times as many layers with the memory of one block. The increments ``i_m = Jᵀ i_{m−1}`` have the
    measured ratio ``r = ‖i_m‖/‖i_{m−1}‖``, and the rest of the series is at most about ``‖i_m‖ r/(1 − r)``.

    Args:
        report: filled in by the backward pass.
        blocks: M, or None to continue until `rtol`.
        rtol: continue until the estimated remaining error of the adjoint, relative to w, is below this.
        max_blocks: upper bound on M.
        memory: directions kept to solve for w by minimal residuals instead of summing the series, if `rtol` is given;
            0 sums the series.
    """

    def __init__(
        self, report: GradientReport, blocks: int | None, rtol: float | None, max_blocks: int, memory: int = 0
    ):
        self._report, self._blocks, self._rtol, self._max_blocks = report, blocks, rtol, max_blocks
        self._memory = memory if blocks is None and max_blocks > 1 else 0
        self._gain: Tensor | None = None
        self._seen: tuple[Tensor | None, Tensor, Tensor, Tensor] | None = None

    def enter(self, u: Tensor) -> Tensor:
        """The state to start the recorded block from.

        Not a leaf: a leaf would be kept, with its gradient, until the whole backward pass is over.
        """
        handle = torch.zeros((), dtype=u.dtype, device=u.device, requires_grad=True)
        return _Tap.apply(u.detach(), handle, self._last_increment)  # type: ignore[return-value]

    def leave(self, u_in: Tensor, u_out: Tensor) -> Tensor:
        """The output to hand on: its backward pass runs the series, then goes through the block once more."""
        if self._blocks == 1:  # nothing to pull back, and nothing that would keep u_out alive during the last pass

            def pull_back(v: Tensor) -> Tensor:
                return self._series(lambda w: w, v)
        else:

            def pull_back(v: Tensor) -> Tensor:
                return self._series(lambda w: torch.autograd.grad(u_out, u_in, w, retain_graph=True)[0], v)

        return _Relay.apply(u_out, pull_back)  # type: ignore[return-value]

    def _series(self, vjp: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        if self._memory:
            found = minimal_residual(vjp, v, rtol=self._rtol or 0.0, most=self._max_blocks - 1, memory=self._memory)
            self._report.blocks, self._gain = found.products + 1, found.gain
            self._seen = (found.w - v, _norm(found.w), _norm(v), found.alive)
            return found.w
        w = increment = v
        size = _norm(v)
        first, alive = size, torch.ones_like(size, dtype=torch.bool)
        limit = self._max_blocks if self._blocks is None else self._blocks
        # On an accelerator each look at the numbers stalls it: look now and then.
        every = 1 if v.device.type == "cpu" else 8
        used, before = 1, None
        while used < limit:
            increment = vjp(increment)
            new = _norm(increment)
            alive = alive & torch.isfinite(new) & (new <= _RUNAWAY * first)
            increment = torch.where(_like(alive, increment), increment, torch.zeros_like(increment))
            w = w + increment
            used += 1
            ratio, size = new / size.clamp_min(_tiny(size)), new
            if self._blocks is None and used % every == 0:
                # The slow modes take over from block to block, so the ratio still grows: continue its growth,
                # and be careful while only one ratio is known.
                growing = None if before is None else (ratio / before.clamp_min(_tiny(size))).clamp_min(1.0)
                ahead = ratio.sqrt() if growing is None else ratio * growing
                tail = torch.where(ahead < 1, new * ahead / (1 - ahead).clamp_min(_tiny(size)), torch.inf)
                small = tail <= (self._rtol or 0.0) * _norm(w)
                if not bool((alive & ~small & (new > 0)).any()):
                    break
            before = ratio
        self._report.blocks = used
        # With one block w is v: nothing of the size of a state is kept during the last pass.
        self._seen = (None if used == 1 else w - v, _norm(w), size, alive)
        return w

    def _last_increment(self, grad: Tensor) -> None:
        """The final pass through the block also yields ``Jᵀ w_{M−1}``, hence the next increment for nothing."""
        if self._seen is None:  # the graph was walked without the series
            return
        added, total, size, alive = self._seen
        self._seen = None
        following = _norm(grad if added is None else grad - added)
        tiny = _tiny(size)
        if self._gain is not None:  # `following` is the true residual ‖v + Jᵀw − w‖
            error = torch.where(alive, self._gain * following / total.clamp_min(tiny), torch.inf)
            self._report.decay = torch.where(alive, 1 - 1 / self._gain, torch.inf).detach()
            self._report.relative_error = torch.where(size == 0, 0.0, error).detach()
            return
        ratio = following / size.clamp_min(tiny)
        tail = following / (1 - ratio).clamp_min(tiny)
        error = torch.where(alive & (ratio < 1), tail / total.clamp_min(tiny), torch.inf)
        # A series that ended because its term is 0 is exact; one that was stopped as a runaway is not.
        exact = alive & (size == 0)
        self._report.decay = torch.where(exact, 0.0, torch.where(alive, ratio, torch.inf)).detach()
        self._report.relative_error = torch.where(exact, 0.0, error).detach()


class _Tap(torch.autograd.Function):
    """The identity at the head of the graph, which hands the gradient that arrives to a function."""

    @staticmethod
    def forward(ctx, u, handle, receive):
        ctx.receive = receive
        return u.view_as(u)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        ctx.receive(grad)
        return None, torch.zeros((), dtype=grad.dtype, device=grad.device), None


class _Relay(torch.autograd.Function):
    """The identity, whose backward pass replaces the gradient."""

    @staticmethod
    def forward(ctx, u, pull_back):
        ctx.pull_back = pull_back
        return u.view_as(u)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        return ctx.pull_back(grad), None


def _norm(u: Tensor) -> Tensor:
    return torch.linalg.vector_norm(u.flatten(1), dim=1)


def _like(mask: Tensor, u: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (u.ndim - 1))


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
