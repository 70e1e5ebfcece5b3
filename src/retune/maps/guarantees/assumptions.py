"""The assumptions of guarantees, and how each of them was checked: of the operator, the fidelity, and the priors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from deepinv.optim.prior import Prior
from torch import Tensor, nn

from retune._torch.precision import sharp
from retune.guarantee import Assumption, Convexity, Known, Smoothness
from retune.operators.data_prox import QuadraticProx
from retune.operators.data_term import DataTerm
from retune.operators.norm import lanczos_sqnorm
from retune.operators.pairs import random_like, steepest, violates_firmness
from retune.priors.base import Analysis, BoundPrior
from retune.priors.capabilities import bind_cycle, convexity_of, is_inherited
from retune.priors.origin import is_ours

__all__ = ["exactness", "linearity", "of_analysis", "of_fidelity", "of_gradient", "of_priors", "smooth_assumptions"]


def smooth_assumptions(data_term: DataTerm) -> tuple[Assumption, ...]:
    """The assumptions of a bound that uses ``L`` of the data term: linearity, ‖A‖², the constant of the fidelity."""
    name = type(data_term.physics).__name__
    found = [linearity(data_term)]
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
        found += of_fidelity(data_term)
    return tuple(found)


def linearity(data_term: DataTerm) -> Assumption:
    """The assumption that A is linear with this adjoint: by construction, or tested on random images."""
    statement = "A is linear, and A_adjoint is its adjoint"
    if data_term.sqnorm_kind == Known.GIVEN:
        return Assumption(statement, False, "not tested, because ‖A‖² is given: DataTerm(sqnorm=...)")
    name, found = type(data_term.physics).__name__, data_term.adjoint_mismatch
    if found is None:
        return Assumption(statement, True, f"{name}: by construction")
    if found <= sharp(data_term.adjoint_y):
        return Assumption(statement, True, f"{name}: tested on random images, the adjoint agrees to {found:.0e}")
    how = f"{name}: on random images the error of the adjoint is {found:.0e}, more than rounding"
    return Assumption(statement, False, how)


def of_fidelity(data_term: DataTerm) -> list[Assumption]:
    """The statements of a data fidelity: the constant of its gradient, and the range on which it holds."""
    facts, name = data_term.fidelity, type(data_term.data_fidelity).__name__
    convex = "is convex, and " if facts.convex else ""
    how = facts.how if facts.checked else f"{facts.how}; trusted: random images did not refute it"
    found = [Assumption(f"{name} {convex}has a gradient with this Lipschitz constant", facts.checked, how)]
    low, high = facts.domain
    if low > -math.inf or high < math.inf:
        statement = f"A x stays between {low:g} and {high:g}, the range on which the constant of {name} holds"
        found.append(Assumption(statement, False, "not examined"))
    return found


def exactness(prox: QuadraticProx) -> Assumption:
    """The assumption that the prox of the data term is exact; it is not with conjugate gradients."""
    how = "closed form" if prox.exact else f"conjugate gradients, relative residual {prox.accuracy:.0e}"
    return Assumption("the prox of the data term is exact", prox.exact, how)


def of_priors(
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


def of_gradient(prior: Prior, stated: Smoothness, data_term: DataTerm) -> Assumption:
    """The assumption that ∇R has the stated constant. Random images may refute an unchecked constant."""
    statement = "∇R is L_R-Lipschitz"
    if stated.checked:
        return Assumption(statement, True, stated.how)
    like = data_term.adjoint_y.detach()
    (bound,) = bind_cycle([prior], data_term.shape, [like.new_ones(())])
    assert bound.grad is not None
    if bool((steepest(bound.grad, like) > torch.as_tensor(stated.lipschitz)).any()):
        return Assumption(statement, False, "refuted: ∇R changes faster on random images", refuted=True)
    return Assumption(statement, False, stated.how)


def of_analysis(prior: Prior, analysis: Analysis, data_term: DataTerm) -> list[Assumption]:
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
