"""Certify a restoration: solve it, then bound, estimate and measure."""

from __future__ import annotations

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune._torch import precision
from retune.certificate.document import Certificate
from retune.certificate.image import image_certificate
from retune.certificate.survey import Survey, usable
from retune.equilibrium import Equilibrium
from retune.errors import InvalidParameterError, ShapeError, require, require_whole
from retune.maps.base import guarantee_of
from retune.model import Bound, Restarted

__all__ = ["certify"]


def certify(
    net: Restarted,
    y: Tensor,
    physics: LinearPhysics,
    *,
    result: Equilibrium | None = None,
    bound: Bound | None = None,
    iterations: int = 20,
    starts: int = 3,
    max_layers: int = 2000,
    learning: bool = True,
) -> Certificate:
    r"""Certify a restoration: its distance to the equilibrium, the error of the K-layer gradient, and the assumptions.

    Bounds exist if the map states the facts that imply them ([`guarantee`][retune.AbstractMap.guarantee]). Let ρ be the
    product of the Lipschitz constants over n layers, and ``u_n`` the state n layers later. Then

    * ``‖u − u*‖ ≤ ‖u_n − u‖/(1 − ρ)``, with n so large that ρ ≤ ½ (if `max_layers` allows), so the bound is at most
      three times the true distance;
    * the adjoint of the K-layer gradient at the equilibrium has a relative error ``‖w − w*‖/‖w*‖ ≤ ρ_K`` for any loss,
      and at most ``ρ_K^M`` with M blocks (arXiv:2506.13239; Bolte, Pauwels, Vaiter, NeurIPS 2023).

    All other numbers are measured, or estimated by power iterations on the Jacobian at the final state. Estimates are
    from below: the true factor is at least the estimate. A power iteration finds slow directions late if its start
    hardly contains them. If an estimate exceeds a bound, an assumption is wrong: then nothing is called proved, and the
    verdict says so.

    Bounds assume exact arithmetic. Distance bounds also allow for rounding: ``8 ε (‖u‖ + 2‖u_0‖)`` per layer (ε =
    1.2e-7 in float32; u_0 is the scaled back-projection). TF32 and autocast are switched off during the computation.

    Args:
        net: the network. It is used in eval mode, and then returned to its former mode.
        y: measurement.
        physics: the operator of the measurement.
        result: the result of ``net.solve`` for `y`, if you have it; otherwise the solve is done now.
        bound: the result of ``net.bind`` for `y`, if you have it. Bounds inherit the accuracy of its constants, so
            bind within ``torch.no_grad()`` and, on a GPU, without TF32.
        iterations: number of iterations for a norm (five times as many for the rate).
        starts: number of random starts of each power iteration; the spread over them is reported. 0, with
            ``learning=False``, takes the rate from the movements of the layers beyond the result, which costs no
            further layer. If these movements are rounding, or fewer than four, one start of a power iteration replaces
            them.
        max_layers: maximum number of layers beyond the result.
        learning: whether to estimate the norms of the Jacobians and the error of the gradient, too. Choose False for an
            image that is only restored. Then no graph is recorded, so the memory is that of the restoration, and the
            rate comes from ``5 · iterations · starts`` finite differences of one layer each.

    Returns:
        A certificate with one entry per image; ``print`` it, or take ``.to_dict()``.

    Raises:
        CutGradientError: no gradient flows through the map.
        InvalidParameterError: an option is out of range, gradients are wanted in ``torch.inference_mode()``, or
            `bound` belongs to another measurement.
        ShapeError: `result` does not belong to this measurement.
    """
    require("net", net, Restarted, "a network", "for example retune.Restarted(retune.ForwardBackward(prior))")
    for name, value in (("iterations", iterations), ("starts", starts), ("max_layers", max_layers)):
        least = 0 if name == "starts" and not learning else 1
        if require_whole(name, value) < least:
            raise InvalidParameterError(f"{name} must be at least {least}, got {value}")
    if learning and torch.is_inference_mode_enabled():
        raise InvalidParameterError(
            "certify records a graph to estimate the error of the gradient, but torch.inference_mode() forbids "
            "graphs: leave that mode, or call certify(..., learning=False)"
        )
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad(), precision.full_precision():
            if bound is None:
                y = usable(y)
                bound = net.bind(y, physics)
            result = net.solve(y, physics, bound=bound) if result is None else result
            require("bound", bound, Bound, "what net.bind(y, physics) returned", "or leave it out")
            bound.require(y, physics, net.map)
            there = bound.map.at(result.state)
            start = there.init().shape
            if result.state.shape != start:
                raise ShapeError(
                    f"result has a state of shape {tuple(result.state.shape)}, but the state for this measurement has "
                    f"shape {tuple(start)}: give the result of net.solve(y, physics) for the same y"
                )
            guarantee = guarantee_of(net.map, bound.data_term)
        with precision.full_precision():
            survey = Survey(net, there, guarantee, result, iterations, starts, max_layers, learning)
            distances = survey.distances()
            images = tuple(image_certificate(survey, i, distances) for i in range(survey.batch))
            return Certificate(images, net.depth, repr(net.gradient))
    finally:
        net.train(was_training)
