"""Sums of priors with learned weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

import torch
from deepinv.optim.prior import Prior
from torch import Tensor, nn

from retune._registry.describe import by_arguments
from retune._registry.entries import register
from retune.errors import InvalidParameterError, wrong_type
from retune.guarantee import Convexity, Smoothness
from retune.parameters import Positive, ScalarParameter
from retune.priors.base import AbstractPrior, Analysis, BoundPrior
from retune.priors.capabilities import adapt, bind_cycle, convexity_of, smoothness_of
from retune.priors.origin import is_ours

__all__ = ["Sum"]


@register
class Sum(AbstractPrior):
    r"""``R(x) = Σ_i w_i R_i(x)`` with learned weights ``w_i > 0``: training finds which mix suits the data.

    It has what all its parts have: a value, a gradient (the sum, with the constant ``Σ w_i L_i``), or an analysis form.
    [`PrimalDual`][retune.PrimalDual] stacks the latter: ``Kx = (K_1 x, K_2 x, …)`` with ``‖K‖² ≤ Σ ‖K_i‖²``, and each
    part of the multiplier has its own dual prox with the strength ``λw_i``. A sum has no prox.

    The strength λ of the map multiplies all weights, so only the products ``λw_i`` count.

    Args:
        priors: at least two priors on images.
        weights: ``w_i > 0``, one number, or one per prior.
        learn_weights: whether the weights are trained.

    Raises:
        InvalidParameterError: fewer than two priors, a prior on coefficients, priors without a common capability, or a
            weight that is not positive.
    """

    explicit_prior = True
    in_state_dict = ("weights",)
    combines = True

    def __init__(self, priors: Sequence[Prior], weights: float | Sequence[float] = 1.0, *, learn_weights: bool = True):
        super().__init__()
        self.explicit_prior = True
        if not isinstance(priors, list | tuple | nn.ModuleList) or len(priors) < 2:
            raise wrong_type("priors", priors, "a list of two priors or more", "for example [TV(), TGV()]")
        self.priors = nn.ModuleList(priors)
        able = [adapt(p) for p in self.priors]
        names = ", ".join(type(p).__name__ for p in self.priors)
        if any(p.on_coefficients for p in able):
            raise InvalidParameterError(
                f"a sum needs priors on images, got {names}, of which one works on wavelet coefficients; use priors "
                "with an analysis form or a gradient, such as TV, TGV and Ridge"
            )
        self.has_grad = all(p.has_grad for p in able)
        self.has_analysis = all(p.has_analysis for p in able)
        self.has_value = all(p.has_value for p in able)
        if not self.has_grad and not self.has_analysis:
            raise InvalidParameterError(
                f"a sum needs priors that all have a gradient (has_grad), or all an analysis form (has_analysis), got "
                f"{names}; total variation has a gradient as TV(smoothing=0.02)"
            )
        self.may_expand = any(p.may_expand for p in able)
        self.per_image = all(p.per_image for p in able)
        self.alignment = math.lcm(*(p.alignment for p in able))
        self.weights = Positive(weights, (len(able),), learn=learn_weights, name="weights")

    def describe(self) -> dict:
        """Constructor arguments as plain data. The weights are in the state dict."""
        return by_arguments(self, priors=list(self.priors))

    def tunables(self) -> dict[str, ScalarParameter]:
        """The weights, and the scalars of the parts; their names begin with the place of the part."""
        of_parts = {f"{i}.{n}": t for i, p in enumerate(self.priors) for n, t in adapt(p).tunables().items()}
        return {"weights": self.weights, **of_parts}

    def convexity(self) -> Convexity | None:
        """A sum of convex functions is convex, and strongly convex if one of them is."""
        known = [convexity_of(p) for p in self.priors]  # type: ignore[arg-type]
        if any(k is None for k in known):
            return None
        found = [k for k in known if k is not None]
        strong = sum(w * torch.as_tensor(k.strong).to(w) for w, k in zip(self.weights(), found, strict=True))
        how = "a sum of: " + "; ".join(k.how for k in found)
        return Convexity(strong, how, checked=all(k.checked for k in found))

    def smoothness(self, like: Tensor) -> Smoothness | None:
        """``Σ w_i L_i`` and ``Σ w_i ρ_i``; None if a part does not know its constant."""
        known = [smoothness_of(p, like) for p in self.priors]  # type: ignore[arg-type]
        found = [k for k in known if k is not None]
        if len(found) < len(known):
            return None
        how, checked = "a sum of: " + "; ".join(k.how for k in found), all(k.checked for k in found)
        weights = self.weights().to(like)

        def total(values: Sequence[float | Tensor | None]) -> Tensor | None:
            known = [v for v in values if v is not None]
            if len(known) < len(values):
                return None
            return reduce(torch.add, (w * torch.as_tensor(v).to(w) for w, v in zip(weights, known, strict=True)))

        return Smoothness(
            total([k.lipschitz for k in found]), total([k.weak_convexity for k in found]), how, checked, "sum of priors"
        )

    def fn(self, x: Tensor, *args, **kwargs) -> Tensor:
        """``Σ w_i R_i(x)`` per image, shape (B,).

        Raises:
            InvalidParameterError: a part has no value.
        """
        if not self.has_value:
            lacking = [type(p).__name__ for p in self.priors if not adapt(p).has_value]
            raise InvalidParameterError(f"{', '.join(lacking)} has no value, so this sum has none")
        bound = self.bind(x.shape, 0, x.new_ones(()))
        assert bound.fn is not None
        return bound.fn(x)

    def bind(self, shape: Sequence[int], layer: int, gamma: Tensor) -> BoundPrior:
        """See [`AbstractPrior`][retune.AbstractPrior]: the functions that all parts have."""
        weights = self.weights().to(gamma)
        parts = [
            bind_cycle([p], shape, [gamma * w])[0]  # type: ignore[list-item]
            for p, w in zip(self.priors, weights, strict=True)
        ]
        found = BoundPrior()
        if self.has_value:
            found.fn = _added([p.fn for p in parts])
        if self.has_grad:
            gradients = [p.grad for p in parts]
            found.grad = _added(
                [lambda x, w=w, g=g: w * g(x) for w, g in zip(weights, gradients, strict=True) if g is not None]
            )
        if self.has_analysis:
            # A stranger's own word is not enough.
            forms = [
                replace(p.analysis, checked=p.analysis.checked and is_ours(own))
                for p, own in zip(parts, self.priors, strict=True)
                if p.analysis is not None
            ]
            found.analysis = _stacked(forms, weights, shape, gamma)
        return found


def _added(functions: Sequence[Callable[[Tensor], Tensor] | None]) -> Callable[[Tensor], Tensor]:
    known = [f for f in functions if f is not None]
    return lambda x: reduce(torch.add, (f(x) for f in known))


def _stacked(parts: Sequence[Analysis], weights: Tensor, shape: Sequence[int], gamma: Tensor) -> Analysis:
    """The analysis forms as one: the values ``K_i x`` one after the other, (B, m), and their further variables."""
    like = torch.zeros((1, *shape[1:]), dtype=gamma.dtype, device=gamma.device)
    with torch.no_grad():
        shapes = [p.of(like, p.start(like)).shape[1:] for p in parts]
    sizes = [s.numel() for s in shapes]
    further = [0 if p.auxiliary is None else math.prod(p.auxiliary) for p in parts]

    def split(z: Tensor) -> list[Tensor]:
        return [part.unflatten(1, s) for part, s in zip(z.split(sizes, 1), shapes, strict=True)]

    def forward(x: Tensor, w: Tensor | None = None) -> Tensor:
        each = [None] * len(parts) if w is None else w.split(further, 1)
        return torch.cat([p.of(x, v).flatten(1) for p, v in zip(parts, each, strict=True)], 1)

    def adjoint(z: Tensor):
        pairs = [p.back(part) for p, part in zip(parts, split(z), strict=True)]
        x = reduce(torch.add, (pair[0] for pair in pairs))
        found = [pair[1] for pair in pairs if pair[1] is not None]
        return (x, torch.cat(found, 1)) if found else x

    def dual_prox(p: Tensor, sigma: Tensor) -> Tensor:
        each = [one.dual_prox(part, sigma).flatten(1) for one, part in zip(parts, split(p), strict=True)]
        return torch.cat(each, 1)

    return Analysis(
        forward=forward,
        adjoint=adjoint,
        sqnorm=reduce(torch.add, (p.sqnorm for p in parts)),
        dual_prox=dual_prox,
        homogeneous=all(p.homogeneous for p in parts),
        smoothing=_smoothing(parts, weights),
        multiplier=sum((w * p.multiplier) ** 2 for w, p in zip(weights, parts, strict=True)) ** 0.5,
        how="the sum of the parts: " + "; ".join(p.how for p in parts),
        checked=all(p.checked for p in parts),
        auxiliary=(sum(further),) if any(further) else None,
    )


def _smoothing(parts: Sequence[Analysis], weights: Tensor) -> Tensor | None:
    """That of the part whose conjugate is least strongly convex, 0 for a norm; None if a part is neither."""
    found = [0.0 if p.homogeneous else p.smoothing for p in parts]
    known = [e / w for e, w in zip(found, weights, strict=True) if e is not None]
    return None if len(known) < len(found) or not any(found) else torch.stack(known).amin()
