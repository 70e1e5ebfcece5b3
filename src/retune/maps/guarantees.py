"""What is proved of forward–backward iterations, from what their parts are known to be."""

from __future__ import annotations

from typing import Protocol

import torch
from deepinv.optim.prior import L1Prior, Tikhonov, ZeroPrior
from torch import Tensor, nn

from retune._torch.precision import sharp
from retune.guarantee import Assumption, Convexity, Guarantee
from retune.operators.data_term import DataTerm
from retune.parameters import Bounded, Positive
from retune.priors.base import SynthesisPrior

__all__ = ["convexity", "forward_backward_guarantee", "smooth_assumptions"]


class Splitting(Protocol):
    """What a forward–backward map has to say for its guarantee."""

    layers: int
    priors: nn.ModuleList
    step_size: Bounded
    reg: Positive
    strong_convexity: float


_CLOSED = "closed form"
_KNOWN = {L1Prior: 0.0, Tikhonov: 1.0, ZeroPrior: 0.0}


def convexity(prior: nn.Module) -> Convexity | None:
    """What is known of a prior: from its own ``convexity()``, or for deepinv's whose prox is a closed form."""
    if type(prior) in _KNOWN:
        return Convexity(_KNOWN[type(prior)], f"{type(prior).__name__}, {_CLOSED}", checked=True)
    stated = getattr(prior, "convexity", None)
    return stated() if callable(stated) else None  # type: ignore[return-value]


def smooth_assumptions(data_term: DataTerm) -> tuple[Assumption, ...]:
    """What a bound rests on that uses ``L`` of the data term: linearity, ‖A‖², the fidelity's own constant."""
    name = type(data_term.physics).__name__
    found = [Assumption("A is linear, and its adjoint is one", *_linearity(data_term))]
    if data_term.sqnorm_kind == "exact":
        found.append(Assumption("‖A‖² is exact", True, f"{name} is diagonalised, or a circular convolution"))
    elif data_term.sqnorm_kind == "estimated":
        found.append(
            Assumption(
                "‖A‖² is not above its estimate",
                True,
                f"Lanczos value × {data_term.sqnorm_safety:g}, random start: fails with probability "
                f"{data_term.sqnorm_failure:g} per image",
                1 - data_term.sqnorm_failure,
            )
        )
    else:
        found.append(Assumption("‖A‖² is the number that was given", False, "you said so: DataTerm(sqnorm=...)"))
    if not data_term.quadratic:
        fidelity = type(data_term.data_fidelity).__name__
        found.append(Assumption(f"{fidelity} is convex, with the Lipschitz constant given", False, "lipschitz=..."))
    return tuple(found)


def _linearity(data_term: DataTerm) -> tuple[bool, str]:
    if data_term.sqnorm_kind == "given":
        return False, "not looked at where ‖A‖² is given: DataTerm(sqnorm=...)"
    name, found = type(data_term.physics).__name__, data_term.adjoint_mismatch
    if found is None:
        return True, f"{name}: by construction"
    if found <= sharp(data_term.adjoint_y):
        return True, f"{name}: on random images, the adjoint to {found:.0e}"
    return False, f"{name}: on random images the adjoint is off by {found:.0e}, more than by rounding"


def forward_backward_guarantee(owner: Splitting, data_term: DataTerm) -> Guarantee:
    """See :meth:`retune.ForwardBackward.guarantee`."""
    lipschitz = data_term.lipschitz + owner.strong_convexity
    steps = 2 * owner.step_size.value.to(lipschitz)[:, None] / lipschitz
    priors = [owner.priors[k % len(owner.priors)] for k in range(owner.layers)]  # a denoiser serves every layer
    known = [convexity(p) for p in priors]
    assumptions = smooth_assumptions(data_term)
    convex = all(c is not None for c in known)
    backward = []
    for prior, fact, tau, reg in zip(priors, known, steps, owner.reg.value.to(steps), strict=True):
        if fact is None:
            continue
        name, strong = type(prior).__name__, torch.as_tensor(fact.strong).detach().to(tau)
        backward.append(1 / (1 + tau * reg * strong))
        assumption = Assumption(f"{name} is convex, with its exact prox", fact.checked, fact.how)
        if not fact.checked and not _firm(prior, data_term, tau * reg):
            convex = False
            assumption = Assumption(assumption.statement, False, "refuted: its prox is not firmly non-expansive here")
        if assumption not in assumptions:
            assumptions += (assumption,)
    mu, source = _strong_convexity(owner, data_term)
    if not convex:
        return Guarantee(
            row="any denoiser",
            lipschitz=lipschitz,
            lipschitz_kind=data_term.sqnorm_kind,
            strong_convexity=mu,
            strong_convexity_from=source,
            step_sizes=steps,
            assumptions=assumptions,
        )
    contracts = bool((mu > 0).all()) or bool((torch.stack(backward) < 1).all())
    return Guarantee(
        row="convex prior with exact prox" + (", strongly convex problem" if contracts else ""),
        statement=_statement(owner.layers, contracts, all(c is not None and c.checked for c in known)),
        convex=True,
        lipschitz=lipschitz,
        lipschitz_kind=data_term.sqnorm_kind,
        strong_convexity=mu,
        strong_convexity_from=source,
        step_sizes=steps,
        backward=torch.stack(backward),
        assumptions=assumptions,
    )


def _statement(layers: int, contracts: bool, exists: bool) -> str:
    if layers == 1 and contracts:
        return "the iterates converge to the only minimiser"
    if layers == 1:
        return "the iterates converge to a minimiser" + ("" if exists else ", if there is one")
    if contracts:
        return "the iterates converge to the only fixed point of the cycle"
    return "the iterates converge to a fixed point of the cycle, if there is one"


def _strong_convexity(owner: Splitting, data_term: DataTerm) -> tuple[Tensor, str]:
    """μ of ``f(Du) + ½ε‖u‖²`` in u, and where it comes from."""
    added = torch.full_like(data_term.lipschitz, owner.strong_convexity)
    first = owner.priors[0]
    square = True
    if isinstance(first, SynthesisPrior):
        square = first.frame(data_term.shape, data_term.dtype, data_term.device).orthonormal
    mu = data_term.strong_convexity if square else torch.zeros_like(data_term.strong_convexity)
    sources = []
    if bool((mu > 0).any()):
        sources.append("the least singular value of A, known exactly")
    elif not square and bool((data_term.strong_convexity > 0).any()):
        sources.append("0 from A: the frame D is not orthonormal, so AD is not injective")
    if owner.strong_convexity:
        sources.append(f"the added ½ε‖u‖², ε = {owner.strong_convexity:g}")
    return mu + added, " and ".join(sources) or "none is known"


def _firm(prior: nn.Module, data_term: DataTerm, gamma: Tensor) -> bool:
    """Whether a prox is firmly non-expansive on a few random pairs: a test that can only refute."""
    if isinstance(prior, SynthesisPrior):
        frame = prior.frame(data_term.shape, data_term.dtype, data_term.device)
        prox = prior.bind(frame, data_term.shape[1], gamma.reshape(-1, 1, 1, 1)).prox
        like = frame.analysis(data_term.adjoint_y.detach())
    else:

        def prox(v: Tensor) -> Tensor:
            return prior.prox(v, gamma=gamma.reshape(-1, 1, 1, 1))  # type: ignore[operator]

        like = data_term.adjoint_y.detach()
    generator = torch.Generator().manual_seed(20250615)
    scale = like.abs().mean().clamp_min(torch.finfo(like.dtype).eps)
    with torch.no_grad():
        for size in (0.1, 1.0, 10.0):
            a, b = (
                size * scale * torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
                for _ in range(2)
            )
            p, q = prox(a) - prox(b), a - b
            slack = 1e-4 * torch.linalg.vector_norm(q) ** 2
            if bool((p * p).sum() > (p * q).sum() + slack):
                return False
    return True
