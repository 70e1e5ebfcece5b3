"""Functions with custom derivatives, without extra cost if nothing is differentiated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["Function", "folded", "transformed"]


class Function(torch.autograd.Function):
    """A ``torch.autograd.Function`` whose ``forward`` takes no context, called by ``run``."""

    @classmethod
    def run(cls, *args: Any) -> Any:
        """Call ``apply``, or plain ``forward`` if no derivative of any kind is recorded.

        ``apply`` inspects the signature of ``forward`` at every call. In the restarts, which run without graph, this
        took a tenth of the time of a layer on images of 64×64.
        """
        if torch.is_grad_enabled() or transformed():
            return cls.apply(*args)
        return cls.forward(*args)


def transformed() -> bool:
    """Whether forward-mode derivatives or a transform of torch.func may be active; True if torch cannot tell."""
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    level = getattr(forward_ad, "_current_level", 0)
    return active is None or active() or level >= 0


def folded(size: int, in_dims: tuple[int | None, ...], images: Tensor, *tables: Tensor) -> tuple[int, list[Tensor]]:
    """The arguments of a ``vmap`` over `size` elements with this axis joined to the batch of images.

    Args:
        size: of the mapped axis.
        in_dims: its place in each argument, or None.
        images: (B, …) without the mapped axis.
        tables: (B or 1, …) without it.

    Returns:
        B, and the arguments with a batch of ``size · B``.
    """
    batch = images.shape[0] if in_dims[0] is None else images.movedim(in_dims[0], 0).shape[1]
    joined = []
    for t, dim in zip((images, *tables), in_dims, strict=True):
        t = t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        joined.append(t.expand(size, batch, *t.shape[2:]).flatten(0, 1))
    return batch, joined
