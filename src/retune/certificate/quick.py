"""A certificate at little cost for a restoration, and its summary in one line."""

from __future__ import annotations

from collections.abc import Callable

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune._torch.precision import full_precision
from retune.certificate import ImageCertificate, certify
from retune.equilibrium import Equilibrium
from retune.errors import RetuneError, one_line
from retune.model import Bound, Restarted
from retune.records import CertifiedImage

__all__ = ["certificate_of", "in_a_line", "in_words", "sample_certificate"]


def certificate_of(
    net: Restarted, y: Tensor, physics: LinearPhysics, found: Equilibrium, bound: Bound | None = None
) -> ImageCertificate:
    """Certify one restored measurement (1, C, h, w) at about an eighth of the layers of its restoration.

    An eighth of the layers, rounded up to whole blocks, run beyond the result. Their movements show the distance and
    the rate. If they are rounding, a power iteration of a twentieth of the layers (at least five) shows the rate.
    """
    layers = int(found.layers[0])
    return certify(
        net,
        y,
        physics,
        result=found,
        bound=bound,
        iterations=max(1, layers // 100),
        starts=0,
        max_layers=max(1, -(-layers // (8 * net.depth))) * net.depth,
        learning=False,
    )[0]


def sample_certificate(
    net: Restarted, measure: Callable[[], tuple[Tensor, LinearPhysics]], *, learning: bool = True
) -> CertifiedImage:
    """The certificate of one measurement (1, C, h, w) for the report of a training; or its `failure`.

    Args:
        net: the network.
        measure: makes the measurement, and its operator.
        learning: whether it includes the norms of the Jacobians and the error of the learning gradient. It then records
            the graph of a layer, and takes several hundred products with the Jacobian.
    """
    try:
        y, physics = measure()
        if learning:
            found = certify(net, y, physics, iterations=10, starts=2, max_layers=500)[0]
        else:
            with torch.no_grad(), full_precision():
                bound = net.eval().bind(y, physics)
            found = certificate_of(net, y, physics, net.solve(y, physics, bound=bound), bound)
        return CertifiedImage.model_validate(found.to_dict())
    except (RetuneError, RuntimeError) as error:  # a failed certificate must not lose the trained weights
        return CertifiedImage(failure=one_line(error))


def in_a_line(certificate: CertifiedImage) -> str:
    """The distance to the equilibrium and its kind."""
    if certificate.failure is not None:
        return f"no certificate: {certificate.failure}"
    if certificate.jumps:
        return f"no equilibrium: a cycle of layers moves it by {100 * certificate.jumps:.2g} %"
    best = next(iter(certificate.claims.get("rmse", ())), None)
    if best is None or best.value is None:
        return "the distance to the equilibrium is unknown"
    return f"{'≤' if best.proved else 'about'} {best.value:.1e} RMSE from its equilibrium ({best.kind})"


def in_words(certificate: CertifiedImage | None) -> list[str]:
    """The meaning of a certificate, for a reader who does not know how it was computed."""
    if certificate is None:
        return ["There is no certificate: none was asked for."]
    if certificate.failure is not None:
        return [f"There is no certificate: {certificate.failure}"]
    if certificate.jumps:
        return [
            "The iteration does not settle: it jumps between several images, and this is one of them. A round changes "
            f"it by {100 * certificate.jumps:.2g} %."
        ]
    best = next(iter(certificate.claims.get("rmse", ())), None)
    far = None if best is None or best.value is None else _far(best.value)
    told = certificate.plain()
    open_ones = [str(a.get("statement")) for a in certificate.assumptions if not a.get("checked")]
    proved = True  # whether the first sentence states a proof
    if best is not None and far is not None and best.proved:
        opening = best.kind.capitalize() if not open_ones else "Proved, if the unchecked assumptions hold"
        words = [f"{opening}: the image is within {far} of the only image that the iteration converges to."]
    else:
        words = [f"Nothing is proved: {told['refuted']}, so an assumption is wrong."] if told.get("refuted") else []
        proved = not words and bool(told.get("statement"))
        if proved:
            words.append(f"Proved: {told['statement']}; no rate is proved.")
        if far is not None:
            how = f"Estimated{'' if words else ', not proved'}"
            words.append(f"{how}: the image is about {far} away from the one that the iteration converges to.")
        else:
            words.append("How far the image is from the one that the iteration converges to is unknown.")
    if open_ones and proved:
        words.append(f"Not checked: {'; '.join(open_ones)}.")
    return words


def _far(rmse: float) -> str:
    return f"{rmse:.1e} (root mean square, where 1 is white: {255 * rmse:.2g} grey levels of 8 bits)"
