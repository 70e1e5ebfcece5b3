"""Whether what autograd says of a map is the derivative of what it computes: looked at once, where code is foreign."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from retune._torch.graph import reaches
from retune._torch.precision import full_precision, rounding
from retune.errors import CutGradientError
from retune.maps.base import AbstractMap
from retune.operators.data_term import DataTerm

__all__ = ["is_foreign", "verify"]

# Relative size of the finite differences: their error is about as large, and rounding over it 1e-4 in float32.
_STEP = 1e-3
# Arithmetic that is no finer than this drowns them.
_FINE = 1e-6
# A kink or a curvature makes less of a difference, a part that is cut most often more.
_TOLERANCE = 0.2
# Parameters up to this size are looked at one by one: σ, strengths, weights of scales.
_SMALL = 64
_OURS = ("retune.", "torch.", "deepinv.optim.data_fidelity", "deepinv.optim.distance")


def is_foreign(map_: AbstractMap) -> bool:
    """Whether a map holds modules that are neither ours nor torch's: only those are looked at."""
    return any(not type(m).__module__.startswith(_OURS) for m in map_.modules())


def verify(map_: AbstractMap, data_term: DataTerm, u: Tensor) -> bool:
    r"""Compare products with ``∂T/∂u`` and ``∂T/∂θ`` with finite differences of T along random directions.

    With ``d`` the finite difference, ``⟨d, d⟩`` against ``⟨Tᵀd, v⟩`` for the direction v: one evaluation of a cycle of
    layers for the state, one for each small parameter and one for all large ones; without TF32 and autocast. A map that
    gives another answer for the same state (dropout), or tensors of less than 32 bits, are not looked at.

    Args:
        map_: the map.
        problem: the problem, without graph.
        u: a state, best at the equilibrium.

    Returns:
        Whether it could be looked at.

    Raises:
        CutGradientError: they contradict each other, so a part of the map detaches.
    """
    with full_precision():
        return rounding(u) <= _FINE and _verify(map_, data_term, u.detach())


def _verify(map_: AbstractMap, data_term: DataTerm, u: Tensor) -> bool:
    # A step size that is searched for follows the parameters, without a gradient: it is held.
    first = map_.bind(data_term).at(u)

    def layers(at: Tensor) -> Tensor:
        bound = map_.bind(data_term).with_steps_of(first)
        return bound.block(at, bound.layers)

    with torch.enable_grad():
        state = u.clone().requires_grad_()
        out = layers(state)
    if not reaches(out, state):
        return False  # cut altogether: the gradient rule says so
    with torch.no_grad():
        base = out.detach()
        # Some kernels add up in another order each time; what is drawn at random differs by far more.
        again = torch.linalg.vector_norm(layers(u) - base)
        if not bool(again <= 1e-2 * _STEP * torch.linalg.vector_norm(base)):
            return False
        generator = torch.Generator().manual_seed(20261127)
        for name, tensors, moved in _directions(map_, u, layers, generator):
            difference = moved - base
            size = difference.square().sum()
            if not float(size) > (1e-3 * _STEP) ** 2 * float(base.square().sum()):
                continue  # what has no effect has no gradient
            leaves = [state if t is u else t for t, _ in tensors]
            found = torch.autograd.grad(out, leaves, difference, retain_graph=True, allow_unused=True)
            pairs = zip(found, (d for _, d in tensors), strict=True)
            told = sum((float((g.conj() * d).real.sum()) for g, d in pairs if g is not None), start=0.0)
            if abs(told / float(size) - 1) > _TOLERANCE:
                what = (
                    f"no gradient flows to {name}, although it changes the result"
                    if told == 0
                    else f"along a random change of {name} the layers change by {float(size) ** 0.5:.1e}, and by "
                    f"{told / float(size) ** 0.5:.1e} if their gradient were right"
                )
                raise CutGradientError(
                    f"{what}: a part of the prior or denoiser detaches (as in x - net(x.detach())). Use one that is "
                    "differentiable throughout, or freeze what is not to be learned (requires_grad_(False))"
                )
    return True


def _directions(
    map_: nn.Module, u: Tensor, layers: Callable[[Tensor], Tensor], generator: torch.Generator
) -> Iterator[tuple[str, list[tuple[Tensor, Tensor]], Tensor]]:
    """What is changed, by how much, and what the layers make of it; parameters are put back."""

    def direction(t: Tensor) -> Tensor:
        noise = torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device)
        size = torch.linalg.vector_norm(t.detach()).clamp_min(1e-3 * t.numel() ** 0.5)
        return noise * (_STEP * size / torch.linalg.vector_norm(noise))

    step = direction(u)
    yield "the state", [(u, step)], layers(u + step)
    named = [(n, p) for n, p in map_.named_parameters() if p.requires_grad]
    groups = [(n, [p]) for n, p in named if p.numel() <= _SMALL]
    large = [p for _, p in named if p.numel() > _SMALL]
    for name, parameters in [*groups, *([("the large parameters", large)] if large else [])]:
        kept = [p.data for p in parameters]
        steps = [direction(p) for p in parameters]
        try:
            for p, d in zip(parameters, steps, strict=True):
                p.data = p.data + d  # not in place: the graph of the first evaluation is still to be used
            moved = layers(u)
        finally:
            for p, k in zip(parameters, kept, strict=True):
                p.data = k
        yield name, list(zip(parameters, steps, strict=True)), moved
