"""Whether the results of a comparison show what the theory promises."""

from __future__ import annotations

__all__ = ["verdicts"]


def verdicts(key: str, result: dict) -> list[dict]:
    """Check the three claims of the demo on one problem.

    Args:
        key: name of the problem.
        result: its results, with the methods variational, unrolled, implicit and retune, run on 10 and 50 times.

    Returns:
        A verdict for each claim: the claim, whether it holds, and the numbers that decide.
    """
    rows = result["methods"]
    retune, implicit, single, unrolled = (rows[k] for k in ("retune", "implicit", "variational", "unrolled"))

    def verdict(claim: str, holds: bool, detail: str) -> dict:
        return {"problem": key, "claim": claim, "holds": bool(holds), "detail": detail}

    gap = retune["psnr"] - implicit["psnr"]
    moved = [abs(retune[f] - retune["psnr"]) for f in ("psnr_10x", "psnr_50x")]
    return [
        verdict(
            "ReTune is within 0.1 dB of the implicit gradient",
            abs(gap) <= 0.1,
            f"{retune['psnr']:.2f} against {implicit['psnr']:.2f} dB",
        ),
        verdict(
            "ReTune and the implicit gradient are ahead of the best single λ",
            min(retune["psnr"], implicit["psnr"]) > single["psnr"],
            f"{retune['psnr']:.2f} and {implicit['psnr']:.2f} against {single['psnr']:.2f} dB",
        ),
        verdict(
            "The ReTune output moves by less than 0.01 dB when run 10× and 50× longer",
            max(moved) < 0.01,
            f"output after {max(retune['layers_run'])} layers; after {10 * retune['layers_trained']} and "
            f"{50 * retune['layers_trained']} it differs by {moved[0]:.4f} and {moved[1]:.4f} dB; the unrolled network "
            f"at 10 and 50 times its {unrolled['layers_trained']} layers by "
            f"{unrolled['psnr_10x'] - unrolled['psnr']:+.2f} and {unrolled['psnr_50x'] - unrolled['psnr']:+.2f} dB",
        ),
    ]
