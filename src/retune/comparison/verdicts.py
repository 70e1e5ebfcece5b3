"""Check whether the results of a comparison confirm the theory."""

from __future__ import annotations

from retune.records import MethodResult, Methods, Verdict

__all__ = ["verdicts"]


def verdicts(problem: str, methods: Methods) -> list[Verdict]:
    """Check the three claims of the demo on one problem.

    Args:
        problem: its key.
        methods: results of variational, unrolled, implicit and retune, each also at 10 and 50 times the trained depth.

    Returns:
        One verdict per claim: the claim, whether it holds, and the deciding numbers.
    """
    single, unrolled, implicit, retune = (methods[k] for k in ("variational", "unrolled", "implicit", "retune"))
    ours, theirs, one = (_psnr(m) for m in (retune, implicit, single))
    moved = [abs(d) for d in _moved(retune)]
    drift = _moved(unrolled)
    trained = retune.layers_trained or 0
    # Without weights there is only λ to learn, and the grid search is the answer.
    has_weights = "weights" in (retune.learned or {})

    def verdict(claim: str, holds: bool, detail: str) -> Verdict:
        return Verdict(problem=problem, claim=claim, holds=bool(holds), detail=detail)

    return [
        verdict(
            "ReTune is within 0.1 dB of the implicit gradient",
            abs(ours - theirs) <= 0.1,
            f"{ours:.2f} against {theirs:.2f} dB",
        ),
        verdict(
            "ReTune and the implicit gradient are ahead of the best single λ"
            if has_weights
            else "With λ alone to learn, ReTune and the implicit gradient are within 0.1 dB of the grid search",
            min(ours, theirs) > one if has_weights else max(abs(ours - one), abs(theirs - one)) <= 0.1,
            f"{ours:.2f} and {theirs:.2f} against {one:.2f} dB",
        ),
        verdict(
            "The ReTune output moves by less than 0.01 dB when run 10× and 50× longer",
            max(moved) < 0.01,
            f"output after {max(n or 0 for n in retune.layers_run or [0]):g} layers; after {10 * trained:g} and "
            f"{50 * trained:g} it differs by {moved[0]:.4f} and {moved[1]:.4f} dB; the unrolled network at 10 and 50 "
            f"times its {unrolled.layers_trained:g} layers by {drift[0]:+.2f} and {drift[1]:+.2f} dB",
        ),
    ]


def _moved(method: MethodResult) -> list[float]:
    """Change of PSNR in dB at 10 and 50 times the trained depth. Unknown values are NaN, with which no claim holds."""
    return [_known(method.psnr_after(n)) - _psnr(method) for n in (10, 50)]


def _psnr(method: MethodResult) -> float:
    return _known(method.psnr)


def _known(value: float | None) -> float:
    return float("nan") if value is None else value
