"""Facts about a data fidelity ``d(u, y)`` as a function of u = Ax: convexity, constants, domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from deepinv.optim import L2
from deepinv.optim.data_fidelity import (
    L1,
    AmplitudeLoss,
    DataFidelity,
    IndicatorL2,
    LogPoissonLikelihood,
    PoissonLikelihood,
    StackedPhysicsDataFidelity,
)
from deepinv.optim.distance import L2Distance
from torch import Tensor

from retune._registry.entries import kind_base, register
from retune.errors import InvalidParameterError

__all__ = ["FidelityFacts", "Relative", "checked_by_us", "facts_of_fidelity", "lacks_constant"]

EVERYWHERE = (-math.inf, math.inf)
POSITIVE = (0.0, math.inf)


@dataclass(frozen=True)
class Relative:
    """``u ↦ d(u, y)`` for u > 0, compared with Burg's entropy ``−Σ_i log u_i`` in place of a square.

    d is a sum over the measured values, and the curvature of each term is at most ``w_i/u_i²``. For an A without
    negative entries, d(A·, y) is then smooth relative to ``−Σ_j a_j log x_j`` with ``a_j ≥ Σ_i w_i`` over the measured
    values i that see the pixel j: ``(Ad)_i/(Ax)_i`` is a mean of the ``d_j/x_j``, so its square is at most the mean of
    their squares (Bauschke, Bolte, Teboulle, *Math. Oper. Res.* 42(2), 2017, Lemma 7: ``a_j = Σ_i w_i`` over all i).

    Attributes:
        weights: w ≥ 0, shape of y.
        nearest: the u ≥ 0 that minimises ``d(u, y)``, shape of y.
    """

    weights: Tensor
    nearest: Tensor


@dataclass(frozen=True)
class FidelityFacts:
    """Facts about ``u ↦ d(u, y)`` for one measurement y. Your own fidelity states them with a method ``facts(y)``:

    ```python
    from deepinv.optim import DataFidelity
    import retune

    class Weighted(DataFidelity):
        def fn(self, x, y, physics, w=0.5):
            return 0.5 * (w * (physics.A(x) - y)).square().flatten(1).sum(1)

        def grad(self, x, y, physics, w=0.5):
            return physics.A_adjoint(w**2 * (physics.A(x) - y))

        def facts(self, y):
            return retune.FidelityFacts(lipschitz=0.25, convex=True, strong=0.25, how="½‖w(u − y)‖²")

    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL12("haar", levels=2), Weighted()))
    y, physics = retune.problems.denoise(0.1).measure(retune.data.photograph("chelsea")[None, :, :64, :64])
    assert "½‖w(u − y)‖²" in str(retune.certify(net, y, physics))
    ```

    The statement is trusted, tested on random images, and called "not checked" in certificates.

    Attributes:
        lipschitz: Lipschitz constant of ``∇_u d(u, y)`` on the domain, a number or a tensor (B,); None if it does not
            exist: then no step size is small enough.
        convex: whether d is convex in u.
        strong: m ≥ 0 such that ``d − (m/2)‖·‖²`` is still convex in u.
        domain: (low, high), the values of u for which all of this holds.
        has_prox: whether ``prox_d`` is exact.
        quadratic: whether d is ``(strong/2) ‖u − y‖²``.
        affine: whether ``∇_u d`` is an affine function of u, so that f is a quadratic function of x and has a prox,
            as for weighted squares. `quadratic` implies it.
        how: the reason, in one phrase.
        checked: whether it holds by construction; ignored for your own fidelity.
        instead: an alternative, if there is no Lipschitz constant.
        relative: smoothness relative to Burg's entropy, for [`MirrorDescent`][retune.MirrorDescent]; None if unknown.
        value: ``(u, y) ↦ d(u, y)`` per image, if ``fn`` of the fidelity is not the function whose gradient ``grad`` is.
    """

    lipschitz: float | Tensor | None
    convex: bool = True
    strong: float = 0.0
    domain: tuple[float, float] = EVERYWHERE
    has_prox: bool = False
    quadratic: bool = False
    how: str = "stated by the fidelity"
    checked: bool = False
    instead: str = "a smooth approximation (a Huber function)"
    value: Callable[[Any, Any], Tensor] | None = None
    affine: bool = False
    relative: Relative | None = None


def facts_of_fidelity(
    fidelity: DataFidelity, y: Any, given: float | None = None, *, relative: bool = False
) -> FidelityFacts:
    """The facts about a fidelity: by exact type for deepinv's, otherwise from its method ``facts(y)``.

    Args:
        fidelity: the data fidelity.
        y: the measurement.
        given: the Lipschitz constant from the user, or None.
        relative: whether smoothness relative to Burg's entropy is enough. Then there may be no Lipschitz constant.

    Raises:
        InvalidParameterError: the Lipschitz constant does not exist, is unknown, or was given too small.
    """
    name, known = type(fidelity).__name__, _known(fidelity, y)
    if known is None:
        if given is None:
            raise InvalidParameterError(
                f"the Lipschitz constant of {name} is unknown: give the fidelity a method facts(y) that returns "
                "retune.FidelityFacts(lipschitz=...), or give the number as ForwardBackward(..., lipschitz=...) or "
                "DataTerm(..., lipschitz=...), so that the step size stays below 2/L; deepinv.optim.L2 states its own"
            )
        number = float(given)
        if not 0 < number < math.inf:
            raise InvalidParameterError(f"lipschitz must be a positive finite number, got {given}")
        return FidelityFacts(number, how="given by the user: lipschitz=...")
    if relative and (known.relative is not None or known.lipschitz is None):
        return known
    if known.lipschitz is None:
        raise InvalidParameterError(
            f"the gradient of {name} is not Lipschitz ({known.how}), so no step size is small enough, for any value "
            f"of lipschitz: the iteration would stop at a point that is not a minimiser. Use {known.instead}"
        )
    if given is None:
        return known
    own = float(torch.as_tensor(known.lipschitz).max())
    if not float(given) >= (1 - 1e-6) * own:
        raise InvalidParameterError(
            f"lipschitz={given} was given, but the constant of {name} is {own:.6g} ({known.how}); leave lipschitz out"
        )
    return replace(known, lipschitz=float(given))


def lacks_constant(fidelity: DataFidelity, y: Any) -> bool:
    """Whether its gradient is known to have no Lipschitz constant, so that gradient steps are refused."""
    known = _known(fidelity, y)
    return known is not None and known.lipschitz is None


def _known(fidelity: DataFidelity, y: Any) -> FidelityFacts | None:
    """The facts by exact type for deepinv's fidelities, otherwise what the fidelity states."""
    known = _of_deepinv(fidelity, y)
    stated: Any = getattr(fidelity, "facts", None)
    if known is None and callable(stated):
        ours = type(fidelity) in _CHECKED and not (_changed(fidelity) or _changed(getattr(fidelity, "d", None)))
        return replace(stated(y), checked=ours)  # type: ignore[type-var]
    return known


#: our own fidelities, whose facts hold by construction; a subclass with another gradient is not among them
_CHECKED: set[type] = set()


def checked_by_us(kind: type) -> type:
    """Mark a fidelity of this package: what its method ``facts`` says is proved."""
    _CHECKED.add(kind)
    return kind


def _changed(fidelity: Any) -> bool:
    """Whether a method of this object was replaced."""
    own = getattr(fidelity, "__dict__", {})
    return any(callable(v) and hasattr(type(fidelity), n) for n, v in own.items())


def _of_deepinv(fidelity: Any, y: Any) -> FidelityFacts | None:
    kind = type(fidelity)
    if _changed(fidelity) or _changed(getattr(fidelity, "d", None)):
        return None
    if kind is L2:
        norm = float(fidelity.norm)
        own = fidelity.d
        if type(own) is not L2Distance or float(own.norm) != norm:
            return None
        how = "‖u − y‖²/(2σ²)"
        return FidelityFacts(norm, True, norm, EVERYWHERE, True, quadratic=True, how=how, checked=True)
    if kind is L1:
        how = "it jumps where Ax = y"
        return FidelityFacts(None, has_prox=True, how=how, checked=True, instead="deepinv.optim.L2 or a Huber function")
    if kind is IndicatorL2:
        how = "it is 0 inside the ball, and infinite outside"
        return FidelityFacts(None, has_prox=True, how=how, checked=True, instead="deepinv.optim.L2")
    if kind is AmplitudeLoss:
        return FidelityFacts(None, convex=False, how="it is unbounded where Ax = 0", checked=True)
    if kind is PoissonLikelihood:
        return _of_poisson(fidelity, y)
    if kind is LogPoissonLikelihood:
        constant = float(fidelity.N0) * float(fidelity.mu) ** 2
        return FidelityFacts(constant, domain=POSITIVE, how="N₀μ² exp(−μu) ≤ N₀μ² for u ≥ 0", checked=True)
    if kind is StackedPhysicsDataFidelity:
        return _together([facts_of_fidelity(d, part) for d, part in zip(fidelity.data_fidelity_list, y, strict=True)])
    return None


def _of_poisson(fidelity: Any, y: Tensor) -> FidelityFacts:
    """deepinv's gradient is ``gain (1 − y/(u/gain + b))``; its slope ``y/(u/gain + b)²`` is at most y/b² for u ≥ 0."""
    gain, background = float(fidelity.d.gain), float(fidelity.d.bkg)
    counts = (y / gain if fidelity.d.denormalize else y).detach()
    convex = float(counts.min()) >= 0
    # gain² y/(u/gain + b)² · 1/gain² ≤ gain² y/u²
    nearest = (gain * (counts - background)).clamp_min(0)
    relative = Relative(gain**2 * counts, nearest) if convex and background >= 0 and gain > 0 else None
    value = _PoissonValue(gain, background, fidelity.d.denormalize)
    if not background > 0:
        how, instead = "it is unbounded where Ax = 0", "retune.MirrorDescent, or a background above 0: bkg=..."
        return FidelityFacts(
            None, convex, domain=POSITIVE, how=how, checked=True, instead=instead, value=value, relative=relative
        )
    largest = float(counts.max())
    how = f"y/(u + b)² ≤ max(y)/b² for u ≥ 0, b = {background:g}"
    smallest = torch.finfo(counts.dtype).tiny
    constant = max(largest, smallest) / background**2
    return FidelityFacts(constant, convex, domain=POSITIVE, how=how, checked=True, value=value, relative=relative)


@dataclass(frozen=True)
class _PoissonValue:
    """The integral of deepinv's gradient. deepinv's value sums over the batch, and is smaller by the factor gain²."""

    gain: float
    background: float
    denormalize: bool

    def __call__(self, u: Tensor, y: Tensor) -> Tensor:
        counts, mean = y / self.gain if self.denormalize else y, u / self.gain + self.background
        return self.gain**2 * (mean - counts - counts * mean.log()).flatten(1).sum(1)


def _together(parts: Sequence[FidelityFacts]) -> FidelityFacts:
    """Facts about a sum over stacked measurements: the largest constant, and the properties shared by all."""
    return FidelityFacts(
        lipschitz=max(float(torch.as_tensor(p.lipschitz).max()) for p in parts),
        convex=all(p.convex for p in parts),
        strong=min(p.strong for p in parts),
        domain=(max(p.domain[0] for p in parts), min(p.domain[1] for p in parts)),
        how="; ".join(dict.fromkeys(p.how for p in parts)),
        checked=all(p.checked for p in parts),
        affine=all(p.affine or p.quadratic for p in parts),
    )


def _describe_l2(fidelity: L2) -> dict:
    return {"sigma": float(fidelity.norm) ** -0.5}  # pyright: ignore[reportArgumentType]


def _describe_poisson(fidelity: PoissonLikelihood) -> dict:
    kept = {"gain": float(fidelity.gain), "bkg": float(fidelity.bkg)}
    return {**kept, "denormalize": bool(fidelity.d.denormalize)}


def _describe_log_poisson(fidelity: LogPoissonLikelihood) -> dict:
    return {"N0": float(fidelity.N0), "mu": float(fidelity.mu)}


# deepinv's fidelities have no describe method.
kind_base("fidelity")(DataFidelity)
register(L2, describe=_describe_l2)
register(PoissonLikelihood, describe=_describe_poisson)
register(LogPoissonLikelihood, describe=_describe_log_poisson)
