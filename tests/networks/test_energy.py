"""The energy of a network: its gradient and curvature are those of its value, and it scales as it should."""

from __future__ import annotations

import pytest
import torch

import retune
from retune.errors import InvalidParameterError, ShapeError
from retune.networks import EnergyNet
from retune.priors import Energy
from small_parts import rand


def energy(channels: int = 1) -> EnergyNet:
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    net = EnergyNet(channels, (6, 8, 10), 2)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return net


@pytest.mark.parametrize("shape", [(2, 1, 16, 24), (1, 3, 13, 17), (1, 1, 1, 5), (2, 1, 2, 3)])
def test_the_gradient_is_that_of_the_value(shape, float64):
    x = rand(*shape, seed=1).requires_grad_()
    at = energy(shape[1]).at(0.2, x)
    (expected,) = torch.autograd.grad(at.fn(x).sum(), x)
    torch.testing.assert_close(at.grad(x), expected, rtol=1e-10, atol=1e-12)
    value, gradient = at.fn_and_grad(x)
    torch.testing.assert_close(value, at.fn(x))
    torch.testing.assert_close(gradient, expected)


def test_the_curvature_is_that_of_the_gradient_and_symmetric(float64):
    x, v, w = (rand(2, 1, 9, 12, seed=s) for s in (1, 2, 3))
    at, h = energy().at(torch.tensor([0.1, 0.3]), x), 1e-5
    product = at.hessian(x)
    difference = (at.grad(x + h * v) - at.grad(x - h * v)) / (2 * h)
    torch.testing.assert_close(product(v), difference.detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close((product(v) * w).sum(), (product(w) * v).sum())


def test_weights_can_be_trained_through_the_gradient(float64):
    """The derivative of a loss of ∇R with respect to every weight, against finite differences."""
    net, x = energy(), rand(1, 1, 8, 8, seed=1)
    target = rand(1, 1, 8, 8, seed=2)

    def loss():
        return (net(x, 0.2) - target).square().sum()

    loss().backward()
    for name, p in net.named_parameters():
        direction = rand(*p.shape, seed=4)
        h = 1e-6
        with torch.no_grad():
            p.add_(h * direction)
            above = loss()
            p.sub_(2 * h * direction)
            below = loss()
            p.add_(h * direction)
        assert float((p.grad * direction).sum()) == pytest.approx(float((above - below) / (2 * h)), rel=1e-5), name


@pytest.mark.parametrize("t", [0.01, 3.0, 255.0])
def test_it_scales_with_the_image_and_the_noise(t, float64):
    x, net = rand(2, 1, 10, 15, seed=1), energy()
    torch.testing.assert_close(net.at(0.1 * t, x).fn(t * x), t**2 * net.at(0.1, x).fn(x))
    torch.testing.assert_close(net(t * x, 0.1 * t), t * net(x, 0.1))


def test_noise_levels_are_per_image(float64):
    x, net = rand(3, 1, 8, 11, seed=1), energy()
    levels = torch.tensor([0.05, 0.1, 0.4])
    whole = net(x, levels)
    for i in range(3):
        torch.testing.assert_close(whole[i : i + 1], net(x[i : i + 1], float(levels[i])))


def test_it_computes_in_inference_mode_and_in_single_precision():
    net, x = energy(), rand(1, 1, 20, 21, seed=1)
    with torch.inference_mode():
        inside, curved = net(x, 0.1), net.at(0.1, x).hessian(x)(x)
    torch.testing.assert_close(inside, net(x, 0.1).detach())
    assert torch.isfinite(curved).all()
    double = energy().double()(x.double(), 0.1)
    torch.testing.assert_close(inside.double(), double.detach(), rtol=1e-4, atol=1e-4)


def test_a_grey_energy_serves_the_channels_of_a_colour_image(float64):
    net, x = energy(), rand(2, 3, 8, 9, seed=1)
    prior = Energy(net, 0.1)
    torch.testing.assert_close(prior.fn(x), sum(prior.fn(x[:, c : c + 1]) for c in range(3)))
    torch.testing.assert_close(prior.grad(x)[:, 1:2], prior.grad(x[:, 1:2]))


@pytest.mark.parametrize("sigma", [0.0, -0.1, float("nan")])
def test_a_noise_level_that_is_not_positive_is_refused(sigma):
    with pytest.raises(InvalidParameterError, match="sigma"):
        energy()(rand(1, 1, 8, 8), sigma)


def test_another_precision_is_refused():
    with pytest.raises(InvalidParameterError, match=r"images are torch.float64 and the weights .* torch.float32"):
        energy()(rand(1, 1, 8, 8).double(), 0.1)


def test_other_channels_are_refused():
    with pytest.raises(ShapeError, match=r"1 channel\(s\).*got \(1, 2, 8, 8\)"):
        energy()(rand(1, 2, 8, 8), 0.1)
    with pytest.raises(InvalidParameterError, match="at least 1"):
        EnergyNet(1, ())


def test_a_network_with_an_energy_is_saved_and_loaded(tmp_path, float64):
    net = retune.Restarted(retune.GradientStep(Energy(energy(), 0.1, learn_network=True), reg=3.0, box=(0, 1))).eval()
    net.save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors").eval()
    import deepinv

    y = 0.5 + 0.2 * rand(1, 1, 8, 9, seed=1)
    torch.testing.assert_close(again(y, deepinv.physics.Denoising()), net(y, deepinv.physics.Denoising()))
    assert again.map.prior.learn_network
    assert again.map.backtracks


def test_a_layer_does_not_depend_on_the_states_that_it_has_seen(float64):
    bound = [retune.GradientStep(Energy(energy(), 0.1), reg=3.0).bind(_term()) for _ in range(2)]
    near, far = (scale * rand(1, 1, 8, 9, seed=2) for scale in (0.1, 10.0))
    bound[0].layer(far)
    bound[1].layer(near)
    torch.testing.assert_close(bound[0].layer(near), bound[1].layer(near), rtol=0, atol=0)


def _term():
    import deepinv

    return retune.DataTerm(0.5 + 0.2 * rand(1, 1, 8, 9, seed=1), deepinv.physics.Denoising())
