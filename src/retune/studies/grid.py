"""The grid of one image: the errors of gradient and state for every depth K and number of restarts R."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retune._torch.batch import per_image_norm
from retune._torch.precision import full_precision
from retune.bound import Bound
from retune.certificate import ImageCertificate, certify
from retune.comparison.score import number
from retune.equilibrium import Equilibrium, Status
from retune.gradients import GradientRule, Truncated
from retune.model import Restarted
from retune.records import StudyCell, StudyDepth, StudyImage
from retune.studies.exact import RTOL, Exact, exact, learned_parameters, relative_error, step_gradient
from retune.studies.iterates import beyond, states
from retune.studies.rates import fitted_rate, geometric_mean
from retune.studies.scenes import Scene

__all__ = ["Note", "mean_of", "rule_of_study", "study_image"]

Note = Callable[[str], None]


@dataclass(frozen=True)
class _Rates:
    """The factors ρ of a layer by the certificate; None if unknown, or if none below 1 is proved."""

    proved: float | None = None
    kind: str | None = None
    estimated: float | None = None

    @classmethod
    def of(cls, certificate: ImageCertificate, depth: int) -> _Rates:
        factor, rate = certificate.block_factor.proved, certificate.rate.estimated
        estimated = None if rate is None else number(rate.value)
        if factor is None or not factor.value < 1:
            return cls(estimated=estimated)
        return cls(factor.value ** (1 / depth), factor.kind, estimated)


def rule_of_study(net: Restarted) -> Truncated:
    """The rule of the grid: K layers and the M blocks of the network's own rule, if that has a fixed number."""
    return Truncated(net.gradient.fixed_blocks or 1)


def study_image(
    net: Restarted, scene: Scene, depths: Sequence[int], restarts: Sequence[int], most: int, note: Note = lambda _: None
) -> StudyImage:
    """The cells (K, R) of an image, in the precision of the network; float64 is meant.

    The states after K·R layers are computed in one pass. The reference u* continues it, for at most `most` layers.

    Raises:
        DivergedError: the iteration has no equilibrium.
        InvalidParameterError: nothing is learned, or the iterates of the solver depend on the depth.
    """
    net.eval()
    learned_parameters(net)  # before hours of work
    depths, rule = tuple(depths), rule_of_study(net)
    with full_precision(), torch.no_grad():
        bound = net.bind(scene.y, scene.physics)
        plain = net.training_solver.bind(bound.map.objective).plain
        wanted = sorted({k * r for k in depths for r in restarts})
        note(f"{scene.name}: {wanted[-1]} layers")
        at = states(net, bound.map, wanted)
        note(f"{scene.name}: to the equilibrium")
        solution = beyond(net, bound.map, at[wanted[-1]], most)
    rest = solution.u
    reference = _equilibrium(bound, rest, solution.residual, solution.status[0])
    reference.raise_for_status()
    note(f"{scene.name}: certificate of the equilibrium")
    certificate = certify(net, scene.y, scene.physics, result=reference, bound=bound)[0]
    note(f"{scene.name}: exact gradient")
    with full_precision():
        true = exact(net, scene, rest, depths, rule.blocks)
        distances = {n: _distance(bound, u, rest) for n, u in at.items()}
        rates = _Rates.of(certificate, net.depth)
        first = float(bound.map.norm(bound.map.init() - rest))
        theory = {n: _theory(bound, rates if plain else _Rates(), n, first, u) for n, u in at.items()}
        certified = {n: _certified(net, scene, bound, u) for n, u in at.items()}
        cells = []
        for k in depths:
            note(f"{scene.name}: K = {k}")
            for r in restarts:
                found = _gradient(net, scene, rule, k, at[k * r], true)
                value, kind = certified[k * r]
                more = {"distance": distances[k * r], "certified": value, "certified_kind": kind}
                cells.append(StudyCell.model_validate({"depth": k, "restarts": r, **found, **more, **theory[k * r]}))
        rows = [{"depth": k, **_gradient(net, scene, rule, k, rest, true)} for k in depths]
    return _image(scene.name, rates, rule.blocks, certificate, true, distances, rows, cells)


def _equilibrium(bound: Bound, u: Tensor, residual: Tensor | None, status: Status) -> Equilibrium:
    nothing = torch.full((len(u),), torch.inf, dtype=u.dtype, device=u.device)
    with torch.no_grad():
        image = bound.map.image(u)
    layers = torch.zeros(len(u), dtype=torch.long, device=u.device)
    return Equilibrium(image, u, nothing if residual is None else residual, (status,) * len(u), layers)


def _distance(bound: Bound, u: Tensor, rest: Tensor) -> float | None:
    size = bound.map.size(u).clamp_min(torch.finfo(u.dtype).tiny)
    return number(per_image_norm(u - rest) / size)


def _theory(bound: Bound, rates: _Rates, layers: int, first: float, u: Tensor) -> dict[str, float | None]:
    """``ρⁿ‖u₀ − u*‖/‖u‖``: the absolute first distance decays, and each distance is relative to its own state."""
    share = first / float(bound.map.size(u).clamp_min(torch.finfo(u.dtype).tiny))
    decays = {"distance_bound": _power(rates.proved, layers), "distance_expected": _power(rates.estimated, layers)}
    return {name: None if decay is None else number(share * decay) for name, decay in decays.items()}


def _power(rate: float | None, layers: int) -> float | None:
    return None if rate is None else rate**layers


def _certified(net: Restarted, scene: Scene, bound: Bound, u: Tensor) -> tuple[float | None, str | None]:
    """The certified relative distance of a state, and its kind: a certificate of about 500 layers, as users get it."""
    found = _equilibrium(bound, u, None, Status.DEPTH_REACHED)
    certificate = certify(
        net, scene.y, scene.physics, result=found, bound=bound, iterations=10, starts=2, max_layers=500, learning=False
    )
    best = certificate[0].relative_distance.best
    return (None, None) if best is None else (number(best.value), best.kind)


def _gradient(
    net: Restarted, scene: Scene, rule: GradientRule, depth: int, start: Tensor, true: Exact
) -> dict[str, float | None]:
    found, report = step_gradient(net, scene, rule, depth, start)
    error, cosine = relative_error(found, true.gradient)
    told = None if report.relative_error is None else number(report.relative_error.max())
    return {"gradient_error": number(error), "cosine": number(cosine), "reported": told}


def _image(
    name: str,
    rates: _Rates,
    blocks: int,
    certificate: ImageCertificate,
    true: Exact,
    distances: dict[int, float | None],
    rows: list[dict],
    cells: list[StudyCell],
) -> StudyImage:
    """The record of an image: its rates, and the theory beside each depth."""
    best = certificate.relative_distance.best
    left = None if best is None else number(best.value)
    for row in rows:
        k = row["depth"]
        row["adjoint_error"] = number(true.adjoint_errors[k])
        row["bound"] = _power(rates.proved, k * blocks)
        row["expected"] = _power(rates.estimated, k * blocks)
    by_layers = {row["depth"] * blocks: row["adjoint_error"] for row in rows}
    return StudyImage(
        name=name,
        rate_proved=rates.proved,
        rate_kind=rates.kind,
        rate_estimated=rates.estimated,
        rate_distance=fitted_rate(distances, 10 * (left or 1e-13)),
        rate_gradient=fitted_rate(by_layers, 10 * RTOL),
        start=distances.get(0),
        reference_error=left,
        exact_error=number(true.error),
        exact_measured=true.dense,
        depths=[StudyDepth.model_validate(row) for row in rows],
        cells=cells,
    )


_RATES = ("rate_proved", "rate_estimated", "rate_distance", "rate_gradient", "start")


def mean_of(images: Sequence[StudyImage]) -> StudyImage:
    """The geometric means over images with the same cells; of cosines the arithmetic ones, of errors of the references
    the largest ones."""
    facts: dict = {name: geometric_mean([getattr(i, name) for i in images]) for name in _RATES}
    for name in ("reference_error", "exact_error"):
        found = [getattr(i, name) for i in images]
        facts[name] = None if None in found else max(found)
    facts["exact_measured"] = all(i.exact_measured for i in images)
    facts["rate_kind"] = _common([i.rate_kind for i in images])
    facts["depths"] = [_mean(rows) for rows in zip(*(i.depths for i in images), strict=True)]
    facts["cells"] = [_mean(cells) for cells in zip(*(i.cells for i in images), strict=True)]
    return StudyImage.model_validate({"name": "mean", **facts})


def _common(kinds: Sequence[str | None]) -> str | None:
    """The kind that all have; of several proved ones, "proved" with the remark that they differ."""
    if len(set(kinds)) == 1 or None in kinds:
        return kinds[0] if len(set(kinds)) == 1 else None
    return "proved, with several conditions" if all(str(k).startswith("proved") for k in kinds) else None


def _mean(rows: Sequence[StudyCell] | Sequence[StudyDepth]) -> dict:
    mean: dict = {}
    for name, value in rows[0]:
        values = [getattr(row, name) for row in rows]
        if name in ("depth", "restarts"):
            mean[name] = value
        elif name == "certified_kind":
            mean[name] = _common(values)
        elif name == "cosine":
            mean[name] = None if None in values else math.fsum(values) / len(values)
        else:
            mean[name] = geometric_mean(values)
    return mean
