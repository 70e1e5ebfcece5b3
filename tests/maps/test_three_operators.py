"""Davis–Yin: the minimiser in a box, averaged in the Euclidean norm, gradients, certificate, run and file."""

import pytest
import torch
from deepinv.physics import Blur

import retune
from retune import DataTerm, ForwardBackward, Implicit, Restarted, Stop, ThreeOperators, Truncated
from retune.errors import InvalidParameterError, ShapeError
from retune.maps.linearised import Linearised, spectral_radius
from retune.priors import WaveletL1
from small_parts import as_matrix, rand

BOX = (0.0, 0.6)


def problem(size=8):
    physics = Blur(torch.ones(1, 1, 3, 3) / 9, padding="circular")
    return physics.A(0.3 + 0.3 * rand(1, 1, size, size)), physics


def prior(**options):
    return WaveletL1("haar", 2, learn=False, **options)


def solved(map_, y, physics, rtol=1e-9, most=4000):
    return Restarted(map_, depth=10, stop=Stop(rtol, most)).eval().solve(y, physics).image


def test_its_minimiser_is_that_of_dense_admm(float64):
    """``½‖Ax − y‖² + λ‖Wx‖₁`` with x in the box; the coarse coefficients are free."""
    y, physics = problem()
    found = solved(ThreeOperators(prior(), reg=0.02, box=BOX), y, physics)
    frame = prior().frame(y.shape, y.dtype, y.device)
    a, w = as_matrix(physics.A, (1, 8, 8)), as_matrix(frame.analysis, (1, 8, 8))
    threshold = torch.full((64,), 0.02)
    threshold[-frame.basis.coarse :] = 0
    rho, eye = 0.3, torch.eye(64)
    system, target = torch.linalg.inv(a.T @ a + 2 * rho * eye), a.T @ y.flatten()
    z, p, b, q = (torch.zeros(64) for _ in range(4))
    for _ in range(3000):
        x = system @ (target + rho * (w.T @ (z - p) + b - q))
        v = w @ x + p
        z = v.sign() * (v.abs() - threshold / rho).clamp_min(0)
        b = (x + q).clamp(*BOX)
        p, q = p + w @ x - z, q + x - b
    assert int((b == BOX[0]).sum() + (b == BOX[1]).sum()) > 3
    assert float((found.flatten() - b).abs().max()) < 1e-5


@pytest.mark.parametrize("margin", [0, 3])
def test_in_a_wide_box_it_is_forward_backward(margin, float64):
    y, physics = problem()
    found = solved(ThreeOperators(prior(margin=margin), reg=0.05, box=(-50.0, 50.0)), y, physics)
    expected = solved(ForwardBackward(prior(margin=margin), reg=0.05), y, physics)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def slack(bound, alpha):
    """The least slack of α-averagedness over random pairs, relative to ``‖a − b‖²``."""
    start, least = bound.init(), torch.inf
    for seed in range(200):
        a, b = (start + 10.0 ** (seed % 4 - 2) * rand(*start.shape, seed=s) for s in (seed, seed + 1000))
        ta, tb = bound.layer(a), bound.layer(b)
        whole, moved = bound.norm(a - b) ** 2, bound.norm(a - ta - b + tb) ** 2
        least = min(least, float((whole - (1 - alpha) / alpha * moved - bound.norm(ta - tb) ** 2) / whole))
    return least


@pytest.mark.parametrize("step_size", [0.3, 0.99])
@pytest.mark.parametrize("margin", [0, 3])
def test_it_is_averaged(margin, step_size, float64):
    y, physics = problem()
    map_ = ThreeOperators(prior(margin=margin), step_size=step_size, reg=0.02, box=BOX).requires_grad_(False)
    term = DataTerm(y, physics)
    alpha = map_.guarantee(term).averaged
    assert alpha is not None
    assert float(alpha) == pytest.approx(1 / (2 - step_size), rel=1e-6)
    assert slack(map_.bind(term), float(alpha)) >= -1e-12
    beyond = map_.bind(DataTerm(y, physics, sqnorm=0.02))  # so that the line above can fail
    assert slack(beyond, float(alpha)) < 0


def test_every_rule_has_the_gradient_of_finite_differences(float64):
    y, physics = problem()
    weights, h = rand(1, 1, 8, 8, seed=9), 1e-5

    def loss(reg):
        image = solved(ThreeOperators(prior(coarse=True), reg=reg, box=BOX), y, physics, 1e-11, 3000)
        return float((weights * image).sum().detach())

    truth = (loss(0.02 + h) - loss(0.02 - h)) / (2 * h)
    assert abs(truth) > 1e-2
    for rule in (Truncated(rtol=1e-6, max_blocks=200), Implicit(rtol=1e-6, max_blocks=2000)):
        map_ = ThreeOperators(prior(coarse=True), reg=0.02, box=BOX)
        net = Restarted(map_, depth=20, restarts=100, gradient=rule).train()
        (weights * net(y, physics)).sum().backward()
        assert map_.reg.raw.grad is not None
        assert float(map_.reg.raw.grad) / 0.02 == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("margin", [0, 3])
@pytest.mark.parametrize("rest", [40, 6000])
def test_pixels_on_the_faces_of_the_box_do_not_hide_the_rate(rest, margin, float64):
    """There the state has directions that stay for ever and that no image sees; J has the eigenvalue 1 on them."""
    y, physics = problem(16)
    map_ = ThreeOperators(prior(margin=margin), reg=0.02, box=(0.25, 0.35)).requires_grad_(False)
    bound = map_.bind(DataTerm(y, physics))
    u = bound.init()
    for _ in range(rest):
        u = bound.layer(u)
    found = torch.linalg.eigvals(torch.func.jacrev(bound.layer)(u).reshape(u.numel(), u.numel())).abs()
    stay = found > 1 - 1e-9
    assert int(stay.sum()) > 20
    seen = float(found[~stay].max())
    assert seen < 0.99
    assert float(spectral_radius(Linearised(bound, u), 300, 3).value) == pytest.approx(seen, rel=0.01)


def test_a_run_names_it_a_file_keeps_it_and_a_certificate_is_honest(tmp_path):
    run = retune.config.from_dict(
        {
            "prior": {"wavelet": "haar", "levels": 2},
            "map": {"type": "three_operators", "options": {"box": [0.1, 0.6]}},
            "model": {"reg": 0.02, "depth": 4},
        }
    )
    net = retune.build.network_of(run, 1)
    net.save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors").eval()
    assert again.map.box == (0.1, 0.6)
    y, physics = problem()
    image = again.solve(y, physics).image
    assert 0.1 <= float(image.min()) < float(image.max()) <= 0.6 + 1e-7
    torch.testing.assert_close(image, net.eval().solve(y, physics).image)
    (found,) = retune.certify(again, y, physics, iterations=5, starts=1)
    assert found.statement == "the iterates have images that converge to a minimiser"
    assert found.rmse.proved is None
    assert found.averaged.proved is not None
    assert "norm: Euclidean; γL/2 = 0.9 < 1" in found.averaged.proved.how


def test_what_it_does_not_take():
    with pytest.raises(InvalidParameterError, match="without a box use ForwardBackward"):
        ThreeOperators(prior(), box=None)  # pyright: ignore[reportArgumentType]
    y, physics = problem()
    with pytest.raises(ShapeError, match="expected images of shape"):
        ThreeOperators(prior()).bind(DataTerm(y, physics)).state(torch.zeros(1, 1, 4, 4))
