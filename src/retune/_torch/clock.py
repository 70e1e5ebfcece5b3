"""A clock for computations on a device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

__all__ = ["clock_of"]


def clock_of(device: str | torch.device) -> Callable[[], float]:
    """A clock in seconds: of the processor if one thread computes, which other programs do not disturb; else the wall.

    With an accelerator, the clock waits for its work.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def wall() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return wall
