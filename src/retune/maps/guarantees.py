"""The proved facts of forward–backward iterations, derived from the facts of their parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from deepinv.optim.prior import Prior
from torch import Tensor, nn

from retune._torch.batch import over_images
from retune._torch.precision import sharp
from retune.guarantee import Assumption, Convexity, Guarantee, Known, Subject
from retune.operators.data_prox import QuadraticProx
from retune.operators.data_term import DataTerm
from retune.operators.kinds import is_nonnegative
from retune.operators.norm import lanczos_sqnorm
from retune.operators.pairs import random_like, steepest, violates_firmness
from retune.parameters import Bounded, Positive
from retune.priors.base import Analysis, BoundPrior
from retune.priors.capabilities import bind_cycle, convexity_of, is_inherited, smoothness_of
from retune.priors.origin import is_ours

__all__ = [
    "backtracking_guarantee",
    "douglas_rachford_guarantee",
    "forward_backward_guarantee",
    "half_quadratic_guarantee",
    "mirror_guarantee",
    "primal_dual_guarantee",
    "smooth_assumptions",
    "three_operator_guarantee",
]


class Backtracking(Protocol):
    """The attributes of a descent on an energy that its guarantee uses."""

    prior: Prior
    box: tuple[float, float] | None
    strong_convexity: float


class Splitting(Protocol):
    """The attributes of a forward–backward map that its guarantee uses."""

    layers: int
    priors: nn.ModuleList
    step_size: Bounded
    reg: Positive
    strong_convexity: float


def smooth_assumptions(data_term: DataTerm) -> tuple[Assumption, ...]:
    """The assumptions of a bound that uses ``L`` of the data term: linearity, ‖A‖², the constant of the fidelity."""
    name = type(data_term.physics).__name__
    found = [Assumption("A is linear, and A_adjoint is its adjoint", *_linearity(data_term))]
    if data_term.sqnorm_kind == Known.EXACT:
        found.append(Assumption("‖A‖² is exact", True, f"{name} is diagonalised, or a circular convolution"))
    elif data_term.sqnorm_kind == Known.ESTIMATED:
        found.append(
            Assumption(
                "‖A‖² is not above its estimate",
                True,
                f"Lanczos value × {data_term.sqnorm_safety:g}, random start: fails with probability "
                f"{data_term.sqnorm_failure:g} per image",
                1 - data_term.sqnorm_failure,
            )
        )
    else:
        found.append(Assumption("‖A‖² has the given value", False, "given by the user: DataTerm(sqnorm=...)"))
    if not data_term.quadratic:
        found += _of_fidelity(data_term)
    return tuple(found)


def _of_fidelity(data_term: DataTerm) -> list[Assumption]:
    facts, name = data_term.fidelity, type(data_term.data_fidelity).__name__
    convex = "is convex, and " if facts.convex else ""
    how = facts.how if facts.checked else f"{facts.how}; trusted: random images did not refute it"
    found = [Assumption(f"{name} {convex}has a gradient with this Lipschitz constant", facts.checked, how)]
    low, high = facts.domain
    if low > -math.inf or high < math.inf:
        statement = f"A x stays between {low:g} and {high:g}, the range on which the constant of {name} holds"
        found.append(Assumption(statement, False, "not examined"))
    return found


def _linearity(data_term: DataTerm) -> tuple[bool, str]:
    if data_term.sqnorm_kind == Known.GIVEN:
        return False, "not tested, because ‖A‖² is given: DataTerm(sqnorm=...)"
    name, found = type(data_term.physics).__name__, data_term.adjoint_mismatch
    if found is None:
        return True, f"{name}: by construction"
    if found <= sharp(data_term.adjoint_y):
        return True, f"{name}: tested on random images, the adjoint agrees to {found:.0e}"
    return False, f"{name}: on random images the error of the adjoint is {found:.0e}, more than rounding"


def backtracking_guarantee(owner: Backtracking, data_term: DataTerm) -> Guarantee:
    """The proved facts about a descent with backtracking on ``f + λR + ½ε‖·‖²`` in a box, for any finite weights.

    F is real-analytic or at least definable, so it has the Kurdyka–Łojasiewicz property. F never rises, and the
    iterates are bounded, because the box is compact or ε > 0. So the whole sequence converges to a stationary point
    (Attouch, Bolte, Svaiter, *Math. Program.* 137, 2013; accelerated with a monotone test: Li, Lin, NeurIPS 2015). The
    facts include neither uniqueness, nor a global minimum, nor a distance.
    """
    stated = smoothness_of(owner.prior, data_term.adjoint_y)
    assert stated is not None
    bounded = owner.box is not None or owner.strong_convexity > 0
    how = (
        f"the box {owner.box[0]:g} ≤ x ≤ {owner.box[1]:g} is compact"
        if owner.box is not None
        else "ε > 0 keeps the iterates bounded"
        if bounded
        else "neither a box nor strong_convexity was given: GradientStep(box=(0, 1))"
    )
    return Guarantee(
        row=stated.row,
        subject=Subject.ITERATES if bounded else Subject.OBJECTIVE,
        statement="converge to a stationary point of the energy" if bounded else "never rises",
        lipschitz_kind=Known.ESTIMATED,
        monotone=True,
        assumptions=(
            Assumption("A is linear, and A_adjoint is its adjoint", *_linearity(data_term)),
            *([] if data_term.quadratic else _of_fidelity(data_term)),
            Assumption("R is smooth, definable and bounded from below", stated.checked, stated.how),
            Assumption("every step size is found by backtracking, and the iterates stay bounded", bounded, how),
        ),
    )


def forward_backward_guarantee(owner: Splitting, data_term: DataTerm) -> Guarantee:
    """See [`guarantee`][retune.ForwardBackward.guarantee]."""
    lipschitz = data_term.lipschitz + owner.strong_convexity
    steps = 2 * owner.step_size.value.to(lipschitz)[:, None] / lipschitz
    gammas = steps * owner.reg.value.to(steps)[:, None]
    priors = [owner.priors[k % len(owner.priors)] for k in range(owner.layers)]  # all layers share a denoiser
    bound = bind_cycle(list(owner.priors), data_term.shape, [over_images(g) for g in gammas])  # type: ignore[arg-type]
    known = [convexity_of(p) for p in priors]  # type: ignore[arg-type]
    of_priors = _of_priors(priors, known, bound, data_term)
    mu, source = _strong_convexity(owner, data_term, bound[0])
    facts = Guarantee(
        lipschitz=lipschitz,
        lipschitz_kind=data_term.sqnorm_kind,
        strong_convexity=mu,
        strong_convexity_from=source,
        step_sizes=steps,
        assumptions=(*smooth_assumptions(data_term), *of_priors),
    )
    if not data_term.fidelity.convex or None in known or any(a.refuted for a in of_priors):
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


def _exactness(prox: QuadraticProx) -> Assumption:
    how = "closed form" if prox.exact else f"conjugate gradients, relative residual {prox.accuracy:.0e}"
    return Assumption("the prox of the data term is exact", prox.exact, how)


class Reflected(Protocol):
    """The attributes of a map with two proxes that its guarantee uses."""

    prior: Prior
    reg: Positive


def douglas_rachford_guarantee(owner: Reflected, gamma: Tensor, data_term: DataTerm) -> Guarantee:
    """See [`guarantee`][retune.DouglasRachford.guarantee]. The proofs are about exact proxes."""
    known = convexity_of(owner.prior)
    prox = data_term.prox_at(gamma)
    reg = owner.reg.value.to(gamma)
    (bound,) = bind_cycle([owner.prior], data_term.shape, [gamma * reg])
    of_prior = _of_priors([owner.prior], [known], [bound], data_term)
    facts = Guarantee(
        row="convex prior with exact prox, Douglas–Rachford",
        lipschitz=data_term.lipschitz,
        lipschitz_kind=data_term.sqnorm_kind,
        assumptions=(*smooth_assumptions(data_term), _exactness(prox), *of_prior),
    )
    if known is None or any(a.refuted for a in of_prior):
        return facts
    square = bound.frame is None or bound.frame.orthonormal
    mu = data_term.strong_convexity if square else torch.zeros_like(data_term.strong_convexity)
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
        strong_convexity_from="the smallest singular value of A, known exactly" if contracts else "μ is unknown",
    )


def half_quadratic_guarantee(owner: Reflected, gamma: Tensor, data_term: DataTerm) -> Guarantee:
    """See [`guarantee`][retune.HalfQuadratic.guarantee].

    Each prox of a convex function is ½-averaged, so their composition is ⅔-averaged. With an m-strongly convex g its
    Lipschitz constant is at most ``1/((1 + γμ)(1 + γλm))``.
    """
    known = convexity_of(owner.prior)
    prox = data_term.prox_at(gamma)
    reg = owner.reg.value.to(gamma)
    (bound,) = bind_cycle([owner.prior], data_term.shape, [gamma * reg])
    of_prior = _of_priors([owner.prior], [known], [bound], data_term)
    facts = Guarantee(
        row="convex prior with exact prox, half-quadratic splitting",
        lipschitz=data_term.lipschitz,
        lipschitz_kind=data_term.sqnorm_kind,
        assumptions=(*smooth_assumptions(data_term), _exactness(prox), *of_prior),
    )
    if known is None or any(a.refuted for a in of_prior):
        return facts
    square = bound.frame is None or bound.frame.orthonormal
    mu = data_term.strong_convexity if square else torch.zeros_like(data_term.strong_convexity)
    step, strong = gamma.flatten(), _strong(known).to(gamma)
    factor = 1 / ((1 + step * mu) * (1 + step * reg * strong))
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
        strong_convexity_from=(
            "the smallest singular value of A, known exactly" if bool((mu > 0).all()) else "μ is unknown"
        ),
    )


def three_operator_guarantee(owner: Reflected, gamma: Tensor, data_term: DataTerm) -> Guarantee:
    """See [`guarantee`][retune.ThreeOperators.guarantee]."""
    known = convexity_of(owner.prior)
    (bound,) = bind_cycle([owner.prior], data_term.shape, [gamma * owner.reg.value.to(gamma)])
    of_prior = _of_priors([owner.prior], [known], [bound], data_term)
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


class Mirrored(Protocol):
    """The attributes of a mirror descent that its guarantee uses."""

    prior: Prior


def mirror_guarantee(owner: Mirrored, data_term: DataTerm) -> Guarantee:
    """See [`guarantee`][retune.MirrorDescent.guarantee]."""
    stated = smoothness_of(owner.prior, data_term.adjoint_y)
    assert stated is not None
    weak = stated.weak_convexity
    convex = data_term.fidelity.convex and weak is not None and bool((torch.as_tensor(weak) == 0).all())
    (bound,) = bind_cycle([owner.prior], data_term.shape, [data_term.adjoint_y.new_ones(())])
    assert bound.grad is not None
    refuted = not stated.checked and bool(
        (steepest(bound.grad, data_term.adjoint_y.detach()) > torch.as_tensor(stated.lipschitz)).any()
    )
    how = "refuted: ∇R changes faster on random images" if refuted else stated.how
    positive = is_nonnegative(data_term.physics)
    name = type(data_term.physics).__name__
    facts = data_term.fidelity
    return Guarantee(
        row="counts with a smooth prior, mirror descent",
        subject=Subject.NONE if refuted else Subject.OBJECTIVE,
        statement="" if refuted else "never rises, and tends to its smallest value" if convex else "never rises",
        lipschitz_kind=data_term.sqnorm_kind,
        metric="Bregman distance of −Σ a log x + ½λL_R‖x‖²",
        assumptions=(
            Assumption("A is linear, and A_adjoint is its adjoint", *_linearity(data_term)),
            Assumption(
                "A has no negative entries",
                bool(positive),
                f"{name}: its kernel or mask is not negative" if positive else "random points did not refute it",
            ),
            Assumption(
                f"{type(data_term.data_fidelity).__name__} has a curvature of at most w/u²",
                facts.checked,
                "the likelihood of counts: y/(u + b)² ≤ y/u²" if facts.checked else facts.how,
            ),
            Assumption("∇R is L_R-Lipschitz", stated.checked and not refuted, how, refuted=refuted),
        ),
    )


class Coupled(Protocol):
    """The step sizes of a primal–dual map that its guarantee uses, each (1 or B,)."""

    tau: Tensor
    sigma: Tensor
    sqnorm: Tensor
    analysis: Analysis


class Boxed(Protocol):
    """The attributes of a primal–dual map that its guarantee uses."""

    prior: Prior
    box: tuple[float, float] | None


def primal_dual_guarantee(owner: Boxed, steps: Coupled, data_term: DataTerm) -> Guarantee:
    """See [`guarantee`][retune.PrimalDual.guarantee].

    With ``δ = 2 − (L/2)/(1/τ − ς‖K‖²)`` the map is 1/δ-averaged in the metric (Condat 2013, Theorem 3.1). A minimiser
    exists if the box is compact, or if f is quadratic and g is a norm: their sum is then coercive on the complement of
    the common kernel of A and K.
    """
    first, second = steps.tau * data_term.lipschitz / 2, steps.tau * steps.sigma * steps.sqnorm
    facts = Guarantee(
        row="analysis prior, primal–dual",
        lipschitz=data_term.lipschitz,
        lipschitz_kind=data_term.sqnorm_kind,
        region=first + second,
        region_from="τL/2 + τς‖K‖²",
        assumptions=(*smooth_assumptions(data_term), *_of_analysis(owner.prior, steps.analysis, data_term)),
    )
    known = convexity_of(owner.prior)
    if known is None or not data_term.fidelity.convex or any(a.refuted for a in facts.assumptions):
        return facts
    exists = owner.box is not None or (data_term.has_prox and steps.analysis.homogeneous)
    return replace(
        facts,
        subject=Subject.ITERATES,
        statement="converge to a minimiser" + ("" if exists else ", if there is one"),
        averaged=1 / (2 - first / (1 - second)),
        metric="‖x‖² + ‖q‖² − 2√(τς)⟨Kx, q⟩ of the image x and the scaled multiplier q",
    )


def _of_analysis(prior: Prior, analysis: Analysis, data_term: DataTerm) -> list[Assumption]:
    """The statements of a prior about ``g(Kx)``. Random images may refute unchecked ones."""
    name, fact = type(prior).__name__, convexity_of(prior)
    found = []
    if fact is not None:
        found.append(Assumption(f"{name} is convex, and its dual prox is exact", fact.checked, fact.how))
    elif is_inherited(prior):
        how = "it was changed, so the proofs of the original prior do not apply; define its own convexity()"
        found.append(Assumption(f"{name} is convex, and its dual prox is exact", False, how))
    trusted = analysis.checked and is_ours(prior)
    statement = f"‖K‖² of {name} is not underestimated, and its adjoint is right"
    if trusted:
        return [*found, Assumption(statement, True, analysis.how)]
    like = data_term.adjoint_y.detach()
    if fact is not None and not fact.checked:
        sigma = torch.ones_like(analysis.sqnorm)
        if violates_firmness(lambda p: analysis.dual_prox(p, sigma), analysis.of(like, analysis.start(like))):
            how = "refuted: its dual prox is not firmly non-expansive here"
            found[-1] = Assumption(found[-1].statement, False, how, refuted=True)
    forward, adjoint, like = _flat(analysis, like)
    size = lanczos_sqnorm(lambda v: adjoint(forward(v)), random_like(like))
    seen = forward(like)
    twice = random_like(seen, seed=1)
    one, two = (seen * twice).sum(), (like * adjoint(twice)).sum()
    scale = torch.linalg.vector_norm(seen) * torch.linalg.vector_norm(twice)
    wrong = bool((one - two).abs() > 1e-3 * scale)
    if wrong or bool((size > 1.001 * analysis.sqnorm).any()):
        what = "its adjoint is wrong" if wrong else f"‖K‖² is at least {float(size.max()):.4g}"
        return [*found, Assumption(statement, False, f"refuted: {what}", refuted=True)]
    return [*found, Assumption(statement, False, analysis.how)]


def _flat(analysis: Analysis, like: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]:
    """K and its adjoint as functions of one tensor (B, 1, 1, n), the image and the further variable; and such a one."""
    shape, pixels, w = like.shape[1:], like[0].numel(), analysis.start(like)

    def forward(v: Tensor) -> Tensor:
        v = v.flatten(1)
        return analysis.of(v[:, :pixels].unflatten(1, shape), None if w is None else v[:, pixels:])

    def adjoint(z: Tensor) -> Tensor:
        return torch.cat([p.flatten(1) for p in analysis.back(z) if p is not None], 1)[:, None, None]

    parts = [like.flatten(1)] if w is None else [like.flatten(1), random_like(w, seed=2)]
    return forward, adjoint, torch.cat(parts, 1)[:, None, None]


def _of_priors(
    priors: Sequence[nn.Module], known: Sequence[Convexity | None], bound: Sequence[BoundPrior], data_term: DataTerm
) -> list[Assumption]:
    """The statements of the priors, each once. Random pairs may refute an unchecked statement."""
    found: dict[Assumption, None] = {}
    for prior, fact, own in zip(priors, known, bound, strict=True):
        name = type(prior).__name__
        statement = f"{name} is convex, and its prox is exact"
        if fact is None:
            if is_inherited(prior):  # type: ignore[arg-type]
                how = "it was changed, so the proofs of the original prior do not apply; define its own convexity()"
                found[Assumption(statement, False, how)] = None
            continue
        like = data_term.adjoint_y if own.frame is None else own.frame.analysis(data_term.adjoint_y)
        assert own.prox is not None
        if fact.checked or not violates_firmness(own.prox, like):
            found[Assumption(statement, fact.checked, fact.how)] = None
        else:
            how = "refuted: its prox is not firmly non-expansive here"
            found[Assumption(statement, False, how, refuted=True)] = None
    return list(found)


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


def _strong_convexity(owner: Splitting, data_term: DataTerm, first: BoundPrior) -> tuple[Tensor, str]:
    """μ of ``f(Du) + ½ε‖u‖²`` in u, and its origin."""
    added = torch.full_like(data_term.lipschitz, owner.strong_convexity)
    square = first.frame is None or first.frame.orthonormal
    mu = data_term.strong_convexity if square else torch.zeros_like(data_term.strong_convexity)
    sources = []
    if bool((mu > 0).any()):
        sources.append("the smallest singular value of A, known exactly")
    elif not square and bool((data_term.strong_convexity > 0).any()):
        sources.append("0 from A: the frame D is not orthonormal, so AD is not injective")
    if owner.strong_convexity:
        sources.append(f"the added ½ε‖u‖², ε = {owner.strong_convexity:g}")
    return mu + added, " and ".join(sources) or "μ is unknown"
