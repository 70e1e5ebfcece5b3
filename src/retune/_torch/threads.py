"""How many threads suit the size of an image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

__all__ = ["suited_threads"]

#: Below this number of values in a state, threads that sleep between operations take longer than a single thread.
SMALL = 400_000


@contextmanager
def suited_threads(values: int, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Use a single thread meanwhile if a state has few values and idle threads sleep (``OMP_WAIT_POLICY=PASSIVE``).

    To wake a thread takes longer than an operation on a small image: on two idle cores a wavelet layer takes 4 times as
    long with two threads at 64×64, and twice as long at 256×256. A user who has set ``OMP_NUM_THREADS`` keeps it.
    """
    before = torch.get_num_threads()
    sleeps = environment.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE" and "OMP_NUM_THREADS" not in environment
    if values >= SMALL or not sleeps or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
