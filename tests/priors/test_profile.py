"""Potentials: the derivative is one, curvature stays within its bounds, autograd agrees with finite differences."""

from __future__ import annotations

import pytest
import torch

from retune.errors import InvalidParameterError, UnknownNameError
from retune.priors.profile import CONVEXITY, SIGMA_0, SIGMA_RANGE, BoundProfile, Profile, _Derivative
from small_parts import rand


def profile(convexity: str, filters: int = 5, knots: int = 3, spread: float = 0.7) -> Profile:
    """With parameters away from their start."""
    made = Profile(filters, knots, convexity)
    with torch.no_grad():
        for k, p in enumerate(made.parameters()):
            p += spread * rand(*p.shape, seed=k).to(p)
    return made


def levels(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def inputs(batch: int = 2, tables: int = 1, seed: int = 0) -> list[torch.Tensor]:
    """Responses, knots and jumps; no response lies on a knot."""
    limits = rand(tables, 5, 2, 1, 1, seed=seed).abs().cumsum(2) + 0.1
    return [
        t.requires_grad_() for t in (2 * rand(batch, 5, 1, 2, seed=seed + 1), limits, rand(tables, 5, 2, 1, 1, seed=7))
    ]


def plain(r, limits, jumps):
    """``Σ_j c_j clip(r, −T_j, T_j)`` by autograd's own operations."""
    terms = [r.clamp(-limits[:, :, j], limits[:, :, j]) * jumps[:, :, j] for j in range(limits.shape[2])]
    return torch.stack(terms).sum(0)


@pytest.mark.parametrize("convexity", CONVEXITY)
def test_derivative_is_that_of_the_value(convexity, float64):
    bound = profile(convexity).bind(levels(0.1, 0.02))
    r = 0.3 * rand(2, 5, 4, 3)
    r.requires_grad_()
    (slope,) = torch.autograd.grad(bound.value(r).sum(), r)
    torch.testing.assert_close(slope, bound.derivative(r), rtol=0, atol=1e-12)
    assert bound.value(r).shape == (2,)
    step = 1e-6 * rand(*r.shape, seed=3)
    change = (bound.value(r + step) - bound.value(r - step)) / 2
    torch.testing.assert_close(change, (slope * step).sum((1, 2, 3)), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("tables", [1, 2])
def test_slices_are_the_plain_formula(tables, float64):
    r, limits, jumps = inputs(tables=tables)
    torch.testing.assert_close(_Derivative.apply(r, limits, jumps), plain(r, limits, jumps), rtol=0, atol=1e-14)
    weights = rand(*r.shape, seed=9)
    ours = torch.autograd.grad((weights * _Derivative.apply(r, limits, jumps)).sum(), (r, limits, jumps))
    expected = torch.autograd.grad((weights * plain(r, limits, jumps)).sum(), (r, limits, jumps))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("tables", [1, 2])
def test_first_second_and_forward_derivatives(tables, float64):
    given = inputs(tables=tables)
    assert torch.autograd.gradcheck(_Derivative.apply, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(_Derivative.apply, given)


@pytest.mark.parametrize("tables", [1, 2])
@pytest.mark.parametrize("mode", ["jacrev", "jacfwd"])
def test_function_transforms(mode, tables, float64):
    """As an estimator of the contraction uses them."""
    given = [t.detach() for t in inputs(tables=tables)]
    found = getattr(torch.func, mode)(_Derivative.apply, argnums=(0, 1, 2))(*given)
    for a, b in zip(found, torch.func.jacrev(plain, argnums=(0, 1, 2))(*given), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    pull = torch.func.vjp(_Derivative.apply, *given)[1]
    torch.testing.assert_close(pull(given[0])[0], torch.func.vjp(plain, *given)[1](given[0])[0])


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_derivatives_in_some_of_the_arguments(wanted, float64):
    given = [t if k in wanted else t.detach() for k, t in enumerate(inputs())]
    assert torch.autograd.gradcheck(_Derivative.apply, given)


def test_second_derivative_in_the_potential_alone(float64):
    """As a Jacobian penalty needs it: the gradient that comes in has no graph of its own."""
    r, limits, jumps = inputs()
    weights = rand(*r.shape, seed=4)

    def penalty(jumps):
        (v,) = torch.autograd.grad(_Derivative.apply(r, limits, jumps), r, weights, create_graph=True)
        return v.square().sum()

    assert torch.autograd.gradcheck(penalty, (jumps,))


@pytest.mark.parametrize("spread", [0.7, 1000.0])
@pytest.mark.parametrize("convexity", CONVEXITY)
@pytest.mark.parametrize("seed", range(3))
def test_slopes_stay_within_their_bounds(seed, spread, convexity, float64):
    torch.manual_seed(seed)
    made = Profile(6, 4, convexity)
    with torch.no_grad():
        for p in made.parameters():
            p += spread * torch.randn_like(p)
    sigma = levels(1e-6, 0.05, 0.4)
    bound = made.bind(sigma)
    log = (sigma.clamp(*SIGMA_RANGE) * 255 / 25).log().flatten()
    exponent = made.strength[0] + made.strength[1] * log + made.strength[2] * log**2
    largest = exponent.clamp(-40, 40).exp()[:, None, None]
    assert bool((bound.slopes <= largest * (1 + 1e-12)).all())
    assert bool((bound.slopes >= (0 if convexity == "convex" else -1)).all())
    for part in (bound.limits, bound.jumps, bound.slopes):
        assert bool(torch.isfinite(part).all())
    assert bool((bound.limits.diff(dim=2) >= 0).all())
    # what is applied has these slopes, not only the table
    applied = bound.jumps.detach().flip(2).cumsum(2).flip(2)[..., 0, 0]
    error = (applied - bound.slopes.detach()).abs().amax((1, 2)) / bound.slopes.detach().abs().amax((1, 2)).clamp_min(1)
    assert float(error.max()) < 1e-14


@pytest.mark.parametrize("convexity", CONVEXITY)
def test_curvature_is_the_range_of_the_second_derivative(convexity, float64):
    bound = profile(convexity).requires_grad_(False).bind(levels(0.1, 0.03))
    low, high = bound.curvature
    end = float(bound.limits.max()) * 1.2
    t = torch.linspace(-end, end, 4001).expand(2, 5, 1, -1)
    slope = bound.derivative(t).diff(dim=-1) / t.diff(dim=-1)
    slope = slope.flatten(1)
    assert low.shape == high.shape == (2,)
    torch.testing.assert_close(slope.amax(1), high, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(slope.amin(1), low, rtol=1e-8, atol=1e-8)
    assert bool((low < 0).all()) is (convexity == "weakly convex")


@pytest.mark.parametrize("convexity", CONVEXITY)
def test_second_derivative_is_that_of_the_derivative(convexity, float64):
    bound = profile(convexity).requires_grad_(False).bind(levels(0.1, 0.03))
    r, v = 0.3 * rand(2, 5, 4, 3), rand(2, 5, 4, 3, seed=2)
    change = (bound.derivative(r + 1e-7 * v) - bound.derivative(r - 1e-7 * v)) / 2e-7
    torch.testing.assert_close(bound.second_derivative(r)(v), change, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("convexity", CONVEXITY)
def test_even_potential_and_odd_derivative(convexity):
    bound = profile(convexity).bind(levels(0.1))
    r = rand(2, 5, 3, 3)
    assert torch.equal(bound.derivative(-r), -bound.derivative(r))
    assert torch.equal(bound.value(-r), bound.value(r))
    assert torch.equal(bound.value(torch.zeros_like(r)), torch.zeros(2))


def test_knots_scale_with_the_noise_level(float64):
    """Without further learning ψ_σ'(σt) is proportional to σ: twice the noise level, half the image."""
    one, two = (Profile(3, 2).bind(levels(s)) for s in (0.05, 0.1))
    r = 0.1 * rand(1, 3, 4, 4)
    torch.testing.assert_close(two.derivative(2 * r), 2 * one.derivative(r))
    torch.testing.assert_close(two.value(2 * r), 4 * one.value(r))


@pytest.mark.parametrize(("sigma", "nearest"), [(0.0, 2 / 255), (0.2 / 255, 2 / 255), (0.9, 55 / 255)])
def test_beyond_the_trained_noise_levels_the_nearest_potential_is_scaled(sigma, nearest, float64):
    """A polynomial in log σ goes anywhere there."""
    made = Profile(3, 2, powers=5)
    with torch.no_grad():
        made.scale += 0.1 * rand(*made.scale.shape)
        made.strength += 0.1 * rand(*made.strength.shape)
    there, here = (made.bind(levels(s)) for s in (sigma, nearest))
    r = 0.1 * rand(1, 3, 4, 4)
    s = sigma / nearest
    exact = {"rtol": 1e-9, "atol": 0}
    assert float(here.value(r).detach()) > 1e-3
    torch.testing.assert_close(there.value(max(s, 1) * r), s**2 * here.value(r), **exact)
    torch.testing.assert_close(there.slopes, min(s, 1) ** 2 * here.slopes, **exact)


def test_log_strength_and_log_scale_are_polynomials_of_the_log_noise_level(float64):
    """Read off at five noise levels; a law of more powers with zeros is the law of fewer."""
    made = Profile(2, 1, "convex", powers=5)
    with torch.no_grad():
        made.strength.copy_(torch.tensor([1.0, 0.3, -0.2, 0.5, -0.7]))
        made.scale[1].copy_(torch.tensor([0.2, -0.1, 0.4, 0.0, 0.6]))
    log = torch.tensor([-2.5, -1.0, -0.3, 0.0, 0.6])
    bound = made.bind((SIGMA_0 * log.exp()).reshape(-1, 1, 1, 1))
    strength = (bound.slopes[:, 0, 0] / torch.sigmoid(made.slope[0, 0])).log()
    expected = 1 + 0.3 * log - 0.2 * log**2 + 0.5 * log**3 / 2.5 - 0.7 * log**4 / 2.5**2
    torch.testing.assert_close(strength.detach(), expected)
    widths = bound.limits[:, 1, 0, 0, 0] / bound.limits[3, 1, 0, 0, 0]
    expected = log + 0.1 * log - 0.4 * log**2 - 0.6 * log**4 / 2.5**2
    torch.testing.assert_close(widths.log().detach(), expected)


def test_one_noise_level_per_image(float64):
    made = profile("weakly convex")
    r = 0.2 * rand(2, 5, 3, 3)
    both = made.bind(levels(0.02, 0.1))
    for k, sigma in enumerate((0.02, 0.1)):
        alone = made.bind(levels(sigma))
        torch.testing.assert_close(both.derivative(r)[k], alone.derivative(r[k : k + 1])[0])
        torch.testing.assert_close(both.value(r)[k], alone.value(r[k : k + 1])[0])
        torch.testing.assert_close(both.curvature[1][k], alone.curvature[1][0])


def test_gradient_reaches_every_parameter_and_sigma(float64):
    made = profile("weakly convex")
    r = 0.2 * rand(2, 5, 3, 3)
    sigma = levels(0.05, 0.1).requires_grad_()
    names = dict(made.named_parameters())

    def value(sigma, *parameters):
        given = dict(zip(names, parameters, strict=True))
        bound: BoundProfile = torch.func.functional_call(_Bind(made), {f"p.{k}": v for k, v in given.items()}, (sigma,))
        return bound.derivative(r).square().sum()

    assert torch.autograd.gradcheck(value, (sigma, *names.values()), eps=1e-7, atol=1e-5)


class _Bind(torch.nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, sigma):
        return self.p.bind(sigma)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"filters": 0}, InvalidParameterError, "at least 1, got 0, 4 and 3"),
        ({"filters": 3, "knots": 0}, InvalidParameterError, "at least 1, got 3, 0 and 3"),
        ({"filters": 3, "powers": 0}, InvalidParameterError, "at least 1, got 3, 4 and 0"),
        ({"filters": 6, "group": 4}, InvalidParameterError, "divide the number of filters, 6; got 4"),
        ({"filters": 3, "knots": 2.5}, InvalidParameterError, "knots must be a whole number"),
        ({"filters": 3, "convexity": "weakly-convex"}, UnknownNameError, "did you mean 'weakly convex'"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        Profile(**options)
