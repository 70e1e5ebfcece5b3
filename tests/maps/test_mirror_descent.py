"""Mirror descent on counts: the objective never rises, its fixed points are the minimisers, gradients, run and file."""

from itertools import pairwise

import pytest
import torch
from deepinv.optim import L2, PoissonLikelihood
from deepinv.optim.prior import Tikhonov
from deepinv.physics import Blur, Denoising, LinearPhysics

import retune
from retune import DataTerm, Implicit, MirrorDescent, PrimalDual, Restarted, Stop, Truncated
from retune.data import grey, photograph
from retune.errors import InvalidParameterError, PhysicsError, ShapeError
from retune.maps.mirror_descent import _weights
from retune.priors import RED, TV, Energy
from small_parts import as_matrix, dense, rand, spectrum

KERNEL = torch.tensor([[0.0, 1.0, 0.0], [1.0, 4.0, 1.0], [0.0, 1.0, 0.0]]) / 8


def blur(padding="circular"):
    return Blur(KERNEL[None, None].to(torch.get_default_dtype()), padding=padding)


def counted(photons, size=5, seed=0, background=0.0):
    """Counts of a blurred piece of a photograph, with this many photons at white."""
    x = grey(photograph("chelsea"))[None, :, 100 : 100 + size, 100 : 100 + size].to(torch.get_default_dtype())
    mean = photons * blur().A(x) + background
    return torch.poisson(mean, generator=torch.Generator().manual_seed(seed)), x


def solved(map_, y, physics, rtol=1e-8, most=4000):
    return Restarted(map_, depth=10, stop=Stop(rtol, most)).eval().solve(y, physics).image


def likelihood(x, y, gain, background):
    """gain² times the negative logarithm of the Poisson likelihood, from its definition."""
    mean = blur().A(x) / gain + background
    return gain**2 * float((mean - y * mean.log()).sum())


@pytest.mark.parametrize("photons", [20, 100, 1000])
def test_it_agrees_with_primal_dual_on_the_exact_likelihood(photons, float64):
    """With a background, without which there is no primal–dual step, and smoothed total variation."""
    background = 0.2 * photons
    y, _ = counted(photons, background=background)
    gain = 1 / photons
    fidelity = PoissonLikelihood(gain=gain, bkg=background, denormalize=False)
    prior, reg = TV(smoothing=0.05), 0.2 * gain
    found = solved(MirrorDescent(prior, fidelity, reg=reg), y, blur())
    map_ = PrimalDual(prior, fidelity, reg=reg, box=(1e-9, 100.0))
    other = solved(map_, y, blur())
    assert float((found - other).abs().max()) < 1e-3

    def objective(x):
        return likelihood(x, y, gain, background) + reg * float(prior.fn(x))

    assert abs(objective(found) - objective(other)) < 1e-6 * abs(objective(found))
    assert objective(found) < min(objective((found + 1e-2 * rand(*found.shape, seed=s)).abs()) for s in range(5))


@pytest.mark.parametrize("known", [True, False])
def test_its_fixed_points_are_the_minimisers(known, float64):
    """Without a background: ``∇F = 0`` where x > 0, for weights from the kernel, and for the sum of all counts."""
    y, _ = counted(20, size=4)
    k = blur()
    physics = k if known else LinearPhysics(A=lambda x, **_: k.A(x), A_adjoint=lambda v, **_: k.A_adjoint(v))
    map_ = MirrorDescent(TV(smoothing=2.0), reg=0.3).requires_grad_(False)
    x = solved(map_, y, physics, 1e-7, 1500).requires_grad_()
    mean = k.A(x)
    value = (mean - y * mean.log()).sum() + 0.3 * map_.prior.fn(x).sum()
    (gradient,) = torch.autograd.grad(value, x)
    assert float(x.detach().min()) > 1
    assert float((x * gradient).detach().abs().max()) < 1e-3


def test_dark_pixels_tend_to_0(float64):
    """Where no light is seen the minimiser is 0: ``x∇F → 0`` with ``∇F ≥ 0``, as slowly as 1/k."""
    y, _ = counted(20, size=4)
    y[..., :2, :] = 0
    map_ = MirrorDescent(Tikhonov(), reg=1e-3).requires_grad_(False)
    bound = map_.bind(map_.data_term(y, Denoising()))
    u, sizes = bound.init(), []
    for k in range(401):
        if k in (100, 200, 400):
            sizes.append(float(u[..., :2, :].max()))
        u = bound.layer(u)
    assert 0 < sizes[2] < 0.05
    assert sizes[1] / sizes[0] == pytest.approx(0.5, rel=0.1)
    assert sizes[2] / sizes[1] == pytest.approx(0.5, rel=0.1)
    torch.testing.assert_close(u[..., 2:, :], (torch.sqrt(1 + 4e-3 * y[..., 2:, :]) - 1) / 2e-3)


@pytest.mark.parametrize("step_size", [0.3, 0.99])
@pytest.mark.parametrize("padding", ["circular", "valid"])
def test_the_objective_never_rises(padding, step_size, float64):
    y, _ = counted(20)
    y = y if padding == "circular" else blur("valid").A(y).round()
    map_ = MirrorDescent(TV(smoothing=2.0), step_size=step_size, reg=0.02).requires_grad_(False)
    size = 5
    for seed in range(3):
        term = map_.data_term(y, blur(padding))
        bound = map_.bind(term)
        u = bound.state(30 * rand(1, 1, size, size, seed=seed).abs() ** 3)
        values = []
        for _ in range(30):
            values.append(float(map_.objective(u, term)))
            u = bound.layer(u)
            assert float(u.min()) > 0
        assert all(b <= a + 1e-12 * abs(a) for a, b in pairwise(values))
        assert values[-1] < values[0]


def test_with_smaller_weights_it_rises(float64):
    """So the test above can fail."""
    y, _ = counted(20)
    map_ = MirrorDescent(TV(smoothing=2.0), step_size=0.99, reg=1e-4).requires_grad_(False)
    term = map_.data_term(y, blur())
    bound = map_.bind(term)
    bound._weights = bound._weights / 1e3
    u = bound.state(30 * rand(1, 1, 5, 5).abs() ** 3)
    values = []
    for _ in range(30):
        values.append(float(map_.objective(u, term)))
        u = bound.layer(u)
    assert any(b > a for a, b in pairwise(values))


@pytest.mark.parametrize("padding", ["circular", "valid", "reflect"])
def test_the_weights_are_the_counts_that_see_a_pixel(padding, float64):
    y, _ = counted(50)
    y = y if padding != "valid" else blur("valid").A(y).round()
    map_ = MirrorDescent(Tikhonov())
    term = map_.data_term(y, blur(padding))
    matrix = as_matrix(lambda x: blur(padding).A(x), term.shape[1:])
    expected = (matrix > 0).to(y).T @ y.flatten()
    found = _weights(term).flatten()
    assert bool((found >= expected.clamp_min(float(y[y > 0].min())) - 1e-9).all())
    assert float(found.sum()) < 1.5 * float(expected.sum())
    whole = _weights(map_.data_term(y, LinearPhysics(A=lambda x, **_: x, A_adjoint=lambda v, **_: v)))
    assert float(whole) == pytest.approx(float(y.sum()))


def test_every_rule_has_the_gradient_of_finite_differences(float64):
    y, _ = counted(20, size=4)
    weights, h = rand(1, 1, 4, 4, seed=9), 1e-5

    def loss(reg):
        map_ = MirrorDescent(TV(smoothing=2.0), reg=reg).requires_grad_(False)
        return float((weights * solved(map_, y, Denoising(), 1e-11, 1500)).sum())

    truth = (loss(0.3 + h) - loss(0.3 - h)) / (2 * h)
    assert abs(truth) > 1e-2
    for rule in (Truncated(rtol=1e-7, max_blocks=200), Implicit(rtol=1e-7, max_blocks=2000)):
        map_ = MirrorDescent(TV(smoothing=2.0), reg=0.3)
        net = Restarted(map_, depth=10, restarts=60, gradient=rule).train()
        (weights * net(y, Denoising())).sum().backward()
        assert map_.reg.raw.grad is not None
        assert float(map_.reg.raw.grad) / 0.3 == pytest.approx(truth, rel=1e-4)
        assert map_.step_size.raw.grad is not None
        assert abs(float(map_.step_size.raw.grad)) < 1e-4 * abs(truth)  # the minimiser does not depend on s


def test_in_single_precision_it_reaches_the_same_image():
    """Steps of the size of rounding: ``a/x − a/x⁺`` would lose them."""
    y, _ = counted(1000, size=4)
    map_ = MirrorDescent(Tikhonov(), reg=1e-4)
    image = solved(map_, y, Denoising(), 1e-5, 1000)
    torch.testing.assert_close(image, (torch.sqrt(1 + 4e-4 * y) - 1) / 2e-4, rtol=1e-4, atol=1e-2)


def test_a_run_names_it_a_file_keeps_it_and_a_certificate_is_honest(tmp_path):
    run = retune.config.from_dict(
        {
            "prior": {"type": "tv", "options": {"smoothing": 0.5}},
            "map": {"type": "mirror_descent"},
            "data_fidelity": {"type": "PoissonLikelihood", "options": {"gain": 1.0, "bkg": 0.0}},
            "model": {"reg": 0.2, "depth": 4},
        }
    )
    net = retune.build.network_of(run, 1).eval()
    assert type(net.map) is MirrorDescent
    net.save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors").eval()
    y, _ = counted(20)
    image = again.solve(y, blur()).image
    torch.testing.assert_close(image, net.solve(y, blur()).image)
    assert float(image.min()) > 0
    (found,) = retune.certify(again, y, blur(), iterations=3, starts=1)
    assert found.statement == "the objective never rises, and tends to its smallest value"
    assert found.rmse.proved is None
    assert all(a.checked for a in found.assumptions)
    unknown = LinearPhysics(A=lambda x, **_: x, A_adjoint=lambda v, **_: v)
    facts = again.map.guarantee(again.map.data_term(y, unknown))
    (open_one,) = [a for a in facts.assumptions if not a.checked]
    assert open_one.statement == "A has no negative entries"


def test_what_it_does_not_take():
    y, _ = counted(20)
    with pytest.raises(InvalidParameterError, match=r"needs counts ≥ 0 with their likelihood, got L2"):
        MirrorDescent(Tikhonov(), L2()).bind(DataTerm(y, Denoising()))
    with pytest.raises(InvalidParameterError, match=r"got PoissonLikelihood for a measurement from -3"):
        MirrorDescent(Tikhonov()).data_term(y - y.min() - 3, Denoising())
    with pytest.raises(InvalidParameterError, match=r"known Lipschitz constant, got Energy"):
        MirrorDescent(Energy(retune.networks.EnergyNet(channels=1, features=(2, 2, 2))))
    with pytest.raises(InvalidParameterError, match="MirrorDescent needs a prior with a gradient"):
        MirrorDescent(TV())
    with pytest.raises(PhysicsError, match="without negative entries"):
        MirrorDescent(Tikhonov()).data_term(y, Blur(-KERNEL[None, None], padding="circular"))
    physics = dense(spectrum(25, 25, 0.5, 1.0), (1, 5, 5))
    with pytest.raises(PhysicsError, match="without negative entries"):
        MirrorDescent(Tikhonov()).data_term(y.reshape(1, 1, 1, 25), physics)
    with pytest.raises(ShapeError, match="expected images of shape"):
        MirrorDescent(Tikhonov()).bind(MirrorDescent(Tikhonov()).data_term(y, blur())).state(torch.zeros(1, 1, 2, 2))
    with pytest.raises(InvalidParameterError, match=r"not Lipschitz .*retune\.MirrorDescent"):
        PrimalDual(TV(), PoissonLikelihood(bkg=0)).data_term(y, blur())
    assert not MirrorDescent(RED(torch.nn.Identity(), sigma=None)).nonexpansive
