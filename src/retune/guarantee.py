"""What is proved of a map before it is run, and what that rests on.

A map states its facts once, in :meth:`retune.maps.base.AbstractMap.guarantee`; everything that is concluded from them
(contraction factors, distances, gradient errors) is computed elsewhere, in the same way for every map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Assumption", "Convexity", "Guarantee"]


@dataclass(frozen=True)
class Assumption:
    """Something that a bound rests on.

    Attributes:
        statement: what is assumed, in one phrase.
        checked: whether it holds by construction, or was verified here; False if somebody has to be believed.
        how: how it was checked, or who says so.
        probability: with which it holds at least; 1 unless it rests on a random start.
    """

    statement: str
    checked: bool
    how: str
    probability: float = 1.0

    def to_dict(self) -> dict:
        """Plain data."""
        return {
            "statement": self.statement,
            "checked": self.checked,
            "how": self.how,
            "probability": self.probability,
        }


@dataclass(frozen=True)
class Convexity:
    """What a prior knows of its function g: convex, and its ``prox`` is the exact one.

    A prior of yours states this by a method ``convexity()``; without one nothing is assumed of it.

    Attributes:
        strong: m ≥ 0 such that ``g − (m/2)‖·‖²`` is still convex; a number, or a scalar tensor.
        how: the reason, in one phrase.
        checked: whether it holds by construction of the package; for a prior of yours leave it False.
    """

    strong: float | Tensor = 0.0
    how: str = "stated by the prior"
    checked: bool = False


@dataclass(frozen=True)
class Guarantee:
    r"""The facts of a map ``T_k(u) = P_k(u − τ_k ∇F(u))`` that bounds are computed from.

    F is differentiable with an L-Lipschitz gradient, and μ-strongly convex; ``P_k`` is β_k-Lipschitz: 1 for the prox
    of a convex function, ``1/(1 + γm)`` if it is m-strongly convex, 1 for the identity. Then, if F is convex, T_k is
    Lipschitz with the constant ``β_k max(|1 − τ_k μ|, |1 − τ_k L|)``: see :meth:`factors`.

    A map that steps along ``∇F = ∇f + λ∇R`` (no prox) states the same facts of the sum: with ``∇f`` L_f-Lipschitz, f
    μ_f-strongly convex, ``∇R`` L_R-Lipschitz and ``R + (w/2)‖·‖²`` convex (w-weakly convex R; w = 0 if R is convex)::

        Guarantee(
            row="ridge regulariser with bounded slopes",
            statement="iterates converge to a minimiser",
            convex=mu_f >= lam * w,
            lipschitz=l_f + lam * l_r,
            lipschitz_kind=problem.sqnorm_kind,
            strong_convexity=(mu_f - lam * w).clamp_min(0),
            step_sizes=tau,
            assumptions=(Assumption("∇R is L_R-Lipschitz", True, "normalised filters, bounded spline slopes"), ...),
        )

    Attributes:
        row: what kind of map this is, in the words of the table of guarantees in the documentation.
        statement: what is proved of the iterates, in one clause; "" if nothing is.
        convex: whether F is convex and every ``P_k`` is non-expansive, so that factors are proved.
        lipschitz: L, shape (1,) or (B,), or (layers, 1 or B) where F differs from layer to layer; None if unknown.
        lipschitz_kind: "exact", "estimated" or "given", from :attr:`retune.DataTerm.sqnorm_kind`.
        strong_convexity: μ ≥ 0, shape (1,) or (B,); None is 0.
        strong_convexity_from: where μ comes from, in one phrase.
        step_sizes: τ_k, shape (layers, 1) or (layers, B); None if the map has none.
        backward: β_k, shape (layers, 1) or (layers, B); None is 1.
        image: Lipschitz constant of the function from the state to the image.
        assumptions: everything the above rests on.
    """

    row: str = "any denoiser"
    statement: str = ""
    convex: bool = False
    lipschitz: Tensor | None = None
    lipschitz_kind: str = "unknown"
    strong_convexity: Tensor | None = None
    strong_convexity_from: str = ""
    step_sizes: Tensor | None = None
    backward: Tensor | None = None
    image: float = 1.0
    assumptions: tuple[Assumption, ...] = ()

    @property
    def step_limit(self) -> Tensor | None:
        """``2/L``, in the shape of L."""
        return None if self.lipschitz is None else 2 / self.lipschitz

    def factors(self) -> Tensor | None:
        r"""Proved Lipschitz constants of the layers, shape (layers, 1 or B); None if nothing is proved.

        ``β max(|1 − τμ|, |1 − τL|)``: for convex F the operator ``I − τ∇F`` has this constant for every τ ≥ 0 (Ryu and
        Boyd, *A primer on monotone operator methods*, 2016, §5). It is below 1 if ``0 < τ < 2/L`` and μ > 0, and at
        most 1 for ``τ ≤ 2/L``.
        """
        if not self.convex or self.lipschitz is None or self.step_sizes is None:
            return None
        tau, big = self.step_sizes, self.lipschitz
        small = torch.zeros_like(big) if self.strong_convexity is None else self.strong_convexity
        forward = torch.maximum((1 - tau * small).abs(), (1 - tau * big).abs())
        return forward if self.backward is None else forward * self.backward

    @property
    def probability(self) -> float:
        """With which all assumptions hold at least (union bound)."""
        return max(0.0, 1 - sum(1 - a.probability for a in self.assumptions))

    @property
    def checked(self) -> bool:
        """Whether nobody has to be believed."""
        return all(a.checked for a in self.assumptions)
