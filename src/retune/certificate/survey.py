"""The survey of a batch before it is certified: factors, rates, movements and distances."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retune._torch import precision
from retune._torch.batch import over_images, per_image_norm
from retune.equilibrium import Equilibrium, Status
from retune.guarantee import Guarantee
from retune.maps.base import BoundMap
from retune.maps.linearised import Estimate, Linearised, spectral_norm, spectral_radius
from retune.model import Restarted

__all__ = ["JITTER", "REFUTES", "ROUNDING", "Survey", "usable"]

_SERIES = 1000  # maximum number of layers of the adjoint series
#: Allowance of the distance bounds for rounding in one layer, in units of ε (‖u‖ + 2‖u_0‖).
ROUNDING = 8.0
#: An image within d of an equilibrium moves by at most (1 + ‖J‖) d in a cycle of layers. ‖J‖ is estimated from below
#: only, so 1 + ‖J‖ is taken to be at least this.
_LEAP = 10.0
#: The movement of a cycle must fall to this share over blocks in which the rate predicts that it halves.
_STEADY = 0.9
#: Movements below this multiple of ε ‖u‖ are rounding.
JITTER = 1000.0
#: Movements above this multiple of ε ‖u‖ show the rate: rounding changes their sum of squares by a hundredth.
_VISIBLE = 8.0
#: An estimate from below refutes a bound if it exceeds it by this share plus the error of a finite difference.
REFUTES = 1e-3


class Survey:
    """All numbers for the whole batch."""

    def __init__(
        self,
        net: Restarted,
        bound: BoundMap,
        guarantee: Guarantee,
        result: Equilibrium,
        iterations: int,
        starts: int,
        max_layers: int,
        learning: bool,
    ):
        self.net, self.bound, self.guarantee, self.result = net, bound, guarantee, result
        self.depth, self.starts, self.learning = net.depth, starts, learning
        self.u = usable(result.state.detach())
        self.batch = len(self.u)
        cycles = self.depth // bound.layers
        factors = guarantee.factors()
        self.factors = None if factors is None else factors.detach().expand(-1, self.batch)
        # Factor of K layers, (B,).
        self.block = None if self.factors is None else self.factors.prod(0) ** (self.depth // bound.layers)
        # Run on until most of the distance to the equilibrium is covered. The Jacobian is also best measured there.
        ahead = self._ahead(self.block, max_layers)
        self.first_step: Tensor | None = None
        self.last_step: Tensor | None = None
        self.moves: list[Tensor] = []  # of the cycles, for a rate without power iterations
        self.after_one, self.begins = self._at_rest() or self._watched(self.u)
        self.u_far, self.ends, self.blocks = self.after_one, self.begins, 1
        self._go_on(ahead - 1)
        jacobian = None
        rate = self._seen_rate() if starts == 0 else None
        if rate is None and starts == 0 and self.block is not None and not bool(self.block.any()):
            # A layer that does not depend on its state needs no power iteration.
            rate = Estimate(torch.zeros_like(self.block), torch.zeros_like(self.block), len(self.moves), 0)
        if rate is None:
            jacobian = Linearised(bound, self.u_far, graph=learning)
            rate = _per_layer(spectral_radius(jacobian, 5 * iterations, max(1, starts)), bound.layers)
        self.rate = rate
        if self.block is None or bool((self.block >= 1).any()):
            # One more: the first block only shows the movement to compare with.
            more = min(self._ahead(self.rate.value**self.depth, max_layers) + 1, max_layers // self.depth) - ahead
            if more > 0:
                self._go_on(more)
                self.rate = rate if jacobian is not None else self._seen_rate() or rate
        self.layer_norm = self.block_norm = self.gradient = None
        self.exact = jacobian is not None and jacobian.exact
        if learning and jacobian is not None:
            self.layer_norm = spectral_norm(jacobian, 1, iterations, starts) if bound.layers == 1 else None
            self.block_norm = spectral_norm(jacobian, cycles, iterations, starts)
            self.gradient = self._gradient(jacobian, cycles)

    def _ahead(self, factor: Tensor | None, max_layers: int) -> int:
        """Number of blocks that halve the distance; the allowed maximum if none does."""
        most = max(1, max_layers // self.depth)
        if factor is None:
            return min(most, max(1, math.ceil(50 / self.depth)))
        worst = float(factor[factor < 1].max()) if bool((factor < 1).any()) else 0.0
        return 1 if worst <= 0.5 else min(most, math.ceil(math.log(0.5) / math.log(worst)))

    def _go_on(self, blocks: int) -> None:
        """Run further blocks, and measure the movements of the cycles of the last one; without starts, of all."""
        with torch.no_grad():
            for _ in range(blocks - 1):
                if self.starts == 0:
                    self.u_far, _ = self._watched(self.u_far)
                else:
                    self.u_far = self.bound.block(self.u_far, self.depth)
        if blocks > 0:
            self.u_far, self.ends = self._watched(self.u_far)
            self.blocks += blocks

    def _at_rest(self) -> tuple[Tensor, Tensor] | None:
        """The result of a layer that does not depend on its state, which another one would return; None for others."""
        if not self.bound.rests_at(self.result.state):
            return None
        still = torch.zeros(self.batch, dtype=self.u.dtype, device=self.u.device)
        self.moves.append(still)
        return self.u, still

    def _watched(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The state one block later, and the largest movement of a cycle in this block, (B,)."""
        most = torch.zeros(len(u), dtype=u.dtype, device=u.device)
        with torch.no_grad():
            for first in range(0, self.depth, self.bound.layers):
                before = u
                for k in range(first, min(first + self.bound.layers, self.depth)):
                    u = self.bound.layer(u, k)
                self.moves.append(per_image_norm(u - before))
                most = torch.maximum(most, self.moves[-1])
                if self.guarantee.averaged is not None:
                    self.last_step = self.bound.norm(u - before)
                    self.first_step = self.last_step if self.first_step is None else self.first_step
        return u, most

    def _seen_rate(self) -> Estimate | None:
        """The factor of a layer from the movements of the cycles beyond the result; None if they are few, or rounding.

        ``T(u_{n+1}) − T(u_n) ≈ J (u_{n+1} − u_n)``: they are a power iteration whose start is the last change.
        """
        noise = _VISIBLE * precision.rounding(self.u) * per_image_norm(self.u)
        if len(self.moves) < 4 or bool((self.moves[-1] <= noise).any()):
            return None
        logs = torch.stack(self.moves).log()
        last, half = len(logs) - 1, (len(logs) - 1) // 2
        middle = (half + last) // 2
        rate, early, late = (
            ((logs[b] - logs[a]) / (b - a)).exp() for a, b in ((half, last), (half, middle), (middle, last))
        )
        return _per_layer(Estimate(rate, (early - late).abs(), last - half, 0), self.bound.layers)

    def _jumps(self, size: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the iteration jumps between states instead of approaching one, and whether `near` is refuted, (B,).

        Within d of an equilibrium a layer moves at most ``(1 + ‖J‖) d``. A state that moves more is not that near. It
        may jump, or approach slowly with an eigenvalue near −1, whose layers cancel within a block.

        Args:
            size: ‖u‖.
            near: the estimated distance; infinite without an estimate.
        """
        norm = torch.zeros_like(near) if self.layer_norm is None else self.layer_norm.value.nan_to_num(0.0)
        moves = self.begins > JITTER * torch.finfo(size.dtype).eps * size
        too_far = self.begins > (1 + norm).clamp_min(_LEAP) * near
        halves = self.rate.value ** (self.depth * (self.blocks - 1)) <= 0.5
        steady = halves & (self.ends > _STEADY * self.begins) if self.blocks > 1 else torch.zeros_like(too_far)
        said = [status is Status.OSCILLATES for status in self.result.status]
        return moves & (steady | torch.tensor(said, device=moves.device)), moves & too_far

    def _kept(self, size: Tensor) -> Tensor:
        """The share of the movement of a cycle that was left in the last block, (B,); 0 if it is rounding.

        It is also 0 for a rate that was seen in the movements, which says the same more exactly.
        """
        if self.rate.starts == 0:
            return torch.zeros_like(size)
        moves = self.ends > JITTER * torch.finfo(size.dtype).eps * size
        return torch.where(moves & (self.blocks > 1), _share(self.ends, self.begins), 0.0)

    def _gradient(self, jacobian: Linearised, cycles: int) -> Tensor | None:
        """Relative error of the rule's M blocks, (starts, B), for random loss gradients."""
        rule = self.net.gradient
        if rule.fixed_blocks is None:
            return None
        slowest = float(self.rate.value.nan_to_num(1.0).clamp(1e-3, 1).max())
        used = cycles * rule.fixed_blocks
        terms = _SERIES if slowest >= 1 else math.ceil(math.log(1e-3) / math.log(slowest) / self.bound.layers)
        terms = used + max(cycles, min(terms, _SERIES // self.bound.layers))
        terms = -(-terms // cycles) * cycles
        block = (self.rate.value**self.depth).clamp_max(1 - torch.finfo(self.u.dtype).eps)
        tail = over_images(1 / (1 - block), self.u.ndim)
        errors = []
        for seed in range(self.starts):
            term = self._loss_gradient(seed)
            whole, rest = torch.zeros_like(term), torch.zeros_like(term)
            # w* = Σ_j (Jᵀ)^{Kj} v is the sum over all blocks; the error is its part beyond block M.
            for j in range(terms):
                if j % cycles == 0:
                    whole = whole + term
                    rest = rest + term if j >= used else rest
                term = jacobian.transposed(term)
            # The slowest mode dominates the rest of the series, which is therefore geometric.
            whole, rest = whole + tail * term, rest + tail * term
            errors.append(per_image_norm(rest) / per_image_norm(whole).clamp_min(torch.finfo(term.dtype).tiny))
        return torch.stack(errors)

    def _loss_gradient(self, seed: int) -> Tensor:
        """White noise on the image, pulled back to the state (like ``Dᵀ``): the gradient of a random loss."""
        with torch.enable_grad():
            u = self.u_far.detach().clone().requires_grad_()
            image = self.bound.image(u)
            generator = torch.Generator().manual_seed(1000 + seed)
            noise = torch.randn(image.shape[1:], generator=generator, dtype=image.dtype).to(image.device)
            if image is u:
                return noise.expand_as(image).clone()
            return torch.autograd.grad(image, u, noise.expand_as(image))[0]

    def distances(self) -> dict[str, Tensor]:
        """Distances (B,) of state and image, by the bound and by the estimated rate; inf if there is no bound."""
        with torch.no_grad():
            x, far = self.bound.image(self.u), self.bound.image(self.u_far)
            moved, moved_image = per_image_norm(self.u_far - self.u), per_image_norm(far - x)
            pixels = math.sqrt(x[0].numel())
            scale = self.bound.size(self.u)
            found = {"size": per_image_norm(self.u), "scale": scale}
            found["residual"] = _share(per_image_norm(self.after_one - self.u), self.bound.size(self.after_one))
            infinite = torch.full_like(moved, torch.inf)
            # A rate at one state means little if the movement falls more slowly: the worse of the two counts.
            rate = torch.maximum(self.rate.value ** (self.depth * self.blocks), self._kept(found["size"]))
            left = torch.where(rate < 1, rate / (1 - rate), infinite)
            epsilon = precision.rounding(self.u)
            # At rest only rounding moves the state, by about ε per layer.
            rest = epsilon * self.depth * found["size"] / (1 - self.rate.value**self.depth)
            estimated = torch.where(rate < 1, moved * (1 + left) + rest, infinite)
            jumps, refuted = self._jumps(found["size"], estimated)
            unknown = jumps | refuted
            found["jumps"] = torch.where(jumps, _share(self.begins, scale), 0.0)
            cycles = self.depth / self.bound.layers
            found["residual"] = torch.maximum(found["residual"], cycles * found["jumps"])
            found["estimated"] = torch.where(unknown, infinite, estimated)
            near_image = torch.where(rate < 1, moved_image * (1 + left) + rest, infinite) / pixels
            found["estimated image"] = torch.where(unknown, infinite, near_image)
            if self.block is not None:
                q = self.block**self.blocks
                # Rounding in each block also moves the equilibrium that is approached. One layer adds to the state a
                # step of τ ≤ 2/L along Aᵀy: at most twice the scaled back-projection.
                size = torch.maximum(found["size"], per_image_norm(self.u_far)) + 2 * per_image_norm(self.bound.init())
                noise = ROUNDING * epsilon * self.depth * size / (1 - self.block)
                bound = torch.where(q < 1, moved / (1 - q) + noise, infinite)
                found["proved"] = bound
                # the state after the extra blocks is within q·bound of the equilibrium, and the image map is Lipschitz
                found["proved image"] = (moved_image + self.guarantee.image * (q * bound + noise)) / pixels
        return found


def usable(y):
    """A tensor made in inference mode cannot enter a graph, but its copy can."""
    return y.clone() if isinstance(y, Tensor) and y.is_inference() and not torch.is_inference_mode_enabled() else y


def _per_layer(cycle: Estimate, layers: int) -> Estimate:
    if layers == 1:
        return cycle
    low = (cycle.value - cycle.spread).clamp_min(0)
    value = cycle.value ** (1 / layers)
    return Estimate(value, value - low ** (1 / layers), cycle.iterations, cycle.starts)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp_min(torch.finfo(whole.dtype).tiny)
