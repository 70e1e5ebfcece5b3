"""Anderson acceleration: the same equilibrium, sooner, and never much later."""

from __future__ import annotations

import pytest
import torch

import retune
from retune import Anderson, Picard, Status, Stop
from retune.errors import InvalidParameterError
from retune.solve import solve
from small_parts import rand


def linear(rho: float, size: int = 40, batch: int = 1, seed: int = 0):
    """``u ↦ M u + b`` with M symmetric, eigenvalues spread over [0, ρ]; and its fixed point."""
    q, _ = torch.linalg.qr(rand(size, size, seed=seed))
    matrix = q @ torch.diag(torch.linspace(0, rho, size).to(q)) @ q.T
    b = rand(batch, size, seed=seed + 1)
    return lambda u, k: u @ matrix + b, torch.linalg.solve(torch.eye(size).to(q) - matrix, b.T).T


def run(layer, start, solver, rtol=1e-8, most=5000, depth=1):
    return solve(layer, start, solver=solver, depth=depth, stop=Stop(rtol, most))


@pytest.mark.parametrize("rho", [0.9, 0.99, 0.999])
def test_fewer_evaluations_to_the_same_point(rho, float64):
    layer, answer = linear(rho)
    plain = run(layer, torch.zeros(1, 40), Picard())
    fast = run(layer, torch.zeros(1, 40), Anderson())
    assert fast.status == (Status.CONVERGED,)
    assert int(fast.layers) <= 0.5 * int(plain.layers)
    assert (fast.u - answer).norm() <= 10 * (plain.u - answer).norm() + 1e-6


def test_images_do_not_know_of_each_other(float64):
    layers = [linear(r, seed=s)[0] for r, s in ((0.5, 1), (0.99, 2))]
    start = rand(2, 40, seed=3)

    def both(u, k):
        return torch.stack([f(u[i : i + 1], k)[0] for i, f in enumerate(layers)])

    together = run(both, start, Anderson())
    for i, layer in enumerate(layers):
        alone = run(layer, start[i : i + 1], Anderson())
        torch.testing.assert_close(together.u[i], alone.u[0], rtol=0, atol=1e-12)
        assert together.layers[i] == alone.layers[0]


def test_a_start_at_the_equilibrium_stays(float64):
    layer, answer = linear(0.9)
    result = run(layer, answer.clone(), Anderson(), rtol=0.0, most=30)
    assert torch.isfinite(result.u).all()
    torch.testing.assert_close(result.u, answer, rtol=1e-10, atol=1e-10)


def test_coinciding_points_make_no_singular_system(float64):
    result = run(lambda u, k: torch.ones_like(u), torch.zeros(1, 7), Anderson(), rtol=0.0, most=20)
    torch.testing.assert_close(result.u, torch.ones(1, 7))


def test_a_rotation_which_plain_restarts_never_solve(float64):
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    start = torch.tensor([[1.0, 0.5]])
    assert run(lambda u, k: u @ turn + 1, start, Picard(), most=200).status == (Status.MAX_LAYERS,)
    fast = run(lambda u, k: u @ turn + 1, start, Anderson(), most=200)
    assert fast.status == (Status.CONVERGED,)
    torch.testing.assert_close(fast.u @ turn + 1, fast.u, rtol=1e-7, atol=1e-7)


def test_an_extrapolation_that_fails_is_taken_back(float64):
    """A kink that the linear model cannot see: the residual is bounded by `growth` times the best one."""
    solver = Anderson(growth=1.2)
    state = solver.init(torch.full((1, 3), 5.0))

    def kinked(u):
        return torch.where(u > 1, 0.9 * u, -0.95 * u)

    least, sizes = torch.inf, []
    for _ in range(60):
        state = solver.step(kinked, state)
        sizes.append(float(state.change.norm()))
        here = float((kinked(state.u) - state.u).norm())
        least = min(least, sizes[-1])
        assert here <= 3 * max(least, 1e-12) or here <= sizes[0]
    assert sizes[-1] < 1e-2 * sizes[0]


def test_nan_is_a_status(float64):
    calls = []

    def layer(u, k):
        calls.append(k)
        return u * (0.5 if len(calls) < 8 else torch.nan)

    result = run(layer, torch.ones(1, 3), Anderson(), rtol=1e-12)
    assert result.status == (Status.NOT_FINITE,)
    assert torch.isfinite(result.u).all()


def test_float32_and_long_runs_stay_finite():
    layer, answer = linear(0.99)
    result = run(layer, torch.zeros(1, 40), Anderson(), rtol=0.0, most=500)
    assert result.u.dtype == torch.float32
    assert (result.u - answer).norm() <= 1e-3 * answer.norm()


def test_it_is_saved_with_the_network(tmp_path):
    prior = retune.priors.WaveletL1("haar", 2)
    net = retune.Restarted(retune.ForwardBackward(prior), solver=Anderson(memory=3, growth=2.0))
    net.save(tmp_path / "net.safetensors")
    assert retune.load(tmp_path / "net.safetensors").describe() == net.describe()


@pytest.mark.parametrize(
    "options", [{"memory": 1}, {"memory": 10**6}, {"regularisation": 0.0}, {"growth": 1.0}, {"pause": 0}]
)
def test_bad_options(options):
    with pytest.raises(InvalidParameterError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        Anderson(**options)


@pytest.mark.parametrize("needed", [50, 310, 900])
def test_at_most_twice_the_evaluations_of_plain_steps_whatever_the_map_does(needed, float64):
    """A map that settles after so many plain steps from the start, and from nowhere else."""
    start = torch.zeros(1, 2)

    def clock(u, k):
        """Counts in the first entry, as long as it is a whole number; the second one moves away from the answer."""
        counting = (u[:, :1] - u[:, :1].round()).abs() < 1e-9
        on = torch.where(counting, (u[:, :1] + 1).clamp_max(needed), u[:, :1] + 0.37)
        return torch.cat([on, torch.where(on < needed, torch.sin(37 * on), 0.0)], 1)

    plain = run(clock, start, Picard(), most=20000, rtol=1e-12)
    fast = run(clock, start, Anderson(), most=20000, rtol=1e-12)
    assert plain.status == fast.status == (Status.CONVERGED,)
    assert int(fast.layers) <= 2 * int(plain.layers) + 200 + 10


def test_what_was_reached_is_not_lost_in_a_turn_of_plain_steps(float64):
    layer, answer = linear(0.99999)
    errors = [
        float((run(layer, torch.zeros(1, 40), Anderson(), rtol=0.0, most=most).u - answer).norm())
        for most in (199, 230, 399)
    ]
    assert errors[1] <= 1.01 * errors[0]
    assert errors[2] <= 1.01 * errors[0]
