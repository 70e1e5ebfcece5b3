"""Total variation: its operator, the exact norm, the value, and the prox of the conjugate."""

import math

import pytest
import torch
from deepinv.optim.prior import TVPrior
from deepinv.physics import Denoising

import retune
from retune import ForwardBackward, GradientStep, PrimalDual, Restarted, Stop
from retune.errors import InvalidParameterError, ShapeError
from retune.priors import TV, adapt
from retune.priors.total_variation import differences, differences_adjoint, onto_balls, squared_norm
from small_parts import as_matrix, rand

KINDS = [(iso, vec) for iso in (True, False) for vec in (True, False)]


def test_the_adjoint_is_one(float64):
    x, z = rand(2, 3, 5, 7), rand(2, 2, 3, 5, 7, seed=1)
    torch.testing.assert_close((differences(x) * z).sum(), (x * differences_adjoint(z)).sum())


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (2, 2), (4, 7)], ids="{0[0]}x{0[1]}".format)
def test_the_norm_is_exact(size, float64):
    matrix = as_matrix(differences, (1, *size))
    norm = float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    assert squared_norm(*size) == pytest.approx(norm, rel=1e-12, abs=1e-14)
    assert norm < 8


def by_loops(x, isotropic, vectorial):
    """The definition, pixel by pixel, for one image."""
    channels, height, width = x.shape
    total = 0.0
    for i in range(height):
        for j in range(width):
            d = [
                [float(x[c, i + 1, j] - x[c, i, j]) if i + 1 < height else 0.0 for c in range(channels)],
                [float(x[c, i, j + 1] - x[c, i, j]) if j + 1 < width else 0.0 for c in range(channels)],
            ]
            groups = [[d[k][c] for k in range(2) for c in range(channels)]]
            if not (isotropic and vectorial):
                groups = [[d[k][c] for k in range(2)] for c in range(channels)] if isotropic else d
            if not isotropic and not vectorial:
                groups = [[v] for row in d for v in row]
            total += sum(math.hypot(*g) for g in groups)
    return total


@pytest.mark.parametrize(("isotropic", "vectorial"), KINDS)
def test_the_value_is_that_of_the_definition(isotropic, vectorial, float64):
    x, prior = rand(2, 3, 4, 5), TV(isotropic, vectorial)
    expected = torch.tensor([by_loops(image, isotropic, vectorial) for image in x])
    torch.testing.assert_close(prior.fn(x), expected)
    gamma = torch.tensor([0.5, 2.0]).reshape(2, 1, 1, 1)
    bound = prior.bind(x.shape, 0, gamma)
    assert bound.fn is not None
    torch.testing.assert_close(bound.fn(x), expected * gamma.flatten())


def test_without_vectors_it_is_that_of_deepinv(float64):
    x = rand(2, 3, 6, 5)
    torch.testing.assert_close(TV(vectorial=False).fn(x), TVPrior().fn(x))


@pytest.mark.parametrize(
    "gamma", [torch.tensor(0.7), torch.tensor([0.4, 1.5]).reshape(2, 1, 1, 1)], ids=["one", "each"]
)
@pytest.mark.parametrize(("isotropic", "vectorial"), KINDS)
def test_the_dual_prox_obeys_moreau(isotropic, vectorial, gamma, float64):
    """``p = prox_{σ(γg)*}(p) + σ prox_{γg/σ}(p/σ)``, with the prox of g as a shrinkage of each group."""
    gamma, sigma = gamma.double().reshape(-1, 1, 1, 1), torch.tensor([0.3])
    p = rand(2, 2, 3, 4, 5)
    analysis = TV(isotropic, vectorial).bind((2, 3, 4, 5), 0, gamma).analysis
    assert analysis is not None
    v, t = p / sigma, (gamma / sigma).reshape(-1, 1, 1, 1, 1)
    dims = [d for d, grouped in ((1, isotropic), (2, vectorial)) if grouped]
    size = v.square().sum(dims, keepdim=True).sqrt() if dims else v.abs()
    shrunk = v * (1 - t / size).clamp_min(0)
    torch.testing.assert_close(analysis.dual_prox(p, sigma) + sigma * shrunk, p)


def huber(z, eps, isotropic, vectorial):
    """The definition on the groups of differences (B, 2, C, H, W)."""
    dims = [d for d, grouped in ((1, isotropic), (2, vectorial)) if grouped]
    t = z.square().sum(dims).sqrt() if dims else z.abs()
    return torch.where(t <= eps, t**2 / (2 * eps), t - eps / 2).flatten(1).sum(1)


@pytest.mark.parametrize(("isotropic", "vectorial"), KINDS)
def test_smoothed_it_has_a_gradient_with_its_constant(isotropic, vectorial, float64):
    prior, x = TV(isotropic, vectorial, smoothing=0.7), rand(2, 3, 4, 5)
    torch.testing.assert_close(prior.fn(x), huber(differences(x), 0.7, isotropic, vectorial))
    bound = prior.bind(x.shape, 0, torch.tensor(2.0))
    assert bound.grad is not None
    assert bound.fn_and_grad is not None
    value, gradient = bound.fn_and_grad(x)
    torch.testing.assert_close(value, 2 * prior.fn(x))
    torch.testing.assert_close(gradient, bound.grad(x))
    y = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(prior.fn(y).sum(), y)
    torch.testing.assert_close(gradient, expected)
    flat = torch.zeros(1, 3, 4, 5, requires_grad=True)
    assert torch.autograd.gradgradcheck(prior.fn, (flat,), fast_mode=True)  # in the quadratic part
    stated = prior.smoothness(x)
    assert stated is not None
    hessian = torch.autograd.functional.hessian(lambda v: prior.fn(v).sum(), torch.zeros(1, 3, 4, 5))
    curvature = float(torch.linalg.matrix_norm(hessian.reshape(60, 60), 2))
    assert curvature == pytest.approx(float(stated.lipschitz), rel=1e-10)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("isotropic", "vectorial"), KINDS)
def test_smoothed_the_dual_prox_is_that_of_brute_force(isotropic, vectorial, float64):
    """``prox_{σ(γg)*}(p) = p − σ prox_{γg/σ}(p/σ)`` with the inner prox by gradient descent."""
    gamma, sigma, prior = (
        torch.tensor([0.4, 1.5]).reshape(2, 1, 1, 1),
        torch.tensor([0.3]),
        TV(isotropic, vectorial, 0.7),
    )
    p = rand(2, 2, 3, 4, 5)
    analysis = prior.bind((2, 3, 4, 5), 0, gamma).analysis
    assert analysis is not None
    assert not analysis.homogeneous
    v, t = p / sigma, (gamma / sigma).flatten()
    z = v.clone().requires_grad_()
    for _ in range(200):
        value = (0.5 * (z - v).square().flatten(1).sum(1) + t * huber(z, 0.7, isotropic, vectorial)).sum()
        (gradient,) = torch.autograd.grad(value, z)
        z = (z - gradient / (1 + t.reshape(-1, 1, 1, 1, 1) / 0.7)).detach().requires_grad_()
    torch.testing.assert_close(analysis.dual_prox(p, sigma) + sigma * z.detach(), p, rtol=0, atol=1e-8)


def test_smoothed_two_maps_find_the_same_image(float64):
    """Gradient steps on the smoothed prior, and primal–dual steps on its conjugate."""
    y = rand(1, 2, 6, 5)
    prior = TV(smoothing=2.0)
    nets = [
        Restarted(map_, depth=10, stop=Stop(1e-9, 3000)).eval()
        for map_ in (GradientStep(prior, reg=0.2), PrimalDual(prior, reg=0.2))
    ]
    first, second = (net.solve(y, Denoising()).image for net in nets)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
    assert float((first - Restarted(PrimalDual(TV(), reg=0.2), depth=10).eval()(y, Denoising())).abs().max()) > 1e-2
    (found,) = retune.certify(nets[0], y, Denoising(), iterations=3, starts=1)
    assert found.row == "smoothed total variation"
    assert found.verdict.startswith("Proved: the image is within ")
    run = retune.config.from_dict({"prior": {"type": "tv", "options": {"smoothing": 0.05}}})
    assert type(retune.build.network_of(run, 1).map) is GradientStep


@pytest.mark.parametrize("dims", [(1, 2), (1,), (2,), ()])
def test_derivatives_are_those_of_finite_differences(dims, float64):
    p = rand(2, 2, 3, 3, 3).requires_grad_()
    radius = torch.tensor([0.8, 1.4]).reshape(2, 1, 1, 1, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, r: onto_balls(p, r, dims), (p, radius), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda p, r: onto_balls(p, r, dims), (p, radius), fast_mode=True)
    x = rand(2, 3, 4, 5).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: differences(x).square(), (x,), fast_mode=True)


def test_the_projection_has_derivatives_at_0(float64):
    """At the corner all differences are 0; a norm there would have NaN as second derivative."""
    p = torch.zeros(1, 2, 1, 2, 2, requires_grad=True)
    out = onto_balls(p, torch.tensor(0.5), (1, 2))
    (grad,) = torch.autograd.grad(out.sum(), p, create_graph=True)
    assert bool((grad == 1).all())


def test_it_declares_what_it_has_and_others_refuse_it_with_advice():
    prior = TV()
    able = adapt(prior)
    assert able.has_analysis
    assert able.has_value
    assert not able.has_prox
    assert not able.has_grad
    for map_ in (ForwardBackward, GradientStep):
        with pytest.raises(InvalidParameterError, match=r"got TV, .*retune\.PrimalDual\(prior\)"):
            map_(prior)
    with pytest.raises(ShapeError, match=r"\(B, C, H, W\)"):
        prior.fn(torch.zeros(3, 4, 5))
    with pytest.raises(InvalidParameterError, match="vectorial"):
        TV(vectorial="yes")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidParameterError, match="smoothing must be finite and ≥ 0, got -1"):
        TV(smoothing=-1.0)


def test_it_is_written_and_read():
    told = retune.PrimalDual(TV(isotropic=False, vectorial=False)).describe()["prior"]
    assert told == {"type": "TV", "isotropic": False, "vectorial": False}
    assert TV(smoothing=0.1).describe()["smoothing"] == 0.1
