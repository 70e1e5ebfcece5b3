"""THE loop: every image of a batch is stopped, judged and reported on its own."""

import pytest
import torch

from retune import Anderson, Inertial, Picard, Status, Stop
from retune.errors import InvalidParameterError
from retune.solve import solve
from small_parts import rand


def contraction(*factors: float):
    """``T(u) = 1 + c (u − 1)`` with one factor c per image: the fixed point is 1."""
    c = torch.tensor(factors).reshape(-1, 1)
    return lambda u, k: 1 + c[: len(u)] * (u - 1)


def run(layer, u, **options):
    options = {"solver": Picard(), "depth": 1, "stop": Stop(rtol=1e-6, max_layers=1000), **options}
    return solve(layer, u, **options)


@pytest.mark.parametrize("depth", [1, 3, 10, 25])
def test_unequal_images_get_the_result_they_get_alone(depth, float64):
    factors, u = (0.1, 0.5, 0.95), rand(3, 7)
    together = run(contraction(*factors), u, depth=depth)
    assert set(together.status) == {Status.CONVERGED}
    assert together.layers.tolist() == sorted(together.layers.tolist())
    assert together.layers[0] < together.layers[2]
    for i, c in enumerate(factors):
        alone = run(contraction(c), u[i : i + 1], depth=depth)
        assert torch.equal(alone.u[0], together.u[i])
        assert alone.layers[0] == together.layers[i]
        assert torch.equal(alone.residual[0], together.residual[i])


@pytest.mark.parametrize("solver", [Anderson(), Inertial()], ids=repr)
def test_from_a_start_near_the_end_a_block_of_plain_steps_comes_first(solver, float64):
    """Image 0 is at rest after that block, and is what plain steps make of it; image 1 is accelerated from there."""
    layer, u = contraction(0.5, 0.97), torch.stack([1 + 1e-7 * rand(7), rand(7, seed=1)])
    near = run(layer, u, solver=solver, depth=5, cycle=1, near=True)
    plain = run(layer, u, depth=5)
    assert set(near.status) == {Status.CONVERGED}
    assert near.layers[0] == 5
    assert torch.equal(near.u[0], plain.u[0])
    assert near.layers[1] < plain.layers[1] / 2
    assert float((near.u[1] - 1).abs().max()) < 1e-4
    far = run(layer, u, solver=solver, depth=5, cycle=1)
    assert near.layers[1] <= far.layers[1] + 10


def test_a_converged_image_stops_changing():
    """The image at its reported number of layers is the image that is returned, however long the others run."""
    seen = {}
    u = rand(2, 5)
    result = run(contraction(0.01, 0.97), u, depth=10, observe=lambda n, z: seen.__setitem__(n, z))
    early, late = result.layers.tolist()
    assert early < late
    for layers, z in seen.items():
        if layers >= early:
            assert torch.equal(z[0], result.u[0])
    assert torch.equal(seen[late][1], result.u[1])


@pytest.mark.parametrize("depth", [1, 4, 10])
def test_residual_is_the_relative_change_of_the_last_block(depth, float64):
    u = rand(1, 6)
    result = run(contraction(0.8), u, depth=depth)
    assert float(result.residual) <= 1e-6
    layer, before = contraction(0.8), u
    for k in range(int(result.layers) - depth):
        before = layer(before, k)
    assert float(result.residual) == pytest.approx(float((result.u - before).norm() / result.u.norm()), rel=1e-6)


@pytest.mark.parametrize("rtol", [1e-2, 1e-5])
def test_looser_tolerance_stops_earlier(rtol):
    loose, tight = (run(contraction(0.9), torch.zeros(1, 3), stop=Stop(t)).layers for t in (rtol, rtol / 100))
    assert loose < tight


@pytest.mark.parametrize("depth", [1, 4, 7])
def test_fixed_number_of_layers(depth, float64):
    u = rand(2, 5)
    result = run(contraction(0.9, 0.5), u, depth=depth, stop=Stop(rtol=0.0, max_layers=21))
    assert result.layers.tolist() == [21, 21]
    assert set(result.status) == {Status.DEPTH_REACHED}
    torch.testing.assert_close(result.u, 1 + torch.tensor([[0.9], [0.5]]) ** 21 * (u - 1))


def test_layers_are_counted_within_the_cycle():
    order = []
    solve(
        lambda u, k: order.append(k) or 0.5 * u, torch.ones(1, 2), solver=Picard(), depth=3, stop=Stop(0.0, 7)
    )  # fmt: skip
    assert order == [0, 1, 2, 0, 1, 2, 0]


def test_no_layers():
    u = rand(2, 3)
    result = run(contraction(0.5, 0.5), u, stop=Stop(max_layers=0))
    assert torch.equal(result.u, u)
    assert result.layers.tolist() == [0, 0]
    assert set(result.status) == {Status.MAX_LAYERS}


def test_running_out_of_layers_is_said():
    result = run(contraction(0.1, 0.9999), torch.zeros(2, 3), stop=Stop(1e-6, 50))
    assert result.status == (Status.CONVERGED, Status.MAX_LAYERS)
    assert result.layers[1] == 50
    assert "max_layers" in result.status[1].advice


@pytest.mark.parametrize("depth", [1, 5, 10])
def test_divergence_is_a_status_of_its_image(depth):
    result = run(contraction(0.5, 1.7, 0.5), torch.zeros(3, 4), depth=depth)
    assert result.status == (Status.CONVERGED, Status.DIVERGED, Status.CONVERGED)
    assert bool(torch.isfinite(result.u).all())
    assert "step size" in result.status[1].advice
    torch.testing.assert_close(result.u[0], torch.ones(4), rtol=1e-4, atol=1e-4)


def test_a_large_but_convergent_transient_is_not_divergence():
    """From far away towards a small fixed point, or from zero to a large one."""
    assert run(contraction(0.5), torch.full((1, 3), 1e8)).status == (Status.CONVERGED,)
    assert run(lambda u, k: 1e8 + 0.5 * (u - 1e8), torch.zeros(1, 3)).status == (Status.CONVERGED,)


def nan_after(n: int, bad: float):
    calls = []

    def layer(u, k):
        calls.append(k)
        new = 1 + 0.9 * (u - 1)
        if len(calls) > n:
            new = new.clone()
            new[0, 0] = bad
        return new

    return layer


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("after", [0, 25])
def test_not_finite_is_a_status_of_its_image(bad, after):
    """The last finite iterate that was looked at is kept; the other image is not disturbed."""
    u = torch.zeros(2, 3)
    result = run(nan_after(after, bad), u, depth=10)
    assert result.status == (Status.NOT_FINITE, Status.CONVERGED)
    assert bool(torch.isfinite(result.u).all())
    assert int(result.layers[0]) == after // 10 * 10
    torch.testing.assert_close(result.u[0], 1 - torch.full((3,), 0.9 ** (after // 10 * 10)))
    torch.testing.assert_close(result.u[1], torch.ones(3), rtol=1e-4, atol=1e-4)
    assert float(result.residual[0]) == float("inf")


def test_zero_is_a_fixed_point_like_any_other():
    result = run(lambda u, k: 0.5 * u, torch.zeros(1, 3))
    assert result.status == (Status.CONVERGED,)
    assert float(result.residual) == 0


def test_trace_records_every_look(float64):
    result = run(contraction(0.5, 0.9), rand(2, 4), depth=10, trace=True)
    counts, residual = result.trace.layers, result.trace.residual
    assert counts == tuple(range(10, 10 * len(counts) + 1, 10))
    assert residual.shape == (len(counts), 2)
    assert torch.equal(residual[-1], result.residual)
    assert counts[-1] == int(result.layers.max())
    assert bool((residual[1:] <= residual[:-1] * (1 + 1e-12)).all())
    assert run(contraction(0.5), rand(1, 4)).trace is None


def vandal(layers, u):
    u.mul_(0).add_(17)


@pytest.mark.parametrize("batch", [1, 3])
def test_observing_changes_nothing(batch):
    u, layer = rand(batch, 4), contraction(0.3, 0.8, 0.9)
    plain = run(layer, u)
    for options in ({"observe": vandal}, {"trace": True}, {"observe": vandal, "trace": True}):
        watched = run(layer, u, **options)
        assert torch.equal(plain.u, watched.u)
        assert torch.equal(plain.residual, watched.residual)
        assert torch.equal(plain.layers, watched.layers)


def test_the_start_is_left_alone():
    u = rand(2, 4)
    kept = u.clone()
    run(contraction(0.3, 0.8), u)
    assert torch.equal(u, kept)


def test_every_status_has_advice():
    for status in Status:
        assert len(status.advice) > 20
        assert status.failed == (status in (Status.DIVERGED, Status.NOT_FINITE))


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"rtol": -1e-3}, "rtol=-0.001"),
        ({"rtol": 1.0}, "rtol=1.0"),
        ({"rtol": float("nan")}, "rtol=nan"),
        ({"max_layers": -1}, "max_layers=-1"),
        ({"max_layers": 2.5}, "max_layers must be a whole number, got 2.5"),
    ],
)
def test_bad_stop(options, given):
    with pytest.raises(InvalidParameterError, match=given):
        Stop(**options)
