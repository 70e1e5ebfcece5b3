"""Total generalised variation: its operator, its kernel, and its minimisers by another solver."""

import pytest
import torch
from deepinv.physics import Denoising

import retune
from averaged import least_slack
from known_answers import three_pixels
from retune import DataTerm, Implicit, PrimalDual, Restarted, Stop, Truncated
from retune.errors import InvalidParameterError
from retune.priors import TGV, TV
from retune.priors.generalised_variation import adjoint, forward, norm_bound
from small_parts import as_matrix, rand


def whole(shape):
    """K as a matrix of the flat (x, w)."""
    pixels = int(torch.tensor(shape).prod())
    return as_matrix(
        lambda v: forward(v[:, :pixels].unflatten(1, shape), v[:, pixels:].unflatten(1, (2, *shape))), (3 * pixels,)
    )


def test_the_adjoint_is_one(float64):
    x, w, z = rand(2, 3, 5, 4), rand(2, 2, 3, 5, 4, seed=1), rand(2, 5, 3, 5, 4, seed=2)
    back = adjoint(z)
    torch.testing.assert_close((forward(x, w) * z).sum(), (x * back[0]).sum() + (w * back[1]).sum())


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 2), (5, 6)], ids="{0[0]}x{0[1]}".format)
def test_the_norm_is_bounded(size, float64):
    norm = float(torch.linalg.matrix_norm(whole((1, *size)), 2)) ** 2
    assert norm <= norm_bound(*size) * (1 + 1e-12)
    assert norm > (0.6 * norm_bound(*size) if size != (1, 1) else -1)


def test_slopes_cost_nothing_and_bends_do(float64):
    i, j = torch.arange(5.0)[:, None], torch.arange(6.0)
    slope = (0.3 + 2 * i - 3 * j)[None, None]
    w = torch.stack([torch.full((1, 5, 6), 2.0), torch.full((1, 5, 6), -3.0)])[None]
    assert float(TGV().fn_with(slope, w).detach()) < 1e-12
    bent = (i**2 + 0 * j)[None, None]
    field = torch.zeros(1, 2, 1, 5, 6)
    field[0, 0, 0] = 2 * i + 1
    assert float(TGV(1.5).fn_with(bent, field).detach()) == pytest.approx(1.5 * 2 * 4 * 6)
    with pytest.raises(InvalidParameterError, match="no value in closed form"):
        TGV().fn(slope)


def by_admm(y, prior, reg, steps=3000, rho=0.7):
    """``½‖x − y‖² + λ(‖∇x − w‖ + ρ‖Ew‖)`` over (x, w) with a dense K: a second solver."""
    shape, pixels = y.shape[1:], y[0].numel()
    k = whole(shape)
    data = torch.zeros(3 * pixels)
    data[:pixels] = 1
    system = torch.linalg.pinv(data.diag() + rho * k.T @ k)
    target = torch.cat([y.flatten(), torch.zeros(2 * pixels)])
    z = p = torch.zeros(len(k))
    dims = (0, 1) if prior.vectorial else (0,)
    for _ in range(steps):
        v = system @ (target + rho * k.T @ (z - p))
        s = (k @ v + p).reshape(5, *shape)
        parts = []
        for part, strength in ((s[:2], reg), (s[2:], reg * float(prior.ratio.value))):
            size = part.square().sum(dims, keepdim=True).sqrt()
            parts.append(part * (1 - strength / rho / size.clamp_min(1e-30)).clamp_min(0))
        z = torch.cat(parts).flatten()
        p = s.flatten() - z
    return v[:pixels].reshape(1, *shape), v[pixels:].reshape(1, 2, *shape)


@pytest.mark.parametrize(("vectorial", "ratio"), [(True, 2.0), (False, 0.8)])
def test_denoising_is_that_of_dense_admm(vectorial, ratio, float64):
    i, j = torch.arange(5.0)[:, None], torch.arange(4.0)
    y = torch.stack([0.2 * i + 0.1 * j, (j > 1) + 0.1 * i])[None] + 0.1 * rand(1, 2, 5, 4)
    prior = TGV(ratio, vectorial)
    net = Restarted(PrimalDual(prior, reg=0.1), depth=10, stop=Stop(1e-8, 6000)).eval()
    result = net.solve(y, Denoising())
    x, w = by_admm(y, prior, 0.1)
    torch.testing.assert_close(result.image, x, rtol=0, atol=1e-4)
    found = result.state[:, 40:120].reshape(1, 2, 2, 5, 4)

    def objective(image, field):
        return float((0.5 * (image - y).square().sum() + 0.1 * prior.fn_with(image, field)).detach())

    assert abs(objective(result.image, found) - objective(x, w)) < 1e-6
    flat = Restarted(PrimalDual(TV(vectorial), reg=0.1), depth=10).eval()(y, Denoising())
    assert float((result.image - flat).abs().max()) > 1e-2


def test_with_it_the_map_is_averaged_and_certified(float64):
    y = rand(1, 1, 5, 4)
    net = Restarted(PrimalDual(TGV(), reg=0.2), depth=10, stop=Stop(1e-4, 3000)).requires_grad_(False)
    term = DataTerm(y, Denoising())
    bound, facts = net.map.bind(term), net.map.guarantee(term)
    assert facts.averaged is not None
    assert -1e-12 <= least_slack(bound, facts.averaged, pairs=100) < 0.9
    assert facts.statement == "converge to a minimiser"
    assert all(a.checked for a in facts.assumptions)


@pytest.mark.parametrize("rule", [Truncated(rtol=1e-8, max_blocks=400), Implicit(rtol=1e-8, max_blocks=4000)], ids=repr)
def test_image_and_gradient_are_those_of_the_closed_form(rule, float64):
    """In λ, and in ρ."""
    case = three_pixels()
    net = Restarted(case.map, depth=20, restarts=60, gradient=rule).train()
    expected, image = case.answer(), net(case.y, case.physics)
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)
    weights, parameters = rand(*image.shape, seed=9), [case.map.reg.raw, case.map.prior.ratio.raw]
    exact = torch.autograd.grad((weights * expected).sum(), parameters)
    found = torch.autograd.grad((weights * image).sum(), parameters)
    assert min(abs(float(g)) for g in exact) > 1e-2
    for e, f in zip(exact, found, strict=True):
        assert float(f) == pytest.approx(float(e), rel=1e-4)


def test_a_run_names_it_and_a_file_keeps_it(tmp_path):
    run = retune.config.from_dict({"prior": {"type": "tgv", "options": {"ratio": 1.5}}, "model": {"reg": 0.1}})
    net = retune.build.network_of(run, 1).eval()
    assert type(net.map) is PrimalDual
    net.save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors").eval()
    assert float(again.map.prior.ratio.value) == pytest.approx(1.5)
    y = rand(1, 1, 6, 6)
    torch.testing.assert_close(again.solve(y, Denoising()).image, net.solve(y, Denoising()).image)
    assert net.map.learned()["ratio"] == pytest.approx([1.5])
