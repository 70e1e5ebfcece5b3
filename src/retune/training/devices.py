"""Devices and processes: a single process, or one of several started by torchrun or ``fabric run``."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed
from torch import Tensor

from retune.errors import InvalidParameterError, ProcessLostError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["agreed", "first_process", "make_fabric", "other_processes"]

#: words in the errors of Gloo, NCCL and torch.distributed after the loss of a process
_LOST = ("closed by peer", "reset by peer", "broken pipe", "gloo", "nccl", "tcpstore", "process group", "socket")


def make_fabric(device: str) -> Fabric:
    """A launched Fabric for "auto", "cpu", "cuda", "cuda:1" or "mps".

    Under torchrun or ``fabric run`` this is one of several processes, and gradients are means over the processes.

    Raises:
        InvalidParameterError: the device is unknown or not available.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps"):
        raise InvalidParameterError(f"unknown device {device!r}; use auto, cpu, cuda, cuda:1 or mps")
    try:
        fabric = _fabric(kind, index)
        if "LT_CLI_USED" not in os.environ:
            fabric.launch()
    except (RuntimeError, ValueError) as error:
        raise InvalidParameterError(f"device {device!r} is not available here: {error}") from error
    if fabric.world_size > 1:
        # Fabric does this for NCCL only, but remaining gloo threads sometimes abort the process at exit.
        atexit.unregister(_leave)
        atexit.register(_leave)
    return fabric


@contextmanager
def other_processes(fabric: Fabric, folder: str | Path | None) -> Iterator[None]:
    """Report the loss of another training process, in place of the error of the network library.

    Args:
        fabric: the Fabric of this process.
        folder: folder of the checkpoints, or None.

    Raises:
        ProcessLostError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        told = str(error).lower()
        if fabric.world_size == 1 or not any(sign in told for sign in _LOST):
            raise
        atexit.unregister(_leave)  # the usual shutdown would wait for the lost process
        start = "start again (no folder was given for checkpoints)"
        if folder is not None:
            start = (
                f"start all processes again with --resume (resume=True), to continue from the checkpoint in {folder}"
            )
        raise ProcessLostError(
            f"process {fabric.global_rank} of {fabric.world_size} stopped because another one has ended: {start}"
        ) from error


def _leave() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _fabric(kind: str, index: str) -> Fabric:
    # Its import takes seconds, and only a training needs it.
    from lightning_fabric import Fabric

    if "LT_CLI_USED" in os.environ:  # fabric run has its own options for this
        return Fabric()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        from lightning_fabric.strategies.ddp import DDPStrategy

        # Some parameters may not take part in the loss of a step.
        strategy = DDPStrategy(find_unused_parameters=True)
        return Fabric(accelerator=kind, devices=local, num_nodes=world // local, strategy=strategy)
    return Fabric(accelerator=kind, devices=[int(index)] if index else 1)


def first_process() -> bool:
    """Whether this process writes files: it is the only one, or the first of several."""
    local, node = os.environ.get("LOCAL_RANK", "0"), os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return os.environ.get("RANK", "0" if local == node == "0" else "1") == "0"


def agreed(fabric: Fabric, *flags: bool | Tensor) -> list[bool]:
    """Each flag combined by OR over the processes, so that all of them leave a loop together."""
    if fabric.world_size == 1:
        return [bool(f) for f in flags]
    mine = torch.tensor([float(f) for f in flags], device=fabric.device)
    total = fabric.all_reduce(mine, reduce_op="sum")
    assert isinstance(total, Tensor)
    return [bool(t > 0) for t in total]
