"""Gradient steps on the root of an image, for noise that grows with the brightness."""

from __future__ import annotations

import pytest
import torch
from deepinv.physics import Blur, Denoising

import retune
from retune import DataTerm, GradientStep, NoiseWeighted, Restarted, Stop
from retune.errors import InvalidParameterError
from retune.networks import EnergyNet
from retune.priors import RED, Energy, Ridge
from retune.problems import deblur
from small_parts import rand

GAIN, READ = 0.02, 0.03
ROOT = READ**2 / GAIN


def energy(sigma=0.1):
    torch.manual_seed(0)
    return Energy(EnergyNet(1, (4, 8)), sigma=sigma, learn_network=False)


def made(prior=None, **options):
    options = {"reg": 3.0, "box": (0.0, 10.0), "root": ROOT} | options
    return GradientStep(energy() if prior is None else prior, NoiseWeighted(GAIN, READ), **options)


def blurred(batch=2, side=14):
    x = 0.5 + 0.4 * rand(batch, 1, side, side, seed=3).clamp(-1, 1)
    blur = Blur(filter=torch.full((1, 1, 3, 3), 1 / 9), padding="valid")
    return blur(x).clamp_min(0), blur


def test_the_state_is_the_root_of_the_image(float64):
    y, physics = blurred()
    bound = made().bind(DataTerm(y, physics, NoiseWeighted(GAIN, READ)))
    image = rand(2, 1, 14, 14).abs()
    torch.testing.assert_close(bound.state(image).square() - ROOT, image)
    torch.testing.assert_close(bound.image(bound.state(image)), image)
    assert float(bound.image(bound.state(-image)).min()) == pytest.approx(0, abs=1e-12), "the box begins at 0"
    assert float(bound.image(bound.init()).min()) >= -1e-12


def test_the_objective_is_that_of_the_image_with_the_prior_at_its_root(float64):
    y, physics = blurred()
    map_ = made()
    term = map_.data_term(y, physics)
    u = 0.3 + rand(2, 1, 14, 14).abs()
    image = u.square() - ROOT
    expected = NoiseWeighted(GAIN, READ).fn(image, y, physics) + 3.0 * map_.prior.fn(u)
    torch.testing.assert_close(map_.objective(image, term), expected)
    objective = map_.bind(term).objective()
    assert objective is not None
    torch.testing.assert_close(objective.value(u), expected)
    u.requires_grad_()
    (slope,) = torch.autograd.grad(objective.value(u).sum(), u)
    torch.testing.assert_close(objective.gradient(u.detach()), slope)


@pytest.mark.parametrize("prior", [energy, lambda: Ridge(channels=1)], ids=["energy", "ridge"])
def test_the_objective_never_rises_and_ends_at_a_stationary_point(prior, float64):
    y, physics = blurred()
    net = Restarted(made(prior()), depth=5, stop=Stop(1e-7, 2000)).eval()
    values, term = [], net.map.data_term(y, physics)
    objective = net.map.bind(term).objective()
    result = net.solve(y, physics, observe=lambda _, x: values.append(net.map.objective(x, term).detach()))
    assert all(s is retune.Status.CONVERGED for s in result.status)
    steps = torch.stack(values).diff(dim=0)
    assert bool((steps <= 1e-12 * torch.stack(values)[:-1]).all())
    assert float(values[0].sum()) > float(values[-1].sum())
    slope = objective.gradient(result.state).detach()
    inside = result.state > ROOT**0.5 * (1 + 1e-9)
    assert float(slope[inside].norm()) < 1e-4 * float(objective.gradient(net.map.init(term)).detach().norm())
    with torch.no_grad():
        moved = net.map.bind(term).at(result.state).layer(result.state) - result.state
    assert float(moved.norm()) < 1e-5 * float(result.state.norm())


def test_a_batch_whose_images_stop_one_after_the_other_is_as_each_alone(float64):
    """With least squares the data term is restricted to the images that still run."""
    problem = deblur("gaussian:1", sigma=0.05)
    x = torch.cat([rand(1, 1, 14, 14).abs(), torch.full((1, 1, 14, 14), 0.5), rand(2, 1, 14, 14).abs()])
    y, physics = problem.measure(x)
    net = Restarted(GradientStep(energy(), reg=0.05, root=0.01, box=(0, 5)), depth=2, stop=Stop(1e-8, 2000)).eval()
    whole = net.solve(y, physics)
    assert len(set(whole.layers.tolist())) > 1
    for i in range(4):
        one = net.solve(y[i : i + 1], problem.operator(y[i : i + 1]))
        torch.testing.assert_close(one.image, whole.image[i : i + 1], rtol=0, atol=1e-4)


def test_what_is_learned_flows_through_the_root(float64):
    """The strength, by ten layers at the equilibrium, against finite differences of the equilibrium."""
    y, physics = Denoising()(rand(1, 1, 8, 8).abs() + 0.2), Denoising()
    clean = y.clone().roll(1, -1)

    def loss(net):
        return (net(y, physics) - clean).square().sum()

    def network(reg):
        map_ = GradientStep(energy(), NoiseWeighted(GAIN, READ), reg=reg, root=ROOT, box=(0, 10))
        return Restarted(map_, depth=10, restarts=100, stop=Stop(1e-11, 4000), gradient=retune.Implicit(rtol=1e-9))

    net = network(3.0).train()
    loss(net).backward()
    with torch.no_grad():
        up, down = (loss(network(3.0 * (1 + t)).eval()) for t in (1e-4, -1e-4))
    # reg is the exponential of its parameter
    assert float(net.map.reg.raw.grad) == pytest.approx(float((up - down) / 2e-4), rel=1e-3)


def test_it_is_saved_and_loaded(tmp_path):
    net = Restarted(made(), depth=3)
    net.save(tmp_path / "m.safetensors")
    again = retune.load(tmp_path / "m.safetensors")
    assert again.map.root == pytest.approx(ROOT)
    assert "root" not in GradientStep(energy()).describe(), "older versions can read it"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"root": -0.1}, "at least 0"),
        ({"root": float("inf")}, "finite"),
        ({"root": 0.0, "box": (-1.0, 1.0)}, "begins below"),
        ({"root": 0.1, "layers": 2}, "layers=1"),
    ],
)
def test_bad_roots_are_refused(options, says):
    with pytest.raises(InvalidParameterError, match=says):
        made(**options)


def test_a_prior_without_a_value_is_refused():
    with pytest.raises(InvalidParameterError, match="value"):
        GradientStep(RED(lambda x, sigma: x, sigma=0.1, lipschitz=1.0), root=0.0)
