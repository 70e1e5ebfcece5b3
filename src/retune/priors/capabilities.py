"""The capabilities of any prior. ReTune's priors declare them; for others they are derived from the methods.

Only this file knows the classes of deepinv's priors.
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
    "part_of",
    "priors_of",
    "require_analysis",
    "require_grad",
    "require_prox",
    "smoothness_of",
]

#: deepinv's priors with an exact prox, and their strong convexity, by exact type.
_CLOSED_FORM = {L1Prior: 0.0, Tikhonov: 1.0, ZeroPrior: 0.0}
#: deepinv's priors with kinks: their gradient has no Lipschitz constant.
_KINKED = (L1Prior, L12Prior, TVPrior, TVL1Prior, WaveletPrior)
#: deepinv's priors that wrap a denoiser with its own noise level.
_HIDDEN_LEVEL = {PnP: "Denoiser", deepinv_priors.RED: "RED"}


def adapt(prior: nn.Module) -> AbstractPrior:
    """A prior with declared capabilities: the prior itself, or a view of a plain deepinv ``Prior``.

    A plain ``Prior`` has a prox if its class defines ``prox`` (deepinv's default only approximates one), a gradient if
    it defines ``grad`` or has a value, and a value if it defines ``fn`` or was made from a function. It may declare
    more under the names of [`AbstractPrior`][retune.AbstractPrior]: ``may_expand``, ``per_image``, ``convexity()``,
    ``smoothness(like)``, ``describe()``. A subclass of a prior of ReTune that overrides ``prox`` or ``grad`` but not
    ``bind`` counts as a plain prior: its own function is used.

    Raises:
        InvalidParameterError: `prior` is not a deepinv ``Prior``.
    """
    if not isinstance(prior, Prior):
        raise wrong_type("prior", prior, "a deepinv Prior", 'for example retune.priors.WaveletL12("db4", levels=4)')
    # A prior that derives from AbstractPrior declares its capabilities. Only this line and _Plain check the class.
    if isinstance(prior, AbstractPrior) and not _goes_before_bind(prior):
        return prior
    return _Plain(prior)


def priors_of(module: nn.Module) -> list[AbstractPrior]:
    """All priors inside a module, such as a network."""
    return [adapt(m) for m in module.modules() if isinstance(m, Prior)]


def bind_cycle(priors: Sequence[Prior], shape: Sequence[int], gammas: Sequence[Tensor]) -> list[BoundPrior]:
    """The priors of a cycle, bound to images of `shape`, one for each γ. Give one prior for all layers, or one each.

    Raises:
        InvalidParameterError: the output of a prior does not depend on its input alone.
    """
    if len(priors) == 1:
        bound = list(adapt(priors[0]).bind_cycle(shape, gammas))
    else:
        bound = [adapt(p).bind(shape, k, gamma) for k, (p, gamma) in enumerate(zip(priors, gammas, strict=True))]
    return [_steady(priors[k % len(priors)], b, shape, gammas[k]) for k, b in enumerate(bound)]


def part_of(prior: nn.Module, bound: BoundPrior, part: str) -> Any:
    """``bound.prox``, ``bound.grad`` or ``bound.analysis``, which the prior has declared.

    Raises:
        InvalidParameterError: it is missing.
    """
    found = getattr(bound, part)
    if found is None:
        raise InvalidParameterError(
            f"{type(prior).__name__} declares has_{part} = True, but its bind(...) returned a BoundPrior without "
            f"{part}: set {part} there"
        )
    return found


def convexity_of(prior: Prior) -> Convexity | None:
    """The known convexity of a prior: by its exact type, or from its own ``convexity()``.

    A statement by a class of ReTune holds for objects of exactly this class. A subclass may have changed anything, so
    it does not inherit the statement. It can make its own, which is not checked.
    """
    if type(prior) in _CLOSED_FORM and not is_changed(prior):
        return Convexity(_CLOSED_FORM[type(prior)], f"{type(prior).__name__}, closed form", checked=True)
    return _stated(prior, "convexity")


def smoothness_of(prior: Prior, like: Tensor) -> Smoothness | None:
    """The known constants of a prior's gradient, obtained in the same way."""
    if type(prior) is Tikhonov and not is_changed(prior):
        return Smoothness(like.new_ones(1), like.new_zeros(1), "½‖x‖²", checked=True)
    return _stated(prior, "smoothness", like)


def is_inherited(prior: Prior) -> bool:
    """Whether a prior inherits a statement from a class of ReTune that need not hold for it."""
    return not _as_made(prior) and any(stated_by_ours(prior, n) for n in ("convexity", "smoothness"))


def require_prox(prior: Prior, by: str) -> AbstractPrior:
    """The prior with declared capabilities, checked to have a prox.

    Raises: InvalidParameterError: it has no prox; the message names alternatives and shows how to declare a prox.
    """
    _check_level(prior, "Denoiser")
    able = adapt(prior) if isinstance(prior, Prior) else None
    if able is None or not able.has_prox:
        hint = "take a gradient step on a smooth prior: retune.GradientStep(prior)"
        if able is not None and able.has_analysis:
            hint = "use its analysis form: retune.PrimalDual(prior)"
        raise _lacks(prior, by, "has_prox", "an exact prox", "prox(x, gamma)", hint)
    return able


def require_grad(prior: Prior, by: str) -> AbstractPrior:
    """The prior with declared capabilities, checked to have a Lipschitz gradient.

    Raises: InvalidParameterError: it has no such gradient; the message names alternatives and shows how to declare one.
    """
    _check_level(prior, "RED")
    able = adapt(prior)
    if type(prior) in _KINKED:
        raise InvalidParameterError(
            f"the gradient of {type(prior).__name__} has jumps, so no step size is small enough for {by}, for any "
            "value of prior_lipschitz; use its prox: retune.ForwardBackward(prior)"
        )
    if not able.has_grad:
        hint = "use retune.priors.Ridge or retune.priors.RED(denoiser, sigma), or its prox in retune.ForwardBackward"
        if able.has_analysis:
            hint = "use its analysis form: retune.PrimalDual(prior)"
        raise _lacks(prior, by, "has_grad", "a gradient or a value", "grad(x)", hint)
    return able


def require_analysis(prior: Prior, by: str) -> AbstractPrior:
    """The prior with declared capabilities, checked to have an analysis form ``g(Kx)``.

    Raises: InvalidParameterError: it has none; the message names alternatives and shows how to declare one.
    """
    able = adapt(prior)
    if not able.has_analysis:
        hint = "for example retune.priors.TV(); a prior with a prox belongs in retune.ForwardBackward"
        raise InvalidParameterError(
            f"{by} needs a prior with an analysis form g(Kx) (has_analysis), got {type(prior).__name__}, which has "
            f"none; {hint}. In your own class, a retune.AbstractPrior, set has_analysis = True and return "
            "BoundPrior(analysis=retune.priors.Analysis(...)) from bind(...)"
        )
    return able


def _lacks(prior: object, by: str, capability: str, what: str, method: str, hint: str) -> InvalidParameterError:
    name = type(prior).__name__
    return InvalidParameterError(
        f"{by} needs a prior with {what} ({capability}), got {name}, which has none; {hint}. In your own class, define "
        f"{method} in a deepinv Prior, or set {capability} = True and return it from bind(...) in a "
        "retune.AbstractPrior"
    )


def _check_level(prior: Prior, instead: str) -> None:
    for kind in _HIDDEN_LEVEL:
        if isinstance(prior, kind):
            raise InvalidParameterError(
                f"deepinv's {type(prior).__name__} prior does not expose its noise level, so it cannot be learned; "
                "write "
                f"retune.priors.{instead}(prior.denoiser, sigma=10 / 255)"
            )


def _as_made(prior: Prior) -> bool:
    """Whether a prior is as this package made it; the priors inside one that combines them are judged by themselves."""
    if not getattr(prior, "combines", False):
        return is_as_made(prior)
    own = [m for m in prior.children() if not isinstance(m, nn.ModuleList)]
    return is_ours(prior) and all(is_as_made(m) for m in own)


def _stated(prior: Prior, name: str, *given: Tensor) -> Any:
    method = getattr(prior, name, None)
    fact: Any = method(*given) if callable(method) else None
    if fact is None or _as_made(prior):
        return fact
    if stated_by_ours(prior, name):
        # A proof is not inherited; a guess is one as before. That no constant is known, as of an energy, is no proof.
        unknown = getattr(fact, "lipschitz", 0.0) is None
        return fact if not fact.checked else replace(fact, checked=False) if unknown else None
    return replace(fact, checked=False)


def _goes_before_bind(prior: AbstractPrior) -> bool:
    """Whether a subclass redefined a function on images after the function that maps use."""
    own = min(definer(prior, n) for n in ("bind", "bind_cycle", "bind_coefficients", "_function"))
    return any(definer(prior, name) < own for name in ("prox", "grad"))


def _steady(prior: Prior, bound: BoundPrior, shape: Sequence[int], gamma: Tensor) -> BoundPrior:
    """The same prior with functions that keep no memory."""
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
    """Whether a function differs from deepinv's default."""
    return name in vars(prior) or getattr(type(prior), name) is not getattr(Potential, name)


class _Plain(AbstractPrior):
    """A view of a deepinv prior: it calls the prior's own methods with the strength in the right shape."""

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
        # deepinv's wavelets accept only one number per image, (B,)
        strength: Any = gamma.flatten() if isinstance(prior, WaveletPrior) else gamma
        return BoundPrior(
            prox=(lambda v: prior.prox(v, gamma=strength)) if self.has_prox else None,
            # deepinv's Potential.grad calls requires_grad_ on its input, so it gets a separate view.
            grad=(lambda u: prior.grad(u.view_as(u))) if self.has_grad else None,
            fn=(lambda u: prior.fn(u) * strength.flatten()) if self.has_value else None,
        )

    def per_layer(self, layers: int) -> Sequence[Prior]:
        return [self.prior, *(copy.deepcopy(self.prior) for _ in range(layers - 1))]
