"""Certify a restoration: solve it, then bound, estimate and measure."""

from __future__ import annotations

import math

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune._torch import precision
from retune._torch.batch import over_images, per_image_norm
from retune.certificate.claims import ESTIMATED, MEASURED, Claim, Number, proved_kind
from retune.certificate.document import Certificate, ImageCertificate
from retune.equilibrium import Equilibrium, Status
from retune.errors import InvalidParameterError, ShapeError, advice, require, require_whole
from retune.guarantee import Assumption, Guarantee, Subject
from retune.maps.base import BoundMap, guarantee_of
from retune.maps.linearised import Estimate, Linearised, spectral_norm, spectral_radius
from retune.model import Bound, Restarted

__all__ = ["certify"]

_SERIES = 1000  # maximum number of layers of the adjoint series
#: Allowance of the distance bounds for rounding in one layer, in units of ε (‖u‖ + 2‖u_0‖).
ROUNDING = 8.0
#: An image within d of an equilibrium moves by at most (1 + ‖J‖) d in a cycle of layers. ‖J‖ is estimated from below
#: only, so 1 + ‖J‖ is taken to be at least this.
_LEAP = 10.0
#: The movement of a cycle must fall to this share over blocks in which the rate predicts that it halves.
_STEADY = 0.9
#: Movements below this multiple of ε ‖u‖ are rounding.
_JITTER = 1000.0
#: Movements above this multiple of ε ‖u‖ show the rate: rounding changes their sum of squares by a hundredth.
_VISIBLE = 8.0
#: An estimate from below refutes a bound if it exceeds it by this share plus the error of a finite difference.
REFUTES = 1e-3


def certify(
    net: Restarted,
    y: Tensor,
    physics: LinearPhysics,
    *,
    result: Equilibrium | None = None,
    bound: Bound | None = None,
    iterations: int = 20,
    starts: int = 3,
    max_layers: int = 2000,
    learning: bool = True,
) -> Certificate:
    r"""Certify a restoration: its distance to the equilibrium, the error of the K-layer gradient, and the assumptions.

    Bounds exist if the map states the facts that imply them ([`guarantee`][retune.AbstractMap.guarantee]). Let ρ be the
    product of the Lipschitz constants over n layers, and ``u_n`` the state n layers later. Then


    * ``‖u − u*‖ ≤ ‖u_n − u‖/(1 − ρ)``, with n so large that ρ ≤ ½ (if `max_layers` allows), so the bound is at most
      three times the true distance;
    * the adjoint of the K-layer gradient at the equilibrium has a relative error ``‖w − w*‖/‖w*‖ ≤ ρ_K`` for any loss,
      and at most ``ρ_K^M`` with M blocks (arXiv:2506.13239; Bolte, Pauwels, Vaiter, NeurIPS 2023).

    All other numbers are measured, or estimated by power iterations on the Jacobian at the final state. Estimates are
    from below: the true factor is at least the estimate. A power iteration finds slow directions late if its start
    hardly contains them. If an estimate exceeds a bound, an assumption is wrong: then nothing is called proved, and the
    verdict says so.

    Bounds assume exact arithmetic. Distance bounds also allow for rounding: ``8 ε (‖u‖ + 2‖u_0‖)`` per layer (ε =
    1.2e-7 in float32; u_0 is the scaled back-projection). TF32 and autocast are switched off during the computation.

    Args:
        net: the network. It is used in eval mode, and then returned to its former mode.
        y: measurement.
        physics: the operator of the measurement.
        result: the result of ``net.solve`` for `y`, if you have it; otherwise the solve is done now.
        bound: the result of ``net.bind`` for `y`, if you have it. Bounds inherit the accuracy of its constants, so
            bind within ``torch.no_grad()`` and, on a GPU, without TF32.
        iterations: number of iterations for a norm (five times as many for the rate).
        starts: number of random starts of each power iteration; the spread over them is reported. 0, with
            ``learning=False``, takes the rate from the movements of the layers beyond the result, which costs no
            further layer. If these movements are rounding, or fewer than four, one start of five layers replaces them.
        max_layers: maximum number of layers beyond the result.
        learning: whether to estimate the norms of the Jacobians and the error of the gradient, too. Choose False for an
            image that is only restored. Then no graph is recorded, so the memory is that of the restoration, and the
            rate comes from ``5 · iterations · starts`` finite differences of one layer each.

    Returns:
        A certificate with one entry per image; ``print`` it, or take ``.to_dict()``.

    Raises:
        CutGradientError: no gradient flows through the map.
        InvalidParameterError: an option is out of range, gradients are wanted in ``torch.inference_mode()``, or
            `bound` belongs to another measurement.
        ShapeError: `result` does not belong to this measurement.
    """
    require("net", net, Restarted, "a network", "for example retune.Restarted(retune.ForwardBackward(prior))")
    for name, value in (("iterations", iterations), ("starts", starts), ("max_layers", max_layers)):
        least = 0 if name == "starts" and not learning else 1
        if require_whole(name, value) < least:
            raise InvalidParameterError(f"{name} must be at least {least}, got {value}")
    if learning and torch.is_inference_mode_enabled():
        raise InvalidParameterError(
            "certify records a graph to estimate the error of the gradient, but torch.inference_mode() forbids "
            "graphs: leave that mode, or call certify(..., learning=False)"
        )
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad(), precision.full_precision():
            if bound is None:
                y = _usable(y)
                bound = net.bind(y, physics)
            result = net.solve(y, physics, bound=bound) if result is None else result
            require("bound", bound, Bound, "what net.bind(y, physics) returned", "or leave it out")
            bound.require(y, physics, net.map)
            there = bound.map.at(result.state)
            start = there.init().shape
            if result.state.shape != start:
                raise ShapeError(
                    f"result has a state of shape {tuple(result.state.shape)}, but the state for this measurement has "
                    f"shape {tuple(start)}: give the result of net.solve(y, physics) for the same y"
                )
            guarantee = guarantee_of(net.map, bound.data_term)
        with precision.full_precision():
            return _Survey(net, there, guarantee, result, iterations, starts, max_layers, learning).certificate()
    finally:
        net.train(was_training)


class _Survey:
    """All numbers for the whole batch, then one certificate per image."""

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
        self.u = _usable(result.state.detach())
        self.batch = len(self.u)
        cycles = self.depth // bound.layers
        self.factors = self._expand(guarantee.factors())
        self.block = None if self.factors is None else self._block(self.factors)
        # Run on until most of the distance to the equilibrium is covered. The Jacobian is also best measured there.
        ahead = self._ahead(self.block, max_layers)
        self.first_step: Tensor | None = None
        self.last_step: Tensor | None = None
        self.moves: list[Tensor] = []  # of the cycles, for a rate without power iterations
        self.after_one, self.begins = self._watched(self.u)
        self.u_far, self.ends, self.blocks = self.after_one, self.begins, 1
        self._go_on(ahead - 1)
        jacobian = None
        self.rate = self._seen_rate() if starts == 0 else None
        if self.rate is None:
            jacobian = Linearised(bound, self.u_far, graph=learning)
            self.rate = _per_layer(spectral_radius(jacobian, 5 * iterations, max(1, starts)), bound.layers)
        if self.block is None or bool((self.block >= 1).any()):
            more = self._ahead(self.rate.value**self.depth, max_layers) - ahead
            if more > 0:
                self._go_on(more)
                self.rate = self.rate if jacobian is not None else self._seen_rate() or self.rate
        self.route = "" if jacobian is None else jacobian.route
        self.layer_norm = self.block_norm = self.gradient = None
        if learning and jacobian is not None:
            self.layer_norm = spectral_norm(jacobian, 1, iterations, starts) if bound.layers == 1 else None
            self.block_norm = spectral_norm(jacobian, cycles, iterations, starts)
            self.gradient = self._gradient(jacobian, cycles)

    def _expand(self, factors: Tensor | None) -> Tensor | None:
        return None if factors is None else factors.detach().expand(-1, self.batch)

    def _block(self, factors: Tensor) -> Tensor:
        """Factor of K layers, (B,): the product of the factors of the layers."""
        return factors.prod(0) ** (self.depth // self.bound.layers)

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
        if len(self.moves) < 4 or bool(
            (self.moves[-1] <= _VISIBLE * precision.rounding(self.u) * per_image_norm(self.u)).any()
        ):
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
        moves = self.begins > _JITTER * torch.finfo(size.dtype).eps * size
        too_far = self.begins > (1 + norm).clamp_min(_LEAP) * near
        halves = self.rate.value ** (self.depth * (self.blocks - 1)) <= 0.5
        steady = halves & (self.ends > _STEADY * self.begins) if self.blocks > 1 else torch.zeros_like(too_far)
        said = [status is Status.OSCILLATES for status in self.result.status]
        return moves & (steady | torch.tensor(said, device=moves.device)), moves & too_far

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

    def certificate(self) -> Certificate:
        distances = self._distances()
        images = tuple(self._image(i, distances) for i in range(self.batch))
        return Certificate(images, self.depth, repr(self.net.gradient))

    def _distances(self) -> dict[str, Tensor]:
        """Distances (B,) of state and image, by the bound and by the estimated rate; inf if there is no bound."""
        with torch.no_grad():
            x, far = self.bound.image(self.u), self.bound.image(self.u_far)
            moved, moved_image = per_image_norm(self.u_far - self.u), per_image_norm(far - x)
            pixels = math.sqrt(x[0].numel())
            scale = self.bound.size(self.u)
            found = {"size": per_image_norm(self.u), "scale": scale}
            found["residual"] = _share(per_image_norm(self.after_one - self.u), self.bound.size(self.after_one))
            infinite = torch.full_like(moved, torch.inf)
            rate = self.rate.value ** (self.depth * self.blocks)
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

    def _image(self, i: int, distances: dict[str, Tensor]) -> ImageCertificate:
        facts, status = self.guarantee, self.result.status[i]
        rests = facts.assumptions
        kind = proved_kind(rests)
        refuted = "" if status.failed else self._refuted(i)
        if refuted:
            rests = (*rests, Assumption("all assumptions, at this image", False, f"refuted: {refuted}"))

        def bound(value: Tensor | None, how: str) -> tuple[Number, ...]:
            found = None if value is None or status.failed or refuted else float(value[i])
            return () if found is None or not math.isfinite(found) else (Number(found, kind, how, rests),)

        def estimate(value: Tensor, how: str) -> tuple[Number, ...]:
            return () if status.failed else (Number(float(value[i]), ESTIMATED, how),)

        def power(found: Estimate | None, what: str) -> tuple[Number, ...]:
            return () if found is None else estimate(found.value, f"{what}{_spread(found, i)}")

        step = None
        if facts.step_sizes is not None and facts.step_limit is not None:
            step = (facts.step_sizes / facts.step_limit).amax(0).detach().expand(self.batch)
        mu = 0.0 if facts.strong_convexity is None else float(facts.strong_convexity.expand(self.batch)[i])
        # Only a finite difference is mentioned, not the ordinary route.
        norm = "" if self.route.startswith("backward") else "Jv by finite differences, "
        by_rate = f"ρ: the estimated rate, {_spread(self.rate, i)}"
        jumps = 0.0 if status.failed else float(distances["jumps"][i])
        if jumps:
            by_rate = "the iteration jumps between several states, and approaches none"
        far = f"‖u_n − u‖/(1 − ρ), n = {self.depth * self.blocks}, and rounding"
        size = distances["scale"].clamp_min(torch.finfo(self.u.dtype).tiny)
        proved = distances.get("proved")
        moved = "a cycle of layers, K/c times" if jumps else "‖Φ(u) − u‖/‖Φ(u)‖"
        return ImageCertificate(
            step_size=Claim(bound(step, f"L {facts.lipschitz_kind}")),
            layer_factor=Claim(
                bound(None if self.factors is None else self.factors.amax(0), _factor_from(facts, mu))
                + power(self.layer_norm, norm)
            ),
            block_factor=Claim(bound(self.block, "product over the layers") + power(self.block_norm, norm)),
            averaged=Claim(bound(self._averaged(), _averaged_in(facts, i))),
            rate=Claim(power(self.rate, "" if self.learning or not self.rate.starts else norm)),
            residual=Claim((Number(float(distances["residual"][i]), MEASURED, moved),)),
            distance=Claim(bound(proved, far) + estimate(distances["estimated"], by_rate)),
            relative_distance=Claim(
                bound(None if proved is None else proved / size, far) + estimate(distances["estimated"] / size, by_rate)
            ),
            rmse=Claim(
                bound(distances.get("proved image"), "the same bound for the image")
                + estimate(distances["estimated image"], by_rate)
            ),
            gradient_error=self._gradient_claim(i, bound, bool(jumps)),
            row=facts.row,
            statement="" if refuted else self._statement(),
            refuted=refuted,
            jumps=jumps,
            rounding=f"{ROUNDING:g} ε (‖u‖ + 2‖u_0‖) per layer, ε = {precision.rounding(self.u):.1e}",
            assumptions=rests,
            strong_convexity=(mu, facts.strong_convexity_from),
            status=status.value,
            layers=int(self.result.layers[i]),
            dtype=str(self.u.dtype).removeprefix("torch."),
        )

    def _averaged(self) -> Tensor | None:
        alpha = self.guarantee.averaged
        return None if alpha is None else alpha.detach().expand(self.batch)

    def _statement(self) -> str:
        """The convergence statement. Proofs cover plain iterates; for another solver only the residual is measured."""
        solver, found = self.net.solver, self.guarantee
        if not found.statement or (solver.monotone if found.monotone else solver.plain):
            return found.theorem
        name = type(solver).__name__
        if found.monotone:
            how = advice("solver=retune.Descent()", "--set model.solver=descent")
            return f"with {how}, not with {name}, {found.theorem}"
        if found.subject is Subject.ITERATES:
            return f"plain iterates {found.statement} (for {name} this is measured, not proved)"
        return f"with plain steps instead of {name}, {found.theorem}"

    def _refuted(self, i: int) -> str:
        """The estimate from below that exceeds its bound by more than rounding, in words; "" if none does."""
        if self.first_step is not None and self.last_step is not None:
            first, last = float(self.first_step[i]), float(self.last_step[i])
            # Differences of states near their equilibrium are rounding.
            noise = _JITTER * torch.finfo(self.u.dtype).eps * float(per_image_norm(self.u)[i])
            if last > (1 + REFUTES) * first + noise:
                return f"the movement of a layer grew from {first:.4g} to {last:.4g} in the norm that cannot grow"
        if self.factors is None or self.block is None:
            return ""
        layer, block = float(self.factors.amax(0)[i]), float(self.block[i])
        exact = self.route.startswith("backward")
        pairs = (
            ("factor of one layer", self.layer_norm, layer, exact),
            (f"factor of K = {self.depth} layers", self.block_norm, block, exact),
            ("asymptotic factor per layer", self.rate, block ** (1 / self.depth), self.learning),
        )
        fine, coarse = 1e-6, 10 * torch.finfo(self.u.dtype).eps ** 0.5
        for name, found, limit, by_autograd in pairs:
            slack = REFUTES * limit + (fine if by_autograd else coarse)
            if found is not None and float(found.value[i]) > limit + slack:
                return f"the {name} is at least {float(found.value[i]):.4g}, but its bound is {limit:.4g}"
        return ""

    def _gradient_claim(self, i: int, bound, jumps: bool) -> Claim:
        rule = self.net.gradient
        if self.result.status[i].failed or not self.learning:
            return Claim()
        if jumps and (rule.fixed_blocks is not None or rule.rtol is not None):
            return Claim((Number(math.inf, ESTIMATED, "there is no equilibrium at which it could be formed"),))
        blocks = rule.fixed_blocks
        if blocks is not None:
            contracts = self.block is not None and float(self.block[i]) < 1
            proved = (
                bound(
                    self.block**blocks,  # type: ignore[operator]
                    "ρ_K for any loss" if blocks == 1 else f"ρ_K^{blocks} for any loss",
                )
                if contracts
                else ()
            )  # type: ignore[operator]
            assert self.gradient is not None
            if not float(self.rate.value[i]) < 1 or not bool(torch.isfinite(self.gradient[:, i]).all()):
                how = "the adjoint series does not converge: errors grow from layer to layer"
                return Claim((*proved, Number(math.inf, ESTIMATED, how)))
            spread = float(self.gradient[:, i].amax() - self.gradient[:, i].amin())
            how = f"adjoint series, {self.starts} random losses agree within {spread:.0e}"
            return Claim((*proved, Number(float(self.gradient[:, i].amax()), ESTIMATED, how)))
        if rule.rtol is not None:
            # The rule reaches its tolerance only if max_blocks are enough at the rate of this image.
            reached = float(self.rate.value[i]) ** (self.net.depth * rule.max_blocks)
            if reached <= rule.rtol:
                how = (
                    "the tolerance of the rule: blocks are added until the measured error is below it (the rate: "
                    f"{_spread(self.rate, i)})"
                )
                return Claim((Number(rule.rtol, ESTIMATED, how),))
            if reached < 1:
                how = f"rate^{self.net.depth * rule.max_blocks} ({_spread(self.rate, i)}): {rule.max_blocks} blocks "
                how += f"do not reach {rule.rtol:g}"
                return Claim((Number(reached, ESTIMATED, how),))
            return Claim()
        return Claim()  # the rule states no error, or differentiates its own K layers, which are not at the equilibrium


def _usable(y):
    """A tensor made in inference mode cannot enter a graph, but its copy can."""
    return y.clone() if isinstance(y, Tensor) and y.is_inference() and not torch.is_inference_mode_enabled() else y


def _spread(found: Estimate, i: int) -> str:
    """The origin of an estimate and the spread of its starts, in words."""
    if found.starts == 0:
        return (
            f"movements of {found.iterations} cycles of layers, whose halves agree within {float(found.spread[i]):.0e}"
        )
    return f"{found.iterations} iterations, {found.starts} starts agree within {float(found.spread[i]):.0e}"


def _averaged_in(facts: Guarantee, i: int) -> str:
    """The norm of an averaged map, and the share of the convergence region that its steps use."""
    where = f"norm: {facts.metric or 'Euclidean'}"
    if facts.region is None:
        return where
    used = facts.region.detach().flatten()
    return f"{where}; {facts.region_from} = {float(used[min(i, len(used) - 1)]):.3g} < 1"


def _factor_from(facts: Guarantee, mu: float) -> str:
    if facts.factor is not None:
        return f"{facts.factor_from}, μ = {mu:.3g}".removeprefix(", ")
    strong = "" if facts.backward is None or bool((facts.backward == 1).all()) else "the prox shrinks; "
    return f"{strong}max(|1 − τμ|, |1 − τL|), μ = {mu:.3g}"


def _per_layer(cycle: Estimate, layers: int) -> Estimate:
    if layers == 1:
        return cycle
    low = (cycle.value - cycle.spread).clamp_min(0)
    value = cycle.value ** (1 / layers)
    return Estimate(value, value - low ** (1 / layers), cycle.iterations, cycle.starts)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp_min(torch.finfo(whole.dtype).tiny)
