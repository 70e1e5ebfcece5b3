"""The peak number of bytes in tensor storages during a computation, counted exactly."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from retune._torch.allocator import keep_freed_memory
from retune.errors import InvalidParameterError, wrong_type

__all__ = ["StorageMeter", "as_bytes", "in_words", "peak_of"]

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class StorageMeter(TorchDispatchMode):
    """The current and peak bytes of the storages that operations return while this mode is active.

    A storage counts from the operation that returns it until it is freed. Temporary memory inside an operation (the
    workspace of an FFT or a convolution) is not counted, nor is memory that the allocator rounds up or keeps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = {_key(t) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **kwargs)
        for t in tree_iter(out):
            if isinstance(t, Tensor) and _key(t) not in before:
                self._follow(t.untyped_storage())
        self.peak = max(self.peak, self.alive)
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self.alive += size

        def freed() -> None:
            self.alive -= size
            self._known.pop(key, None)

        self._known[key] = weakref.finalize(storage, freed)


def _key(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def peak_of(run: Callable[[], object], device: torch.device) -> int:
    """The peak bytes of tensors during `run`, minus those from before.

    On CUDA the allocator reports it. Elsewhere every storage that an operation returns is tracked.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    keep_freed_memory(device)
    with StorageMeter() as meter:
        run()
    return meter.peak


def as_bytes(memory: int | float | str) -> int:
    """A number of bytes, or a text such as ``"8 GB"`` or ``"512 MiB"``.

    Raises:
        InvalidParameterError: not a positive amount of memory.
    """
    hint = 'for example 8_000_000_000, "8 GB" or "512 MiB"'
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-zA-Z]+)\s*", memory)
        if match is None or match[2].upper() not in _UNITS:
            raise InvalidParameterError(
                f"memory must be a number of bytes or a text with a unit, got {memory!r}; {hint}"
            )
        memory = float(match[1]) * _UNITS[match[2].upper()]
    if isinstance(memory, bool) or not isinstance(memory, int | float):
        raise wrong_type("memory", memory, "an amount of memory", hint)
    if not 0 < memory < float("inf"):
        raise InvalidParameterError(f"memory must be positive and finite, got {memory}; {hint}")
    return int(memory)


def in_words(size: float) -> str:
    """A number of bytes in readable units, powers of 1024."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"
