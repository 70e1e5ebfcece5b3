"""The adjoint series ``w = Σ_m (Jᵀ)^m v``, per image, with the measured decay of its terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from retune._torch.batch import over_images, per_image_norm
from retune.equilibrium import GradientReport
from retune.gradients._residual import first_direction, minimal_residual
from retune.gradients.base import AdjointMemory

__all__ = ["AdjointBlocks"]

# If a term is this many times larger than the first, the block is not a contraction and the sum is meaningless.
_RUNAWAY = 10.0


class AdjointBlocks:
    r"""Pulls a gradient v back through a recorded block ``Φ(u_in) = u_out`` several times.

    ``w_0 = v``, ``w_m = v + Jᵀ w_{m−1}`` with J the Jacobian of the block, so using ``w_{M−1}`` in place of v gives the
    gradient of M times as many layers at the memory of one block. The increments ``i_m = Jᵀ i_{m−1}`` have the measured
    ratio ``r = ‖i_m‖/‖i_{m−1}‖``. The remainder of the series is at most about ``‖i_m‖ r/(1 − r)``.

    Args:
        report: filled in by the backward pass.
        blocks: M, or None to continue until `rtol`.
        rtol: continue until the estimated remaining error of the adjoint, relative to w, is below this.
        max_blocks: upper bound on M.
        parameters: apply `rtol` also to the gradient with respect to everything the block depends on. If large
            contributions cancel, an adjoint with 1 % error can give a gradient with 10 % error.
        memory: with `rtol`, number of directions kept to solve for w by minimal residuals; 0 sums the series instead.
        known: the start. It is the first direction, scaled for the smallest residual; the series or the minimal
            residuals continue from there. A bad start costs one extra product with Jᵀ and nothing else.
    """

    def __init__(
        self,
        report: GradientReport,
        blocks: int | None,
        rtol: float | None,
        max_blocks: int,
        parameters: bool = False,
        memory: int = 0,
        known: AdjointMemory | None = None,
    ):
        self._report, self._blocks, self._rtol, self._max_blocks = report, blocks, rtol, max_blocks
        self._memory = memory if blocks is None and max_blocks > 1 else 0
        self._parameters = parameters and blocks is None
        self._known = known if blocks is None and max_blocks > 1 else None
        self._gain: Tensor | None = None
        self._met: Tensor | None = None  # the gain, if it must be remembered
        self._left: Tensor | None = None  # share of the residual after the start
        self._seen: tuple[Tensor | None, Tensor, Tensor, Tensor] | None = None

    def enter(self, u: Tensor, sources: Sequence[Tensor] = ()) -> Tensor:
        """The state to start the recorded block from.

        It is not a leaf: a leaf would be kept, with its gradient, until the whole backward pass is over. It depends on
        the `sources`, but passes no gradient to them. The reason: ``torch.autograd.grad`` visits only the paths to its
        inputs, and the head of the graph must be on such a path for the error to be measured.
        """
        handle = torch.zeros((), dtype=u.dtype, device=u.device, requires_grad=True)
        return _Tap.apply(u.detach(), self._last_increment, handle, *sources)  # type: ignore[return-value]

    def leave(self, u_in: Tensor, u_out: Tensor) -> Tensor:
        """The output for the loss. Its backward pass runs the series, then goes through the block once more."""
        leaves = _leaves(u_out, u_in) if self._parameters else []

        def parameter_gradient(w: Tensor) -> Tensor:
            grads = torch.autograd.grad(u_out, leaves, w, retain_graph=True, allow_unused=True)
            return torch.cat([g.flatten().to(w) for g in grads if g is not None])

        if self._blocks == 1:  # nothing to pull back, and u_out need not stay alive during the last pass

            def pull_back(v: Tensor) -> Tensor:
                return self._solve(lambda w: w, v)
        else:

            def pull_back(v: Tensor) -> Tensor:
                return self._solve(
                    lambda w: torch.autograd.grad(u_out, u_in, w, retain_graph=True)[0],
                    v,
                    parameter_gradient if leaves else None,
                )

        return _Relay.apply(u_out, pull_back)  # type: ignore[return-value]

    def _solve(
        self,
        vjp: Callable[[Tensor], Tensor],
        v: Tensor,
        parameter_gradient: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        if self._known is None:
            return self._series(vjp, v, None, None, parameter_gradient)
        w = self._series(vjp, v, *self._known.recall(v), parameter_gradient)
        ones = torch.ones_like(per_image_norm(v))
        self._known.keep(w, *(ones if x is None else x for x in (self._met, self._left)))
        return w

    def _series(
        self,
        vjp: Callable[[Tensor], Tensor],
        v: Tensor,
        start: Tensor | None,
        gain: Tensor | None,
        parameter_gradient: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        if self._memory:
            found = minimal_residual(
                vjp,
                v,
                rtol=self._rtol or 0.0,
                most=self._max_blocks - 1,
                memory=self._memory,
                start=start,
                gain=gain,
                accept=None if parameter_gradient is None else self._settled(parameter_gradient),
            )
            self._report.blocks, self._gain = found.products + 1, found.gain
            self._met, self._left = found.gain, found.left
            self._seen = (found.w - v, per_image_norm(found.w), per_image_norm(v), found.alive)
            return found.w
        w = increment = v
        size = per_image_norm(v)
        first, alive = size, torch.ones_like(size, dtype=torch.bool)
        limit = self._max_blocks if self._blocks is None else self._blocks
        # On an accelerator each read of the numbers stalls it, so read only now and then.
        every = 1 if v.device.type == "cpu" else 8
        used, before, earliest = 1, None, 0
        if start is not None:
            w, increment = first_direction(vjp, v, start)
            w, size, used = w + increment, per_image_norm(increment), 2
            self._left = size / first.clamp_min(_tiny(size))
        while used < limit:
            last, increment = increment, vjp(increment)
            new = per_image_norm(increment)
            alive = alive & torch.isfinite(new) & (new <= _RUNAWAY * first)
            increment = torch.where(over_images(alive, increment.ndim), increment, torch.zeros_like(increment))
            w = w + increment
            used += 1
            ratio, size = new / size.clamp_min(_tiny(size)), new
            if self._blocks is None and used % every == 0:
                # The share of slow modes increases from block to block, so the ratio still grows: extrapolate its
                # growth, with caution while only one ratio is known.
                growing = None if before is None else (ratio / before.clamp_min(_tiny(size))).clamp_min(1.0)
                ahead = ratio.sqrt() if growing is None else ratio * growing
                if gain is not None:
                    ahead = torch.maximum(ahead, 1 - 1 / gain.clamp_min(1.0))
                tail = torch.where(ahead < 1, new * ahead / (1 - ahead).clamp_min(_tiny(size)), torch.inf)
                # The ratio of terms that consist of rounding is meaningless.
                small = (tail <= (self._rtol or 0.0) * per_image_norm(w)) | (new <= _rounding(w))
                if used >= earliest and not bool((alive & ~small & (new > 0)).any()):
                    if parameter_gradient is None:
                        break
                    more = self._still_needed(parameter_gradient, w, last, increment, ahead)
                    if more == 0:
                        break
                    earliest = used + more
            del last
            before = ratio
        self._report.blocks = used
        if before is not None:
            self._met = 1 / (1 - before.clamp(0.0, 0.9999))
            self._met = self._met if gain is None else torch.maximum(self._met, gain)
        # With one block w = v, so nothing of the size of a state is kept during the last pass.
        self._seen = (None if used == 1 else w - v, per_image_norm(w), size, alive)
        return w

    def _settled(self, parameter_gradient: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], bool]:
        """Whether the parameter gradient has settled, judged by its change from one accepted w to the next.

        If the residual has shrunk by the factor q meanwhile, about ``q/(1 − q)`` of the change is still to come.
        """
        before: tuple[Tensor, Tensor] | None = None

        def settled(w: Tensor, residual: Tensor) -> bool:
            nonlocal before
            last, before = before, (parameter_gradient(w), residual)
            if last is None:
                return False
            q = float((residual / last[1].clamp_min(_tiny(residual))).max().clamp(0.0, 0.999))
            size = float(torch.linalg.vector_norm(before[0]))
            rest = float(torch.linalg.vector_norm(before[0] - last[0])) * q / (1 - q)
            self._report.parameter_error = rest / size if size > 0 else 0.0
            return rest <= (self._rtol or 0.0) * size

        return settled

    def _still_needed(
        self,
        parameter_gradient: Callable[[Tensor], Tensor],
        w: Tensor,
        last: Tensor,
        increment: Tensor,
        ahead: Tensor,
    ) -> int:
        """Number of blocks still needed for a remainder of the parameter gradient below `rtol`; 0 if reached."""
        q = float(ahead.nan_to_num(0.0).clamp(0.0, 0.999).max())
        size = float(torch.linalg.vector_norm(parameter_gradient(w)))
        # A single term can be small by cancellation, so the larger prediction of the last two counts.
        found = [float(torch.linalg.vector_norm(parameter_gradient(i))) for i in (last, increment)]
        rest = max(q * found[0], found[1]) * q / (1 - q)
        wanted = (self._rtol or 0.0) * size
        if rest <= wanted or bool((per_image_norm(increment) <= _rounding(w)).all()):
            self._report.parameter_error = rest / size if size > 0 else 0.0
            return 0
        # If everything cancels (size 0), only rounding ends the series.
        return max(1, min(50, math.ceil(math.log(max(wanted, 1e-30) / rest) / math.log(q)))) if q > 0 else 1

    def _last_increment(self, grad: Tensor) -> None:
        """The final pass through the block also yields ``Jᵀ w_{M−1}``, so the next increment costs nothing."""
        if self._seen is None:  # autograd visited the graph without the series
            return
        added, total, size, alive = self._seen
        self._seen = None
        following = per_image_norm(grad if added is None else grad - added)
        tiny = _tiny(size)
        if self._gain is not None:  # `following` is the true residual ‖v + Jᵀw − w‖
            error = torch.where(alive, self._gain * following / total.clamp_min(tiny), torch.inf)
            self._report.decay = torch.where(alive, 1 - 1 / self._gain, torch.inf).detach()
            self._report.relative_error = torch.where(size == 0, 0.0, error).detach()
            return
        ratio = following / size.clamp_min(tiny)
        tail = following / (1 - ratio).clamp_min(tiny)
        # The tail points mostly along the sum, as both consist of slow modes. So the exact adjoint is longer by it.
        error = torch.where(alive & (ratio < 1), tail / (total + tail).clamp_min(tiny), torch.inf)
        # A series whose last term is 0, or rounding, is exact; a diverging series that was stopped is not.
        exact = alive & ((size == 0) | (following <= 4 * torch.finfo(total.dtype).eps * total))
        self._report.decay = torch.where(exact, 0.0, torch.where(alive, ratio, torch.inf)).detach()
        self._report.relative_error = torch.where(exact, following / total.clamp_min(tiny), error).detach()


class _Tap(torch.autograd.Function):
    """The identity at the head of the graph. It passes the incoming gradient to a function."""

    @staticmethod
    def forward(ctx, u, receive, handle, *sources):
        ctx.receive, ctx.unfed = receive, len(sources)
        return u.view_as(u)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        ctx.receive(grad)
        return None, None, torch.zeros((), dtype=grad.dtype, device=grad.device), *[None] * ctx.unfed


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


def _leaves(u_out: Tensor, u_in: Tensor) -> list[Tensor]:
    """Every leaf on which the block depends other than through its input: parameters, a learned mask, y."""
    found, seen, waiting = [], {u_in.grad_fn}, [u_out.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.append(leaf)
        waiting.extend(parent for parent, _ in node.next_functions)
    return found


def _rounding(w: Tensor) -> Tensor:
    """‖w‖ per image times a few units of rounding."""
    return 4 * torch.finfo(w.dtype).eps * per_image_norm(w)


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
