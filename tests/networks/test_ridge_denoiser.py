"""A ridge regulariser as a denoiser: it solves its problem, and is differentiated at the solution."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import pad

from retune import Implicit, Picard, Stop
from retune.errors import NotConvergedWarning, NotFiniteError, ShapeError
from retune.networks import RidgeDenoiser
from retune.priors import Ridge
from retune.priors.profile import CONVEXITY
from retune.registry import build
from small_parts import central_difference, rand


def denoiser(convexity="convex", channels=1, rtol=1e-12, **options) -> RidgeDenoiser:
    torch.manual_seed(1)
    features, group = ((3, 5), 1) if channels == 1 else ((3, 6), 3)  # colour: potentials of several variables
    prior = Ridge(channels, features, (3, 2), knots=3, convexity=convexity, group=group)
    return RidgeDenoiser(prior, gradient=Implicit(1e-9, 20000), stop=Stop(rtol, 20000), **options).eval()


def noisy(*shape):
    return 0.5 + 0.2 * rand(*shape)


@pytest.mark.parametrize("strength", [4.0, 60.0])
@pytest.mark.parametrize("convexity", CONVEXITY)
def test_the_solution_is_optimal(convexity, strength, float64):
    """On the extended image: x − y + ∇R(x) = 0."""
    net = denoiser(convexity).requires_grad_(False)
    net.prior.profile.strength[0] = math.log(strength)
    net.prior.profile.slope[:, 0] = 4.0
    y = pad(noisy(2, 1, 9, 8), (net.prior.filters.reach,) * 4, mode="reflect")
    sigma = torch.tensor([0.05, 0.2])
    found = []
    forward = net._solve

    def keep(bound, start):
        found.append(forward(bound, start))
        return found[-1]

    net._solve = keep  # the crop hides the margin
    out = net(y[..., 3:-3, 3:-3], sigma)
    x, reach = found[0].u, net.prior.filters.reach
    assert torch.equal(out, x[..., reach:-reach, reach:-reach])
    extended = pad(y[..., 3:-3, 3:-3], (reach,) * 4, mode="reflect")
    gradient = x - extended + net.prior.grad(x, sigma)
    assert float(gradient.abs().max()) < 1e-8
    assert float((x - extended).abs().max()) > 1e-3


def test_firmly_nonexpansive_for_changes_inside(float64):
    net = denoiser().requires_grad_(False)
    margin = net.prior.filters.reach + 1
    for seed in range(6):
        y = noisy(1, 1, 16, 15)
        step = 10.0 ** (seed % 3 - 2) * rand(1, 1, 16 - 2 * margin, 15 - 2 * margin, seed=seed)
        z = y + pad(step, (margin,) * 4)
        a, b = net(y, 0.15), net(z, 0.15)
        assert float((a - b).square().sum()) <= float(((a - b) * (y - z)).sum()) + 1e-12


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 3), (4, 4), (11, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size(channels, size):
    net = denoiser("weakly convex", channels, rtol=1e-5).requires_grad_(False)
    x = noisy(2, channels, *size)
    out = net(x, 0.1)
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert bool(torch.isfinite(out).all())


def test_constants_are_left_alone(float64):
    x = torch.rand(2, 3, 1, 1).expand(2, 3, 8, 9)
    torch.testing.assert_close(denoiser(channels=3).requires_grad_(False)(x, 0.2), x)


@pytest.mark.parametrize("convexity", CONVEXITY)
def test_gradients_against_finite_differences(convexity, float64):
    """In the image, in σ and in every weight."""
    net = denoiser(convexity)
    y, sigma = noisy(1, 1, 6, 5).requires_grad_(), torch.tensor([0.1], requires_grad=True)
    weights = rand(1, 1, 6, 5, seed=3)

    def value():
        return (weights * net(y, sigma)).sum()

    inputs = [y, sigma, *(p for n, p in net.named_parameters() if n != "prior.sigma.raw")]
    found = torch.autograd.grad(value(), inputs)
    for k, (p, g) in enumerate(zip(inputs, found, strict=True)):
        step = 1e-5 * rand(*p.shape, seed=k)
        torch.testing.assert_close(central_difference(value, p, step), (g * step).sum(), rtol=2e-3, atol=1e-9)


def test_what_is_differentiated():
    net = denoiser(rtol=1e-4)
    y, sigma = noisy(1, 1, 6, 6), torch.tensor([0.1])
    assert not net(y, sigma).requires_grad
    assert net(y, sigma.clone().requires_grad_()).requires_grad
    assert net(y.clone().requires_grad_(), 0.1).requires_grad
    assert net.train()(y, 0.1).requires_grad
    with torch.no_grad():
        assert not net(y, 0.1).requires_grad


def test_noise_level_per_image(float64):
    net, y = denoiser("weakly convex").requires_grad_(False), noisy(3, 1, 8, 7)
    sigma = torch.tensor([0.0, 0.05, 0.2])
    together = net(y, sigma)
    for k in range(3):
        torch.testing.assert_close(together[k], net(y[k : k + 1], float(sigma[k]))[0], rtol=0, atol=1e-8)


def test_bad_input():
    net = denoiser(rtol=1e-4).requires_grad_(False)
    with pytest.raises(ShapeError, match=r"1 channel\(s\).*got \(1, 3, 8, 8\)"):
        net(rand(1, 3, 8, 8), 0.1)
    broken = noisy(2, 1, 8, 8)
    broken[1, 0, 3, 3] = torch.nan
    with pytest.raises(NotFiniteError, match="the weights contain NaN or Inf"):
        net(broken, 0.1)


def test_the_description_holds_how_it_is_solved():
    net = RidgeDenoiser(Ridge(1, (3, 4), (3, 2)), 3, Implicit(1e-3), Picard(), Stop(1e-3, 77))
    again = build(net.describe())
    assert again.describe() == net.describe()
    assert (again.depth, again.stop, again.gradient.rtol) == (3, Stop(1e-3, 77), 1e-3)


def test_running_out_of_layers_is_said_once():
    net = RidgeDenoiser(Ridge(1, (3, 4), (3, 2)), stop=Stop(1e-12, 3)).eval()
    with pytest.warns(NotConvergedWarning, match="had not settled after 3 layers"):
        net(noisy(1, 1, 9, 8), 0.1)
    net(noisy(1, 1, 9, 8), 0.1)  # warnings are errors here
    RidgeDenoiser(net.prior, stop=Stop(1e-12, 3)).train()(noisy(1, 1, 9, 8), 0.1)
