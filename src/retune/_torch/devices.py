"""A check that the requested device is available."""

from __future__ import annotations

import os

import torch

from retune.errors import InvalidParameterError

__all__ = ["check_chosen_device", "check_device"]


def check_chosen_device(device: str) -> None:
    """Refuse training on a missing device. Each of several processes gets its own device."""
    if device != "auto" and "LOCAL_RANK" not in os.environ:
        check_device(device)


def check_device(device: str) -> None:
    """Refuse a device that is not available."""
    try:
        if torch.zeros(1, device=device).is_meta:
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0][:120]
        if "Expected one of" in reason:  # torch lists every kind of device that exists
            reason = "no such kind of device"
        raise InvalidParameterError(
            f"device {device!r} is not available here; use cpu, cuda or cuda:1 ({reason})"
        ) from error
