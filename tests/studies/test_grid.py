"""The cells of a study against dense linear algebra."""

from __future__ import annotations

import pytest
import torch

import retune
from known_answers import Case, quadratic, untied
from retune.gradients import AdjointMemory
from retune.studies.exact import relative_error, step_gradient
from retune.studies.grid import mean_of, study_image
from retune.studies.iterates import states
from retune.studies.rates import fitted_rate, geometric_mean
from retune.studies.scenes import Scene
from small_parts import as_matrix, rand

DEPTHS, RESTARTS = (2, 4, 10), (0, 1, 5, 40)


def scene_of(case: Case, seed: int = 9) -> Scene:
    return Scene("test", rand(1, *case.bind().init().shape[1:], seed=seed), case.y, case.physics)


def studied(case: Case, depths=DEPTHS, restarts=RESTARTS, **options):
    net = retune.Restarted(case.map, depths[0], 3, **options)
    return study_image(net, scene_of(case), depths, restarts, 4000)


def learned(case: Case) -> list[torch.Tensor]:
    return [p for p in case.map.parameters() if p.requires_grad]


def flat(loss: torch.Tensor, case: Case) -> torch.Tensor:
    found = torch.autograd.grad(loss, learned(case), allow_unused=True)
    zeros = [torch.zeros_like(p) if g is None else g for p, g in zip(learned(case), found, strict=True)]
    return torch.cat([g.flatten() for g in zeros])


@pytest.mark.parametrize("make", [quadratic, untied])
def test_errors_are_those_of_the_closed_form(float64, make):
    """The gradient through the closed form of u*, and plain autograd through K layers after K·R without graph."""
    case = make(batch=1)
    scene, found = scene_of(case), studied(case)
    exact = flat((case.answer() - scene.x).square().mean(), case)
    rest = case.answer().detach()
    for cell in found.cells:
        bound = case.bind()
        with torch.no_grad():
            u = bound.block(bound.init(), cell.depth * cell.restarts)
        assert cell.distance == pytest.approx(float((u - rest).norm() / u.norm()), rel=1e-4, abs=1e-11)
        g = flat((bound.image(bound.block(u, cell.depth)) - scene.x).square().mean(), case)
        assert cell.gradient_error == pytest.approx(float((g - exact).norm() / exact.norm()), rel=1e-4, abs=3e-8)
        assert cell.cosine == pytest.approx(float(g @ exact / g.norm() / exact.norm()), abs=1e-7)
    assert found.exact_measured
    assert found.exact_error < 1e-7
    assert found.at(10, 40).gradient_error < found.at(2, 40).gradient_error < 1


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_error_of_the_adjoint_is_that_of_the_dense_jacobian(float64, blocks):
    case = quadratic(batch=1, low=0.4)
    found = studied(case, gradient=retune.Truncated(blocks))
    bound, rest = case.bind(), case.answer().detach()
    linear = as_matrix(lambda e: (bound.layer(e) - bound.layer(torch.zeros_like(e))).detach(), tuple(rest.shape[1:]))
    v = (rest - scene_of(case).x).flatten()
    for row in found.depths:
        j = torch.linalg.matrix_power(linear, row.depth)
        w = torch.linalg.solve(torch.eye(20) - j.T, v)
        summed = sum(torch.linalg.matrix_power(j.T, m) @ v for m in range(blocks))
        assert row.adjoint_error == pytest.approx(float((w - summed).norm() / w.norm()), rel=1e-5)
        assert row.adjoint_error <= row.bound * (1 + 1e-9)
        assert row.bound == pytest.approx(found.rate_proved ** (row.depth * blocks))


@pytest.mark.parametrize("solver", [retune.Picard(), retune.Inertial()])
def test_the_decay_of_theory_bounds_the_distance(float64, solver):
    """Far from u*, ``‖u‖`` changes on the way: the bound has the absolute first distance. It is of plain layers."""
    case = quadratic(batch=1, low=0.4)
    found = studied(case, solver=solver)
    rest, bound = case.answer().detach(), case.bind()
    for cell in found.cells:
        if not solver.plain:
            assert cell.distance_bound is None
            assert cell.distance_expected is None
            continue
        n = cell.depth * cell.restarts
        with torch.no_grad():
            u = bound.block(bound.init(), n)
        wanted = found.rate_proved**n * float((bound.init() - rest).norm() / u.norm())
        assert cell.distance_bound == pytest.approx(wanted, rel=1e-6)
        assert cell.distance <= cell.distance_bound * (1 + 1e-9) + 1e-13
        assert cell.distance_expected == pytest.approx(wanted * (found.rate_estimated / found.rate_proved) ** n)
    assert found.rate_kind == "proved if its unchecked assumptions hold"


def test_measured_rates_are_those_of_the_certificate(float64):
    """The map contracts by construction; its dense Jacobian tells the rate."""
    found = studied(quadratic(batch=1, low=0.3, step_size=0.4), depths=(1, 2, 5, 10, 20), restarts=(0, 1, 5, 20))
    assert found.rate_estimated <= found.rate_proved < 1
    assert found.rate_distance == pytest.approx(found.rate_estimated, rel=0.1)
    assert found.rate_gradient == pytest.approx(found.rate_estimated, rel=0.1)


def test_what_a_step_reports_is_within_a_factor_of_two(float64):
    """Of the adjoint at the equilibrium, which is what it estimates."""
    found = studied(quadratic(batch=1, low=0.3, step_size=0.4), depths=(1, 2, 5, 10, 20), restarts=(0, 30))
    for row in found.depths:
        assert 0.5 <= row.reported / row.adjoint_error <= 2, row
        assert 0.5 <= found.at(row.depth, 30).reported / row.adjoint_error <= 2, row


def test_a_certified_bound_holds_and_an_estimate_is_near(float64):
    found = studied(quadratic(batch=1, low=0.4))
    for cell in found.cells:
        assert cell.certified_kind.startswith("proved")
        assert cell.certified >= cell.distance
        assert cell.certified <= 4 * cell.distance + 1e-10


@pytest.mark.parametrize("solver", [retune.Picard(), retune.Damped(), retune.Anderson(), retune.Inertial()])
def test_shared_iterates_are_those_of_a_training_step(float64, solver):
    """Of every depth: a network in train mode starts its block from the same state."""
    case = quadratic(batch=1, low=0.4)
    for depth in (2, 5):
        net = retune.Restarted(case.map, depth, 4, solver=solver).train()
        bound = net.bind(case.y, case.physics).map
        ours = bound.block(states(net, bound, [0, 3, 4 * depth])[4 * depth], depth)
        assert torch.allclose(net.solve(case.y, case.physics).state, ours, rtol=0, atol=1e-12)


def test_a_step_of_the_study_is_a_step_of_the_training(float64):
    case = quadratic(batch=1, low=0.4)
    scene, net = scene_of(case), retune.Restarted(case.map, 5, 3).train()
    flat_gradient = flat((net(case.y, case.physics) - scene.x).square().mean(), case)
    bound = net.bind(case.y, case.physics).map
    found, report = step_gradient(net, scene, net.gradient, 5, states(net, bound, [15])[15])
    assert torch.allclose(found, flat_gradient, rtol=1e-12)
    assert report.relative_error is not None


@pytest.mark.parametrize("reg", [0.3, 0.05, 0.01])
@pytest.mark.parametrize("low", [0.1, 0.4, 0.7])
def test_the_reported_error_of_the_gradient_is_the_true_one_within_a_factor_of_two(float64, low, reg):
    """At the equilibrium, for true errors from 0.1 % to 95 %, at one layer, too."""
    found = studied(quadratic(batch=1, low=low, reg=reg), (1, 2, 5, 10), (0, 400))
    cells = [c for c in found.cells if c.restarts == 400 and c.gradient_error > 1e-6]
    assert {c.depth for c in cells} >= {1, 2, 5}
    for cell in cells:
        assert 0.5 <= cell.reported / cell.gradient_error <= 2


def test_the_mean_is_geometric_and_of_cosines_arithmetic(float64):
    case = quadratic(batch=1)
    net = retune.Restarted(case.map, 2, 3)
    images = [study_image(net, scene_of(case, seed), (2,), (0, 3), 2000) for seed in (9, 10)]
    mean = mean_of(images)
    for cell, one, two in zip(mean.cells, *(i.cells for i in images), strict=True):
        assert cell.gradient_error == pytest.approx((one.gradient_error * two.gradient_error) ** 0.5)
        assert cell.cosine == pytest.approx((one.cosine + two.cosine) / 2)
        assert (cell.depth, cell.restarts) == (one.depth, one.restarts)


def test_a_network_that_learns_nothing_is_named(float64):
    case = quadratic(batch=1)
    case.map.requires_grad_(False)
    with pytest.raises(retune.errors.InvalidParameterError, match="every parameter of this network is frozen"):
        studied(case)


def test_a_solver_whose_iterates_depend_on_the_depth_is_refused(float64):
    class Blocks(retune.Picard):
        plain = False

    case = quadratic(batch=1)
    with pytest.raises(retune.errors.InvalidParameterError, match=r"model\.solver=picard"):
        studied(case, solver=Blocks())


def test_a_rate_is_fitted_to_late_errors_above_rounding():
    errors = {n: 0.9**n + 5 * 0.5**n for n in (0, 5, 20, 50, 100, 200)} | {400: 1e-14}
    assert fitted_rate(errors, 1e-12) == pytest.approx(0.9, rel=1e-6)
    assert fitted_rate({1: 1e-14, 2: 0.5}, 1e-12) is None
    assert fitted_rate({1: None, 2: 0.5, 3: 0.25}, 1e-12) == pytest.approx(0.5)


def test_geometric_means():
    assert geometric_mean([0.1, 0.001]) == pytest.approx(0.01)
    assert geometric_mean([0.1, 0.0]) == 0
    assert geometric_mean([0.1, None]) is None


def test_relative_error_and_cosine():
    error, cosine = relative_error(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]))
    assert (error, cosine) == (1.0, 1.0)


@pytest.mark.parametrize("limit", [20, 19])
def test_the_error_of_the_exact_gradient_is_measured_on_small_images(float64, monkeypatch, limit):
    """A solution of the adjoint equation that is wrong is found by the dense system, if the state has few values."""
    monkeypatch.setattr("retune.studies.exact.DENSE", limit)
    monkeypatch.setattr("retune.studies.exact.RTOL", 0.3)
    case = quadratic(batch=1, low=0.4)
    assert case.bind().init().numel() == 20
    found = studied(case, depths=(1,), restarts=(0, 300))
    assert found.exact_measured == (limit == 20)
    bound, rest = case.bind(), case.answer().detach()
    linear = as_matrix(lambda e: (bound.layer(e) - bound.layer(torch.zeros_like(e))).detach(), tuple(rest.shape[1:]))
    v = (rest - scene_of(case).x).flatten() * 2 / 20  # of the mean over 20 values
    w = torch.linalg.solve(torch.eye(20) - linear.T, v)
    rough = retune.Truncated(rtol=0.3, max_blocks=20_000, memory=20)
    kept = []
    memory = AdjointMemory(lambda v: (torch.zeros_like(v), torch.ones(1)), lambda w, *_: kept.append(w))
    net = retune.Restarted(case.map, 1, 3)
    step_gradient(net, scene_of(case), rough, 1, rest, memory)
    true = float((kept[0].flatten() - w).norm() / w.norm())
    assert true > 1e-3
    if limit == 20:
        assert found.exact_error == pytest.approx(true, rel=1e-3)
    else:
        assert found.exact_error != pytest.approx(true, rel=1e-3)
