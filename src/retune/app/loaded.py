"""Everything that the computations need, loaded and run once. The process that computes is a copy of one with it.

A copy of a process has none of its threads, so here everything runs in one thread.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: idle threads leave the cores to others

import torch

from retune.app import work

__all__ = ["use_all_cores"]

_CORES = torch.get_num_threads()


def use_all_cores() -> None:
    """Compute with as many threads as torch takes by default."""
    torch.set_num_threads(_CORES)


torch.set_num_threads(1)
work.warm()
