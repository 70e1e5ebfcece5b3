"""Descent with backtracking: it never rises, needs no constant, and ends where the other solvers end."""

from __future__ import annotations

import deepinv
import pytest
import torch

import retune
from known_answers import CASES
from retune import Descent, GradientStep, QuasiNewton, Restarted, Status, Stop
from retune.errors import InvalidParameterError
from retune.networks import EnergyNet
from retune.priors import Energy
from small_parts import rand

both = pytest.mark.parametrize("solver", [Descent, QuasiNewton])


def wild(scale: float = 1.0, channels: int = 1) -> EnergyNet:
    """An energy with random weights, far from those of training."""
    generator = torch.Generator().manual_seed(1)
    net = EnergyNet(channels, (8, 12), 1)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator) / p[0].numel() ** 0.5)
    return net


def holes(*shape: int) -> deepinv.physics.Inpainting:
    mask = (rand(*shape, seed=5) > 0).to(torch.get_default_dtype())
    return deepinv.physics.Inpainting(shape, mask=mask)


def network(net: EnergyNet, stop: Stop, **options) -> Restarted:
    reg, solver = options.pop("reg", 5.0), options.pop("solver", Descent)
    return Restarted(GradientStep(Energy(net, 0.1), reg=reg, **options), solver=solver(), stop=stop).eval()


@pytest.mark.parametrize("name", ["quadratic", "denoise_l1", "denoise_l12", "damped_l1", "tikhonov"])
@both
def test_it_finds_the_known_minimiser(name, solver, float64):
    """Also where the search begins with a constant a hundred times too small."""
    case = CASES[name]()
    net = Restarted(case.map, solver=solver(), stop=Stop(1e-11, 20000)).eval()
    bound = case.map.bind(case.map.data_term(case.y, case.physics))
    found = net.solve(case.y, case.physics)
    assert set(found.status) == {Status.CONVERGED}
    torch.testing.assert_close(found.image, case.answer().reshape(found.image.shape), rtol=0, atol=1e-7)
    objective = bound.objective()
    assert objective is not None
    timid = retune.solve.solve(
        bound.layer,
        bound.init(),
        solver=solver().bind(lambda: _with(objective, lipschitz=objective.lipschitz / 100)),
        depth=10,
        stop=Stop(1e-11, 20000),
    )
    torch.testing.assert_close(bound.image(timid.u), found.image, rtol=0, atol=1e-7)


def _with(objective, **changes):
    from dataclasses import replace

    return replace(objective, **changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("box", [(0.0, 1.0), None])
@both
def test_the_objective_never_rises_whatever_the_weights(scale, dtype, box, solver, float64):
    torch.set_default_dtype(dtype)
    net = network(wild(scale).to(dtype), Stop(1e-5, 300 if scale > 1 else 1000), box=box, solver=solver)
    physics = holes(1, 12, 17)
    y = physics(0.5 + 0.2 * rand(2, 1, 12, 17, seed=2).to(dtype))
    term, values = net.map.data_term(y, physics), []
    found = net.solve(y, physics, observe=lambda n, u: values.append(net.map.objective(u, term).detach().double()))
    table = torch.stack([net.map.objective(net.map.init(term), term).detach().double(), *values])
    assert bool((table[1:] <= table[:-1] * (1 + 16 * torch.finfo(dtype).eps)).all())
    assert bool((table[-1] < table[0]).all())
    assert not any(s.failed for s in found.status)
    if scale == 1:
        assert set(found.status) == {Status.CONVERGED}


def test_a_constant_step_diverges_where_descent_settles(float64):
    """What training does to the curvature: weights twice as large, with the step size of before."""
    physics, y = holes(1, 12, 16), 0.5 + 0.2 * rand(1, 1, 12, 16, seed=2)
    fixed = GradientStep(Energy(wild(2.0), 0.1), reg=5.0, prior_lipschitz=1.0)
    assert Restarted(fixed, solver=retune.Picard()).eval().solve(y, physics).status[0].failed
    for solver in (Descent, QuasiNewton):
        free = network(wild(2.0), Stop(1e-4, 5000), solver=solver)
        assert free.solve(y, physics).status == (Status.CONVERGED,)
    assert isinstance(Restarted(GradientStep(Energy(wild(), 0.1))).solver, QuasiNewton)


@both
def test_images_are_restored_each_for_itself(solver, float64):
    """In a batch of unequal difficulty, and when some of them have left it."""
    net = network(wild(), Stop(1e-6, 2000), solver=solver)
    physics, y = deepinv.physics.Denoising(), 0.5 + 0.2 * rand(4, 1, 8, 9, seed=2)
    y = y * torch.tensor([1.0, 0.1, 3.0, 0.0]).reshape(-1, 1, 1, 1)
    whole = net.solve(y, physics)
    assert len(set(whole.layers.tolist())) > 1
    for i in range(4):
        alone = net.solve(y[i : i + 1], physics)
        torch.testing.assert_close(whole.image[i : i + 1], alone.image, rtol=0, atol=1e-9)
        assert int(whole.layers[i]) == int(alone.layers[0])


def test_it_is_faster_with_momentum_than_plain_steps(float64):
    case = CASES["tikhonov"]()
    stop = Stop(1e-9, 20000)
    layers = {}
    for solver in (Descent(), retune.Picard()):
        layers[type(solver).__name__] = int(
            Restarted(case.map, solver=solver, stop=stop).eval().solve(case.y, case.physics).layers.max()
        )
    assert layers["Descent"] <= layers["Picard"]


def test_a_step_applies_the_operator_once_and_knows_the_gradient_at_its_extrapolation(float64):
    y, physics = rand(1, 1, 8, 8), holes(1, 8, 8)
    net = network(wild(), Stop(max_layers=40, rtol=1e-12))
    objective = net.bind(y, physics).map.objective()
    calls, points = [], []

    def quadratic(u):
        calls.append(u)
        return objective.quadratic(u)

    def smooth(u):
        points.append(u)
        return objective.smooth(u)

    solver = Descent().bind(lambda: _with(objective, quadratic=quadratic, smooth=smooth))
    state = solver.init(torch.zeros_like(y))
    for _ in range(25):
        calls.clear(), points.clear()
        state = solver.step(None, state)
        assert len(calls) == len(points) == 1
        (z,), gradient = points, state.memory[-2]
        torch.testing.assert_close(gradient, objective.gradient(z), rtol=1e-12, atol=1e-13)
    assert float(state.memory[1].max()) > 0  # with momentum, in the end


@both
def test_a_map_without_a_value_is_refused(solver, float64):
    prior = retune.priors.Denoiser(_Shrink(), 0.1)
    net = Restarted(retune.ForwardBackward(prior), solver=solver()).eval()
    with pytest.raises(InvalidParameterError, match=r"needs the value of the objective.*Damped"):
        net.solve(rand(1, 1, 8, 8), deepinv.physics.Denoising())
    with pytest.raises(InvalidParameterError, match="not bound"):
        solver().init(torch.zeros(1, 3))


class _Shrink(torch.nn.Module):
    def forward(self, x, sigma):
        return 0.9 * x


@pytest.mark.parametrize("options", [{"growth": 1.0}, {"growth": 0.5}, {"shrink": 0.0}, {"shrink": 1.1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidParameterError, match="growth > 1 and 0 < shrink ≤ 1"):
        Descent(**options)


class _Prior(deepinv.optim.Prior):
    """A prior of one line, without a known constant."""

    def __init__(self, value, gradient):
        super().__init__()
        self.explicit_prior, self._value, self._gradient = True, value, gradient

    def fn(self, x, *args, **kwargs):
        return self._value(x).flatten(1).sum(1)

    def grad(self, x, *args, **kwargs):
        return self._gradient(x)

    def smoothness(self, like):
        return retune.Smoothness(None, None, "of a test", checked=False, row="test")


def gradient_step(net: Restarted, y, physics, u) -> torch.Tensor:
    """``K ‖u − P(u − ∇F(u)/‖∇²F(u)‖)‖/‖u‖``, what the residual has to say."""
    bound = net.map.bind(net.map.data_term(y, physics)).at(u)
    with torch.no_grad():
        return net.depth * (bound.layer(u) - u).flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1)


@both
def test_a_short_step_is_no_convergence(solver):
    """The stated constant is 1e6 times the curvature, so the first steps are tiny."""
    prior = _Prior(lambda x: 0.5e-6 * x.square(), lambda x: 1e-6 * x)
    net = Restarted(GradientStep(prior, reg=1e6), solver=solver()).eval()
    physics, y = deepinv.physics.Denoising(), 0.5 + 0.2 * rand(2, 1, 8, 9, seed=2).float()
    found = net.solve(y, physics)
    assert found.status == (Status.CONVERGED,) * 2
    torch.testing.assert_close(found.image, y / 2, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("solver", "factor"), [(Descent, -3.0), (Descent, 0.01), (Descent, 5.0), (QuasiNewton, -3.0)])
def test_values_that_do_not_fit_the_gradient_do_not_look_like_convergence(solver, factor):
    """Every step is refused, so L grows and the steps vanish, far from the point y/2 where the gradient is 0."""
    prior = _Prior(lambda x: 0.5 * factor * x.square(), lambda x: x)
    net = Restarted(GradientStep(prior), solver=solver(), stop=Stop(1e-4, 400)).eval()
    y = 0.5 + 0.2 * rand(2, 1, 8, 9, seed=2).float()
    found = net.solve(y, deepinv.physics.Denoising())
    assert found.status == (Status.MAX_LAYERS,) * 2
    assert bool((found.residual > 1).all())


@pytest.mark.parametrize("factor", [0.01, 5.0])
def test_values_that_fall_along_the_gradient_are_enough_for_quasi_newton_steps(factor):
    prior = _Prior(lambda x: 0.5 * factor * x.square(), lambda x: x)
    net = Restarted(GradientStep(prior), solver=QuasiNewton(), stop=Stop(1e-4, 400)).eval()
    y = 0.5 + 0.2 * rand(2, 1, 8, 9, seed=2).float()
    found = net.solve(y, deepinv.physics.Denoising())
    if Status.CONVERGED in found.status:
        torch.testing.assert_close(found.image, y / 2, rtol=1e-3, atol=0)
    else:
        assert bool((found.residual > 1e-3).all())


@both
@pytest.mark.parametrize("reg", [1e-4, 1e-2, 1.0])
def test_the_edge_of_a_domain_does_not_look_like_convergence(reg, solver):
    """A logarithm: momentum leaves the domain, and the curvature at the start is far larger than at the end."""
    prior = _Prior(lambda x: -x.log(), lambda x: -1 / x)
    net = Restarted(GradientStep(prior, reg=reg), solver=solver()).eval()
    physics = deepinv.physics.Denoising()
    y = torch.rand(2, 1, 8, 9, generator=torch.Generator().manual_seed(3)) * torch.tensor([1.0, 0.01]).view(2, 1, 1, 1)
    found = net.solve(y, physics)
    assert found.status == (Status.CONVERGED,) * 2
    assert bool((gradient_step(net, y, physics, found.state) < 2e-4).all())
    exact = 0.5 * (y + (y.square() + 4 * reg).sqrt())
    torch.testing.assert_close(found.image, exact, rtol=0, atol=2e-3 * float(exact.max()))


@both
def test_growth_from_a_black_start_is_no_divergence(solver):
    """The first steps from 0 are refused, so the norm of the first block says nothing of the scale of the image."""
    net = network(wild(3.0), Stop(1e-4, 60), solver=solver)
    found = net.solve(torch.zeros(1, 1, 8, 9), deepinv.physics.Denoising())
    assert not found.status[0].failed


def test_a_quasi_newton_step_costs_one_gradient_and_knows_it(float64):
    y, physics = rand(1, 1, 8, 8), holes(1, 8, 8)
    objective = network(wild(), Stop(1e-12, 40)).bind(y, physics).map.objective()
    points, values = [], []

    def smooth(u):
        points.append(u)
        return objective.smooth(u)

    def value(u):
        values.append(u)
        return objective.smooth_value(u)

    solver = QuasiNewton(memory=3).bind(lambda: _with(objective, smooth=smooth, smooth_value=value))
    state = solver.init(torch.zeros_like(y))
    assert len(state.memory) == 8 + 2 * 3
    quasi = 0
    for _ in range(30):
        points.clear()
        state = solver.step(None, state)
        quasi += int(state.memory[5] > 1)  # accepted steps since the last plain one
        assert len(points) == 1
        assert not values
        torch.testing.assert_close(state.memory[0], objective.gradient(state.u), rtol=1e-10, atol=1e-12)
    assert quasi > 15


def test_quasi_newton_steps_need_fewer_layers(float64):
    """A blur, and hardly any prior: the curvature varies by a factor of a thousand."""
    prior = _Prior(lambda x: 0.5 * x.square(), lambda x: x)
    y, physics = retune.problems.Deblur("gaussian:1.6", sigma=0.01).measure(rand(1, 1, 24, 24, seed=3), 0)
    layers = {}
    for solver in (Descent(), QuasiNewton()):
        net = Restarted(GradientStep(prior, reg=1e-3), solver=solver, stop=Stop(1e-6, 20000)).eval()
        layers[type(solver)] = int(net.solve(y, physics).layers.max())
    assert layers[QuasiNewton] < 0.8 * layers[Descent]


@pytest.mark.parametrize("options", [{"memory": 0}, {"every": 0}, {"memory": 2.5}])
def test_quasi_newton_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidParameterError, match=r"memory|every"):
        QuasiNewton(**options)
