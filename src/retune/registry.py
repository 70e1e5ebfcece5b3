"""Names and objects: registered classes, saved networks, and the user's plug-ins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

# Importing ReTune's modules registers their classes before any name is looked up or taken.
from retune import (
    _checkpoint,
    gradients,  # noqa: F401
    maps,  # noqa: F401
    networks,  # noqa: F401
    priors,  # noqa: F401
    problems,  # noqa: F401
    solvers,  # noqa: F401
)
from retune._registry.describe import rebuild
from retune._registry.entries import find, kind_of, names, register, written
from retune._registry.make import make, takes
from retune.errors import CheckpointError, UnknownNameError
from retune.model import Restarted
from retune.plugins import load_plugin

__all__ = [
    "build",
    "find",
    "is_ours",
    "known_name",
    "load",
    "load_plugin",
    "make",
    "names",
    "register",
    "takes",
]

if TYPE_CHECKING:
    from typing import Any


def known_name(name: str, kind: str) -> str | None:
    """The name as written in runs, or None if no class of that kind has it."""
    try:
        return written(find(name, kind).name)
    except UnknownNameError:
        return None


def is_ours(name: str) -> bool:
    """Whether the class of that name belongs to ReTune."""
    return find(name).ours


def build(description: dict) -> Any:
    """The object of the description ``obj.describe()``, with freshly initialised weights.

    Raises:
        UnknownNameError: a type is not registered.
    """
    return rebuild(description)


def load(path: str | Path) -> Restarted:
    """A network saved with ``net.save(path)``, in eval mode, on the CPU.

    Your own classes must be registered first ([`register`][retune.register]): a file never causes an import.

    Raises:
        CheckpointError: the file is missing, truncated, from other software, of another format, or does not fit its
            description.
    """
    return network_in(_checkpoint.opened(path))


def network_in(checkpoint: _checkpoint.Checkpoint) -> Restarted:
    """The network in a file that was read, in eval mode, on the CPU.

    Raises:
        CheckpointError: see [`load`][retune.load].
    """
    path, tensors = checkpoint.path, checkpoint.tensors
    try:
        with _checkpoint.made_for(tensors):
            net = rebuild(checkpoint.description)
        if kind_of(type(net)) != "model":
            raise CheckpointError(f"it contains a {type(net).__name__}, but a retune.Restarted was expected")
        broken = [name for name, t in tensors.items() if not torch.isfinite(t).all()]
        if broken:
            raise CheckpointError(f"NaN or Inf in the weights {', '.join(broken)}")
        # Tensors are assigned, not copied, to keep the saved precision; their memory layout is that of the network.
        own = net.state_dict()
        _checkpoint.require_fit(own, tensors)
        net.load_state_dict({k: _laid_out(t, own.get(k)) for k, t in tensors.items()}, assign=True)
    except Exception as error:  # a constructor with arguments from a foreign file may raise anything
        raise CheckpointError(f"{path} does not describe a network that this version can rebuild: {error}") from error
    return net.eval()


def _laid_out(tensor: Tensor, like: Tensor | None) -> Tensor:
    """The tensor with the strides of another tensor of the same shape."""
    if like is None or like.shape != tensor.shape:
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
