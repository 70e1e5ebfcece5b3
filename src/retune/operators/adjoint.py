"""Advice on how to repair a wrong adjoint. It is tried out before it is given."""

from __future__ import annotations

import copy

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune._torch.batch import inner
from retune.operators.images import parts

__all__ = ["repair"]

_RIGHT = 1e-5


def repair(physics: LinearPhysics, like: Tensor) -> str:
    """Advice, in one sentence, for an A_adjoint that is not the adjoint of A, for images shaped as `like`.

    deepinv can derive the adjoint from A by automatic differentiation. This is tried first, because it is also wrong if
    A defines its own ``backward`` or leaves torch.
    """
    if getattr(physics, "adjoint_via_backprop", None) is False:
        return f"Build {type(physics).__name__} with adjoint_via_backprop=True: its adjoint is then exact"
    if _derivative_is_right(physics, like):
        size = tuple(like.shape[1:])
        return (
            f"Use deepinv.physics.LinearPhysics(A=physics.A, img_size={size}) instead: deepinv derives the adjoint "
            "from A (a test has shown that it is right)"
        )
    return (
        "Correct A_adjoint. Leaving it out does not help here: the adjoint that deepinv derives from A by automatic "
        "differentiation is also wrong"
    )


def _derivative_is_right(physics: LinearPhysics, like: Tensor) -> bool:
    generator = torch.Generator().manual_seed(20250615)
    a, c = (torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device) for _ in range(2))
    try:
        with torch.inference_mode(False), torch.enable_grad():
            twin = copy.deepcopy(physics)  # some physics store their input, here tensors with a graph
            derived = LinearPhysics(A=twin.A, img_size=tuple(like.shape[1:]))
            derived.A_adjoint(twin.A(c))
            copy.deepcopy(twin)
            image, other = twin.A(a), twin.A(2 * a + c)
            back = derived.A_adjoint(other)
        left = sum(inner(p, q) for p, q in zip(parts(image), parts(other), strict=True))
        norms = [sum(inner(p, p) for p in parts(y)) ** 0.5 for y in (image, other)]
        return abs(left - inner(a, back)) <= _RIGHT * norms[0] * norms[1]
    except Exception:  # A may raise anything when it is differentiated; then it is not differentiable
        return False
