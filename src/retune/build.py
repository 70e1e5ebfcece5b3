"""Descriptions to objects: the only registry of names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from deepinv.optim import L2

from retune import _checkpoint
from retune.errors import CheckpointError, RetuneError, unknown_name
from retune.gradients import Implicit, Truncated, Unrolled
from retune.maps import ForwardBackward
from retune.model import Restarted
from retune.priors import WaveletL1, WaveletL12
from retune.solve import Stop
from retune.solvers import Anderson, Inertial, Picard

__all__ = ["build", "load"]

_SIMPLE: dict[str, Any] = {
    c.__name__: c for c in (Anderson, Implicit, Inertial, L2, Picard, Truncated, Unrolled, WaveletL1, WaveletL12)
}


def build(description: dict) -> Any:
    """The object that ``obj.describe()`` described, with freshly initialised weights.

    Raises:
        UnknownNameError: a type that is not registered (yours? then rebuild the network in Python, and load the
            weights with ``load_state_dict``).
    """
    known = {**description}
    kind = known.pop("type", None)
    if kind == "Restarted":
        return Restarted(
            build(known["map"]),
            depth=known["depth"],
            restarts=known["restarts"],
            gradient=build(known["gradient"]),
            solver=build(known["solver"]),
            stop=Stop(**known["stop"]),
        )
    if kind == "ForwardBackward":
        known["prior"] = build(known["prior"])
        known["data_fidelity"] = build(known["data_fidelity"])
        return ForwardBackward(**known)
    if kind not in _SIMPLE:
        raise unknown_name("type", kind, ["ForwardBackward", "Restarted", *_SIMPLE])
    return _SIMPLE[kind](**known)


def load(path: str | Path) -> Restarted:
    """A network saved with ``net.save(path)``, in eval mode, on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, foreign, of another format, or does not fit its description.
    """
    tensors, description, _ = _checkpoint.read(path)
    try:
        net = build(description)
        broken = [name for name, t in tensors.items() if not torch.isfinite(t).all()]
        if broken:
            raise CheckpointError(f"NaN or Inf in the weights {', '.join(broken)}")
        net.load_state_dict(tensors, assign=True)  # keeps the precision that was saved
    except (RetuneError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not describe a network that this version can rebuild: {error}") from error
    return net.eval()
