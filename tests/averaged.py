"""How far a bound map is from breaking the inequality of an averaged map, on random pairs."""

from __future__ import annotations

import torch

from small_parts import rand


def least_slack(bound, averaged, pairs: int) -> float:
    """The least of ``(‖a − b‖² − (1 − α)/α ‖(I − T)a − (I − T)b‖² − ‖Ta − Tb‖²)/‖a − b‖²``, in the map's own norm.

    The pairs are at four scales around the start. It is ≥ 0 for a map that is averaged with the constant α.
    """
    alpha, start, least = float(averaged), bound.init(), torch.inf
    for seed in range(pairs):
        a, b = (start + 10.0 ** (seed % 4 - 2) * rand(*start.shape, seed=s) for s in (seed, seed + 1000))
        ta, tb = bound.layer(a), bound.layer(b)
        size, moved = bound.norm(a - b) ** 2, bound.norm(a - ta - b + tb) ** 2
        least = min(least, float((size - (1 - alpha) / alpha * moved - bound.norm(ta - tb) ** 2) / size))
    return least
