"""The only registry of names: what ``obj.describe()`` said becomes an object again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from deepinv.optim import L2
from torch import Tensor

from retune import _checkpoint
from retune.errors import CheckpointError, unknown_name
from retune.gradients import Implicit, Truncated, Unrolled
from retune.maps import ForwardBackward, GradientStep
from retune.model import Restarted
from retune.networks import RidgeDenoiser, SmallUNet
from retune.priors import RED, Denoiser, Ridge, WaveletL1, WaveletL12
from retune.solve import Stop
from retune.solvers import Anderson, Damped, Inertial, Picard

__all__ = ["build", "load"]

_KNOWN: dict[str, Any] = {
    c.__name__: c
    for c in (
        Anderson,
        Damped,
        Denoiser,
        ForwardBackward,
        GradientStep,
        Implicit,
        Inertial,
        L2,
        Picard,
        RED,
        Restarted,
        Ridge,
        RidgeDenoiser,
        SmallUNet,
        Truncated,
        Unrolled,
        WaveletL1,
        WaveletL12,
    )
}


def build(description: dict) -> Any:
    """The object that ``obj.describe()`` described, with freshly initialised weights.

    Raises:
        UnknownNameError: a type that is not registered (yours? then rebuild the network in Python, and load the
            weights with ``load_state_dict``).
    """
    known = {k: build(v) if isinstance(v, dict) and "type" in v else v for k, v in description.items()}
    kind = known.pop("type", None)
    if kind not in _KNOWN:
        raise unknown_name("type", kind, _KNOWN)
    if isinstance(known.get("stop"), dict):
        known["stop"] = Stop(**known["stop"])
    if kind == "Restarted":
        return Restarted.rebuild(known.pop("auto", None), **known)
    return _KNOWN[kind](**known)


def load(path: str | Path) -> Restarted:
    """A network saved with ``net.save(path)``, in eval mode, on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, foreign, of another format, or does not fit its description.
    """
    tensors, description, _ = _checkpoint.read(path)
    try:
        with _checkpoint.made_for(tensors):
            net = build(description)
        if not isinstance(net, Restarted):
            raise CheckpointError(f"it holds a {type(net).__name__}, expected a retune.Restarted")
        broken = [name for name, t in tensors.items() if not torch.isfinite(t).all()]
        if broken:
            raise CheckpointError(f"NaN or Inf in the weights {', '.join(broken)}")
        # Assigned, not copied, to keep the precision that was saved; in the layout that the network gave its weights.
        own = net.state_dict()
        _checkpoint.require_fit(own, tensors)
        net.load_state_dict({k: _laid_out(t, own.get(k)) for k, t in tensors.items()}, assign=True)
    except Exception as error:  # a constructor that gets the arguments of a stranger may raise anything
        raise CheckpointError(f"{path} does not describe a network that this version can rebuild: {error}") from error
    return net.eval()


def _laid_out(tensor: Tensor, like: Tensor | None) -> Tensor:
    """The tensor with the strides of another one of its shape."""
    if like is None or like.shape != tensor.shape:
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
