"""Ridge regularisers: gradient, constants that are never exceeded, (weak) convexity, and deepinv's own algorithms."""

from __future__ import annotations

import copy

import pytest
import torch
from deepinv.optim import GD, L2
from deepinv.physics import Inpainting

from retune import DataTerm, GradientStep
from retune.data import photograph
from retune.errors import InvalidParameterError, ShapeError
from retune.priors import Ridge
from retune.priors.profile import CONVEXITY
from ridges import trained, wave
from small_parts import central_difference, rand

#: One filter for each potential, and three.
GROUPS = (1, 3)


def ridge(convexity="convex", channels=1, steps=0, **options) -> Ridge:
    """A small regulariser; after `steps` far too large random training steps on filters and potentials."""
    torch.manual_seed(1)
    prior = Ridge(channels, (3, 6), (4, 3), knots=3, convexity=convexity, **options)
    trained(prior.filters, steps)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for p in prior.profile.parameters():
            p += (0.3 + 0.7 * steps) * torch.randn(p.shape, generator=generator).to(p)
    return prior


def crop(channels: int, side: int = 24) -> torch.Tensor:
    x = photograph("astronaut")[None, :, 100 : 100 + side, 180 : 180 + side].to(torch.get_default_dtype())
    return x if channels == 3 else x.mean(1, keepdim=True)


def hessian_norm(prior: Ridge, x: torch.Tensor, start: torch.Tensor, steps: int = 15) -> float:
    """A lower bound of ``‖∇²R(x)‖`` by power iteration."""
    x = x.clone().requires_grad_()
    gradient, v, size = prior.grad(x), start / start.norm(), 0.0
    for _ in range(steps):
        (hv,) = torch.autograd.grad(gradient, x, v, retain_graph=True)
        size = float(hv.norm())
        v = hv / max(size, 1e-30)
    return size


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("convexity", CONVEXITY)
@pytest.mark.parametrize("shape", [(2, 1, 9, 8), (1, 3, 7, 11)])
def test_gradient_is_that_of_the_value(shape, convexity, group, float64):
    prior = ridge(convexity, shape[1], group=group)
    x = rand(*shape).requires_grad_()
    value = prior.fn(x)
    assert value.shape == (shape[0],)
    (expected,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(prior.grad(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("convexity", CONVEXITY)
def test_lipschitz_constant_is_never_exceeded(convexity, steps, channels, group, float64):
    """On photographs, and where every response lies in the innermost piece, probed by the worst plane wave."""
    prior = ridge(convexity, channels, steps, group=group)
    bound = float(prior.lipschitz().detach())
    worst = wave(prior.filters.kernels().detach(), 24)
    photo = crop(channels)
    flat = torch.full_like(photo, 0.5)
    for x in (photo, photo + 0.1 * rand(*photo.shape), flat, 0.5 + 0.3 * worst):
        for start in (rand(*photo.shape, seed=2), worst):
            assert hessian_norm(prior, x, start) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("convexity", CONVEXITY)
def test_lipschitz_constant_is_not_vacuous(convexity, group, float64):
    """All potentials alike and a flat image: the Hessian is the steepest slope times WᵀW."""
    prior = ridge(convexity, group=group)
    with torch.no_grad():
        prior.profile.slope.copy_(torch.tensor([3.0, 0.0, -1.0]).expand_as(prior.profile.slope))
    worst = wave(prior.filters.kernels().detach(), 48)
    found = hessian_norm(prior, torch.full_like(worst, 0.5), worst)
    bound = float(prior.lipschitz().detach())
    assert 0.8 * bound <= found <= bound


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("convexity", CONVEXITY)
def test_monotonicity(convexity, steps, group, float64):
    """⟨∇R(x) − ∇R(z), x − z⟩ ≥ −ρ‖x − z‖², with ρ = 0 if convex, ρ ≤ 1 if weakly convex; and ≤ L‖x − z‖²."""
    prior = ridge(convexity, 1, steps, group=group).requires_grad_(False)
    rho, largest = float(prior.weak_convexity()), float(prior.lipschitz())
    assert rho == 0 if convexity == "convex" else 0 < rho <= 1
    photo = crop(1, 16)
    for seed in range(30):
        size = 10.0 ** (seed % 4 - 3)
        x = photo + size * rand(*photo.shape, seed=seed)
        z = x + size * rand(*photo.shape, seed=seed + 100)
        inner = float(((prior.grad(x) - prior.grad(z)) * (x - z)).sum() / (x - z).square().sum())
        assert -rho - 1e-12 * largest <= inner <= largest * (1 + 1e-12)


@pytest.mark.parametrize("group", GROUPS)
def test_half_square_plus_weakly_convex_is_convex(group, float64):
    """As strongly concave as it may be: slopes −1 everywhere beyond the first piece."""
    prior = ridge("weakly convex", group=group).requires_grad_(False)
    prior.profile.slope.fill_(-1000.0)
    assert float(prior.weak_convexity()) == 1.0
    worst = 0.01 * wave(prior.filters.kernels(), 20)

    def fn(x):
        return 0.5 * x.square().sum() + prior.fn(x)[0]

    for seed in range(20):
        x = rand(*worst.shape, seed=seed)
        z = x + (worst if seed % 2 else rand(*worst.shape, seed=seed + 50))
        assert float(fn((x + z) / 2)) <= float(fn(x) + fn(z)) / 2 + 1e-12
        assert float(prior.fn((x + z) / 2)) > float(prior.fn(x) + prior.fn(z)) / 2  # R alone is not


@pytest.mark.parametrize("group", GROUPS)
def test_noise_level_per_image(group, float64):
    prior = ridge("weakly convex", group=group).requires_grad_(False)
    x = 0.5 + 0.2 * rand(3, 1, 9, 10)
    sigma = torch.tensor([0.0, 0.05, 0.2])
    together = prior.at(sigma, x)
    for k in range(3):
        one = x[k : k + 1]
        torch.testing.assert_close(together.grad(x)[k], prior.grad(one, float(sigma[k]))[0])
        torch.testing.assert_close(prior.fn(x, sigma)[k], prior.fn(one, sigma[k])[0])
        torch.testing.assert_close(prior.lipschitz(sigma)[k], prior.lipschitz(float(sigma[k]))[0])
        torch.testing.assert_close(prior.weak_convexity(sigma)[k], prior.weak_convexity(sigma[k])[0])
    torch.testing.assert_close(prior.grad(x, prior.sigma.value), prior.grad(x))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("convexity", CONVEXITY)
def test_parameter_gradients_of_the_gradient(convexity, group, float64):
    """d‖∇R(x)‖²/dθ for every filter, potential and σ, against finite differences."""
    prior = ridge(convexity, 1, group=group)
    x = 0.2 * rand(2, 1, 8, 9)

    def value():
        return prior.grad(x).square().sum()

    found = torch.autograd.grad(value(), list(prior.parameters()))
    for k, (p, g) in enumerate(zip(prior.parameters(), found, strict=True)):
        step = 1e-6 * rand(*p.shape, seed=k)
        torch.testing.assert_close(central_difference(value, p, step), (g * step).sum(), rtol=1e-4, atol=1e-11)


@pytest.mark.parametrize("group", GROUPS)
def test_parameter_gradients_of_a_jacobian_penalty(group, float64):
    """‖∇²R(x) v‖² in the weights: what a penalty on the Jacobian of the map differentiates."""
    prior = ridge("weakly convex", 1, group=group)
    x, v = 0.2 * rand(1, 1, 8, 9), rand(1, 1, 8, 9, seed=3)

    def value():
        z = x.clone().requires_grad_()
        return torch.autograd.grad(prior.grad(z), z, v, create_graph=True)[0].square().sum()

    (found,) = torch.autograd.grad(value(), prior.profile.slope)
    step = 1e-6 * rand(*found.shape, seed=5)
    with torch.no_grad():
        prior.profile.slope += step
    up = value()
    with torch.no_grad():
        prior.profile.slope -= 2 * step
    torch.testing.assert_close((up - value()).detach() / 2, (found * step).sum(), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("convexity", CONVEXITY)
def test_same_iterates_as_deepinv(convexity, group, float64):
    """deepinv's gradient descent takes it as an ordinary prior with a gradient."""
    physics = Inpainting((1, 10, 9), mask=(torch.rand(1, 1, 10, 9) > 0.4).double())
    y = physics.A(0.5 + 0.2 * rand(2, 1, 10, 9))
    prior = ridge(convexity, group=group).requires_grad_(False)
    net = GradientStep(prior, step_size=0.7, reg=0.4)
    problem = DataTerm(y, physics)
    bound = net.bind(problem)
    step = float(2 * net.step_size.value / (problem.lipschitz + net.reg.value * prior.lipschitz()))
    for iterations in (1, 2, 7):
        theirs = GD(
            data_fidelity=L2(), prior=prior, stepsize=step, lambda_reg=float(net.reg.value), max_iter=iterations,
            early_stop=False, custom_init=lambda y, physics: physics.A_adjoint(y),
        )  # fmt: skip
        with torch.no_grad():
            ours = bound.block(bound.state(problem.adjoint_y), iterations)
            torch.testing.assert_close(ours, theirs(y, physics), rtol=0, atol=1e-13)


def test_frozen_and_unfrozen():
    prior = ridge(learn_filters=False, learn_sigma=False)
    assert not any(p.requires_grad for p in prior.parameters())
    prior.requires_grad_(True)
    assert prior.learn_filters
    prior.grad(rand(1, 1, 9, 9)).square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in prior.parameters())


@pytest.mark.parametrize("group", GROUPS)
def test_single_precision_and_description(group):
    prior = ridge("weakly convex", 3, sigma=0.07, group=group)
    x = rand(2, 3, 9, 8)
    assert prior.grad(x).dtype == torch.float32
    exact = copy.deepcopy(prior).double().grad(x.double()).float()
    torch.testing.assert_close(prior.grad(x), exact, rtol=1e-3, atol=1e-4)
    given = {k: v for k, v in prior.describe().items() if k != "type"}
    assert ("group" in given) is (group > 1)  # descriptions of one variable stay what they were
    again = Ridge(**given)
    assert again.profile.group == group
    again.load_state_dict(prior.state_dict())
    assert torch.equal(again.grad(x), prior.grad(x))


def test_bad_input():
    prior = ridge()
    with pytest.raises(ShapeError, match=r"images \(B, 1, H, W\).*got \(1, 3, 9, 9\)"):
        prior.grad(rand(1, 3, 9, 9))
    with pytest.raises(ShapeError, match="at least 6 pixels"):
        prior.fn(rand(1, 1, 5, 9))
    with pytest.raises(InvalidParameterError, match=r"sigma must be a finite number ≥ 0.*-0\.1"):
        prior.grad(rand(1, 1, 9, 9), -0.1)
    with pytest.raises(InvalidParameterError, match="one per image of the batch of 2, got shape"):
        prior.grad(rand(2, 1, 9, 9), torch.tensor([0.1, 0.1, 0.1]))
    with pytest.raises(InvalidParameterError, match="finite and ≥ 0"):
        prior.grad(rand(2, 1, 9, 9), torch.tensor([0.1, torch.nan]))
    with pytest.raises(InvalidParameterError, match="sigma must be positive"):
        Ridge(sigma=0.0)
