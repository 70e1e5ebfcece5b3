"""A one-time setting of the C allocator that doubles the speed on a CPU."""

from __future__ import annotations

import torch

_told = False


def keep_freed_memory(device: torch.device) -> None:
    """Make glibc keep freed blocks of up to 32 MiB instead of returning them to the kernel after each use.

    By default glibc returns every freed temporary above a threshold to the kernel. A new allocation then causes a page
    fault for every page; on images of 256×256 the page faults cost more than the arithmetic. glibc raises the threshold
    to the size of the largest block freed so far (mallopt(3), ``M_MMAP_THRESHOLD``), so it is enough to free one large
    untouched block once. On other systems this does no harm.
    """
    global _told
    if not _told and device.type == "cpu":
        torch.empty(32 * 2**20 - 2**16, dtype=torch.uint8)
        _told = True
