"""Checks of the operator: linearity, the adjoint in both precisions, and the norm."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune._torch.batch import inner
from retune.diagnosis.copies import cast, cut_by_torch
from retune.diagnosis.exam import FAILURES, Exam, short
from retune.diagnosis.findings import Finding, Severity
from retune.errors import RetuneError
from retune.guarantee import Known
from retune.operators.adjoint import repair
from retune.operators.facts import REFUSED, facts
from retune.operators.images import parts
from retune.operators.kinds import phase_advice
from retune.operators.norm import FAILURE, SAFETY

__all__ = ["check_adjoint", "check_linear", "check_norm"]

# Relative errors: rounding stays below the first limit, a wrong operator exceeds the second.
_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-6}
_WRONG = REFUSED
_COUNT = 3


def check_linear(exam: Exam) -> Iterator[Finding]:
    """Check ``A(2a + b) = 2 A(a) + A(b)``, ``A(0) = 0``, and that A returns the same result twice."""
    a, b = exam.probe(0), exam.probe(1)
    try:
        one, again, two, both, zero = (exam.physics.A(v) for v in (a, a, b, 2 * a + b, torch.zeros_like(a)))
    except FAILURES as error:
        exam.linear = False
        yield Finding(
            "linearity",
            Severity.PROBLEM,
            f"A failed on an image {'×'.join(map(str, exam.shape))}: «{short(error)}»",
            "Check the image size, the device and the precision that the physics was built for.",
        )
        return
    scale = max(_norm(both), 1e-30)
    random = _norm(_less(one, again)) / scale
    offset = _norm(zero) / scale
    error = _norm(_less(both, [2 * p + q for p, q in zip(parts(one), parts(two), strict=True)])) / scale
    numbers = {"error": error, "offset": offset, "repeated": random}
    limit = 10 * _ROUNDING[exam.dtype]
    exam.linear = random <= limit and error <= limit
    if not math.isfinite(random + error + offset):
        yield Finding(
            "linearity",
            Severity.PROBLEM,
            "A gives NaN or Inf for a finite image",
            "Look for NaN or Inf in its mask, kernel or weights.",
            numbers,
        )
    elif random > limit:
        yield Finding(
            "linearity",
            Severity.PROBLEM,
            f"A gives different results for the same image (relative difference {random:.1e})",
            "Move randomness out of A, into the noise model.",
            numbers,
        )
    elif offset > limit:
        yield Finding(
            "linearity",
            Severity.PROBLEM,
            f"A(0) is not 0 (relative size {offset:.1e}): A is affine, not linear",
            "Subtract the offset A(0) from y, and leave it out of A.",
            numbers,
        )
    elif error > limit:
        yield Finding(
            "linearity",
            Severity.PROBLEM,
            f"A is not linear: A(2a + b) differs from 2A(a) + A(b) by {error:.1e}",
            phase_advice(exam.physics)
            or "Move saturation and other nonlinear steps out of A; ReTune's guarantees are for linear operators.",
            numbers,
        )
    elif not isinstance(exam.physics, LinearPhysics):
        yield Finding(
            "linearity",
            Severity.PROBLEM,
            f"A is linear (to {error:.1e}) but {exam.name} is not a deepinv LinearPhysics, so it has no adjoint",
            "Wrap it: deepinv.physics.LinearPhysics(A=..., A_adjoint=...), or img_size=... in place of A_adjoint.",
            numbers,
        )
    else:
        yield Finding("linearity", Severity.OK, f"A(2a + b) = 2A(a) + A(b) to {error:.1e}", "", numbers)


def check_adjoint(exam: Exam) -> Iterator[Finding]:
    """Check ``⟨Au, v⟩ = ⟨u, Aᵀv⟩`` in float64 and in float32, on copies."""
    errors, failures, converted = {}, {}, {}
    copied = True
    for dtype in (torch.float64, torch.float32):
        try:
            try:
                physics = cast(exam.physics, dtype)
            except Exception as error:  # copying the user's object may raise any error
                copied, physics = False, exam.physics
                if dtype != exam.dtype:
                    failures[dtype] = short(error)
                    continue
            errors[dtype], found = _mismatch(exam, physics, dtype)
            if found != dtype:
                converted[dtype] = found
        except FAILURES as error:
            failures[dtype] = short(error)
    numbers: dict = {_name(d): e for d, e in errors.items()}
    if not errors:
        exam.adjoint = False
        yield Finding(
            "adjoint",
            Severity.PROBLEM,
            f"A_adjoint failed: «{failures[torch.float32]}»",
            "Give A_adjoint=..., or img_size=(C, H, W), from which deepinv derives it.",
        )
        return
    measured = ", ".join(f"{e:.1e} in {_name(d)}" for d, e in errors.items())
    worst = max(errors.values())
    exact = errors.get(torch.float64, 0.0)
    # An operator with float32 arithmetic inside is judged by the rounding of float32.
    limit = _ROUNDING[torch.float32 if torch.float64 in converted else torch.float64]
    exam.adjoint = worst <= _WRONG
    if not worst <= _WRONG:
        severity, advice = (
            Severity.PROBLEM,
            f"{_repair(exam)}. ReTune refuses a wrong adjoint: the iteration would not minimise any objective.",
        )
    elif exact > limit:
        severity, advice = (
            Severity.WARNING,
            (
                "A_adjoint is only close to the adjoint, so the equilibrium belongs to a different data term.  "
                f"{_repair(exam)}."
            ),
        )
    elif errors.get(torch.float32, 0.0) > _ROUNDING[torch.float32]:
        severity, advice = Severity.WARNING, "The operator loses digits in float32: rescale it, or work in float64."
    else:
        severity, advice = Severity.OK, ""
    if converted and severity is Severity.OK:
        severity, advice = Severity.NOTE, "The physics converts its input, so float64 brings no extra accuracy."
    if failures and severity is Severity.OK:
        severity = Severity.NOTE
        advice = "Build the physics in the precision of your images; it fails in the other precision."
        if not copied:
            advice = "Only the precision that it was built in was tested, for it cannot be copied."
    for dtype, text in failures.items():
        measured += f"; {_name(dtype)} could not be tested: «{text}»"
    for dtype, inside in converted.items():
        measured += f"; {_name(dtype)} becomes {_name(inside)} inside"
    yield Finding("adjoint", severity, f"⟨Au, v⟩ and ⟨u, Aᵀv⟩ differ by {measured}", advice, numbers)
    if torch.float64 in errors:
        cut = cut_by_torch(cast(exam.physics, torch.float64), exam.probe(0, torch.float64))
        if cut is not None and cut > 1e-3:
            yield Finding(
                "precision",
                Severity.NOTE,
                f"physics.to(torch.float64) would change A by {cut:.0%}: torch drops the imaginary part of its buffers",
                f"Build {exam.name} in the precision that you need; do not cast it.",
                {"change": cut},
            )


def check_norm(exam: Exam) -> Iterator[Finding]:
    """Check ‖A‖² and its scale."""
    if not exam.sound:
        return
    assert isinstance(exam.physics, LinearPhysics)
    like = exam.probe(0)
    try:
        found = facts(exam.physics, like, exam.physics.A(like))
    except RetuneError as error:
        exam.adjoint = False
        yield Finding("norm", Severity.PROBLEM, short(error), "Repair the operator: ReTune refuses it.")
        return
    exam.sqnorm, exam.sqnorm_kind = found.sqnorm, found.sqnorm_kind
    low, high = float(found.sqnorm.min()), float(found.sqnorm.max())
    numbers = {"sqnorm": [float(v) for v in found.sqnorm], "kind": found.sqnorm_kind.value}
    if high <= 0:
        yield Finding(
            "norm", Severity.PROBLEM, "‖A‖² = 0: the operator is zero", "Check the mask or the kernel.", numbers
        )
        return
    if found.sqnorm_kind == Known.EXACT:
        how = "exact"
    else:
        how = f"a Lanczos estimate times {SAFETY}; with probability below {FAILURE:g} it is too small"
    value = f"{high:.4g}" if high - low <= 1e-6 * high else f"{low:.4g} to {high:.4g}"
    yield Finding("norm", Severity.OK, f"‖A‖² = {value} ({how})", "", numbers)
    if low >= 0.1 and high <= 10:
        return
    severity = Severity.NOTE if low >= 1e-2 and high <= 100 else Severity.WARNING
    yield Finding(
        "scale",
        severity,
        f"‖A‖² = {value} is far from 1",
        f"Divide A and y by ‖A‖ = {high**0.5:.4g}, so that the usual values of λ, σ and tolerances apply.",
        numbers,
    )


def _repair(exam: Exam) -> str:
    assert isinstance(exam.physics, LinearPhysics)
    return repair(exam.physics, exam.probe(0))


def _mismatch(exam: Exam, physics, dtype: torch.dtype) -> tuple[float, torch.dtype]:
    """max |⟨Au, v⟩ − ⟨u, Aᵀv⟩| / (‖Au‖ ‖v‖), and the real dtype of the result."""
    worst, found = 0.0, dtype
    for seed in range(_COUNT):
        u, other = exam.probe(seed, dtype), exam.probe(seed + 10, dtype)
        left, v = (
            parts(physics.A(u)),
            physics.A(u + other),
        )  # correlated with Au, so that a wrong scale is found as well as a wrong position
        back = physics.A_adjoint(v)
        product = sum(inner(p, q) for p, q in zip(left, parts(v), strict=True))
        error = abs(product - inner(u, back)) / max(_norm(left) * _norm(v), 1e-30)
        # also if A maps everything to 0; NaN counts as the worst
        worst = max(worst, error if error == error else float("inf"))
        found = back.dtype
    return worst, found


def _less(a, b) -> list[Tensor]:
    return [p - q for p, q in zip(parts(a), parts(b), strict=True)]


def _norm(y) -> float:
    return sum(inner(p, p) for p in parts(y)) ** 0.5


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
