"""The null space of the operator, and the guarantees that its properties allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune._torch.batch import image_norm, over_images
from retune.diagnosis.exam import Exam
from retune.diagnosis.findings import Finding, Severity
from retune.guarantee import Known
from retune.operators.facts import facts, normal_operator
from retune.operators.images import parts
from retune.operators.kinds import eigenvalues, mask_of
from retune.operators.norm import FAILURE

__all__ = ["check_guarantees", "check_null_space"]

# λ_min(AᵀA) below this share of ‖A‖² gives a contraction too weak to be of use.
_WEAK = 1e-6
_ITERATIONS = 40


def check_null_space(exam: Exam) -> Iterator[Finding]:
    """Check λ_min(AᵀA): exact for diagonalised operators, 0 if there are fewer measurements than pixels."""
    if exam.sqnorm is None or not bool((exam.sqnorm > 0).all()):
        return
    assert isinstance(exam.physics, LinearPhysics)
    like, top = exam.probe(0), float(exam.sqnorm.max())
    found = facts(exam.physics, like, measured := exam.physics.A(like))
    pixels = like[0].numel()
    rows = sum(p[0].numel() * (2 if p.is_complex() else 1) for p in parts(measured))
    mask = mask_of(exam.physics)
    if mask is not None:
        yield _mask_finding(exam, mask)
        return
    power = eigenvalues(exam.physics, found)
    if power is not None:
        least = float(power.min())
        weak = float((power < _WEAK * top).double().mean())
        numbers = {"lambda_min": least, "kind": "exact", "share_weak": weak}
        if least > _WEAK * top:
            yield Finding(
                "null space", Severity.OK, f"no null space: the smallest |m|² is {least:.2e} (exact)", "", numbers
            )
        else:
            yield Finding(
                "null space",
                Severity.NOTE,
                f"the smallest |m|² is {least:.1e} (exact); {weak:.1%} of the frequencies are below {_WEAK:g}·‖A‖²",
                "The prior alone determines these frequencies: expect them to be smooth, not restored.",
                numbers,
            )
        return
    if rows < pixels:
        share = 1 - rows / pixels
        yield Finding(
            "null space",
            Severity.NOTE,
            f"{rows} measurements for {pixels} pixels: A does not see at least {share:.1%} of the dimensions of the "
            "image",
            "The prior alone determines the unseen part of the image.",
            {"lambda_min": 0.0, "kind": "exact", "share_unseen": share},
        )
        return
    bound = _smallest(normal_operator(exam.physics, found), exam.probe(5), exam.sqnorm)
    yield Finding(
        "null space",
        Severity.OK if bound > 1e-3 * top else Severity.NOTE,
        f"λ_min(AᵀA) is at most {bound:.1e} (the Rayleigh quotient after {_ITERATIONS} iterations, an upper bound)",
        ""
        if bound > 1e-3 * top
        else "The prior determines the directions that A hardly sees: expect them to be smooth.",
        {"lambda_min": bound, "kind": "estimated", "iterations": _ITERATIONS},
    )


def check_guarantees(exam: Exam, null_space: tuple[Finding, ...]) -> Iterator[Finding]:
    """Tell which rows of the table of guarantees can hold with this operator, and why."""
    if not exam.sound or exam.sqnorm is None or not bool((exam.sqnorm > 0).all()):
        yield Finding(
            "guarantees",
            Severity.PROBLEM,
            "no guarantee can hold: each needs a linear A, its true adjoint and a norm ‖A‖ > 0",
            "Repair the problems above first.",
            {"convex": False, "contraction": False},
        )
        return
    exact = exam.sqnorm_kind == Known.EXACT
    numbers = null_space[0].numbers if null_space else {}
    mu, top = float(numbers.get("lambda_min", 0.0)), float(exam.sqnorm.max())
    proved = numbers.get("kind") == "exact" and exact and mu > _WEAK * top
    convex = "convex prior: converges to a minimiser for every step below 2/L, " + (
        "proved (‖A‖² is exact)" if exact else f"unless ‖A‖² is underestimated (probability below {FAILURE:g})"
    )
    if proved:
        contraction = (
            f"T is a contraction, ρ ≤ {1 - mu / top:.4g} at τ = 1/L, proved from A, for priors on the image itself or "
            "in one orthonormal wavelet basis (sides divisible by 2^levels, no margin)"
        )
    else:
        reason = "A has a null space" if mu <= _WEAK * top else "λ_min(AᵀA) is not known exactly"
        contraction = f"a contraction is proved only with an added ½ε‖x‖² ({reason})"
    yield Finding(
        "guarantees",
        Severity.OK,
        f"{convex}; {contraction}; ridge prior (GradientStep): as above if it is convex; if it is weakly convex, "
        "every layer decreases the objective; denoiser as prior: nothing is proved in advance, the rate is measured "
        "at the equilibrium",
        "",
        {
            "convex": "proved" if exact else "estimated",
            "contraction": proved,
            "rho": 1 - mu / top if proved else None,
            "ridge": "proved" if exact else "estimated",
            "denoiser": "measured",
        },
    )


def _mask_finding(exam: Exam, mask: Tensor) -> Finding:
    entries = mask.detach().expand(exam.shape)
    unseen = [float(s) for s in (entries == 0).double().flatten(1).mean(1)]
    least, top = float(entries.square().min()), float(entries.square().max())
    low, high = min(unseen), max(unseen)
    share = f"{high:.1%}" if high - low < 5e-4 else f"{low:.1%} to {high:.1%}"
    numbers = {"share_unobserved": unseen, "lambda_min": least, "kind": "exact"}
    if high == 0:
        text = f"no null space: every pixel is observed, with weights from {least**0.5:.3g} to {top**0.5:.3g}"
        return Finding("null space", Severity.OK, text, "", numbers)
    return Finding(
        "null space",
        Severity.NOTE if high <= 0.95 else Severity.WARNING,
        f"{share} of the pixels are not observed",
        "The prior alone determines them"
        + ("." if high <= 0.95 else "; with so few observed pixels, check that the mask is not inverted."),
        numbers,
    )


def _smallest(normal: Callable[[Tensor], Tensor], start: Tensor, sqnorm: Tensor) -> float:
    """A Rayleigh quotient of AᵀA, lowered by a power iteration on ‖A‖² I − AᵀA. It never falls below λ_min."""
    shift = over_images(sqnorm, start.ndim)
    v = start / image_norm(start)
    for _ in range(_ITERATIONS):
        w = shift * v - normal(v)
        v = w / image_norm(w).clamp_min(torch.finfo(w.dtype).tiny)
    return max(float((v * normal(v)).flatten(1).sum(1).min()), 0.0)
