"""Douglas–Rachford: the minimiser for every step, averaged in the Euclidean norm, and its factor where it has one."""

import pytest
import torch
from deepinv.optim import L2
from deepinv.optim.prior import L1Prior
from deepinv.physics import Blur, Denoising

import retune
from known_answers import denoise_l1
from retune import (
    DataTerm,
    DouglasRachford,
    ForwardBackward,
    Implicit,
    NoiseWeighted,
    Restarted,
    Stop,
    Truncated,
)
from retune.errors import InvalidParameterError
from retune.priors import TV, WaveletL1, WaveletL12
from small_parts import Rounded, damped_inpainting, largest_factor, rand


def blur(padding="circular"):
    return Blur(torch.ones(1, 1, 3, 3) / 9, padding=padding)


def problem(padding="circular", size=8):
    y = blur(padding).A(rand(1, 2, size, size)) + 0.1
    return y, blur(padding)


def solved(map_, y, physics, rtol=1e-8, most=3000):
    return Restarted(map_, depth=10, stop=Stop(rtol, most)).eval().solve(y, physics).image


@pytest.mark.parametrize("step_size", [0.4, 0.9])
@pytest.mark.parametrize("margin", [0, 3])
@pytest.mark.parametrize("padding", ["circular", "valid"])
def test_its_minimiser_is_that_of_forward_backward(padding, margin, step_size, float64):
    """For an exact prox and for conjugate gradients, for an orthonormal and a redundant frame."""
    y, physics = problem(padding)
    prior = WaveletL12("haar", 2, coarse=True, margin=margin)
    map_ = DouglasRachford(prior, step_size=step_size, reg=0.1)
    found = solved(map_, y, physics)
    expected = solved(ForwardBackward(prior, reg=0.1), y, physics, 1e-8, 6000)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_denoising_is_a_threshold(float64):
    case = denoise_l1()
    (prior,) = case.map.priors
    found = solved(DouglasRachford(prior, reg=0.5), case.y, case.physics, 1e-12)
    torch.testing.assert_close(found, case.answer().detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("step_size", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("margin", [0, 3])
def test_it_is_half_averaged_for_every_step(margin, step_size, float64):
    y, physics = problem()
    map_ = DouglasRachford(WaveletL1("haar", 2, margin=margin), step_size=step_size, reg=0.2).requires_grad_(False)
    term = DataTerm(y, physics)
    bound, facts = map_.bind(term), map_.guarantee(term)
    assert facts.averaged is not None
    assert float(facts.averaged) == 0.5
    start = bound.init()
    least = torch.inf
    for seed in range(200):
        a, b = (start + 10.0 ** (seed % 4 - 2) * rand(*start.shape, seed=s) for s in (seed, seed + 1000))
        ta, tb = bound.layer(a), bound.layer(b)
        slack = bound.norm(a - b) ** 2 - bound.norm(a - ta - b + tb) ** 2 - bound.norm(ta - tb) ** 2
        least = min(least, float(slack / bound.norm(a - b) ** 2))
    assert least >= -1e-12
    assert least < 0.9  # a constant map would pass, too


@pytest.mark.parametrize("step_size", [0.3, 0.5, 0.9])
def test_its_factor_is_proved_and_kept(step_size, float64):
    """Damped inpainting is strongly convex: pairs approach at least as fast as said, and the distance is bounded."""
    y, physics = damped_inpainting()
    map_ = DouglasRachford(L1Prior(), L2(sigma=0.7), step_size=step_size, reg=0.3).requires_grad_(False)
    term = map_.data_term(y, physics)
    bound, factors = map_.bind(term), map_.guarantee(term).factors()
    assert factors is not None
    factor = float(factors.max())
    assert 0.5 < factor < 1
    assert 0.6 * factor < largest_factor(bound, y.shape) <= factor * (1 + 1e-9)
    net = Restarted(map_, depth=3, stop=Stop(1e-2, 300)).eval()
    result = net.solve(y, physics)
    map_.requires_grad_(True)
    found = retune.certify(net, y, physics, result=result)
    truth = solved(map_, y, physics, 1e-14)
    for image, x, certificate in zip(truth, result.image, found, strict=True):
        assert certificate.statement == "the iterates have images that converge to the only minimiser"
        assert certificate.verdict.startswith("Proved: the image is within ")
        assert certificate.rmse.proved is not None
        assert float((image - x).square().mean().sqrt()) <= certificate.rmse.proved.value
        assert not certificate.refuted


def test_what_conjugate_gradients_leave_open_is_said(float64):
    y, physics = problem("valid")
    map_ = DouglasRachford(WaveletL1("haar", 2), reg=0.1)
    (found,) = retune.certify(Restarted(map_, depth=5, stop=Stop(1e-3, 500)), y, physics, iterations=5, starts=1)
    assert found.verdict.startswith("Proved, if the unchecked assumptions hold: the iterates have images that converge")
    (open_one,) = [a for a in found.assumptions if not a.checked]
    assert open_one.statement == "the prox of the data term is exact"
    assert "conjugate gradients, relative residual 1e-12" in open_one.how
    assert found.rmse.proved is None


@pytest.mark.parametrize("padding", ["circular", "valid"])
def test_every_rule_has_the_gradient_of_finite_differences(padding, float64):
    y, physics = problem(padding, 6)
    weights = rand(1, 2, 6, 6, seed=9)
    prior = WaveletL1("haar", 1, coarse=True, learn=False)

    def loss(reg):
        return float((weights * solved(DouglasRachford(prior, reg=reg), y, physics, 1e-10, 2000)).sum().detach())

    h = 1e-4
    truth = (loss(0.1 + h) - loss(0.1 - h)) / (2 * h)
    assert abs(truth) > 1e-2
    for rule in (Truncated(rtol=1e-6, max_blocks=200), Implicit(rtol=1e-6, max_blocks=2000)):
        map_ = DouglasRachford(prior, reg=0.1)
        net = Restarted(map_, depth=10, restarts=60, gradient=rule).train()
        (weights * net(y, physics)).sum().backward()
        assert map_.reg.raw.grad is not None
        assert float(map_.reg.raw.grad) / 0.1 == pytest.approx(truth, rel=1e-4)
        assert map_.step_size.raw.grad is not None
        assert abs(float(map_.step_size.raw.grad)) < 1e-4 * abs(truth)  # the minimiser does not depend on γ


def test_weighted_squares_and_a_run(tmp_path):
    run = retune.config.from_dict(
        {
            "prior": {"wavelet": "haar", "levels": 2},
            "map": {"type": "douglas_rachford"},
            "data_fidelity": {"type": "NoiseWeighted", "options": {"gain": 0.05, "read": 0.05}},
            "model": {"reg": 2.0, "depth": 4, "step_size": 0.6},
        }
    )
    net = retune.build.network_of(run, 2).eval()
    net.save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors").eval()
    y = rand(2, 2, 8, 8).abs()
    found = again.solve(y, Denoising())
    assert bool(found.converged.all())
    torch.testing.assert_close(found.image, net.solve(y, Denoising()).image)
    other = ForwardBackward(net.map.prior, NoiseWeighted(0.05, 0.05), reg=2.0)
    torch.testing.assert_close(found.image, solved(other, y, Denoising(), 1e-5), rtol=0, atol=2e-3)


def test_it_starts_from_a_given_image(float64):
    y, physics = problem()
    bound = DouglasRachford(WaveletL1("haar", 2, margin=2)).bind(DataTerm(y, physics))
    image = rand(1, 2, 8, 8, seed=7)
    torch.testing.assert_close(bound.image(bound.state(image)), image)


def test_what_it_does_not_take():
    with pytest.raises(InvalidParameterError, match=r"got TV, .*retune\.PrimalDual"):
        DouglasRachford(TV())
    map_ = DouglasRachford(L1Prior())
    with pytest.raises(InvalidParameterError, match="known for least squares"):
        map_.bind(DataTerm(rand(1, 1, 4, 4), Denoising(), Rounded(), lipschitz=1.0))
