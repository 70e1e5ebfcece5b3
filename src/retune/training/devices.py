"""Devices and processes: alone, or as one of several that torchrun or ``fabric run`` started."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor

from retune.errors import InvalidParameterError, ProcessLostError

__all__ = ["agreed", "first_process", "make_fabric", "other_processes"]

#: in the errors that Gloo, NCCL and the store of torch.distributed raise when a process has gone
_LOST = ("closed by peer", "reset by peer", "broken pipe", "gloo", "nccl", "tcpstore", "process group", "socket")


def make_fabric(device: str) -> Fabric:
    """A launched Fabric for "auto", "cpu", "cuda", "cuda:1" or "mps".

    Under torchrun or ``fabric run``, one process of theirs: gradients are then means over the processes.

    Raises:
        InvalidParameterError: an unknown device, or one that is not here.
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
        # Fabric does so for NCCL only; threads of gloo that are left at exit now and then abort the process.
        atexit.unregister(_leave)
        atexit.register(_leave)
    return fabric


@contextmanager
def other_processes(fabric: Fabric, folder: str | Path | None) -> Iterator[None]:
    """Name the loss of another process of a training, instead of the error of the network library.

    Args:
        fabric: of this process.
        folder: of the checkpoints, if there are any.

    Raises:
        ProcessLostError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        told = str(error).lower()
        if fabric.world_size == 1 or not any(sign in told for sign in _LOST):
            raise
        atexit.unregister(_leave)  # a farewell to the others would wait for the one that has gone
        start = "begin again (no folder was given for checkpoints)"
        if folder is not None:
            start = f"start all processes again with --resume (resume=True), to go on from the checkpoint in {folder}"
        raise ProcessLostError(
            f"process {fabric.global_rank} of {fabric.world_size} stopped because another one has ended: {start}"
        ) from error


def _leave() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _fabric(kind: str, index: str) -> Fabric:
    if "LT_CLI_USED" in os.environ:  # fabric run has its own options for all of this
        return Fabric()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        # A loss may leave some parameters out of a step.
        strategy = DDPStrategy(find_unused_parameters=True)
        return Fabric(accelerator=kind, devices=local, num_nodes=world // local, strategy=strategy)
    return Fabric(accelerator=kind, devices=[int(index)] if index else 1)


def first_process() -> bool:
    """Whether this is the process that writes: the only one, or the first of those that torchrun or fabric started."""
    local, node = os.environ.get("LOCAL_RANK", "0"), os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return os.environ.get("RANK", "0" if local == node == "0" else "1") == "0"


def agreed(fabric: Fabric, *flags: bool | Tensor) -> list[bool]:
    """Each flag, true if it is in any of the processes, so that all of them leave a loop together."""
    if fabric.world_size == 1:
        return [bool(f) for f in flags]
    mine = torch.tensor([float(f) for f in flags], device=fabric.device)
    total = fabric.all_reduce(mine, reduce_op="sum")
    assert isinstance(total, Tensor)
    return [bool(t > 0) for t in total]
