"""Inertia: valid for every step size, restarted by itself, taken back where it fails."""

from __future__ import annotations

import pytest
import torch

import retune
from known_answers import CASES
from retune import Anderson, Inertial, Picard, Status, Stop
from retune.errors import InvalidParameterError
from retune.solve import solve
from retune.solvers import _safeguard, inertial
from small_parts import rand, soft


def linear(low: float, high: float, size: int = 40, batch: int = 1, seed: int = 0):
    """``u ↦ M u + b`` with M symmetric, eigenvalues spread over [low, high]; and its fixed point."""
    q, _ = torch.linalg.qr(rand(size, size, seed=seed))
    matrix = q @ torch.diag(torch.linspace(low, high, size).to(q)) @ q.T
    b = rand(batch, size, seed=seed + 1)
    return lambda u, k: u @ matrix + b, torch.linalg.solve(torch.eye(size).to(q) - matrix, b.T).T


def run(layer, start, solver, rtol=1e-6, most=20000, **options):
    return solve(layer, start, solver=solver, depth=1, stop=Stop(rtol, most), **options)


@pytest.mark.parametrize("low", [0.0, -0.8, -0.99])
@pytest.mark.parametrize("high", [0.98, 0.995])
def test_fewer_evaluations_to_the_same_point_for_every_step_size(low, high, float64):
    """An eigenvalue of −0.8 is what τ = 1.8/L gives, and where inertia on the bare map diverges."""
    layer, answer = linear(low, high)
    plain = run(layer, torch.zeros(1, 40), Picard())
    fast = run(layer, torch.zeros(1, 40), Inertial())
    assert fast.status == (Status.CONVERGED,)
    assert int(fast.layers) <= 0.35 * int(plain.layers)
    assert (fast.u - answer).norm() <= 1e-6 / (1 - high) * answer.norm()  # the residual over the gap of the spectrum


def test_the_gain_grows_with_the_conditioning(float64):
    """Inertia costs √κ where plain steps cost κ."""
    gains = []
    for high in (0.9, 0.98, 0.996):
        layer, _ = linear(0.0, high)
        counts = [int(run(layer, torch.zeros(1, 40), s).layers) for s in (Picard(), Inertial())]
        gains.append(counts[0] / counts[1])
    assert gains[1] > 1.5 * gains[0]
    assert gains[2] > 2 * gains[1]


@pytest.mark.parametrize("low", [0.9, 0.999])
def test_one_step_against_the_formulas(low, float64):
    """x⁺ = y + λ(Φ(y) − y) and y⁺ = x⁺ + β(x⁺ − x), on maps slow enough for inertia to begin at once."""
    layer, _ = linear(low, 0.999)
    x = y = torch.zeros(1, 40)
    state = Inertial(relaxation=0.5).init(y)
    k, moved, slowest = None, None, 1.0
    for _ in range(12):
        state = Inertial(relaxation=0.5).step(lambda u: layer(u, 0), state)
        image = layer(y, 0)
        torch.testing.assert_close(state.u, image, rtol=0, atol=1e-12)
        if k is None:  # the first step is a plain one
            x = y = image
            k = -1
            continue
        new = 0.5 * (y + image)
        if k >= 0:
            slowest = min(slowest, 1 - float(((new - x) * moved).sum() / moved.square().sum()))
        k = 0 if k < 0 or float(((y - new) * (new - x)).sum()) > 0 else k + 1
        root = (0.3 * slowest) ** 0.5
        following = new + min(k / (k + 3), (1 - root) / (1 + root)) * (new - x)
        x, y, moved = new, following, following - y
    assert k > 3  # inertia was at work
    assert slowest == pytest.approx(0.5 * (1 - 0.999)) or low < 0.999


@pytest.mark.parametrize("factor", [0.8, 0.9, 0.95])
def test_the_momentum_is_limited_by_the_slowest_error(factor, float64):
    """Of one eigenvalue θ the quotient is λ(1 − θ), exactly, from the second step with inertia on."""

    def layer(u, k):
        return 1 + factor * (u - 1)

    solver, u = Inertial(), torch.zeros(1, 4)
    state, betas = solver.init(u), []
    for _ in range(20):
        before = state.memory
        state = solver.step(lambda z: layer(z, 0), state)
        y, x = state.memory[:2]
        if bool((before[1] != x).any()):
            betas.append(float(((y - x).sum() / (x - before[1]).sum()).nan_to_num()))
    root = (0.3 * 0.6 * (1 - factor)) ** 0.5
    assert max(betas) <= (1 - root) / (1 + root) + 1e-9


@pytest.mark.parametrize("factor", [0.0, 0.3])
def test_a_map_that_is_fast_already_is_left_alone(factor, float64):
    def layer(u, k):
        return 1 + factor * (u - 1)

    counts = [int(run(layer, torch.zeros(1, 5), s).layers) for s in (Picard(), Inertial(), Anderson())]
    assert counts[1] == counts[0]
    assert counts[2] <= counts[0]


def test_images_do_not_know_of_each_other(float64):
    layers = [linear(-0.5, r, seed=s)[0] for r, s in ((0.5, 1), (0.99, 2))]
    start = rand(2, 40, seed=3)

    def both(u, k):
        return torch.stack([f(u[i : i + 1], k)[0] for i, f in enumerate(layers)])

    together = run(both, start, Inertial())
    for i, layer in enumerate(layers):
        alone = run(layer, start[i : i + 1], Inertial())
        torch.testing.assert_close(together.u[i], alone.u[0], rtol=0, atol=1e-12)
        assert together.layers[i] == alone.layers[0]


ROUGH = {
    "alternating slopes": lambda u: torch.where(u > 1, 0.9 * u, -0.95 * u),
    "saturation": lambda u: torch.tanh(3 * u) * 0.33 + 1,
    "rotating": lambda u: 0.97 * torch.stack([0.8 * u[:, 0] - 0.6 * u[:, 1], 0.6 * u[:, 0] + 0.8 * u[:, 1]], 1) + 1,
    "shift": lambda u: 0.9 * u.roll(1, 1) + 1 * (torch.arange(u.shape[1]) == 0),
    "kinks": lambda u: 0.98 * (u - torch.tensor([0.5, -2.0])).abs() - 0.3,
    "expansive far away": lambda u: torch.where(u.abs() > 3, 0.5 * u + 1.5 * u.sign(), 0.95 * u.sin()),
}


@pytest.mark.parametrize("solver", [Inertial, Anderson])
@pytest.mark.parametrize("name", ROUGH)
def test_at_most_a_tenth_more_than_plain_steps_on_rough_maps(name, solver, float64):
    def layer(u, k):
        return ROUGH[name](u)

    start = 3 * rand(4, 2, seed=7)
    plain = run(layer, start, Picard())
    fast = run(layer, start, solver())
    assert plain.status == fast.status == (Status.CONVERGED,) * 4
    assert int(fast.layers.max()) <= 1.1 * int(plain.layers.max()) + 5  # one look more


def orthogonal(size, seed):
    return torch.linalg.qr(rand(size, size, seed=seed))[0]


def shift(size):
    return torch.eye(size).roll(1, 0)


#: linear part and what comes after it: no problem has them, and extrapolation is at its worst
UNSYMMETRIC = {
    "shift": (lambda n, s: 0.95 * shift(n), lambda u: u),
    "shift and ReLU": (lambda n, s: 0.8 * shift(n), torch.relu),
    "nilpotent": (lambda n, s: shift(n).tril(), lambda u: u),
    "orthogonal": (lambda n, s: 0.8 * orthogonal(n, s), lambda u: u),
    "orthogonal and soft threshold": (lambda n, s: 0.95 * orthogonal(n, s), lambda u: soft(u, 0.05)),
}


@pytest.mark.parametrize("solver", [Inertial, Anderson])
@pytest.mark.parametrize("size", [4, 8, 20])
@pytest.mark.parametrize("name", UNSYMMETRIC)
def test_at_most_three_times_the_plain_steps_and_a_trial_on_unsymmetric_maps(name, size, solver, float64):
    make, after = UNSYMMETRIC[name]
    for seed in range(3):
        matrix, b = make(size, seed), rand(1, size, seed=seed + 50)
        plain, fast = (
            run(lambda u, k, m=matrix, b=b: after(u @ m.T + b), torch.zeros(1, size), s) for s in (Picard(), solver())
        )
        assert plain.status == fast.status == (Status.CONVERGED,)
        assert int(fast.layers) <= 3 * int(plain.layers) + solver().patience + 5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("accelerated", [Inertial, Anderson])
def test_at_most_a_tenth_more_evaluations_than_plain_restarts(accelerated, depth, case, float64):
    made = CASES[case]()
    depth *= made.map.layers  # whole cycles
    counts = []
    for solver in (Picard(), accelerated()):
        net = retune.Restarted(made.map, depth=depth, solver=solver, stop=Stop(1e-8, 20000)).eval()
        result = net.solve(made.y, made.physics)
        assert bool(result.converged.all())
        counts.append(int(result.layers.max()))
    # Residuals are looked at every few layers, so one look more is within the claim.
    assert counts[1] <= 1.1 * counts[0] + 5


@pytest.mark.parametrize("room", [1e6, 1e-3])
def test_it_converges_for_averaged_maps_that_are_not_symmetric(room, float64, monkeypatch):
    """½(I + R) with a rotation R has fixed points and is no contraction; the proof allows any room for the momentum."""
    monkeypatch.setattr(inertial, "ROOM", room)
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    result = run(lambda u, k: 0.5 * (u + u @ turn.T), torch.tensor([[3.0, -4.0, 5.0]]), Inertial(), rtol=1e-10)
    assert result.status == (Status.CONVERGED,)
    torch.testing.assert_close(result.u, torch.tensor([[0.0, 0.0, 5.0]]), rtol=0, atol=1e-7)


def test_the_room_limits_the_momentum(float64, monkeypatch):
    """Σ β_k ‖x_k − x_{k−1}‖² stays below its bound, which usual problems never reach."""
    layer, answer = linear(0.0, 0.995)
    counts = {}
    for room in (1e6, 1e-3):
        monkeypatch.setattr(inertial, "ROOM", room)
        solver, state = Inertial(), Inertial().init(torch.zeros(1, 40))
        total, before = 0.0, state.memory[1]
        for _ in range(300):
            state = solver.step(lambda z: layer(z, 0), state)
            following, x = state.memory[:2]
            moved = float((x - before).square().sum())
            if moved > 0:
                total += float((following - x).norm()) * moved**0.5  # β ‖d‖² = ‖y − x‖ ‖d‖
            before = x
        first = float((layer(torch.zeros(1, 40), 0)).square().sum())
        counts[room] = total / first, float((state.u - answer).norm())
    series = sum(k**-1.1 for k in range(1, 301))
    assert counts[1e-3][0] <= 1e-3 * series < counts[1e6][0]
    assert counts[1e6][1] < 1e-3 * counts[1e-3][1]


def test_after_many_failures_only_plain_steps_are_left(monkeypatch):
    monkeypatch.setattr(_safeguard, "MOST_FAILURES", 1)
    guard = _safeguard.Safeguard.begin(torch.zeros(1, 2), 1)
    for residual in (1.0, 0.9, 0.8, 5.0):  # two plain steps, one that gains, one that fails
        guard, failed = guard.watch(
            torch.zeros(1, 2), torch.tensor([residual]), growth=2.0, patience=16, pause=1, compare=True
        )
    assert failed.tolist() == [True]
    assert guard.failures.tolist() == [1]
    for _ in range(50):
        guard, failed = guard.watch(
            torch.zeros(1, 2), torch.tensor([9.0]), growth=2.0, patience=16, pause=1, compare=True
        )
        assert guard.waits.tolist() == [_safeguard.LONGEST_PAUSE]
        assert not failed


@pytest.mark.parametrize("solver", [Inertial, Anderson])
def test_an_expansive_map_is_a_status(solver):
    result = run(lambda u, k: 1.7 * u + 1, torch.ones(1, 3), solver(), most=500)
    assert result.status[0] in (Status.DIVERGED, Status.CONVERGED)  # extrapolation may find the repelling point
    assert torch.isfinite(result.u).all()


def test_nan_is_a_status(float64):
    calls = []

    def layer(u, k):
        calls.append(k)
        return 1 + 0.9 * (u - 1) if len(calls) < 8 else u * torch.nan

    result = run(layer, torch.zeros(1, 3), Inertial(), rtol=1e-12)
    assert result.status == (Status.NOT_FINITE,)
    assert torch.isfinite(result.u).all()


def test_float32_and_long_runs_stay_finite():
    layer, answer = linear(-0.8, 0.99)
    result = run(layer, torch.zeros(1, 40), Inertial(), rtol=0.0, most=1000)
    assert result.u.dtype == torch.float32
    assert (result.u - answer).norm() <= 1e-3 * answer.norm()


def test_it_is_saved_with_the_network(tmp_path):
    prior = retune.priors.WaveletL1("haar", 2)
    net = retune.Restarted(retune.ForwardBackward(prior), solver=Inertial(relaxation=0.5, growth=2.0))
    net.save(tmp_path / "net.safetensors")
    assert retune.load(tmp_path / "net.safetensors").describe() == net.describe()


@pytest.mark.parametrize("options", [{"relaxation": 0.7}, {"relaxation": 0.0}, {"growth": 1.0}, {"pause": 0}])
def test_bad_options(options):
    with pytest.raises(InvalidParameterError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        Inertial(**options)


@pytest.mark.parametrize("solver", [Inertial, Anderson])
@pytest.mark.parametrize("prior", [retune.priors.WaveletL1, retune.priors.WaveletL12])
@pytest.mark.parametrize("name", ["denoise", "inpaint", "deblur", "superres"])
def test_no_more_evaluations_than_plain_steps_on_the_problems_by_name(name, prior, solver):
    """With a strength as it is used; what weak priors make of it is in the documentation."""
    x = torch.stack([retune.data.photograph(n)[:, 100:148, 180:228] for n in ("astronaut", "coffee")])
    y, physics = getattr(retune.problems, name)().measure(x, 3)
    step = retune.ForwardBackward(prior("db4", 3), reg=0.03)
    plain, fast = (
        retune.Restarted(step, 10, solver=s).eval().solve(y, physics, stop=Stop(1e-5, 6000))
        for s in (Picard(), solver())
    )
    assert bool(plain.converged.all())
    assert bool(fast.converged.all())
    assert bool((fast.layers <= 1.1 * plain.layers + 5).all())
    assert int(fast.layers.sum()) <= 0.6 * int(plain.layers.sum())
