"""A check, for foreign code, that autograd returns the true derivative of a map. It runs once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from retune._torch.graph import reaches
from retune._torch.precision import full_precision, rounding
from retune.errors import CutGradientError
from retune.maps.base import AbstractMap
from retune.operators.data_term import DataTerm

__all__ = ["is_foreign", "verify", "verify_once"]

#: The trained parameters at the last comparison of the gradients of a map with its values.
_verified: weakref.WeakKeyDictionary[AbstractMap, frozenset[int]] = weakref.WeakKeyDictionary()

# Relative size of the finite differences. Their error is of the same size; rounding adds about 1e-4 in float32.
_STEP = 1e-3
# Coarser arithmetic than this drowns them.
_FINE = 1e-6
# A kink or curvature causes a smaller deviation than this; a cut part usually causes a larger one.
_TOLERANCE = 0.2
# Parameters up to this size are tested one by one: σ, strengths, weights of scales.
_SMALL = 64
_OURS = ("retune.", "torch.", "deepinv.optim.data_fidelity", "deepinv.optim.distance")


def is_foreign(map_: AbstractMap) -> bool:
    """Whether a map contains modules from outside ReTune and torch. Only such maps are tested."""
    return any(not type(m).__module__.startswith(_OURS) for m in map_.modules())


def verify_once(map_: AbstractMap, data_term: DataTerm, start: Callable[[], Tensor]) -> None:
    """Check once per set of trained parameters that gradients of foreign code in the map agree with its values."""
    if not torch.is_grad_enabled():
        return
    trained = frozenset(id(p) for p in map_.parameters() if p.requires_grad)
    if _verified.get(map_) != trained and (not is_foreign(map_) or verify(map_, data_term, start())):
        _verified[map_] = trained


def verify(map_: AbstractMap, data_term: DataTerm, u: Tensor) -> bool:
    r"""Compare products with ``∂T/∂u`` and ``∂T/∂θ`` with finite differences of T along random directions.

    Let ``d`` be the finite difference along the direction v: ``⟨d, d⟩`` is compared with ``⟨Tᵀd, v⟩``. This costs one
    evaluation of a cycle for the state, one for each small parameter and one for all large parameters together, without
    TF32 and autocast. Maps with random output (dropout) and tensors of fewer than 32 bits are not tested.

    Args:
        map_: the map.
        problem: the problem, without graph.
        u: a state, best at the equilibrium.

    Returns:
        Whether the map could be tested.

    Raises:
        CutGradientError: the two derivatives contradict each other, so a part of the map detaches.
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
        # Some kernels sum in a different order each time; random output differs by far more.
        again = torch.linalg.vector_norm(layers(u) - base)
        if not bool(again <= 1e-2 * _STEP * torch.linalg.vector_norm(base)):
            return False
        generator = torch.Generator().manual_seed(20261127)
        for name, tensors, moved in _directions(map_, u, layers, generator):
            difference = moved - base
            size = difference.square().sum()
            if not float(size) > (1e-3 * _STEP) ** 2 * float(base.square().sum()):
                continue  # a parameter without effect has no gradient
            leaves = [state if t is u else t for t, _ in tensors]
            found = torch.autograd.grad(out, leaves, difference, retain_graph=True, allow_unused=True)
            pairs = zip(found, (d for _, d in tensors), strict=True)
            told = sum((float((g.conj() * d).real.sum()) for g, d in pairs if g is not None), start=0.0)
            if abs(told / float(size) - 1) > _TOLERANCE:
                what = (
                    f"no gradient flows to {name}, although it changes the result"
                    if told == 0
                    else f"along a random change of {name} the layers change by {float(size) ** 0.5:.1e}, but their "
                    f"gradient predicts {told / float(size) ** 0.5:.1e}"
                )
                raise CutGradientError(
                    f"{what}: a part of the prior or denoiser detaches (as in x - net(x.detach())). Use one that is "
                    "differentiable throughout, or freeze the parameters that need not be learned "
                    "(requires_grad_(False))"
                )
    return True


def _directions(
    map_: nn.Module, u: Tensor, layers: Callable[[Tensor], Tensor], generator: torch.Generator
) -> Iterator[tuple[str, list[tuple[Tensor, Tensor]], Tensor]]:
    """Each changed part, the size of the change, and its effect on the layers. Parameters are restored afterwards."""

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
                p.data = p.data + d  # not in place: the graph of the first evaluation is still needed
            moved = layers(u)
        finally:
            for p, k in zip(parameters, kept, strict=True):
                p.data = k
        yield name, list(zip(parameters, steps, strict=True)), moved
