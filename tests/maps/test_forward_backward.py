"""The forward–backward map: averaged, a contraction where it should be, and the same as deepinv's iteration."""

import pytest
import torch
from deepinv.optim import L2, PGD
from deepinv.optim.prior import L1Prior, PnP, Prior, TVPrior, WaveletPrior, ZeroPrior
from deepinv.physics import Blur, Denoising, Inpainting

from known_answers import CASES, quadratic
from retune import DataTerm, ForwardBackward, Restarted, Stop, Unrolled
from retune.errors import InvalidParameterError, ShapeError
from retune.priors import WaveletL1, WaveletL12
from retune.registry import build
from small_parts import Quadratic, Rounded, dense, rand, soft, spectrum

PRIORS = {
    "l1": lambda: WaveletL1("db2", 2),
    "l12": lambda: WaveletL12("db2", 2, channels=2, weights=torch.rand(2, 1, 3) + 0.3),
    "union": lambda: WaveletL12(("db2", "haar"), 2, over="band", weights=torch.rand(1, 2, 3) + 0.3, coarse=True),
    "pixels": L1Prior,
}


def blur(channels=2):
    kernel = rand(1, channels, 3, 4, seed=8).abs()
    return Blur(kernel / kernel.sum((-2, -1), keepdim=True), padding="reflect")


@pytest.mark.parametrize("step_size", [0.05, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("prior", PRIORS)
def test_averaged_for_every_step_below_two_over_l(prior, step_size, float64):
    """α-averaged with α = 2/(4 − τL) = 1/(2 − s): ‖Tu − Tv‖² + (1 − α)/α ‖(I−T)u − (I−T)v‖² ≤ ‖u − v‖²."""
    physics = blur()
    problem = DataTerm(rand(2, 2, 9, 7), physics)
    bound = ForwardBackward(PRIORS[prior](), step_size=step_size, reg=0.2).requires_grad_(False).bind(problem)
    alpha = 1 / (2 - step_size)
    shape = bound.init().shape
    for seed in range(200):
        u, v = (rand(*shape, seed=seed + k) * 10 ** (seed % 3 - 1) for k in (0, 1000))
        Tu, Tv = bound.layer(u), bound.layer(v)
        moved = (Tu - Tv).square().sum() + (1 - alpha) / alpha * (u - Tu - v + Tv).square().sum()
        assert float(moved) <= float((u - v).square().sum()) * (1 + 1e-12)


def test_a_step_beyond_two_over_l_is_not_nonexpansive(float64):
    """So the test above can fail: with L understated by 10 %, s = 0.999 is beyond the limit."""
    physics = dense(torch.eye(9), (1, 3, 3))
    problem = DataTerm(rand(1, 1, 1, 9), physics, sqnorm=0.9)
    net = ForwardBackward(Quadratic(torch.full((1, 1, 3, 3), 1e-3)), step_size=0.999)
    bound = net.requires_grad_(False).bind(problem)
    u, v = rand(1, 1, 3, 3, seed=1), rand(1, 1, 3, 3, seed=2)
    assert float((bound.layer(u) - bound.layer(v)).norm()) > float((u - v).norm())


@pytest.mark.parametrize("step_size", [0.1, 0.5, 0.8, 0.98])
@pytest.mark.parametrize("prior", ["l1", "union", "pixels"])
def test_contraction_factor_of_a_strongly_convex_data_term(prior, step_size, float64):
    """ρ ≤ max(|1 − τμ|, |1 − τL|), orthonormal or pixel state; the union's state is larger than the image: 1."""
    matrix = spectrum(36, 32, 0.5, 1.2)
    problem = DataTerm(rand(1, 1, 1, 36), dense(matrix, (2, 4, 4)), sqnorm=1.2**2)
    bound = ForwardBackward(PRIORS[prior](), step_size=step_size, reg=0.05).requires_grad_(False).bind(problem)
    tau = 2 * step_size / 1.2**2
    rho = 1.0 if prior == "union" else max(abs(1 - tau * 0.5**2), abs(1 - tau * 1.2**2))
    shape = bound.init().shape
    for seed in range(30):
        u, v = rand(*shape, seed=seed), rand(*shape, seed=seed + 100)
        assert float((bound.layer(u) - bound.layer(v)).norm()) <= rho * float((u - v).norm()) * (1 + 1e-6)


@pytest.mark.parametrize("depth", [1, 3])
def test_distance_follows_rho_to_the_number_of_layers(depth, float64):
    """‖x_R − x*‖ ≤ ρ^{KR} ‖x_0 − x*‖, and a posteriori ‖x⁺ − x*‖ ≤ ρ/(1 − ρ) ‖x⁺ − x‖."""
    case = quadratic(batch=1)
    bound, answer = case.bind(), case.answer().detach()
    jacobian = torch.func.jacrev(bound.layer)(answer).reshape(20, 20)
    rho = float(torch.linalg.matrix_norm(jacobian.detach(), 2))
    assert rho < 0.8
    with torch.no_grad():
        u = first = bound.init()
        for r in range(1, 8):
            before, u = u, bound.block(u, depth)
            assert float((u - answer).norm()) <= rho ** (depth * r) * float((first - answer).norm()) * (1 + 1e-9)
            last = bound.layer(u)
            assert float((last - answer).norm()) <= rho / (1 - rho) * float((last - u).norm()) * (1 + 1e-9)
            assert float((u - answer).norm()) <= rho**depth / (1 - rho**depth) * float((u - before).norm()) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("prior", "size", "layers"),
    [("l1", (8, 8), 150), ("l12", (8, 8), 150), ("l12", (5, 6), 1500), ("union", (8, 8), 1500)],
)
def test_fixed_point_minimises(prior, size, layers, float64):
    """F = f∘D + λg has at v = T(u) a subgradient of norm ≤ (1/τ + L)‖u − v‖, so F(z) ≥ F(v) − that · ‖z − v‖."""
    physics = Inpainting((2, *size), mask=torch.rand(1, 2, *size) * 0.4 + 0.6)
    problem = DataTerm(rand(1, 2, *size), physics)
    net = ForwardBackward(PRIORS[prior](), step_size=0.9, reg=0.05).requires_grad_(False)
    bound = net.bind(problem)
    g = net.priors[0].bind((1, 2, *size), 0, net.reg()[0])
    before = bound.block(bound.init(), layers)
    u = bound.layer(before)
    lipschitz = float(problem.lipschitz)
    subgradient = (lipschitz / (2 * 0.9) + lipschitz) * float((u - before).norm())
    assert subgradient < (1e-9 if layers < 500 else 1e-2)  # a frame that is not a basis takes its time

    def objective(z):
        return float(problem.fn(bound.image(z)) + g.fn(z))

    best = objective(u)
    assert best < objective(bound.init())
    for seed in range(60):
        for far in (1e-4, 1e-2, 1.0):
            for z in (u + far * rand(*u.shape, seed=seed), u * (1 + far * rand(*u.shape, seed=seed))):
                assert objective(z) >= best - subgradient * float((z - u).norm()) - 1e-12


def test_change_of_variable_has_the_same_fixed_point(float64):
    """Route (a), ũ = Wu iterated with D W⁻¹ and a plain group norm, against route (b), the weighted prox."""
    weights = torch.tensor([[[0.5, 1.0, 2.0]], [[1.5, 0.7, 1.0]]])
    physics, y = Inpainting((2, 8, 8), mask=(torch.rand(1, 2, 8, 8) * 0.5 + 0.5)), rand(1, 2, 8, 8)
    prior = WaveletL12("db2", 2, channels=2, weights=weights)
    net = ForwardBackward(prior, step_size=0.9, reg=0.2)
    problem = DataTerm(y, physics)
    bound = net.bind(problem)
    frame, P = bound._frame, bound._frame.basis.positions
    plain = WaveletL12("db2", 2)
    full = torch.ones(1, 2, 1, frame.basis.length)
    full[..., : 3 * P] = weights[None].repeat_interleave(P, -1)
    tau = 0.9 * 2 / (float(problem.sqnorm) / float(full.min()) ** 2)  # L grows by max(W⁻¹)²
    shrink = plain.bind_coefficients(frame, 2, torch.tensor(tau) * net.reg()[0])
    with torch.no_grad():
        u, tilde = bound.init(), bound.init() * full
        for _ in range(400):
            u = bound.layer(u)
            gradient = frame.analysis(problem.grad(frame.synthesis(tilde / full))) / full
            tilde = shrink.prox(tilde - tau * gradient)
    torch.testing.assert_close(tilde / full, u, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prior", ["l1", "l12"])
def test_same_iterates_as_deepinv(prior, dtype):
    """deepinv's PGD takes our prior as its own; one wavelet, sides divisible by 2**levels."""
    physics = Inpainting((2, 16, 8), mask=(torch.rand(1, 2, 16, 8) > 0.4).to(dtype))
    y = physics.A(rand(2, 2, 16, 8, dtype=dtype))
    p = PRIORS[prior]().to(dtype)
    net = ForwardBackward(p, step_size=0.6, reg=0.15).to(dtype)
    bound = net.bind(DataTerm(y, physics))
    step = 2 * float(net.step_size.value)
    for iterations in (1, 2, 7):
        theirs = PGD(
            data_fidelity=L2(), prior=p, stepsize=step, lambda_reg=float(net.reg.value), max_iter=iterations,
            custom_init=lambda y, physics: physics.A_adjoint(y),
        )  # fmt: skip
        with torch.no_grad():
            expected = theirs(y, physics)
            ours = bound.image(bound.block(bound.init(), iterations))
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        assert ours.dtype == expected.dtype == dtype
        torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "prior",
    [lambda: WaveletPrior(level=2, wv="db2"), L1Prior, lambda: TVPrior(n_it_max=20)],
    ids=["wavelet", "l1", "tv"],
)
def test_priors_of_deepinv_on_a_batch_with_a_step_size_for_each_image(prior):
    """Each image of a batch as it would be alone; deepinv's priors don't agree on the shape of γ."""
    kernels = torch.stack([torch.ones(3, 3) / 9, torch.ones(3, 3) / 3])[:, None]  # norms 1 and 3
    y = rand(2, 3, 16, 12, dtype=torch.float32)
    together = ForwardBackward(prior(), step_size=0.6, reg=0.15).bind(DataTerm(y, Blur(kernels, padding="circular")))
    with torch.no_grad():
        both = together.block(together.init(), 4)
        for i in range(2):
            alone = ForwardBackward(prior(), step_size=0.6, reg=0.15)
            alone = alone.bind(DataTerm(y[i : i + 1], Blur(kernels[i : i + 1], padding="circular")))
            torch.testing.assert_close(both[i : i + 1], alone.block(alone.init(), 4), rtol=0, atol=2e-5)


def test_one_step_denoising_is_a_soft_threshold(float64):
    case = CASES["denoise_l1"](step_size=0.5)  # τ = 1
    bound = case.bind()
    for start in (bound.init(), rand(*bound.init().shape, seed=7)):
        torch.testing.assert_close(bound.image(bound.layer(start)), case.answer(), rtol=0, atol=1e-12)


def test_shortcut_for_denoising_is_the_general_route(float64):
    """A = I needs no transform; the same through an operator that is not known to be the identity."""
    y = rand(2, 2, 8, 8)
    net = ForwardBackward(WaveletL12("db2", 2), L2(sigma=0.5), step_size=0.7, reg=0.3)
    short = net.bind(DataTerm(y, Denoising(), L2(sigma=0.5)))
    ones = Inpainting((2, 8, 8), mask=torch.ones(1, 2, 8, 8))
    long = net.bind(DataTerm(y, ones, L2(sigma=0.5)))
    u = rand(*short.init().shape, seed=3)
    torch.testing.assert_close(short.layer(u), long.layer(u), rtol=0, atol=1e-12)


def test_sigma_scales_the_problem(float64):
    """L2(σ) with λ has the minimiser of L2(1) with σ²λ."""
    y, physics = rand(1, 2, 8, 8), blur()
    results = []
    for sigma, reg in ((0.2, 1.0), (1.0, 0.04)):
        net = ForwardBackward(WaveletL1("db2", 2), L2(sigma=sigma), step_size=0.9, reg=reg)
        bound = net.bind(DataTerm(y, physics, L2(sigma=sigma)))
        results.append(bound.image(bound.block(bound.init(), 50)))
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)


def test_other_data_fidelity_through_its_gradient(float64):
    problem = DataTerm(rand(1, 1, 4, 4), Denoising(), Rounded(), lipschitz=1.0)
    net = ForwardBackward(L1Prior(), Rounded(), step_size=0.25, reg=0.4, lipschitz=1.0)
    u = rand(1, 1, 4, 4, seed=3)
    far = u - problem.y
    expected = soft(u - 0.5 * far / (1 + far**2).sqrt(), 0.5 * 0.4)
    torch.testing.assert_close(net.layer(u, 0, problem), expected)
    assert not u.requires_grad


@pytest.mark.parametrize("shape", [(1, 1, 5, 7), (2, 3, 9, 16), (3, 2, 17, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_size_channels_batch_and_precision(shape, dtype):
    physics = Inpainting(shape[1:], mask=(torch.rand(1, *shape[1:]) > 0.3).to(dtype))
    net = ForwardBackward(WaveletL12(("db4", "haar"), 2, over="channel")).to(dtype)
    bound = net.bind(DataTerm(rand(*shape, dtype=dtype), physics))
    u = bound.layer(bound.init())
    assert u.dtype == dtype
    assert bound.image(u).shape == shape
    assert bool(torch.isfinite(u).all())
    torch.testing.assert_close(bound.image(bound.state(rand(*shape, dtype=dtype))), rand(*shape, dtype=dtype))


def test_a_margin_keeps_opposite_borders_apart():
    """A ramp that is dark on the left and bright on the right: periodised wavelets ring where these meet."""
    x = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    physics = Inpainting((1, 32, 32), mask=(rand(1, 1, 32, 32) > 0).float())
    error = {}
    for margin in (0, 8):
        net = Restarted(ForwardBackward(WaveletL1("db4", 3, margin=margin), reg=0.01), depth=10).eval()
        image = net.solve(physics(x), physics, stop=Stop(1e-4, 2000)).image
        error[margin] = float((image - x)[..., :2].square().mean())
    assert error[8] < 0.1 * error[0]


@pytest.mark.parametrize("case", ["quadratic", "another fidelity"])
def test_the_start_is_the_back_projection_continued_by_its_mirror_images(case, float64):
    fidelity = L2(0.5) if case == "quadratic" else Rounded()
    physics, y = Inpainting((2, 6, 9), mask=torch.ones(1, 2, 6, 9)), rand(3, 2, 6, 9)
    step = ForwardBackward(WaveletL12("db4", 2, margin=8), fidelity, lipschitz=None if case == "quadratic" else 1.0)
    problem = step.problem(y, physics)
    bound = step.bind(problem)
    torch.testing.assert_close(bound.image(bound.init()), y)  # Aᵀy/‖A‖² = y
    torch.testing.assert_close(bound.init(), bound.state(y))
    assert float((bound.init() - bound.image_adjoint(y)).norm()) > 0.1


@pytest.mark.parametrize("margin", [0, 5])
def test_denoising_is_the_prox_of_the_measurement_continued_by_its_mirror_images(margin, float64):
    """7×9 pixels of an orthonormal basis of 8×12 or 12×16: one step of length 1 is enough, as for any other size."""
    physics, y, prior = Denoising(), rand(2, 3, 7, 9), WaveletL12("db2", 2, channels=3, margin=margin)
    frame = prior.frame(y.shape, y.dtype, y.device)
    expected = frame.synthesis(prior.bind(y.shape, 0, torch.tensor(0.3)).prox(frame.extension(y))).detach()
    assert frame.cropped
    assert float((expected - y).abs().max()) > 0.1
    net = Restarted(ForwardBackward(prior, step_size=0.5, reg=0.3), depth=1).eval()
    found = net.solve(y, physics, stop=Stop(0.0, 1))
    torch.testing.assert_close(found.image, expected)
    longer = Restarted(ForwardBackward(prior, reg=0.3), depth=10).eval().solve(y, physics, stop=Stop(1e-10, 500))
    torch.testing.assert_close(longer.image, expected)


def test_the_image_is_differentiable_in_a_measurement_that_is_continued(float64):
    net = Restarted(ForwardBackward(WaveletL1("haar", 1), reg=0.1), depth=40, gradient=Unrolled()).requires_grad_(False)
    y = rand(1, 1, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: net(y, Denoising()), y, fast_mode=True)


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_remembered_or_modified(case):
    """A layer is a plain function: same input, same output, and the input is left as it was."""
    case = CASES[case]()
    bound = case.bind()
    u = bound.init().detach().clone()
    kept, y = u.clone(), case.y.clone()
    state = {k: v.clone() for k, v in case.map.state_dict().items()}
    first = bound.layer(u)
    bound.image(u)
    bound.state(bound.image(u))
    assert torch.equal(u, kept)
    assert torch.equal(case.y, y)
    assert torch.equal(bound.layer(u), first)
    assert all(torch.equal(v, case.map.state_dict()[k]) for k, v in state.items())


def test_layers_of_a_cycle_take_turns(float64):
    bound = CASES["untied"]().bind()
    u = bound.init()
    assert not torch.allclose(bound.layer(u, 0), bound.layer(u, 1))
    torch.testing.assert_close(bound.layer(u, 2), bound.layer(u, 0))
    torch.testing.assert_close(bound.block(u, 3), bound.layer(bound.layer(bound.layer(u, 0), 1), 0))


def test_step_stays_below_two_over_l_whatever_is_learned():
    problem = DataTerm(rand(1, 1, 4, 4), Inpainting((1, 4, 4), mask=torch.rand(1, 1, 4, 4) * 2))
    for raw in (-1000.0, 1000.0):
        net = ForwardBackward(L1Prior())
        net.step_size.raw.data.fill_(raw)
        (layer,) = net.bind(problem)._layers
        tau = -layer.minus_step
        assert bool(((tau > 0) & (tau * problem.lipschitz < 2)).all())


@pytest.mark.parametrize("name", ["step_size", "reg"])
@pytest.mark.parametrize("raw", [-1000.0, 1000.0])
def test_a_runaway_parameter_gives_finite_layers_and_gradients(name, raw):
    case = CASES["denoise_l12"]()
    getattr(case.map, name).raw.data.fill_(raw)
    bound = case.bind()
    u = bound.layer(bound.init())
    assert bool(torch.isfinite(u).all())
    grads = torch.autograd.grad(u.square().sum(), list(case.map.parameters()))
    assert all(bool(torch.isfinite(g).all()) for g in grads)


def test_convenience_methods_are_the_bound_ones():
    case = CASES["quadratic"]()
    problem = DataTerm(case.y, case.physics)
    u = case.map.init(problem)
    torch.testing.assert_close(u, case.bind().init())
    torch.testing.assert_close(case.map.layer(u, 0, problem), case.bind().layer(u))
    torch.testing.assert_close(case.map.image(u, problem), u)


class NoProx(Prior):
    """A prior whose prox would be deepinv's numerical one."""

    def fn(self, x, *args, **kwargs):
        return x.abs().flatten(1).sum(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ForwardBackward(L1Prior(), layers=0), "layers must be at least 1.*got 0"),
        (lambda: ForwardBackward(L1Prior(), step_size=1.0), "step_size.*between 0 and 1, got 1.0"),
        (lambda: ForwardBackward(L1Prior(), reg=-0.1), "reg must be positive and finite, got -0.1"),
        (lambda: ForwardBackward(L1Prior(), reg=[0.1, 0.2], layers=3), r"reg.*shape \(3,\), got shape \(2,\)"),
        (lambda: ForwardBackward([L1Prior()] * 2, layers=3), r"3 priors \(one for each layer\); got 2"),
        (lambda: ForwardBackward([L1Prior(), WaveletL1()], layers=2), "all work on images, or all on coefficients"),
        (lambda: ForwardBackward(NoProx()), r"exact prox \(has_prox\), got NoProx.*define prox\(x, gamma\)"),
        (lambda: ForwardBackward(torch.nn.ReLU()), r"exact prox \(has_prox\), got ReLU"),
        (
            lambda: ForwardBackward(PnP(torch.nn.Identity())),
            "PnP prior does not expose its noise level.*retune.priors.Denoiser",
        ),
        (
            lambda: ForwardBackward([WaveletL1("db2"), WaveletL1("db3")], layers=2),
            "differ in their weights only.*db2.*db3",
        ),
        (
            lambda: ForwardBackward([WaveletL1(levels=1), WaveletL1(levels=2)], layers=2),
            "differ in their weights only.*levels",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InvalidParameterError, match=message):
        make()


def test_wrong_image_shape():
    bound = CASES["denoise_l1"]().bind()
    with pytest.raises(ShapeError, match=r"\(2, 2, 8, 8\) for this data term, got \(2, 2, 8, 9\)"):
        bound.state(torch.zeros(2, 2, 8, 9))


@pytest.mark.parametrize("fidelity", [None, L2(sigma=0.5)], ids=["L2", "weighted"])
@pytest.mark.parametrize("make", ["denoising", "dense"])
def test_added_strong_convexity(make, fidelity, float64):
    """The fixed point solves ``(AᵀA/σ² + λW² + εI) x = Aᵀy/σ²``, and the step stays below ``2/(‖A‖²/σ² + ε)``."""
    matrix = torch.eye(12) if make == "denoising" else spectrum(14, 12, 0.2, 1.0)
    y = rand(2, 1, 3, 4) if make == "denoising" else rand(2, 1, 1, 14)
    physics = Denoising() if make == "denoising" else dense(matrix, (1, 3, 4))
    map_ = ForwardBackward(
        Quadratic(torch.full((1, 1, 1, 1), 0.5)), fidelity, step_size=0.95, reg=0.2, strong_convexity=0.3
    )
    map_.requires_grad_(False)
    weight = 1.0 if fidelity is None else 4.0
    problem = map_.data_term(y, physics)
    bound = map_.bind(problem)
    u = bound.block(bound.init(), 2000)
    system = weight * matrix.T @ matrix + (0.2 * 0.25 + 0.3) * torch.eye(12)
    expected = torch.linalg.solve(system, weight * (y.flatten(1) @ matrix).T).T.reshape(u.shape)
    torch.testing.assert_close(u, expected, rtol=0, atol=1e-10)
    facts = map_.guarantee(problem)
    assert float((facts.step_sizes / facts.step_limit).max()) == pytest.approx(0.95)


def test_added_strong_convexity_with_another_fidelity(float64):
    """``|x − y| + ½ε‖x‖²`` has no smooth part, so a smooth fidelity of one's own: the gradient gets εu all the same."""
    y = rand(1, 1, 3, 4)

    class Half(L2):
        pass  # not exactly L2: treated as any other fidelity

    map_ = ForwardBackward(ZeroPrior(), Half(), step_size=0.5, lipschitz=1.0, strong_convexity=0.5)
    bound = map_.requires_grad_(False).bind(map_.data_term(y, Denoising()))
    torch.testing.assert_close(bound.block(bound.init(), 300), y / 1.5, rtol=0, atol=1e-10)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf"), "0.1"])
def test_refused_strong_convexity(bad):
    with pytest.raises(InvalidParameterError, match="strong_convexity"):
        ForwardBackward(L1Prior(), strong_convexity=bad)


def test_strong_convexity_is_described_and_shown():
    map_ = ForwardBackward(WaveletL1("haar", 1), strong_convexity=0.25)
    assert build(map_.describe()).strong_convexity == 0.25
    assert "strong_convexity=0.25" in repr(map_)
