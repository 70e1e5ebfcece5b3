"""What any prior can do: ReTune's own say it, and for deepinv's and yours it is read from their methods.

This is the only place that knows the classes of deepinv's priors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from deepinv.optim import prior as deepinv_priors
from deepinv.optim.potential import Potential
from deepinv.optim.prior import L1Prior, L12Prior, PnP, Prior, Tikhonov, TVL1Prior, TVPrior, WaveletPrior, ZeroPrior
from torch import Tensor, nn

from retune.errors import InvalidParameterError, wrong_type
from retune.guarantee import Convexity, Smoothness
from retune.priors.base import AbstractPrior, BoundPrior
from retune.priors.memory import steady
from retune.priors.origin import definer, is_as_made, is_changed, is_ours, stated_by_ours

__all__ = [
    "adapt",
    "bind_cycle",
    "convexity_of",
    "is_inherited",
    "priors_of",
    "require_grad",
    "require_prox",
    "smoothness_of",
]

#: deepinv's priors whose prox is exact, with the strong convexity of each: known by exact type.
_CLOSED_FORM = {L1Prior: 0.0, Tikhonov: 1.0, ZeroPrior: 0.0}
#: deepinv's priors that have kinks: no number is a Lipschitz constant of their gradient.
_KINKED = (L1Prior, L12Prior, TVPrior, TVL1Prior, WaveletPrior)
#: deepinv's priors that are a denoiser with a noise level of its own.
_HIDDEN_LEVEL = {PnP: "Denoiser", deepinv_priors.RED: "RED"}


def adapt(prior: nn.Module) -> AbstractPrior:
    """A prior as one that says what it can do: itself, or a view of a plain deepinv ``Prior``.

    A plain ``Prior`` has a prox if its class defines ``prox`` (deepinv's default only approximates one), a gradient if
    it defines ``grad`` or has a value, and a value if it defines ``fn`` or was made from a function. It may say more by
    the same names as [`AbstractPrior`][retune.AbstractPrior]: ``may_expand``, ``per_image``, ``convexity()``,
    ``smoothness(like)``,
    ``describe()``. A subclass of one of ReTune's priors that defines another ``prox`` or ``grad``, and no ``bind``, is
    taken as a plain prior: its own function is used.

    Raises:
        InvalidParameterError: not a deepinv ``Prior``.
    """
    if not isinstance(prior, Prior):
        raise wrong_type("prior", prior, "a deepinv Prior", 'for example retune.priors.WaveletL12("db4", levels=4)')
    # Deriving from AbstractPrior is how a prior says that it declares what it can do; asked here and in _Plain only.
    if isinstance(prior, AbstractPrior) and not _goes_before_bind(prior):
        return prior
    return _Plain(prior)


def priors_of(module: nn.Module) -> list[AbstractPrior]:
    """All priors inside a module, such as a network."""
    return [adapt(m) for m in module.modules() if isinstance(m, Prior)]


def bind_cycle(priors: Sequence[Prior], shape: Sequence[int], gammas: Sequence[Tensor]) -> list[BoundPrior]:
    """The priors of a cycle bound to images of `shape`, one for each γ; one prior serves all layers, or each its own.

    Raises:
        InvalidParameterError: a prior whose functions do not depend on their input alone.
    """
    if len(priors) == 1:
        bound = list(adapt(priors[0]).bind_cycle(shape, gammas))
    else:
        bound = [adapt(p).bind(shape, k, gamma) for k, (p, gamma) in enumerate(zip(priors, gammas, strict=True))]
    return [_steady(priors[k % len(priors)], b, shape, gammas[k]) for k, b in enumerate(bound)]


def convexity_of(prior: Prior) -> Convexity | None:
    """What is known of the function of a prior: by its exact type, or as its own ``convexity()`` states it.

    What one of our classes states holds for objects of this class. A subclass may have changed anything, so it does not
    inherit the statement: it makes one of its own, which is not checked.
    """
    if type(prior) in _CLOSED_FORM and not is_changed(prior):
        return Convexity(_CLOSED_FORM[type(prior)], f"{type(prior).__name__}, closed form", checked=True)
    return _stated(prior, "convexity")


def smoothness_of(prior: Prior, like: Tensor) -> Smoothness | None:
    """What is known of the gradient of a prior, in the same way."""
    if type(prior) is Tikhonov and not is_changed(prior):
        return Smoothness(like.new_ones(1), like.new_zeros(1), "½‖x‖²", checked=True)
    return _stated(prior, "smoothness", like)


def is_inherited(prior: Prior) -> bool:
    """Whether a prior would inherit a statement of our class that does not hold for it."""
    return not is_as_made(prior) and any(stated_by_ours(prior, n) for n in ("convexity", "smoothness"))


def require_prox(prior: Prior, by: str) -> AbstractPrior:
    """The prior as one with a prox.

    Raises:
        InvalidParameterError: it has none; the message says what to use, and how to declare one.
    """
    _check_level(prior, "Denoiser")
    hint = "take a gradient step on a smooth prior: retune.GradientStep(prior)"
    able = adapt(prior) if isinstance(prior, Prior) else None
    if able is None or not able.has_prox:
        raise _lacks(prior, by, "has_prox", "an exact prox", "prox(x, gamma)", hint)
    return able


def require_grad(prior: Prior, by: str) -> AbstractPrior:
    """The prior as one with a Lipschitz gradient.

    Raises:
        InvalidParameterError: it has none; the message says what to use, and how to declare one.
    """
    _check_level(prior, "RED")
    able = adapt(prior)
    if type(prior) in _KINKED:
        raise InvalidParameterError(
            f"the gradient of {type(prior).__name__} jumps, so that no step size is small enough for {by}, whatever "
            "prior_lipschitz is given; use its prox: retune.ForwardBackward(prior)"
        )
    if not able.has_grad:
        hint = "use retune.priors.Ridge or retune.priors.RED(denoiser, sigma), or its prox in retune.ForwardBackward"
        raise _lacks(prior, by, "has_grad", "a gradient or a value", "grad(x)", hint)
    return able


def _lacks(prior: object, by: str, capability: str, what: str, method: str, hint: str) -> InvalidParameterError:
    name = type(prior).__name__
    return InvalidParameterError(
        f"{by} needs a prior with {what} ({capability}), got {name}, which has none; {hint}. In a class of yours, "
        f"define {method} in a deepinv Prior, or set {capability} = True and return it from bind(...) in a "
        "retune.AbstractPrior"
    )


def _check_level(prior: Prior, instead: str) -> None:
    for kind in _HIDDEN_LEVEL:
        if isinstance(prior, kind):
            raise InvalidParameterError(
                f"deepinv's {type(prior).__name__} prior hides its noise level, so it cannot be learned; write "
                f"retune.priors.{instead}(prior.denoiser, sigma=10 / 255)"
            )


def _stated(prior: Prior, name: str, *given: Tensor) -> Any:
    method = getattr(prior, name, None)
    fact: Any = method(*given) if callable(method) else None
    if fact is None or is_as_made(prior):
        return fact
    if stated_by_ours(prior, name):
        return None if fact.checked else fact  # a proof is not inherited; a guess is one as before
    return replace(fact, checked=False)


def _goes_before_bind(prior: AbstractPrior) -> bool:
    """Whether a function on images was redefined further down than the one that maps use."""
    own = min(definer(prior, n) for n in ("bind", "bind_cycle", "bind_coefficients", "_function"))
    return any(definer(prior, name) < own for name in ("prox", "grad"))


def _steady(prior: Prior, bound: BoundPrior, shape: Sequence[int], gamma: Tensor) -> BoundPrior:
    """The same, its functions without a memory."""
    if is_ours(prior) or (type(prior) in _CLOSED_FORM and not is_changed(prior)):
        return bound
    like = torch.zeros(tuple(shape), dtype=gamma.dtype, device=gamma.device)
    state = like.shape if bound.frame is None else bound.frame.analysis(like).shape
    for name in ("prox", "grad"):
        function = getattr(bound, name)
        if function is not None:
            setattr(bound, name, steady(prior, function, state, like, f"{type(prior).__name__}.{name}"))
    return bound


def _defines(prior: Prior, name: str) -> bool:
    """Whether a function is another one than deepinv's default."""
    return name in vars(prior) or getattr(type(prior), name) is not getattr(Potential, name)


class _Plain(AbstractPrior):
    """A view of a deepinv prior: its own methods, with the strength in the shape that they take."""

    def __init__(self, prior: Prior):
        super().__init__()
        self.prior = prior
        ours = isinstance(prior, AbstractPrior)
        has_value = prior.has_value if ours else _defines(prior, "fn") or prior._fn is not None
        declared = (
            {} if ours else {n: getattr(prior, n) for n in ("has_prox", "has_grad", "has_value") if hasattr(prior, n)}
        )
        self.has_prox = declared.get("has_prox", _defines(prior, "prox"))
        self.has_grad = declared.get("has_grad", _defines(prior, "grad") or (has_value and not ours))
        self.has_value = declared.get("has_value", has_value)
        self.may_expand = getattr(prior, "may_expand", False)
        self.per_image = getattr(prior, "per_image", type(prior) in _CLOSED_FORM) and not ours
        self.alignment = getattr(prior, "alignment", 1)

    def bind(self, shape: Sequence[int], layer: int, gamma: Tensor) -> BoundPrior:
        prior: Any = self.prior
        # deepinv's wavelets take one number an image, (B,), and no other shape
        strength: Any = gamma.flatten() if isinstance(prior, WaveletPrior) else gamma
        return BoundPrior(
            prox=(lambda v: prior.prox(v, gamma=strength)) if self.has_prox else None,
            # deepinv's Potential.grad sets requires_grad_ on what it is given, so it gets a view of its own.
            grad=(lambda u: prior.grad(u.view_as(u))) if self.has_grad else None,
            fn=(lambda u: prior.fn(u) * strength.flatten()) if self.has_value else None,
        )

    def per_layer(self, layers: int) -> Sequence[Prior]:
        return [self.prior, *(copy.deepcopy(self.prior) for _ in range(layers - 1))]
