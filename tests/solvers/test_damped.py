"""Damped restarts: nothing changes for a contraction, and what plain restarts cannot settle is settled or reported."""

from __future__ import annotations

import pytest
import torch

import retune
from known_answers import CASES
from retune import Damped, Picard, Status, Stop
from retune.errors import InvalidParameterError
from retune.solve import solve
from small_parts import rand


def run(layer, start, solver, rtol=1e-9, most=2000, depth=1):
    return solve(layer, start, solver=solver, depth=depth, stop=Stop(rtol, most))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("depth", [1, 4])
def test_bitwise_the_plain_restarts_of_a_nonexpansive_map(case, depth):
    made = CASES[case]()
    depth *= made.map.layers
    images = []
    for solver in (Picard(), Damped()):
        net = retune.Restarted(made.map, depth=depth, solver=solver, stop=Stop(1e-5, 500)).eval()
        result = net.solve(made.y, made.physics, trace=True)
        images.append((result.image, result.layers, result.trace.residual))
    for a, b in zip(*images, strict=True):
        assert torch.equal(a, b)


def test_settles_what_plain_restarts_do_not(float64):
    """Eigenvalues −1.5 and 0.3: the residual grows by half at every plain restart."""
    slope = torch.tensor([-1.5, 0.3])
    start, b = torch.zeros(1, 2), torch.tensor([1.0, -2.0])
    assert run(lambda u, k: slope * u + b, start, Picard()).status[0] is not Status.CONVERGED
    result = run(lambda u, k: slope * u + b, start, Damped())
    assert result.status == (Status.CONVERGED,)
    torch.testing.assert_close(result.u, (b / (1 - slope))[None], rtol=0, atol=1e-8)


@pytest.mark.parametrize(("angle", "growth"), [(0.5, 1.0), (1.5, 1.0), (1.5, 1.05)])
def test_rotations_are_damped(angle, growth, float64):
    """Their residual grows slowly or not at all."""
    c, s = growth * torch.cos(torch.tensor(angle)), growth * torch.sin(torch.tensor(angle))
    turn = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
    centre = torch.tensor([[3.0, -2.0]])
    result = run(lambda u, k: centre + (u - centre) @ turn.T, torch.zeros(1, 2), Damped(), rtol=1e-6, most=5000)
    assert result.status == (Status.CONVERGED,)
    torch.testing.assert_close(result.u, centre, rtol=0, atol=1e-4)


def test_each_image_by_itself(float64):
    """The contractive image of a mixed batch is bitwise what it is alone under plain restarts."""
    slopes = torch.tensor([[0.9, 0.2], [-1.5, 0.2], [-20.0, 0.5]])
    b = rand(3, 2)
    together = run(lambda u, k: slopes * u + b, torch.zeros(3, 2), Damped())
    alone = run(lambda u, k: slopes[:1] * u + b[:1], torch.zeros(1, 2), Picard())
    assert torch.equal(together.u[0], alone.u[0])
    assert together.layers[0] == alone.layers[0]
    assert together.status == (Status.CONVERGED,) * 3
    torch.testing.assert_close(together.u, b / (1 - slopes), rtol=0, atol=1e-7)


@pytest.mark.parametrize("slope", [1.1, 2.0, 50.0])
def test_no_stable_equilibrium_is_never_called_settled(slope, float64):
    result = run(lambda u, k: slope * u + 1, torch.ones(1, 3), Damped(), rtol=1e-4)
    assert result.status[0] in (Status.MAX_LAYERS, Status.DIVERGED)
    assert bool(torch.isfinite(result.u).all())


def test_the_residual_is_that_of_the_map_not_of_the_damped_step(float64):
    """A tiny θ makes tiny steps; they must not pass for a small residual."""
    solver = Damped(shrink=1e-6, floor=1e-6)
    result = run(lambda u, k: -1.5 * u + 1, torch.zeros(1, 1), solver, rtol=1e-3, most=50)
    assert result.status == (Status.MAX_LAYERS,)
    assert float(result.residual) > 0.1


@pytest.mark.parametrize("depth", [1, 3])
def test_nan_is_a_status_and_stays_with_its_image(depth, float64):
    calls = []

    def layer(u, k):
        calls.append(k)
        broken = torch.tensor([[1.0], [1.0 if len(calls) < 8 else torch.nan]])
        return (0.5 * u + 1) * broken

    result = run(layer, torch.ones(2, 3), Damped(), depth=depth)
    assert result.status == (Status.CONVERGED, Status.NOT_FINITE)
    assert bool(torch.isfinite(result.u).all())


def test_rounding_at_the_equilibrium_is_no_growth():
    """A settled image wavers in its last bits for long; it keeps its plain restarts."""
    solver, b = Damped(), rand(1, 60)
    turn = 0.9 * torch.linalg.qr(rand(60, 60))[0]
    state, grew = solver.init(torch.zeros(1, 60)), 0
    for _ in range(400):
        before = state.memory[1]
        state = solver.step(lambda u: u @ turn + b, state)
        grew += int(state.memory[1] > before)
    assert grew > 10  # by rounding
    assert float(state.memory[0]) == 1.0


def test_default_of_a_map_that_may_expand_and_only_of_that():
    net = retune.Restarted(retune.ForwardBackward(retune.priors.Denoiser(torch.nn.Identity(), sigma=None)))
    assert isinstance(net.solver, Damped)
    assert isinstance(retune.Restarted(CASES["quadratic"]().map).training_solver, Picard)


def test_it_is_saved_with_the_network(tmp_path):
    net = retune.Restarted(CASES["denoise_l1"]().map, solver=Damped(shrink=0.3, floor=0.1))
    net.save(tmp_path / "net.safetensors")
    assert retune.load(tmp_path / "net.safetensors").describe() == net.describe()


@pytest.mark.parametrize("options", [{"shrink": 0.0}, {"shrink": 1.0}, {"floor": 0.0}, {"floor": 1.5}])
def test_bad_options(options):
    with pytest.raises(InvalidParameterError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        Damped(**options)


def test_growth_that_passes_does_not_stay(float64):
    """Eigenvalues 0.9 and 0.8, far from orthogonal: the residual grows tenfold before it falls."""
    slope, b = torch.tensor([[0.9, 4.0], [0.0, 0.8]]), torch.tensor([0.0, 1.0])
    plain = run(lambda u, k: u @ slope.T + b, torch.zeros(1, 2), Picard())
    damped = run(lambda u, k: u @ slope.T + b, torch.zeros(1, 2), Damped())
    assert damped.status == (Status.CONVERGED,)
    assert int(damped.layers) <= 3 * int(plain.layers)  # it was not settled after 2000 when θ was only lowered
    torch.testing.assert_close(damped.u, plain.u, rtol=1e-6, atol=0)


def test_holes_are_restored_as_by_plain_restarts():
    """Plug-and-Play with the default solver, from the usual start, in which holes are filled in."""
    x = retune.data.photograph("astronaut")[None, :, 100:148, 180:228]
    y, physics = retune.problems.Inpaint(keep=0.5, sigma=0.05).measure(x, 3)
    prior = retune.priors.Denoiser(retune.weights.load("denoiser-color"), 0.1)
    errors = []
    for solver in (Picard(), None):
        net = retune.Restarted(retune.ForwardBackward(prior), 5, solver=solver, stop=Stop(1e-3, 300)).eval()
        errors.append(float((net.solve(y, physics).image - x).square().mean()))
    assert isinstance(net.solver, Damped)
    assert errors[1] < 1.05 * errors[0]


def test_an_image_that_drifts_from_its_best_is_held_back(float64):
    """Eigenvalue 1.2 in a direction that is entered slowly: plain restarts ruin the image, this one keeps it."""
    slope, start = torch.tensor([1.2, 0.5]), torch.tensor([[1e-3, 1.0]])
    plain = run(lambda u, k: slope * u, start, Picard(), most=60)
    damped = run(lambda u, k: slope * u, start, Damped(), most=60)
    assert float(plain.u.norm()) > 10
    assert float(damped.u.norm()) < 0.1
    assert damped.status == (Status.MAX_LAYERS,)
