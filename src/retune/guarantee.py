"""The proved facts of a map, and their assumptions.

A map states its facts once, in [`guarantee`][retune.AbstractMap.guarantee]. Contraction factors, distances and gradient
errors are computed from them elsewhere, in the same way for every map.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Assumption", "Convexity", "Guarantee", "Known", "Smoothness", "Subject"]


class Known(enum.StrEnum):
    """How a constant such as ``‖A‖²`` is known."""

    EXACT = "exact"
    ESTIMATED = "estimated"
    GIVEN = "given"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Assumption:
    """An assumption of a bound.

    Attributes:
        statement: the assumption, in one phrase.
        checked: whether it holds by construction or was verified here; False if it is only stated.
        how: how it was checked, or who states it.
        probability: lower bound of the probability that it holds; 1 unless it depends on a random start.
        refuted: whether it was found to be wrong.
    """

    statement: str
    checked: bool
    how: str
    probability: float = 1.0
    refuted: bool = False

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
    """The statement of a prior that its function g is convex and its ``prox`` is exact.

    Your own prior states this with a method ``convexity()``. Without the method, nothing is assumed. A subclass of a
    prior of ReTune must state it again, because it may have changed the prox. Such a statement is trusted. It is tested
    on random pairs (the prox of a convex function is firmly nonexpansive), and certificates call it "not checked".

    Attributes:
        strong: m ≥ 0 such that ``g − (m/2)‖·‖²`` is still convex; a number, or a scalar tensor.
        how: the reason, in one phrase.
        checked: True if ReTune's construction ensures it; ignored for your own prior.
    """

    strong: float | Tensor = 0.0
    how: str = "stated by the prior"
    checked: bool = False


@dataclass(frozen=True)
class Smoothness:
    """The statement of a prior about its gradient. Your own prior makes it with a method ``smoothness(like)``.

    Attributes:
        lipschitz: L_R such that ``‖∇g(a) − ∇g(b)‖ ≤ L_R ‖a − b‖``; a number, or a tensor (1,) or (B,). None if g is
            twice continuously differentiable and bounded from below, and no constant is known.
        weak_convexity: w ≥ 0 such that ``g + (w/2)‖·‖²`` is convex (0 for convex g); None if unknown.
        how: the reason, in one phrase.
        checked: True if ReTune's construction ensures it; ignored for your own prior.
        row: name of this kind of prior in the table of guarantees.
    """

    lipschitz: float | Tensor | None
    weak_convexity: float | Tensor | None = None
    how: str = "stated by the prior"
    checked: bool = False
    row: str = "smooth prior with a given constant"


class Subject(enum.Enum):
    """The subject of a convergence statement."""

    ITERATES = "the iterates"
    OBJECTIVE = "the objective"
    LAYERS = "every layer"
    NONE = ""


@dataclass(frozen=True)
class Guarantee:
    r"""The facts of a map ``T_k(u) = P_k(u − τ_k ∇F(u))`` from which bounds are computed.

    F is μ-strongly convex and differentiable, with an L-Lipschitz gradient. ``P_k`` is β_k-Lipschitz: 1 for the
    identity and for the prox of a convex function, ``1/(1 + γm)`` if that function is m-strongly convex. If F is
    convex, T_k has the Lipschitz constant ``β_k max(|1 − τ_k μ|, |1 − τ_k L|)``: see
    [`factors`][retune.Guarantee.factors].

    A map that steps along ``∇F = ∇f + λ∇R`` (no prox) states the same facts about the sum. Here ``∇f`` is
    L_f-Lipschitz, f is μ_f-strongly convex, ``∇R`` is L_R-Lipschitz, and ``R + (w/2)‖·‖²`` is convex (R is w-weakly
    convex; w = 0 if R is convex):

    ```python
    import torch
    from deepinv.optim import Tikhonov
    import retune

    class Smooth(retune.GradientStep):  # f = ½‖Ax − y‖², R = ½‖x‖²: L_R = 1, w = 0, and R is 1-strongly convex
        def guarantee(self, data_term):
            with torch.no_grad():
                lam, largest = self.reg(), data_term.lipschitz + self.reg()
                return retune.Guarantee(
                    row="half the square of the norm",
                    subject=retune.Subject.ITERATES,
                    statement="converge to a minimiser",
                    convex=True,
                    lipschitz=largest,
                    lipschitz_kind=data_term.sqnorm_kind,
                    strong_convexity=data_term.strong_convexity + lam,
                    strong_convexity_from="A and R",
                    step_sizes=(2 * self.step_size() / largest)[None],
                    assumptions=(retune.Assumption("R is ½‖x‖²", True, "by construction"),),
                )

    net = retune.Restarted(Smooth(Tikhonov(), reg=0.1))
    y, physics = retune.problems.denoise(0.1).measure(torch.rand(1, 1, 16, 16))
    assert "half the square of the norm" in str(retune.certify(net, y, physics))
    ```

    Attributes:
        row: the kind of map, named as in the table of guarantees in the documentation.
        subject: the subject of the statement.
        statement: the proved predicate of the subject ("converge to a minimiser"); "" if nothing is proved.
        convex: whether F is convex and every ``P_k`` is nonexpansive, so that factors are proved.
        lipschitz: L, shape (1,) or (B,), or (layers, 1 or B) if F differs between layers; None if unknown.
        lipschitz_kind: how ‖A‖² in it is known, as ``retune.DataTerm.sqnorm_kind`` says.
        strong_convexity: μ ≥ 0, shape (1,) or (B,); None means 0.
        strong_convexity_from: origin of μ, in one phrase.
        step_sizes: τ_k, shape (layers, 1) or (layers, B); None if the map has none.
        backward: β_k, shape (layers, 1) or (layers, B); None means 1.
        image: Lipschitz constant of the function from the state to the image.
        assumptions: the assumptions of all these facts.
        monotone: whether the statement is about a solver that never lets the objective rise
            ([`QuasiNewton`][retune.QuasiNewton]), and not about plain steps.
        factor: Lipschitz constants of the layers in the Euclidean norm, shape (layers, 1 or B), for a map of another
            form, in place of the formula above; None: by the formula.
        factor_from: that other formula, in one phrase.
        averaged: α in (0, 1), shape (1,) or (B,), such that ``T = (1 − α) I + α N`` with N nonexpansive in the norm
            [`norm`][retune.BoundMap.norm] of the bound map. Without a factor below 1 it proves convergence to a fixed
            point, if there is one, but no rate and no distance. None if no such constant is known.
        metric: that norm, in one phrase; "" is the Euclidean norm.
        region: share of the convergence region that the step sizes use, below 1, shape (1,) or (B,); None if the map
            states its steps as `step_sizes`.
        region_from: the condition of that region, in one phrase.
    """

    row: str = "any denoiser"
    subject: Subject = Subject.NONE
    statement: str = ""
    convex: bool = False
    lipschitz: Tensor | None = None
    lipschitz_kind: Known = Known.UNKNOWN
    strong_convexity: Tensor | None = None
    strong_convexity_from: str = ""
    step_sizes: Tensor | None = None
    backward: Tensor | None = None
    image: float = 1.0
    assumptions: tuple[Assumption, ...] = ()
    monotone: bool = False
    factor: Tensor | None = None
    factor_from: str = ""
    averaged: Tensor | None = None
    metric: str = ""
    region: Tensor | None = None
    region_from: str = ""

    @property
    def theorem(self) -> str:
        """The statement with its subject: "the iterates converge to a minimiser"; "" if nothing is proved."""
        return f"{self.subject.value} {self.statement}".strip()

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
        if self.factor is not None:
            return self.factor
        if not self.convex or self.lipschitz is None or self.step_sizes is None:
            return None
        tau, big = self.step_sizes, self.lipschitz
        small = torch.zeros_like(big) if self.strong_convexity is None else self.strong_convexity
        forward = torch.maximum((1 - tau * small).abs(), (1 - tau * big).abs())
        return forward if self.backward is None else forward * self.backward

    @property
    def probability(self) -> float:
        """Lower bound of the probability that all assumptions hold (union bound)."""
        return max(0.0, 1 - sum(1 - a.probability for a in self.assumptions))

    @property
    def checked(self) -> bool:
        """Whether all assumptions are checked."""
        return all(a.checked for a in self.assumptions)
