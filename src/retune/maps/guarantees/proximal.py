"""The proved facts of maps with proximity operators, derived from the facts of their parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from deepinv.optim.prior import Prior
from torch import Tensor, nn

from retune._torch.batch import over_images
from retune.guarantee import Assumption, Convexity, Guarantee, Subject
from retune.maps.guarantees.assumptions import exactness, of_analysis, of_priors, smooth_assumptions
from retune.operators.data_prox import QuadraticProx
from retune.operators.data_term import DataTerm
from retune.parameters import Bounded, Positive
from retune.priors.base import Analysis, BoundPrior, is_complete
from retune.priors.capabilities import bind_cycle, convexity_of
from retune.priors.origin import is_as_made

__all__ = [
    "douglas_rachford_guarantee",
    "forward_backward_guarantee",
    "half_quadratic_guarantee",
    "primal_dual_guarantee",
    "three_operator_guarantee",
]


class Splitting(Protocol):
    """The attributes of a forward–backward map that its guarantee uses."""

    layers: int
    priors: nn.ModuleList
    step_size: Bounded
    reg: Positive
    strong_convexity: float


def forward_backward_guarantee(owner: Splitting, data_term: DataTerm) -> Guarantee:
    """See [`guarantee`][retune.ForwardBackward.guarantee]."""
    lipschitz = data_term.lipschitz + owner.strong_convexity
    steps = 2 * owner.step_size.value.to(lipschitz)[:, None] / lipschitz
    gammas = steps * owner.reg.value.to(steps)[:, None]
    priors = [owner.priors[k % len(owner.priors)] for k in range(owner.layers)]  # all layers share a denoiser
    bound = bind_cycle(list(owner.priors), data_term.shape, [over_images(g) for g in gammas])  # type: ignore[arg-type]
    known = [convexity_of(p) for p in priors]  # type: ignore[arg-type]
    of_each = of_priors(priors, known, bound, data_term)
    mu, source = _strong_convexity(owner, data_term, bound[0])
    facts = Guarantee(
        lipschitz=lipschitz,
        lipschitz_kind=data_term.sqnorm_kind,
        strong_convexity=mu,
        strong_convexity_from=source,
        step_sizes=steps,
        assumptions=(*smooth_assumptions(data_term), *of_each),
    )
    if None in known and _forgets_its_state(owner, steps, data_term, bound):
        return _constant(facts, steps, priors)
    if not data_term.fidelity.convex or None in known or any(a.refuted for a in of_each):
        return facts
    backward = torch.stack([1 / (1 + g * _strong(c).to(g)) for g, c in zip(gammas, known, strict=True)])
    contracts = bool((mu > 0).all()) or bool((backward < 1).all())
    subject, statement = _statement(owner.layers, contracts, all(c is not None and c.checked for c in known))
    return replace(
        facts,
        row="convex prior with exact prox" + (", strongly convex problem" if contracts else ""),
        subject=subject,
        statement=statement,
        convex=True,
        backward=backward,
    )


def _forgets_its_state(owner: Splitting, steps: Tensor, data_term: DataTerm, bound: Sequence[BoundPrior]) -> bool:
    """Whether ``u − τ∇f(u)`` is the same for all u, up to rounding: A is a multiple of the identity, and τ = 1/L."""
    if not data_term.quadratic or owner.strong_convexity or not is_complete(bound[0].frame):
        return False
    ends = torch.stack([1 - steps * data_term.strong_convexity, 1 - steps * data_term.lipschitz])
    return bool((ends.abs() <= 4 * torch.finfo(steps.dtype).eps).all())


def _constant(facts: Guarantee, steps: Tensor, priors: Sequence[nn.Module]) -> Guarantee:
    """The facts of layers that do not depend on their state: all iterates are their limit, for any denoiser."""
    ours = all(is_as_made(p) for p in priors)
    how = "it is made of layers that draw none" if ours else "it is your own"
    return replace(
        facts,
        row="any denoiser, a step that depends on the measurement only",
        subject=Subject.ITERATES,
        statement="are the same from the first layer on, for any start",
        factor=torch.zeros_like(steps),
        factor_from="a layer does not depend on its state, as τAᵀA is the identity",
        assumptions=(*facts.assumptions, Assumption("the denoiser draws no random numbers", ours, how)),
    )


class Reflected(Protocol):
    """The attributes of a map with two proxes that its guarantee uses."""

    prior: Prior
    reg: Positive


def _of_two_proxes(
    owner: Reflected, gamma: Tensor, prox: QuadraticProx, data_term: DataTerm, splitting: str
) -> tuple[Guarantee, Convexity | None, Tensor]:
    """The facts without a conclusion, the convexity of the prior (without it, there is no conclusion), and μ."""
    known = convexity_of(owner.prior)
    (bound,) = bind_cycle([owner.prior], data_term.shape, [gamma * owner.reg.value.to(gamma)])
    of_prior = of_priors([owner.prior], [known], [bound], data_term)
    mu = _strong_convexity_of_data(data_term, bound)
    facts = Guarantee(
        row=f"convex prior with exact prox, {splitting}",
        lipschitz=data_term.lipschitz,
        lipschitz_kind=data_term.sqnorm_kind,
        assumptions=(*smooth_assumptions(data_term), exactness(prox), *of_prior),
    )
    return facts, None if any(a.refuted for a in of_prior) else known, mu


def _from_singular_values(known: bool) -> str:
    return "the smallest singular value of A, known exactly" if known else "μ is unknown"


def douglas_rachford_guarantee(owner: Reflected, gamma: Tensor, data_term: DataTerm) -> Guarantee:
    """See [`guarantee`][retune.DouglasRachford.guarantee]. The proofs are about exact proxes."""
    prox = data_term.prox_at(gamma)
    facts, known, mu = _of_two_proxes(owner, gamma, prox, data_term, "Douglas–Rachford")
    if known is None:
        return facts
    contracts = prox.exact and bool((mu > 0).all())
    step, big = gamma.flatten(), data_term.lipschitz
    worst = torch.maximum((1 - step * mu) / (1 + step * mu), (step * big - 1) / (step * big + 1))
    exists = "" if known.checked or contracts else ", if there is one"
    return replace(
        facts,
        subject=Subject.ITERATES,
        statement=f"have images that converge to {'the only' if contracts else 'a'} minimiser{exists}",
        averaged=torch.full_like(big, 0.5),
        factor=(0.5 * (1 + worst))[None] if contracts else None,
        factor_from="½(1 + δ), δ = max((1 − γμ)/(1 + γμ), (γL − 1)/(γL + 1))",
        strong_convexity=mu,
        strong_convexity_from=_from_singular_values(contracts),
    )


def half_quadratic_guarantee(owner: Reflected, gamma: Tensor, data_term: DataTerm) -> Guarantee:
    """See [`guarantee`][retune.HalfQuadratic.guarantee].

    Each prox of a convex function is ½-averaged, so their composition is ⅔-averaged. With an m-strongly convex g its
    Lipschitz constant is at most ``1/((1 + γμ)(1 + γλm))``.
    """
    facts, known, mu = _of_two_proxes(owner, gamma, data_term.prox_at(gamma), data_term, "half-quadratic splitting")
    if known is None:
        return facts
    step, strong = gamma.flatten(), owner.reg.value.to(gamma) * _strong(known).to(gamma)
    factor = 1 / ((1 + step * mu) * (1 + step * strong))
    contracts = bool((factor < 1).all())
    exists = "" if known.checked or contracts else ", if there is one"
    which = "the only" if contracts else "a"
    return replace(
        facts,
        subject=Subject.ITERATES,
        statement=f"converge to {which} minimiser of f_γ(Du) + λg(u) with the envelope f_γ, which depends on γ{exists}",
        averaged=torch.full_like(factor, 2 / 3),
        factor=factor[None] if contracts else None,
        factor_from="1/((1 + γμ)(1 + γλm))",
        strong_convexity=mu,
        strong_convexity_from=_from_singular_values(bool((mu > 0).all())),
    )


def three_operator_guarantee(owner: Reflected, gamma: Tensor, data_term: DataTerm) -> Guarantee:
    """See [`guarantee`][retune.ThreeOperators.guarantee]."""
    known = convexity_of(owner.prior)
    (bound,) = bind_cycle([owner.prior], data_term.shape, [gamma * owner.reg.value.to(gamma)])
    of_prior = of_priors([owner.prior], [known], [bound], data_term)
    half = gamma.flatten() * data_term.lipschitz / 2
    facts = Guarantee(
        row="convex prior with exact prox in a box, three operators",
        lipschitz=data_term.lipschitz,
        lipschitz_kind=data_term.sqnorm_kind,
        region=half,
        region_from="γL/2",
        assumptions=(*smooth_assumptions(data_term), *of_prior),
    )
    if known is None or not data_term.fidelity.convex or any(a.refuted for a in of_prior):
        return facts
    exists = "" if known.checked else ", if there is one"
    return replace(
        facts,
        subject=Subject.ITERATES,
        statement=f"have images that converge to a minimiser{exists}",
        averaged=1 / (2 - half),
    )


class Coupled(Protocol):
    """The step sizes of a primal–dual map that its guarantee uses, each (1 or B,), and its relaxation."""

    tau: Tensor
    sigma: Tensor
    sqnorm: Tensor
    analysis: Analysis
    relaxation: float


class Boxed(Protocol):
    """The attributes of a primal–dual map that its guarantee uses."""

    prior: Prior
    box: tuple[float, float] | None


def primal_dual_guarantee(owner: Boxed, steps: Coupled, data_term: DataTerm) -> Guarantee:
    """See [`guarantee`][retune.PrimalDual.guarantee].

    With ``δ = 2 − (L/2)/(1/τ − ς‖K‖²)`` the map is 1/δ-averaged in the metric (Condat 2013, Theorem 3.1). For least
    squares the steps are a resolvent in their metric, and ρ of them are ρ/2-averaged. A minimiser
    exists if the box is compact, or if f is quadratic and g is a norm: their sum is then coercive on the complement of
    the common kernel of A and K.
    """
    quadratic = data_term.quadratic
    first = steps.tau * data_term.lipschitz * (1 if quadratic else 0.5)
    second = steps.tau * steps.sigma * steps.sqnorm
    square = "‖x‖² − τ⟨x, Qx⟩" if quadratic else "‖x‖²"
    facts = Guarantee(
        row="analysis prior, primal–dual",
        lipschitz=data_term.lipschitz,
        lipschitz_kind=data_term.sqnorm_kind,
        region=first + second,
        region_from=f"{'τL' if quadratic else 'τL/2'} + τς‖K‖²",
        assumptions=(*smooth_assumptions(data_term), *of_analysis(owner.prior, steps.analysis, data_term)),
    )
    known = convexity_of(owner.prior)
    if known is None or not data_term.fidelity.convex or any(a.refuted for a in facts.assumptions):
        return facts
    exists = owner.box is not None or (data_term.has_prox and steps.analysis.homogeneous)
    return replace(
        facts,
        subject=Subject.ITERATES,
        statement="converge to a minimiser" + ("" if exists else ", if there is one"),
        averaged=torch.full_like(first, steps.relaxation / 2) if quadratic else 1 / (2 - first / (1 - second)),
        metric=f"{square} + ‖q‖² − 2√(τς)⟨Kx, q⟩ of the image x and the scaled multiplier q",
    )


def _strong(fact: Convexity | None) -> Tensor:
    assert fact is not None
    return torch.as_tensor(fact.strong).detach()


def _statement(layers: int, contracts: bool, exists: bool) -> tuple[Subject, str]:
    if layers == 1 and contracts:
        return Subject.ITERATES, "converge to the only minimiser"
    if layers == 1:
        return Subject.ITERATES, "converge to a minimiser" + ("" if exists else ", if there is one")
    if contracts:
        return Subject.ITERATES, "converge to the only fixed point of the cycle"
    return Subject.ITERATES, "converge to a fixed point of the cycle, if there is one"


def _strong_convexity_of_data(data_term: DataTerm, bound: BoundPrior) -> Tensor:
    """μ of ``f(Du)`` in u: that of f for an orthonormal D, else 0, because AD does not see some directions."""
    square = bound.frame is None or bound.frame.orthonormal
    return data_term.strong_convexity if square else torch.zeros_like(data_term.strong_convexity)


def _strong_convexity(owner: Splitting, data_term: DataTerm, first: BoundPrior) -> tuple[Tensor, str]:
    """μ of ``f(Du) + ½ε‖u‖²`` in u, and its origin."""
    added = torch.full_like(data_term.lipschitz, owner.strong_convexity)
    mu, sources = _strong_convexity_of_data(data_term, first), []
    if data_term.quadratic and data_term.normal_scale is not None and is_complete(first.frame):
        mu = data_term.strong_convexity  # the measurement is continued to all pixels of the state
    if bool((mu > 0).any()):
        sources.append("the smallest singular value of A, known exactly")
    elif bool((data_term.strong_convexity > 0).any()):
        sources.append("0 from A: the frame D is not orthonormal, so AD is not injective")
    if owner.strong_convexity:
        sources.append(f"the added ½ε‖u‖², ε = {owner.strong_convexity:g}")
    return mu + added, " and ".join(sources) or "μ is unknown"
