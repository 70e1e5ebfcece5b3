"""Primal–dual steps: the metric in which they are averaged, gradients, and rates."""

import pytest
import torch
from deepinv.physics import Blur, Denoising

import retune
from known_answers import roughness
from retune import DataTerm, Implicit, PrimalDual, Restarted, Status, Stop, Truncated
from retune.maps.linearised import Linearised, spectral_radius
from retune.priors import TV
from small_parts import dense, rand, spectrum
from small_photographs import scene, solved


def gap(bound, a, b, alpha):
    """The slack of α-averagedness, ``‖a−b‖² − (1−α)/α ‖(a−Ta)−(b−Tb)‖² − ‖Ta−Tb‖²``, relative to ``‖a−b‖²``."""
    ta, tb = bound.layer(a), bound.layer(b)
    whole = bound.norm(a - b).square()
    moved = bound.norm((a - ta) - (b - tb)).square()
    return (whole - (1 - alpha) / alpha * moved - bound.norm(ta - tb).square()) / whole


def at_rest(map_, y, physics):
    """The bound map, and its state after 3,000 layers."""
    bound = map_.bind(DataTerm(y, physics))
    with torch.no_grad():
        u = bound.init()
        for _ in range(3000):
            u = bound.layer(u)
    return bound, u


def pairs(bound, count):
    """Random states near and far, and pairs whose difference lies in the fastest directions of A and K."""
    start = bound.init()
    for seed in range(count):
        size = 10.0 ** (seed % 4 - 2)
        a, d = rand(*start.shape, seed=seed), rand(*start.shape, seed=seed + 1000)
        yield start + size * a, start + size * (a + 10.0 ** -(seed % 3) * d)


@pytest.mark.parametrize(("step_size", "balance"), [(0.95, 1.0), (0.999, 0.1), (0.999, 10.0), (0.3, 1.0)])
@pytest.mark.parametrize("case", ["tv", "box", "dense"])
def test_it_is_averaged_in_its_metric(case, step_size, balance, float64):
    if case == "dense":
        case = roughness(batch=1)
        map_, y, physics = PrimalDual(case.map.prior, step_size=step_size, balance=balance), case.y, case.physics
    else:
        box = (0.2, 0.7) if case == "box" else None
        map_ = PrimalDual(TV(), reg=0.2, step_size=step_size, balance=balance, box=box)
        physics = Blur(torch.ones(1, 1, 3, 3) / 9, padding="circular")
        y = physics.A(scene(8))
    map_.requires_grad_(False)
    term = DataTerm(y, physics)
    bound, facts = map_.bind(term), map_.guarantee(term)
    assert facts.averaged is not None
    assert facts.region is not None
    alpha = float(facts.averaged)
    assert 0.5 <= alpha < 1
    assert float(facts.region) == pytest.approx(step_size, rel=1e-6)
    assert min(float(gap(bound, a, b, alpha)) for a, b in pairs(bound, 200)) >= -1e-12


def test_beyond_the_region_it_is_not(float64):
    """So the test above can fail: with ‖A‖² too small by four, some differences grow."""
    physics = dense(spectrum(9, 9, 1.0, 1.0), (1, 3, 3))
    term = DataTerm(rand(1, 1, 1, 9), physics, sqnorm=0.25)
    map_ = PrimalDual(TV(), step_size=0.999, balance=0.1).requires_grad_(False)
    bound, facts = map_.bind(term), map_.guarantee(term)
    assert facts.averaged is not None
    growth = [float(bound.norm(bound.layer(a) - bound.layer(b)) / bound.norm(a - b)) for a, b in pairs(bound, 20)]
    assert max(growth) > 1 + 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("raw", [-60.0, -3.0, 0.0, 3.0, 60.0])
def test_no_training_leaves_the_region(raw, dtype):
    y = scene(6).to(dtype)
    map_ = PrimalDual(TV())
    for other in (-raw, 0.0, raw):
        with torch.no_grad():
            map_.step_size.raw.fill_(raw)
            map_.balance.raw.fill_(other)
        term = DataTerm(y, Denoising())
        steps = map_.steps(term)
        tau, sigma = steps.tau.detach().double(), steps.sigma.detach().double()
        used = tau * term.lipschitz + tau * sigma * steps.sqnorm
        assert 0 < float(used) < 1
        assert bool(torch.isfinite(map_.bind(term).layer(map_.bind(term).init())).all())


def test_an_image_at_rest_has_not_converged(float64):
    """Denoising starts at y, where ∇f = 0: the first step moves the multiplier only."""
    y = scene(12)
    map_ = PrimalDual(TV(), reg=0.1)
    bound = map_.bind(DataTerm(y, Denoising()))
    u = bound.init()
    torch.testing.assert_close(bound.image(bound.layer(u)), bound.image(u), rtol=0, atol=1e-15)
    net = Restarted(map_, depth=1, stop=Stop(1e-4, 2000)).eval()
    result = net.solve(y, Denoising())
    assert result.status == (Status.CONVERGED,)
    assert float((result.image - solved(map_, y, Denoising())).abs().max()) < 1e-3


def loss_at(map_, y, physics, weights, reg):
    changed = PrimalDual(map_.prior, reg=reg, box=map_.box).requires_grad_(False)
    return float((weights * solved(changed, y, physics, 1e-12, 6000)).sum())


@pytest.mark.parametrize("box", [None, (0.3, 0.55)])
def test_every_rule_has_the_gradient_of_finite_differences(box, float64):
    y, physics = scene(5, 1) + 0.1 * rand(1, 1, 5, 5), Denoising()
    weights = rand(1, 1, 5, 5, seed=9)
    map_ = PrimalDual(TV(), reg=0.03, box=box)
    h = 1e-5
    truth = (loss_at(map_, y, physics, weights, 0.03 + h) - loss_at(map_, y, physics, weights, 0.03 - h)) / (2 * h)
    assert abs(truth) > 0.1
    found = {}
    for rule in (Truncated(rtol=1e-7, max_blocks=400), Implicit(rtol=1e-7, max_blocks=4000), Truncated(blocks=60)):
        net = Restarted(map_, depth=20, restarts=100, gradient=rule).train()
        net.zero_grad()
        (weights * net(y, physics)).sum().backward()
        # d/dλ from d/d log λ
        assert map_.reg.raw.grad is not None
        found[repr(rule)] = float(map_.reg.raw.grad) / float(map_.reg.value)
        # at an equilibrium the steps have no effect
        for steps in (map_.step_size, map_.balance):
            assert steps.raw.grad is not None
            assert abs(float(steps.raw.grad)) < 1e-6 * abs(truth)
    assert found == {name: pytest.approx(truth, rel=1e-5) for name in found}


def test_gradient_error_follows_the_measured_rate(float64):
    """The decay of ‖d_K − ∇L‖ with K is the rate that a certificate measures at the equilibrium."""
    y, physics, weights = scene(5, 1) + 0.1 * rand(1, 1, 5, 5), Denoising(), rand(1, 1, 5, 5, seed=9)
    map_ = PrimalDual(TV(), reg=0.05)
    bound, u = at_rest(map_, y, physics)
    rho = float(spectral_radius(Linearised(bound, u), 400, 2).value)
    assert 0.3 < rho < 0.99

    def gradient(rule, depth):
        state, _ = rule(map_.bind(DataTerm(y, physics)), depth, lambda: u)
        return float(torch.autograd.grad((weights * bound.image(state)).sum(), map_.reg.raw)[0])

    exact = gradient(Implicit(rtol=1e-13, max_blocks=5000), 1)
    # Complex eigenvalues make the error oscillate, so its largest values in two ranges of K are compared.
    first, last = (max(abs(gradient(Truncated(), k) - exact) for k in range(n, n + 12)) for n in (20, 60))
    assert last < first < abs(exact)
    assert (last / first) ** (1 / 40) == pytest.approx(rho, rel=0.05)


def test_at_an_equilibrium_one_layer_does_not_depend_on_the_steps(float64):
    """The coordinates of the multiplier do not follow the parameters, so K = 1 has no false gradient of the steps."""
    y, physics = scene(5, 1) + 0.1 * rand(1, 1, 5, 5), Denoising()
    map_ = PrimalDual(TV(), reg=0.05)
    bound, u = at_rest(map_, y, physics)
    steps = [map_.step_size.raw, map_.balance.raw]
    found = torch.autograd.grad((rand(*u.shape, seed=9) * bound.layer(u)).sum(), [*steps, map_.reg.raw])
    assert max(float(g.abs()) for g in found[:2]) < 1e-8
    assert float(found[2].abs()) > 1e-3


class Overstated(PrimalDual):
    """Its norm of A is too small, and it says all the same that it is averaged."""

    def data_term(self, y, physics):
        return DataTerm(y, physics, self.data_fidelity, sqnorm=0.7)

    def guarantee(self, data_term):
        return super().guarantee(data_term)


def test_a_movement_that_grows_refutes_it(float64):
    y = scene(6, 1)
    net = Restarted(Overstated(TV(), reg=0.05, balance=0.01), depth=2, stop=Stop(1e-9, 4)).eval()
    result = net.solve(y + 0.1 * rand(1, 1, 6, 6), Denoising())
    (found,) = retune.certify(net, y + 0.0, Denoising(), result=result, max_layers=10, iterations=3, starts=1)
    assert "the movement of a layer grew from" in found.refuted
    assert found.statement == ""
    assert found.averaged.proved is None


def test_directions_that_no_image_reaches_do_not_hide_the_rate(float64):
    """A flat image: there a whirl of the multiplier stays for ever, and the image does not see it."""
    map_ = PrimalDual(TV(), reg=0.3).requires_grad_(False)
    bound = map_.bind(DataTerm(scene(4, 1), Denoising()))
    u = bound.init()
    for _ in range(2000):
        u = bound.layer(u)
    jacobian = torch.func.jacrev(bound.layer)(u).reshape(u.numel(), u.numel())
    found = torch.linalg.eigvals(jacobian)
    stay = (found - 1).abs() < 1e-6
    assert int(stay.sum()) >= 8 + 9  # at the border, and around every corner of four pixels
    seen = float(found[~stay].abs().max())
    rate = float(spectral_radius(Linearised(bound, u), 300, 3).value)
    assert 1 - rate == pytest.approx(1 - seen, rel=0.3)
    assert 1 - seen > 1e-3
