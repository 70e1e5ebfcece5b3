"""A cycle of the map is no equilibrium, whatever solver, depth and number of layers it meets."""

from __future__ import annotations

import pytest
import torch

import retune
from known_answers import CASES
from retune import Anderson, Damped, Inertial, Picard, Status, Stop
from retune.solve import solve
from small_parts import rand

SOLVERS = [Picard(), Damped(), Anderson(), Inertial()]


def shift():
    """``u ↦ P u`` with P a cyclic shift: every state but the constant ones is in a cycle."""
    return lambda u, k: u.roll(1, 1)


def steep(u, k):
    """A 2-cycle attracts here, and the equilibrium 0.5 repels."""
    return 0.5 - 1.6 * torch.tanh(u - 0.5)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("depth", [1, 2, 3, 5, 9, 10, 15, 30])
@pytest.mark.parametrize("period", [2, 3, 5])
@pytest.mark.parametrize("most", [200, 203])
def test_no_cycle_is_called_converged(solver, depth, period, most, float64):
    layer, start = shift(), rand(2, period, seed=period)
    found = solve(layer, start, solver=solver, depth=depth, cycle=1, stop=Stop(1e-4, most))
    for i, status in enumerate(found.status):
        moved = float((layer(found.u, 0) - found.u)[i].norm() / found.u[i].norm())
        assert status is not Status.CONVERGED or moved < 1e-4
        assert status is Status.CONVERGED or moved * depth > 1e-5
    if solver is SOLVERS[1]:
        assert set(found.status) == {Status.CONVERGED}
        torch.testing.assert_close(found.u, start.mean(1, keepdim=True).expand_as(start), rtol=0, atol=1e-3)


@pytest.mark.parametrize("depth", [2, 4, 10])
def test_plain_steps_end_early_where_they_oscillate(depth, float64):
    start = torch.tensor([[0.2, 0.9], [0.5, 0.5]])
    found = solve(steep, start, solver=Picard(), depth=depth, cycle=1, stop=Stop(1e-4, 2000))
    assert found.status == (Status.OSCILLATES, Status.CONVERGED)
    assert int(found.layers[0]) < 200
    assert float(found.residual[0]) > 0.1
    assert "Damped" in found.status[0].advice
    assert not found.status[0].failed


def test_an_approach_from_alternating_sides_is_no_oscillation(float64):
    """An eigenvalue of −0.9: the layers of a block nearly cancel, but each block is nearer to the equilibrium."""
    alternating = torch.tensor([[1.0, -0.9]])
    start, seen = torch.tensor([[1.0, 0.05]]), []
    for most in range(12, 121, 6):
        found = solve(lambda u, k: alternating * u, start, solver=Picard(), depth=6, cycle=1, stop=Stop(1e-4, most))
        seen.append(found.status[0])
    first = seen.index(Status.CONVERGED)
    assert seen == [Status.MAX_LAYERS] * first + [Status.CONVERGED] * (len(seen) - first)
    assert 0 < first < len(seen) - 1


@pytest.mark.parametrize("depth", [3, 9])
def test_a_short_last_block_is_scaled_by_its_own_length(depth, float64):
    """2000 layers leave a block of two layers over, which comes back to its start in a 2-cycle."""
    found = solve(steep, torch.full((1, 4), 0.2), solver=Picard(), depth=depth, cycle=1, stop=Stop(1e-4, 2000))
    assert found.status == (Status.MAX_LAYERS,)
    moved = float((steep(found.u, 0) - found.u).norm() / found.u.norm())
    assert float(found.residual) == pytest.approx(depth * moved, rel=1e-6)


def test_a_short_last_block_of_a_slow_map(float64):
    """A drift of constant speed has the same residual, however long the last block is."""
    for most in (20, 23, 29):
        found = solve(lambda u, k: u + 1e-3, torch.full((1, 4), 1e3), solver=Picard(), depth=10, stop=Stop(1e-9, most))
        assert float(found.residual) == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize("solver", [Damped(), Anderson(), Inertial()], ids=repr)
@pytest.mark.parametrize("depth", [1, 4, 9, 10])
def test_the_equilibrium_in_the_middle_of_a_cycle_is_found(solver, depth, float64):
    start = torch.tensor([[0.2, 0.9, 0.7]])
    found = solve(steep, start, solver=solver, depth=depth, cycle=1, stop=Stop(1e-6, 500))
    assert found.status == (Status.CONVERGED,)
    torch.testing.assert_close(found.u, torch.full_like(start, 0.5), rtol=0, atol=1e-5)


def test_relaxing_a_cycle_settles_what_relaxing_a_block_does_not(float64):
    """Eigenvalue −1: ``((1 − θ)I + θT)ⁿ`` settles it, ``((1 − θ)I + θT^K)ⁿ`` with an even K does not (THEORY 6)."""
    basis = torch.linalg.qr(rand(4, 4))[0]
    matrix = basis @ torch.diag(torch.tensor([-1.0, 0.9, 0.2, -0.5])) @ basis.T
    u = v = rand(4, seed=1)
    for _ in range(400):
        u = 0.5 * u + 0.5 * matrix @ u
        v = 0.5 * v + 0.5 * torch.linalg.matrix_power(matrix, 2) @ v
    assert float((matrix @ u - u).norm()) < 1e-8
    assert float((matrix @ v - v).norm()) > 0.1


def test_a_block_of_an_averaged_map_has_no_other_equilibria(float64):
    """T = (1 − α)I + αN with N nonexpansive: the kernels of I − T and I − T^K are the same (THEORY 6)."""
    for seed in range(20):
        nonexpansive = torch.block_diag(torch.linalg.qr(rand(6, 6, seed=seed))[0], -torch.eye(2), torch.eye(2))
        alpha = 0.1 + 0.85 * float(torch.rand(1, generator=torch.Generator().manual_seed(seed)))
        averaged = (1 - alpha) * torch.eye(10) + alpha * nonexpansive
        for depth in (2, 3, 6):
            power = torch.linalg.matrix_power(averaged, depth)
            ranks = [int(torch.linalg.matrix_rank(torch.eye(10) - m, atol=1e-9)) for m in (averaged, power)]
            assert ranks[0] == ranks[1]
        assert int(torch.linalg.matrix_rank(torch.eye(10) - nonexpansive @ nonexpansive, atol=1e-9)) < ranks[0]


def test_every_cycle_within_the_block_counts_for_a_map_of_different_layers(float64):
    """Two layers to a cycle: at the equilibrium one layer moves the state, and a cycle does not."""
    found = solve(
        lambda u, k: 0.5 * u + (1.0 if k % 2 else -1.0),
        torch.zeros(1, 3),
        solver=Picard(),
        depth=10,
        cycle=2,
        stop=Stop(1e-8, 500),
    )
    assert found.status == (Status.CONVERGED,)
    assert float(found.residual) <= 1e-8


class Jumpy(torch.nn.Module):
    """A denoiser around which plain steps jump between two images."""

    def forward(self, x, sigma):
        return 0.5 - 1.6 * torch.tanh(x - 0.5)


def network(solver=None, depth=10):
    prior = retune.priors.Denoiser(Jumpy(), 0.05)
    return retune.Restarted(retune.ForwardBackward(prior, step_size=0.05), depth, 6, solver=solver)


def test_the_network_warns_of_an_oscillation():
    case = CASES["denoise_l1"]()
    net = network(Picard()).eval()
    with pytest.warns(retune.errors.NotConvergedWarning, match=r"images \[0\] oscillate .*lower the step size"):
        net(case.y.to(torch.float32)[:1], case.physics)


def test_the_default_solver_finds_the_equilibrium():
    case = CASES["denoise_l1"]()
    net = network().eval()
    y = case.y.to(torch.float32)[:1]
    result = net.solve(y, case.physics)
    assert result.status == (Status.CONVERGED,)
    bound = net.map.bind(net.map.data_term(y, case.physics))
    with torch.no_grad():
        moved = bound.layer(result.state) - result.state
    assert float(moved.norm() / result.state.norm()) < 1e-4


def test_a_training_step_at_a_cycle_says_so():
    """The gradient is formed at the two images of a cycle, where the residual of the block is 0."""
    case = CASES["denoise_l1"]()
    net = network(Picard()).train()
    result = net.solve(case.y.to(torch.float32)[:1], case.physics)
    assert result.status == (Status.OSCILLATES,)
    assert float(result.residual) > 0.1
    odd = network(Picard(), depth=9).train().solve(case.y.to(torch.float32)[:1], case.physics)
    assert float(odd.residual) > 0.1


@pytest.mark.parametrize("scale", [1e-25, 1e-20, 1e19])
@pytest.mark.parametrize("solver", [Picard(), Damped()], ids=["picard", "damped"])
def test_an_image_settles_at_any_scale(solver, scale):
    """A linear map: the squares of the changes are 0 or infinite in float32, the changes are not."""

    def layer(u, k):
        return 0.9 * u.flip(-1) + 0.1 * start

    torch.manual_seed(0)
    found = []
    for size in (1.0, scale):
        start = size * torch.linspace(0.1, 1, 64).view(1, 1, 8, 8)
        found.append(solve(layer, start.flip(-1), solver=solver, depth=2, cycle=1, stop=Stop(1e-4, 500)))
    assert found[0].status == found[1].status == (Status.CONVERGED,)
    assert int(found[0].layers) == int(found[1].layers)
    torch.testing.assert_close(found[1].u / scale, found[0].u, rtol=1e-4, atol=0)
    assert float(found[1].residual) == pytest.approx(float(found[0].residual), rel=1e-2)
