"""The certificate of one image, from the survey of its batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retune._torch import precision
from retune._torch.batch import per_image_norm
from retune.certificate.claims import Claim, Number
from retune.certificate.document import ImageCertificate
from retune.certificate.survey import JITTER, REFUTES, ROUNDING, Survey
from retune.errors import advice
from retune.guarantee import Assumption, Guarantee, Subject
from retune.maps.linearised import Estimate
from retune.priors.origin import is_ours
from retune.records.certificates import Basis

__all__ = ["image_certificate"]


def image_certificate(survey: Survey, i: int, distances: dict[str, Tensor]) -> ImageCertificate:
    """The certificate of image i; `distances` are those of the survey."""
    facts, status = survey.guarantee, survey.result.status[i]
    rests = facts.assumptions
    refuted = "" if status.failed else _refuted(survey, i)
    if refuted:
        rests = (*rests, Assumption("all assumptions, at this image", False, f"refuted: {refuted}"))

    def bound(value: Tensor | None, how: str) -> tuple[Number, ...]:
        found = None if value is None or status.failed or refuted else float(value[i])
        return () if found is None or not math.isfinite(found) else (Number(found, Basis.PROVED, how, rests),)

    def estimate(value: Tensor, how: str) -> tuple[Number, ...]:
        return () if status.failed else (Number(float(value[i]), Basis.ESTIMATED, how),)

    def power(found: Estimate | None, what: str) -> tuple[Number, ...]:
        return () if found is None else estimate(found.value, f"{what}{_spread(found, i)}")

    step = None
    if facts.step_sizes is not None and facts.step_limit is not None:
        step = (facts.step_sizes / facts.step_limit).amax(0).detach().expand(survey.batch)
    mu = 0.0 if facts.strong_convexity is None else float(facts.strong_convexity.expand(survey.batch)[i])
    # Only a finite difference is mentioned, not the ordinary route.
    norm = "" if survey.exact else "Jv by finite differences, "
    by_rate = f"ρ: the estimated rate, {_spread(survey.rate, i)}"
    jumps = 0.0 if status.failed else float(distances["jumps"][i])
    if jumps:
        by_rate = "the iteration jumps between several states, and approaches none"
    far = f"‖u_n − u‖/(1 − ρ), n = {survey.depth * survey.blocks}, and rounding"
    size = distances["scale"].clamp_min(torch.finfo(survey.u.dtype).tiny)
    proved = distances.get("proved")
    moved = "a cycle of layers, K/c times" if jumps else "‖Φ(u) − u‖/‖Φ(u)‖"
    return ImageCertificate(
        step_size=Claim(bound(step, f"L {facts.lipschitz_kind}")),
        layer_factor=Claim(
            bound(None if survey.factors is None else survey.factors.amax(0), _factor_from(facts, mu))
            + power(survey.layer_norm, norm)
        ),
        block_factor=Claim(bound(survey.block, "product over the layers") + power(survey.block_norm, norm)),
        averaged=Claim(bound(_averaged(survey), _averaged_in(facts, i))),
        rate=Claim(power(survey.rate, "" if survey.learning or not survey.rate.starts else norm)),
        residual=Claim((Number(float(distances["residual"][i]), Basis.MEASURED, moved),)),
        distance=Claim(bound(proved, far) + estimate(distances["estimated"], by_rate)),
        relative_distance=Claim(
            bound(None if proved is None else proved / size, far) + estimate(distances["estimated"] / size, by_rate)
        ),
        rmse=Claim(
            bound(distances.get("proved image"), "the same bound for the image")
            + estimate(distances["estimated image"], by_rate)
        ),
        gradient_error=_gradient_claim(survey, i, bound, bool(jumps)),
        row=facts.row,
        statement="" if refuted else _statement(survey),
        refuted=refuted,
        jumps=jumps,
        rounding=f"{ROUNDING:g} ε (‖u‖ + 2‖u_0‖) per layer, ε = {precision.rounding(survey.u):.1e}",
        assumptions=rests,
        strong_convexity=(mu, facts.strong_convexity_from),
        status=status,
        layers=int(survey.result.layers[i]),
        dtype=str(survey.u.dtype).removeprefix("torch."),
    )


def _averaged(survey: Survey) -> Tensor | None:
    alpha = survey.guarantee.averaged
    return None if alpha is None else alpha.detach().expand(survey.batch)


def _statement(survey: Survey) -> str:
    """The convergence statement. Proofs cover plain iterates, and solvers that converge for any averaged map.

    For another solver only the residual is measured.
    """
    solver, found = survey.result.solver or survey.net.solver, survey.guarantee
    # The statement of somebody else's map need not be about an averaged one.
    averaged = found.averaged is not None or (found.convex and is_ours(survey.net.map))
    averaged = averaged and found.subject is Subject.ITERATES
    kept = solver.monotone if found.monotone else solver.plain or (solver.converges and averaged)
    if not found.statement or (kept and is_ours(solver)):  # a changed solver inherits the words, not the steps
        return found.theorem
    name = type(solver).__name__
    if found.monotone:
        how = advice("solver=retune.QuasiNewton()", "--set model.solver=quasi_newton")
        return f"with {how}, not with {name}, {found.theorem}"
    if found.subject is Subject.ITERATES:
        return f"plain iterates {found.statement} (for {name} this is measured, not proved)"
    return f"with plain steps instead of {name}, {found.theorem} (of {name} nothing is proved)"


def _refuted(survey: Survey, i: int) -> str:
    """The estimate from below that exceeds its bound by more than rounding, in words; "" if none does."""
    if survey.first_step is not None and survey.last_step is not None:
        first, last = float(survey.first_step[i]), float(survey.last_step[i])
        # Differences of states near their equilibrium are rounding.
        noise = JITTER * torch.finfo(survey.u.dtype).eps * float(per_image_norm(survey.u)[i])
        if last > (1 + REFUTES) * first + noise:
            return f"the movement of a layer grew from {first:.4g} to {last:.4g} in the norm that cannot grow"
    if survey.factors is None or survey.block is None:
        return ""
    layer, block = float(survey.factors.amax(0)[i]), float(survey.block[i])
    pairs = (
        ("factor of one layer", survey.layer_norm, layer, survey.exact),
        (f"factor of K = {survey.depth} layers", survey.block_norm, block, survey.exact),
        ("asymptotic factor per layer", survey.rate, block ** (1 / survey.depth), survey.learning),
    )
    fine, coarse = 1e-6, 10 * torch.finfo(survey.u.dtype).eps ** 0.5
    for name, found, limit, by_autograd in pairs:
        slack = REFUTES * limit + (fine if by_autograd else coarse)
        if found is not None and float(found.value[i]) > limit + slack:
            return f"the {name} is at least {float(found.value[i]):.4g}, but its bound is {limit:.4g}"
    return ""


def _gradient_claim(survey: Survey, i: int, bound, jumps: bool) -> Claim:
    rule = survey.net.gradient
    if survey.result.status[i].failed or not survey.learning:
        return Claim()
    if jumps and (rule.fixed_blocks is not None or rule.rtol is not None):
        return Claim((Number(math.inf, Basis.ESTIMATED, "there is no equilibrium at which it could be formed"),))
    blocks = rule.fixed_blocks
    if blocks is not None:
        contracts = survey.block is not None and float(survey.block[i]) < 1
        proved = (
            bound(
                survey.block**blocks,  # type: ignore[operator]
                "ρ_K for any loss" if blocks == 1 else f"ρ_K^{blocks} for any loss",
            )
            if contracts
            else ()
        )  # type: ignore[operator]
        assert survey.gradient is not None
        if not float(survey.rate.value[i]) < 1 or not bool(torch.isfinite(survey.gradient[:, i]).all()):
            how = "the adjoint series does not converge: errors grow from layer to layer"
            return Claim((*proved, Number(math.inf, Basis.ESTIMATED, how)))
        spread = float(survey.gradient[:, i].amax() - survey.gradient[:, i].amin())
        how = f"adjoint series, {survey.starts} random losses agree within {spread:.0e}"
        return Claim((*proved, Number(float(survey.gradient[:, i].amax()), Basis.ESTIMATED, how)))
    if rule.rtol is not None:
        # The rule reaches its tolerance only if max_blocks are enough at the rate of this image.
        reached = float(survey.rate.value[i]) ** (survey.net.depth * rule.max_blocks)
        if reached <= rule.rtol:
            how = (
                "the tolerance of the rule: blocks are added until the measured error is below it (the rate: "
                f"{_spread(survey.rate, i)})"
            )
            return Claim((Number(rule.rtol, Basis.ESTIMATED, how),))
        if reached < 1:
            how = f"rate^{survey.net.depth * rule.max_blocks} ({_spread(survey.rate, i)}): {rule.max_blocks} blocks "
            how += f"do not reach {rule.rtol:g}"
            return Claim((Number(reached, Basis.ESTIMATED, how),))
        return Claim()
    return Claim()  # the rule states no error, or differentiates its own K layers, which are not at the equilibrium


def _spread(found: Estimate, i: int) -> str:
    """The origin of an estimate and the spread of its starts, in words."""
    if found.starts == 0:
        within = f"{float(found.spread[i]):.0e}"
        return f"movements of {found.iterations} cycles of layers, whose halves agree within {within}"
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
