"""The map ``T_θ`` of the iteration, and the same map bound to a data term."""

from __future__ import annotations

import warnings
import weakref
from abc import ABC, abstractmethod
from dataclasses import replace

from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from retune._registry.describe import by_arguments
from retune._registry.entries import kind_base
from retune._torch.batch import per_image_norm
from retune._torch.precision import rounding
from retune.guarantee import Assumption, Guarantee
from retune.operators.data_term import DataTerm
from retune.parameters import scalars
from retune.priors.capabilities import priors_of
from retune.priors.origin import descends_from_ours, is_ours, stated_by_ours
from retune.solvers.base import Objective

__all__ = ["AbstractMap", "BoundMap", "guarantee_of"]


class BoundMap(ABC):
    """A map bound to a [`DataTerm`][retune.DataTerm]: plain functions of the state u, constants computed once.

    It keeps no iterate: a method called twice with the same u gives the same result.

    Attributes:
        layers: number of different layers in a cycle; 1 by default.
        sources: the tensors, other than u, through which gradient leaves the map: its weights, and Aᵀy if y requires a
            gradient. The gradient rules need them to measure their error under ``torch.autograd.grad``, which visits
            only the paths to its inputs. Without `sources`, only ``.backward()`` fills in the report.
        owner: the map before it was bound.
        data_term: its data term. [`select`][retune.BoundMap.select] uses both to bind the map to some of the images.
        constant: whether a layer does not depend on its state, so that the result of the first one is the equilibrium
            (denoising with a full step).
    """

    layers: int = 1
    constant: bool = False
    _rest: tuple[weakref.ref[Tensor], int, float] | None = None
    sources: tuple[Tensor, ...] = ()
    owner: AbstractMap | None = None
    data_term: DataTerm | None = None

    @abstractmethod
    def init(self) -> Tensor:
        """The first state u_0; its leading axis is the batch."""

    @abstractmethod
    def layer(self, u: Tensor, k: int = 0) -> Tensor:
        """``T_{θ_k}(u; y, A)``, with k counted modulo the cycle."""

    @abstractmethod
    def image(self, u: Tensor) -> Tensor:
        """The restored image (B, C, H, W) of a state."""

    @abstractmethod
    def state(self, image: Tensor) -> Tensor:
        """A state with the given image, as a starting point."""

    def image_adjoint(self, image: Tensor) -> Tensor:
        """The adjoint of a linear [`image`][retune.BoundMap.image]; the default is [`state`][retune.BoundMap.state]."""
        return self.state(image)

    def size(self, u: Tensor) -> Tensor:
        """The size (B,) with which changes of a state u are compared; the default is ``‖u‖``.

        A state may have parts beside the image, such as multipliers. Such a map scales its state so that a change of
        any part counts as much as one of the image, and returns the norm of the image here.
        """
        return per_image_norm(u)

    def norm(self, u: Tensor) -> Tensor:
        """The norm (B,) in which the map is averaged or contracts, if it states that; the default is ``‖u‖``."""
        return per_image_norm(u)

    def visible(self, v: Tensor, u: Tensor) -> Tensor:
        """The part of a random direction v at the state u that an image can reach; the default is v.

        Power iterations start there. Multipliers may have directions that neither change the image nor are changed by
        it. They stay for ever, with the factor 1, and would hide the rate of the others.
        """
        return v

    def remember(self, u: Tensor) -> None:
        """Mark a state as the result of a layer of a `constant` map, without keeping it alive."""
        if not u.is_inference():
            self._rest = weakref.ref(u), u._version, rounding(u)

    def rests_at(self, u: Tensor) -> bool:
        """Whether `u` is the marked state, unchanged, and no more exact arithmetic is asked for since."""
        if self._rest is None or u.is_inference():
            return False
        known, version, eps = self._rest
        return known() is u and u._version == version and eps <= rounding(u)

    def select(self, index: Tensor) -> BoundMap | None:
        """The map bound to the images `index` (n,) only; None if its operator or prior cannot be restricted."""
        if self.owner is None or self.data_term is None or not self.owner.per_image:
            return None
        part = self.data_term.select(index)
        return None if part is None else self.owner.bind(part)

    def objective(self) -> Objective | None:
        """The objective that the map minimises, for solvers that use its value; None if it is unknown."""
        return None

    def at(self, u: Tensor) -> BoundMap:
        """The map with a step size for the curvature at a state u (B, …). A map with a fixed step size returns itself.

        Its fixed points are the same. A map with a known Lipschitz constant does not need this. A map that minimises a
        learned energy has no constant: its layers contract near u only with a step size for the curvature there.
        """
        return self

    def with_steps_of(self, other: BoundMap) -> BoundMap:
        """This map with the step sizes that another bound map has found. A map with fixed step sizes returns itself."""
        return self

    def block(self, u: Tensor, depth: int) -> Tensor:
        """``Φ^K(u)``: `depth` layers, starting with the first layer of the cycle."""
        for k in range(depth):
            u = self.layer(u, k)
        return u


@kind_base("map")
class AbstractMap(nn.Module, ABC):
    """``T_θ``. It holds weights only: no iterate, no measurement, no counter.

    Attributes:
        in_state_dict: constructor arguments that a description leaves out, because the state dict holds their values.
        added_later: constructor arguments that a description leaves out at their default, because an earlier version
            did not have them.
        layers: number of different layers in a cycle (1 = tied weights).
        nonexpansive: whether the map is nonexpansive by construction, so that plain restarts are safe; if not, the
            restarts are damped by default.
        backtracks: whether no safe step size is known. Then the default solver is
            [`QuasiNewton`][retune.QuasiNewton], which searches for it.
        symmetric: whether a layer is a proximal gradient step on one objective, with a nonexpansive prox. Its
            linearisation then has real eigenvalues only, so inertia ([`Inertial`][retune.Inertial]) is sound.
        per_image: whether the map treats the images of a batch independently, so that settled images can leave it.
    """

    layers: int = 1
    nonexpansive: bool = True
    backtracks: bool = False
    symmetric: bool = False
    per_image: bool = False
    in_state_dict: tuple[str, ...] = ()
    added_later: tuple[str, ...] = ()

    def data_term(self, y: Tensor, physics: LinearPhysics) -> DataTerm:
        """The data term of this map for a measurement."""
        return DataTerm(y, physics)

    def problem(self, y: Tensor, physics: LinearPhysics) -> DataTerm:
        """Old name of [`data_term`][retune.AbstractMap.data_term] (version 0.1); it will be removed in 0.3."""
        warnings.warn("map.problem(...) was renamed: call map.data_term(...)", DeprecationWarning, stacklevel=2)
        return self.data_term(y, physics)

    @abstractmethod
    def bind(self, data_term: DataTerm) -> BoundMap:
        """Bind to a data term. Constants of the iteration are computed here, once and differentiably."""

    def describe(self) -> dict:
        """Constructor arguments as plain data, read from attributes of the same names; they rebuild the map."""
        return by_arguments(self)

    def guarantee(self, data_term: DataTerm) -> Guarantee:
        """The proved facts of this map on a data term, and their assumptions. By default nothing is proved.

        Override this method to state the facts of your map: a few numbers from which [`certify`][retune.certify]
        computes the rest. [`Guarantee`][retune.Guarantee] shows an example.
        """
        return Guarantee()

    def learned(self) -> dict[str, list]:
        """The scalars and small tables of the map and of its (first) prior, as plain data for reports."""
        own = {n: p.value.flatten().tolist() for n, p in scalars(self, nested=False).items()}
        of_prior = [p.learned() for p in priors_of(self)][:1]
        return {**own, **(of_prior[0] if of_prior else {})}

    def init(self, data_term: DataTerm) -> Tensor:
        """The first state u_0. In a loop, bind once instead."""
        return self.bind(data_term).init()

    def layer(self, u: Tensor, k: int, data_term: DataTerm) -> Tensor:
        """One layer. In a loop, bind once instead."""
        return self.bind(data_term).layer(u, k)

    def image(self, u: Tensor, data_term: DataTerm) -> Tensor:
        """The restored image of a state. In a loop, bind once instead."""
        return self.bind(data_term).image(u)


def guarantee_of(map_: AbstractMap, data_term: DataTerm) -> Guarantee:
    """The reliable part of a map's own statement.

    A map of this package states facts about its own class. A subclass, or a map with a replaced method, may behave
    differently. Without its own ``guarantee`` nothing is proved about it; its own ``guarantee`` is trusted.
    """
    name = type(map_).__name__
    if is_ours(map_) or not descends_from_ours(map_, AbstractMap):
        return map_.guarantee(data_term)
    if stated_by_ours(map_, "guarantee"):
        how = "it was changed, so the proofs of the original map do not apply; define its own guarantee()"
        return Guarantee(assumptions=(Assumption(f"{name} behaves like the original map", False, how),))
    stated = map_.guarantee(data_term)
    assumption = Assumption(f"the statements of {name} about itself are true", False, f"stated by {name}.guarantee()")
    return replace(stated, assumptions=(*stated.assumptions, assumption)) if stated.convex else stated
