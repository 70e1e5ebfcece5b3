"""Seeds that follow from numbers, and randomness that leaves the caller's alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seeded", "stream"]


def stream(*numbers: int) -> int:
    """A seed below 2**63 that follows from the numbers alone; other numbers give an unrelated one."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators start from `seed` inside, and are as they were afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
