"""Half-quadratic splitting: the minimiser for its γ, averaged, its factor, gradients, denoisers, run and file."""

import pytest
import torch
from deepinv.optim import L2
from deepinv.optim.prior import L1Prior
from deepinv.physics import Blur, Denoising, Inpainting
from torch import nn

import retune
from retune import DataTerm, DouglasRachford, HalfQuadratic, Implicit, Restarted, Status, Stop, Truncated
from retune.errors import InvalidParameterError, ShapeError
from retune.priors import TV, Denoiser, WaveletL1
from small_parts import Quadratic, Rounded, as_matrix, damped_inpainting, largest_factor, rand


def problem(padding="circular", size=8):
    physics = Blur(torch.ones(1, 1, 3, 3) / 9, padding=padding)
    return physics.A(rand(1, 2, size, size)) + 0.1, physics


def solved(map_, y, physics, rtol=1e-9, most=4000):
    return Restarted(map_, depth=10, stop=Stop(rtol, most)).eval().solve(y, physics).image


@pytest.mark.parametrize(("padding", "step_size"), [("circular", 0.5), ("circular", 0.9), ("valid", 0.5)])
def test_its_minimiser_is_that_of_its_gamma(padding, step_size, float64):
    """A second solver: accelerated gradient steps on the envelope ``f_γ`` and a threshold, with dense matrices."""
    y, physics = problem(padding, 4)
    prior = WaveletL1("haar", 1, coarse=True)
    map_ = HalfQuadratic(prior, step_size=step_size, reg=0.05).requires_grad_(False)
    found = solved(map_, y, physics, 1e-8, 600 if padding == "valid" else 3000)
    gamma = float(map_.gamma(DataTerm(y, physics)))
    frame = prior.frame(found.shape, y.dtype, y.device)
    a = as_matrix(lambda x: physics.A(x), found.shape[1:])
    w = as_matrix(frame.analysis, found.shape[1:])
    # ∇f_γ(u) = (u − prox_{γf}(u))/γ with prox_{γf}(u) = M⁻¹(u + γAᵀy)
    inverse = torch.linalg.inv(torch.eye(a.shape[1]) + gamma * a.T @ a)
    target = gamma * a.T @ y.flatten()
    step = gamma / (1 - float(torch.linalg.eigvalsh(inverse).min()))
    u = v = torch.zeros(a.shape[1])
    for k in range(1500):
        inner = w @ (v - step / gamma * (v - inverse @ (v + target)))
        new = w.T @ (inner.sign() * (inner.abs() - 0.05 * step).clamp_min(0))
        u, v = new, new + k / (k + 3) * (new - u)
    torch.testing.assert_close(found.flatten(), u, rtol=0, atol=1e-5)
    if padding == "circular":
        other = solved(DouglasRachford(prior, reg=0.05), y, physics, 1e-5)
        assert float((found - other).abs().max()) > 1e-2  # the minimiser of f + λg is another one


@pytest.mark.parametrize(("margin", "step_size"), [(0, 0.05), (0, 0.99), (3, 0.5)])
def test_it_is_averaged(margin, step_size, float64):
    y, physics = problem()
    map_ = HalfQuadratic(WaveletL1("haar", 2, margin=margin), step_size=step_size, reg=0.2).requires_grad_(False)
    term = DataTerm(y, physics)
    bound, facts = map_.bind(term), map_.guarantee(term)
    assert facts.averaged is not None
    alpha = float(facts.averaged)
    assert alpha == pytest.approx(2 / 3)
    start, least = bound.init(), torch.inf
    for seed in range(200):
        a, b = (start + 10.0 ** (seed % 4 - 2) * rand(*start.shape, seed=s) for s in (seed, seed + 1000))
        ta, tb = bound.layer(a), bound.layer(b)
        whole, moved = bound.norm(a - b) ** 2, bound.norm(a - ta - b + tb) ** 2
        least = min(least, float((whole - (1 - alpha) / alpha * moved - bound.norm(ta - tb) ** 2) / whole))
    assert least >= -1e-12
    assert least < 0.9  # a constant map would pass, too


@pytest.mark.parametrize("prior", ["l1", "quadratic"])
def test_its_factor_is_proved_and_kept(prior, float64):
    """Damped inpainting is strongly convex: pairs approach at least as fast as said, and the distance is bounded."""
    y, physics = damped_inpainting()
    g = L1Prior() if prior == "l1" else Quadratic(torch.full((1, 1, 4, 6), 0.8))
    map_ = HalfQuadratic(g, L2(sigma=0.7), step_size=0.4, reg=0.3).requires_grad_(False)
    term = map_.data_term(y, physics)
    bound, factors = map_.bind(term), map_.guarantee(term).factors()
    assert factors is not None
    factor = float(factors.max())
    assert 0.9 * factor < largest_factor(bound, y.shape) <= factor * (1 + 1e-9)
    net = Restarted(map_, depth=3, stop=Stop(1e-2, 300)).eval()
    result = net.solve(y, physics)
    map_.requires_grad_(True)
    found = retune.certify(net, y, physics, result=result)
    truth = solved(map_, y, physics, 1e-14)
    for image, x, certificate in zip(truth, result.image, found, strict=True):
        assert certificate.statement.startswith("the iterates converge to the only minimiser of f_γ(Du) + λg(u) with")
        assert certificate.statement.endswith("which depends on γ")
        assert certificate.rmse.proved is not None
        assert float((image - x).square().mean().sqrt()) <= certificate.rmse.proved.value
        assert not certificate.refuted


def test_what_conjugate_gradients_leave_open_is_said(float64):
    y, physics = problem("valid")
    net = Restarted(HalfQuadratic(WaveletL1("haar", 2), reg=0.1), depth=5, stop=Stop(1e-3, 500))
    (found,) = retune.certify(net, y, physics, iterations=5, starts=1)
    assert found.verdict.startswith("Proved, if the unchecked assumptions hold: the iterates converge to a minimiser")
    (open_one,) = [a for a in found.assumptions if not a.checked]
    assert open_one.statement == "the prox of the data term is exact"
    assert found.rmse.proved is None
    assert found.averaged.proved is not None
    assert found.averaged.proved.value == pytest.approx(2 / 3)


@pytest.mark.parametrize("padding", ["circular", "valid"])
def test_every_rule_has_the_gradient_of_finite_differences(padding, float64):
    """In λ, and in s: the equilibrium depends on γ."""
    y, physics = problem(padding, 4)
    prior, h = WaveletL1("haar", 1, coarse=True, learn=False), 1e-4

    def loss(reg=0.1, step_size=0.4):
        image = solved(HalfQuadratic(prior, reg=reg, step_size=step_size), y, physics, 1e-9, 600)
        return float((rand(*image.shape, seed=9) * image).sum().detach())

    by_reg = (loss(reg=0.1 + h) - loss(reg=0.1 - h)) / (2 * h)
    by_step = (loss(step_size=0.4 + h) - loss(step_size=0.4 - h)) / (2 * h)
    assert min(abs(by_reg), abs(by_step)) > 1e-2
    for rule in (Truncated(rtol=1e-7, max_blocks=200), Implicit(rtol=1e-7, max_blocks=2000)):
        map_ = HalfQuadratic(prior, reg=0.1, step_size=0.4)
        net = Restarted(map_, depth=10, restarts=25, gradient=rule).train()
        image = net(y, physics)
        (rand(*image.shape, seed=9) * image).sum().backward()
        assert map_.reg.raw.grad is not None
        assert map_.step_size.raw.grad is not None
        assert float(map_.reg.raw.grad) / 0.1 == pytest.approx(by_reg, rel=2e-3)
        assert float(map_.step_size.raw.grad) / (0.4 * 0.6) == pytest.approx(by_step, rel=2e-3)


class Firm(nn.Module):
    """A symmetric smoothing with eigenvalues in [0, 1]: firmly nonexpansive."""

    def forward(self, x, sigma):
        smooth = nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="circular"), 3, 1)
        return torch.lerp(x, smooth, 0.5)


def test_with_a_firmly_nonexpansive_denoiser_it_converges(float64):
    y, physics = problem()
    net = Restarted(HalfQuadratic(Denoiser(Firm(), sigma=0.1)), depth=5, stop=Stop(1e-8, 4000)).eval()
    result = net.solve(y, physics)
    assert result.status == (Status.CONVERGED,)
    bound = net.map.bind(DataTerm(y, physics))
    torch.testing.assert_close(bound.layer(result.state), result.state, rtol=0, atol=1e-7)
    (found,) = retune.certify(net, y, physics, iterations=3, starts=1)
    assert found.statement == ""


@pytest.mark.parametrize("network", ["denoiser-gray", "energy-gray"])
def test_it_takes_the_denoisers_that_ship(network):
    """Among them the denoising step ``x − ∇R(x)`` of an energy."""
    denoiser = retune.weights.load(network)
    x = retune.data.grey(retune.data.photograph("chelsea"))[None, :, 100:124, 100:124]
    physics = Inpainting((1, 24, 24), mask=(rand(1, 1, 24, 24, seed=3) > -0.3).float())
    y = physics.A(x)
    map_ = HalfQuadratic(Denoiser(denoiser, sigma=0.05), step_size=0.7)
    net = Restarted(map_, depth=5, stop=Stop(1e-3, 400)).eval()
    result = net.solve(y, physics)
    assert bool(result.converged.all())
    assert float((result.image - x).square().mean()) < 0.2 * float((y - x).square().mean())


def test_a_run_names_it_and_a_file_keeps_it(tmp_path):
    run = retune.config.from_dict(
        {
            "prior": {"wavelet": "haar", "levels": 2},
            "map": {"type": "half_quadratic"},
            "data_fidelity": {"type": "NoiseWeighted", "options": {"gain": 0.05, "read": 0.05}},
            "model": {"reg": 2.0, "depth": 4, "step_size": 0.6},
        }
    )
    net = retune.build.network_of(run, 2).eval()
    assert type(net.map) is HalfQuadratic
    net.save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors").eval()
    y = rand(2, 2, 8, 8).abs()
    found = again.solve(y, Denoising())
    assert bool(found.converged.all())
    torch.testing.assert_close(found.image, net.solve(y, Denoising()).image)
    assert net.map.learned()["step_size"] == pytest.approx([0.6])


def test_it_starts_from_a_given_image(float64):
    y, physics = problem()
    bound = HalfQuadratic(WaveletL1("haar", 2, margin=2)).bind(DataTerm(y, physics))
    image = rand(1, 2, 8, 8, seed=7)
    torch.testing.assert_close(bound.image(bound.state(image)), image)
    with pytest.raises(ShapeError, match="expected images of shape"):
        bound.state(torch.zeros(1, 1, 4, 4))


def test_what_it_does_not_take():
    with pytest.raises(InvalidParameterError, match=r"HalfQuadratic needs .*got TV, .*retune\.PrimalDual"):
        HalfQuadratic(TV())
    with pytest.raises(InvalidParameterError, match="known for least squares"):
        HalfQuadratic(L1Prior()).bind(DataTerm(rand(1, 1, 4, 4), Denoising(), Rounded(), lipschitz=1.0))
