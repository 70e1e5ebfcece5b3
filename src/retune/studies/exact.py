"""The gradient of a training step, and the exact one by implicit differentiation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from retune._torch.batch import per_image_norm
from retune.equilibrium import GradientReport
from retune.errors import InvalidParameterError
from retune.gradients import AdjointMemory, GradientRule, Truncated
from retune.maps.base import BoundMap
from retune.maps.linearised import Linearised
from retune.model import Restarted
from retune.studies.scenes import Scene

__all__ = ["DENSE", "Exact", "exact", "learned_parameters", "relative_error", "step_gradient"]

#: Requested relative error of the solved adjoint equations.
RTOL = 1e-8
#: Layers that one adjoint equation may cost, and directions that are kept.
_LAYERS, _MEMORY = 20_000, 20
#: Up to this number of values in a state, dense linear algebra tells how exact the solutions are.
DENSE = 1024


def learned_parameters(net: Restarted) -> list[Tensor]:
    """The parameters that are trained, at least one.

    Raises:
        InvalidParameterError: no parameter is trained.
    """
    found: list[Tensor] = [p for p in net.map.parameters() if p.requires_grad]
    if not found:
        raise InvalidParameterError(
            "a study needs learned parameters, but every parameter of this network is frozen: learn one, for example "
            "--set model.learn_reg=true"
        )
    return found


def step_gradient(
    net: Restarted, scene: Scene, rule: GradientRule, depth: int, start: Tensor, adjoint: AdjointMemory | None = None
) -> tuple[Tensor, GradientReport]:
    """The gradient of ``mean (x̂ − x)²`` with respect to the learned parameters, as one vector, and its report.

    It is formed as in a training step: the rule differentiates K layers from a state, without graph before it.

    Args:
        net: the network.
        scene: image and measurement.
        rule: the gradient rule.
        depth: K.
        start: the state after the restarts.
        adjoint: receives the solution of the adjoint equation; see [`AdjointMemory`][retune.gradients.AdjointMemory].

    Raises:
        InvalidParameterError: the network has no learned parameters.
    """
    leaves = learned_parameters(net)
    known = {} if adjoint is None else {"adjoint": adjoint}
    with torch.enable_grad():
        bound = net.map.bind(net.map.data_term(scene.y, scene.physics)).at(start)
        u, report = rule(bound, depth, lambda: start, **known)
        loss = (bound.image(u) - scene.x).square().mean()
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, grads, strict=True)]
    return torch.cat([g.flatten() for g in parts]), report


def relative_error(found: Tensor, exact: Tensor) -> tuple[float, float]:
    """``‖g − g*‖/‖g*‖`` and the cosine between g and g*; NaN where g* or g is 0."""
    size, whole = torch.linalg.vector_norm(found), torch.linalg.vector_norm(exact)
    return float(torch.linalg.vector_norm(found - exact) / whole), float(found @ exact / (size * whole))


@dataclass(frozen=True)
class Exact:
    """The exact gradient at an equilibrium.

    Attributes:
        gradient: the vector g*.
        adjoint_errors: by K, ``‖w_M − w*‖/‖w*‖`` of the sum of M pull-backs through K layers.
        error: largest relative error of the solves.
        dense: whether the error was measured against dense linear algebra; otherwise it is estimated.
    """

    gradient: Tensor
    adjoint_errors: dict[int, float]
    error: float
    dense: bool


def exact(net: Restarted, scene: Scene, rest: Tensor, depths: tuple[int, ...], blocks: int) -> Exact:
    """Solve the adjoint equation of a block of K layers for each K, to 1e-8.

    With J the Jacobian of the K layers at u*, ``w* = (I − Jᵀ)⁻¹v`` and ``w_M = Σ_{m<M} (Jᵀ)^m v``, the difference is
    ``w* − w_M = (Jᵀ)^M w*``. All K have the same gradient g*; it is taken from the shortest block. On small images
    each w* is compared with the solution of the dense system.

    Args:
        net: the network.
        scene: image and measurement.
        rest: the equilibrium u*.
        depths: the values of K.
        blocks: M.
    """
    layers = net.map.layers
    with torch.no_grad():
        there = net.bind(scene.y, scene.physics).map.at(rest)
    jacobian = Linearised(there, rest, products=False)
    errors, worst = {}, 0.0
    gradient = torch.empty(0)
    dense = _transposed_matrix(jacobian, rest) if rest.numel() <= DENSE else None
    for depth in sorted({layers, *depths}):
        kept: list[Tensor] = []
        memory = AdjointMemory(_no_start, lambda w, gain, left, kept=kept: kept.append(w))
        rule = Truncated(rtol=RTOL, max_blocks=max(2, _LAYERS // depth), memory=_MEMORY)
        found, report = step_gradient(net, scene, rule, depth, rest, memory)
        gradient = found if depth == layers else gradient
        (w,) = kept
        rest_of = jacobian.transposed(w, blocks * depth // layers)
        errors[depth] = float(per_image_norm(rest_of) / per_image_norm(w).clamp_min(torch.finfo(w.dtype).tiny))
        if dense is None:
            worst = max(worst, *_errors(report))
        else:
            block = torch.linalg.matrix_power(dense, depth // layers)
            worst = max(worst, _dense_error(there, block, rest, scene.x, w))
    return Exact(gradient, {k: errors[k] for k in depths}, worst, dense is not None)


def _transposed_matrix(jacobian: Linearised, rest: Tensor) -> Tensor:
    """Jᵀ of one cycle as a matrix."""
    eye = torch.eye(rest.numel(), dtype=rest.dtype, device=rest.device)
    return torch.stack([jacobian.transposed(e.view_as(rest)).flatten() for e in eye], 1)


def _dense_error(bound: BoundMap, transposed: Tensor, rest: Tensor, x: Tensor, found: Tensor) -> float:
    """``‖w − w*‖/‖w*‖`` with ``(I − Jᵀ) w* = v`` solved by Gaussian elimination."""
    with torch.enable_grad():
        u = rest.detach().requires_grad_()
        (v,) = torch.autograd.grad((bound.image(u) - x).square().mean(), u)
    exact = torch.linalg.solve(torch.eye(len(transposed)).to(transposed) - transposed, v.flatten())
    return float(torch.linalg.vector_norm(found.flatten() - exact) / torch.linalg.vector_norm(exact))


def _no_start(v: Tensor) -> tuple[Tensor, Tensor]:
    """A start of zeros, with an unknown gain of the equation."""
    return torch.zeros_like(v), torch.ones_like(per_image_norm(v))


def _errors(report: GradientReport) -> list[float]:
    found = [math.inf if report.relative_error is None else float(report.relative_error.max())]
    return found if report.parameter_error is None else [*found, report.parameter_error]
