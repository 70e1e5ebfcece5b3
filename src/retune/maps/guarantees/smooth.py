"""The proved facts of maps that follow gradients only, derived from the facts of their parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from deepinv.optim.prior import Prior
from torch import Tensor

from retune.guarantee import Assumption, Guarantee, Known, Smoothness, Subject
from retune.maps.guarantees.assumptions import linearity, of_fidelity, of_gradient, smooth_assumptions
from retune.operators.data_term import DataTerm
from retune.operators.kinds import is_nonnegative
from retune.parameters import Bounded, Positive
from retune.priors.capabilities import smoothness_of

__all__ = ["backtracking_guarantee", "gradient_step_guarantee", "mirror_guarantee"]


class Stepping(Protocol):
    """The attributes of gradient steps with a constant that their guarantee uses."""

    layers: int
    prior: Any
    step_size: Bounded
    reg: Positive
    strong_convexity: float
    towards_start: bool


def gradient_step_guarantee(owner: Stepping, prior: Smoothness, data_term: DataTerm) -> Guarantee:
    """See [`guarantee`][retune.GradientStep.guarantee]; `prior` has the constants of ∇R."""
    reg = owner.reg().to(data_term.lipschitz)[:, None]  # (layers, 1)
    # F differs between layers, as each has its own λ: (layers, 1 or B)
    lipschitz = data_term.lipschitz + owner.strong_convexity + reg * prior.lipschitz
    steps = 2 * owner.step_size().to(lipschitz)[:, None] / lipschitz
    of_prior = of_gradient(owner.prior, prior, data_term)
    facts = Guarantee(
        row=prior.row,
        lipschitz=lipschitz,
        lipschitz_kind=data_term.sqnorm_kind,
        step_sizes=steps,
        assumptions=(*smooth_assumptions(data_term), of_prior),
    )
    if prior.weak_convexity is None or of_prior.refuted or not data_term.fidelity.convex:
        return facts
    weak = reg.max() * torch.as_tensor(prior.weak_convexity).to(lipschitz)
    room = data_term.strong_convexity + owner.strong_convexity - weak
    convex = bool((room >= 0).all())
    subject, statement = _statement(convex, owner.layers)
    return replace(
        facts,
        subject=subject,
        statement=statement,
        convex=convex,
        strong_convexity=room.clamp_min(0),
        strong_convexity_from=_source(owner, data_term, room, weak),
    )


def _statement(convex: bool, layers: int) -> tuple[Subject, str]:
    if convex:
        return (Subject.ITERATES, "converge to a minimiser") if layers == 1 else (Subject.LAYERS, "is averaged")
    return (Subject.OBJECTIVE, "decreases with every layer") if layers == 1 else (Subject.NONE, "")


def _source(owner: Stepping, data_term: DataTerm, room: Tensor, weak: Tensor) -> str:
    """The origin of μ."""
    if not bool((room > 0).any()):
        return "μ is unknown"
    parts = ["A"] if bool((data_term.strong_convexity > 0).any()) else []
    if owner.strong_convexity:
        term = "½ε‖x − x₀‖²" if owner.towards_start else "½ε‖x‖²"
        parts.append(f"the added {term}, ε = {owner.strong_convexity:g}")
    return " and ".join(parts) + (", less the weak convexity of the prior" if bool((weak > 0).any()) else "")


class Backtracking(Protocol):
    """The attributes of a descent on an energy that its guarantee uses."""

    prior: Prior
    box: tuple[float, float] | None
    strong_convexity: float


def backtracking_guarantee(owner: Backtracking, data_term: DataTerm) -> Guarantee:
    """The proved facts about a descent with backtracking on ``f + λR + ½ε‖·‖²`` in a box, for any finite weights.

    F is real-analytic or at least definable, so it has the Kurdyka–Łojasiewicz property. F never rises, and the
    iterates are bounded, because the box is compact or ε > 0. So the whole sequence converges to a stationary point
    (Attouch, Bolte, Svaiter, *Math. Program.* 137, 2013; accelerated with a monotone test: Li, Lin, NeurIPS 2015; by
    quasi-Newton steps: see [`QuasiNewton`][retune.QuasiNewton]). The facts include neither uniqueness, nor a global
    minimum, nor a distance.
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
            linearity(data_term),
            *([] if data_term.quadratic else of_fidelity(data_term)),
            Assumption("R is smooth, definable and bounded from below", stated.checked, stated.how),
            Assumption("every step size is found by backtracking, and the iterates stay bounded", bounded, how),
        ),
    )


class Mirrored(Protocol):
    """The attributes of a mirror descent that its guarantee uses."""

    prior: Prior


def mirror_guarantee(owner: Mirrored, data_term: DataTerm) -> Guarantee:
    """See [`guarantee`][retune.MirrorDescent.guarantee]."""
    stated = smoothness_of(owner.prior, data_term.adjoint_y)
    assert stated is not None
    weak = stated.weak_convexity
    counts = data_term.fidelity
    convex = counts.convex and weak is not None and bool((torch.as_tensor(weak) == 0).all())
    of_prior = of_gradient(owner.prior, stated, data_term)
    positive = is_nonnegative(data_term.physics)
    name = type(data_term.physics).__name__
    falls = "never rises, and tends to its smallest value" if convex else "never rises"
    return Guarantee(
        row="counts with a smooth prior, mirror descent",
        subject=Subject.NONE if of_prior.refuted else Subject.OBJECTIVE,
        statement="" if of_prior.refuted else falls,
        lipschitz_kind=data_term.sqnorm_kind,
        metric="Bregman distance of −Σ a log x + ½λL_R‖x‖²",
        assumptions=(
            linearity(data_term),
            Assumption(
                "A has no negative entries",
                bool(positive),
                f"{name}: its kernel or mask is not negative" if positive else "random points did not refute it",
            ),
            Assumption(
                f"{type(data_term.data_fidelity).__name__} has a curvature of at most w/u²",
                counts.checked,
                "the likelihood of counts: y/(u + b)² ≤ y/u²" if counts.checked else counts.how,
            ),
            of_prior,
        ),
    )
