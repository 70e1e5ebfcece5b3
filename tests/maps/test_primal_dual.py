"""Condat–Vũ: its fixed points are the minimisers, it is averaged in its metric, and its gradients are exact."""

import dataclasses

import pytest
import torch
from deepinv.optim import L2
from deepinv.physics import Blur, Denoising, Inpainting
from deepinv.physics.functional.blur import gaussian_blur
from skimage.restoration import denoise_tv_chambolle

import retune
from known_answers import Rounded, as_matrix, dense, rand, roughness, spectrum
from retune import Anderson, DataTerm, Implicit, PrimalDual, Restarted, Status, Stop, Truncated, Unrolled
from retune.data import grey, photograph
from retune.errors import InvalidParameterError, ShapeError
from retune.maps.linearised import Linearised, spectral_radius
from retune.priors import TV, Sum, WaveletL1
from retune.priors.total_variation import differences

KINDS = [(iso, vec) for iso in (True, False) for vec in (True, False)]


def scene(side, channels=3):
    return photograph("chelsea")[None, :channels, 100 : 100 + side, 100 : 100 + side].to(torch.get_default_dtype())


def holes(side):
    return Inpainting((1, side, side), mask=(rand(1, 1, side, side, seed=3) > -0.3).to(torch.get_default_dtype()))


def solved(map_, y, physics, rtol=1e-7, most=4000):
    return Restarted(map_, depth=10, stop=Stop(rtol, most)).eval().solve(y, physics).image


def by_admm(y, matrix, prior, reg, box, steps=1500, rho=2.0):
    """``½‖Ax − y‖² + λTV(x)`` with dense matrices in float64: ``z = Kx``, ``w = x`` in the box. A second solver."""
    shape = y.shape[1:]
    k, n = as_matrix(differences, shape), y[0].numel()
    eye = torch.eye(n)
    system = torch.linalg.inv(matrix.T @ matrix + rho * (k.T @ k + eye))
    target = matrix.T @ y.flatten()
    dims = [d for d, grouped in ((0, prior.isotropic), (1, prior.vectorial)) if grouped]
    z, a, w, b = torch.zeros(2 * n), torch.zeros(2 * n), torch.zeros(n), torch.zeros(n)
    for _ in range(steps):
        x = system @ (target + rho * (k.T @ (z - a) + w - b))
        v = (k @ x + a).reshape(2, *shape)
        size = v.square().sum(dims, keepdim=True).sqrt() if dims else v.abs()
        z = (v * (1 - reg / rho / size.clamp_min(1e-30)).clamp_min(0)).flatten()
        w = (x + b).clamp(*box) if box else x + b
        a, b = a + k @ x - z, b + x - w
    return (w if box else x).reshape(1, *shape)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("reg", [0.05, 0.15])
def test_denoising_is_that_of_scikit_image(reg, channels, float64):
    """scikit-image treats each channel by itself; its projection method is another one than ours."""
    x = scene(24, channels)
    y = x + 0.1 * rand(*x.shape)
    map_ = PrimalDual(TV(vectorial=False), reg=reg).requires_grad_(False)
    found = solved(map_, y, Denoising())
    theirs = denoise_tv_chambolle(y[0].permute(1, 2, 0).numpy(), reg, eps=1e-13, max_num_iter=20000, channel_axis=-1)
    theirs = torch.from_numpy(theirs).permute(2, 0, 1)[None]
    term = DataTerm(y, Denoising())
    ours, other = float(map_.objective(found, term)), float(map_.objective(theirs, term))
    assert abs(ours - other) < 1e-5 * other
    assert ours < (1 + 1e-7) * other
    assert float((found - theirs).abs().max()) < 1e-3


@pytest.mark.parametrize("box", [None, (0.35, 0.6)])
@pytest.mark.parametrize(("isotropic", "vectorial"), KINDS)
def test_deblurring_is_that_of_dense_admm(isotropic, vectorial, box, float64):
    x = scene(9)
    physics = Blur(torch.ones(1, 1, 3, 3) / 9, padding="circular")
    y = physics.A(x) + 0.05 * rand(*x.shape)
    prior = TV(isotropic, vectorial)
    map_ = PrimalDual(prior, reg=0.03, box=box).requires_grad_(False)
    found = solved(map_, y, physics)
    expected = by_admm(y, as_matrix(physics.A, (3, 9, 9)), prior, 0.03, box)
    if box:
        assert float((found == box[0]).sum() + (found == box[1]).sum()) > 0
        assert float(found.min()) >= box[0]
        assert float(found.max()) <= box[1]
    term = DataTerm(y, physics)
    ours, other = float(map_.objective(found, term)), float(map_.objective(expected, term))
    assert abs(ours - other) < 1e-5 * other
    assert float((found - expected).abs().max()) < 1e-3


@pytest.mark.parametrize("settings", [{"balance": 0.3, "step_size": 0.5}, {"balance": 3.0, "step_size": 0.999}])
def test_the_minimiser_does_not_depend_on_the_steps(settings, float64):
    y = scene(8, 1)
    images = [solved(PrimalDual(TV(), reg=0.03, **s), y, Denoising(), 1e-9) for s in ({}, settings)]
    torch.testing.assert_close(*images, rtol=0, atol=1e-6)


def test_longer_steps_need_fewer_layers_and_reach_the_same_image(float64):
    y = scene(16, 1) + 0.1 * rand(1, 1, 16, 16)
    found = {}
    for relaxation in (1.0, 1.8):
        map_ = PrimalDual(TV(), reg=0.1, relaxation=relaxation, box=(0.2, 0.8))
        found[relaxation] = Restarted(map_, depth=1, stop=Stop(1e-5, 5000)).eval().solve(y, Denoising())
    plain, longer = found[1.0], found[1.8]
    assert int(longer.layers) < 0.8 * int(plain.layers)
    torch.testing.assert_close(longer.image, plain.image, rtol=0, atol=1e-3)
    assert 0.2 <= float(longer.image.min()) <= float(longer.image.max()) <= 0.8


def test_the_steps_of_another_fidelity_are_not_lengthened(float64):
    term = DataTerm(scene(8, 1), Denoising(), Rounded(), lipschitz=1.0)
    assert PrimalDual(TV(), Rounded(), lipschitz=1.0).steps(term).relaxation == 1
    assert PrimalDual(TV()).steps(DataTerm(scene(8, 1), Denoising())).relaxation == 1.8


def layers_to_a_gap(map_, y, physics, best):
    """The number of layers to a relative gap of 1e-4 in the objective."""
    term = map_.data_term(y, physics)
    bound, count = map_.bind(term), 0
    u = bound.init()
    while count < 600 and float(map_.objective(bound.image(u), term)) > (1 + 1e-4) * best:
        u, count = bound.layer(u), count + 1
    return count


@pytest.mark.parametrize("smoothing", [0.0, 0.005, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("case", ["noise", "blur", "holes"])
def test_the_automatic_ratio_needs_no_tuning(case, smoothing, float64):
    """Half of it and twice of it need five sixths of its layers or more, with and without smoothing."""
    x = grey(photograph("chelsea"))[None, :, 60:188, 100:228].double()
    physics, reg, noise = {
        "noise": (Denoising(), 0.1, 0.1),
        "blur": (Blur(gaussian_blur(sigma=(1.5, 1.5)).double(), padding="circular"), 0.01, 0.02),
        "holes": (holes(128), 0.03, 0.05),
    }[case]
    clean = physics.A(x)
    y = physics.A(x + noise * rand(*x.shape)) if case == "holes" else clean + noise * rand(*clean.shape)
    maps = [PrimalDual(TV(smoothing=smoothing), reg=reg, balance=c).requires_grad_(False) for c in (0.5, 1.0, 2.0)]
    exact = solved(maps[1], y, physics, 1e-7, 1500)
    best = float(maps[1].objective(exact, maps[1].data_term(y, physics)))
    half, ours, twice = (layers_to_a_gap(m, y, physics, best) for m in maps)
    assert 3 < ours <= 1.2 * min(half, twice)


@pytest.mark.parametrize("contrast", [1e-2, 1e-4, 0.0])
def test_an_image_that_the_prior_flattens_settles_soon(contrast):
    """Its multiplier stays far below λ. Beside it, an image of full contrast keeps its own steps."""
    y = torch.cat([0.3 + contrast * rand(1, 1, 16, 16), scene(16, 1)])
    net = Restarted(PrimalDual(TV(), reg=0.05), depth=5, stop=Stop(1e-6, 500)).eval()
    found = net.solve(y, Denoising())
    assert found.status[0] == Status.CONVERGED
    mean = y[:1].mean((-2, -1), keepdim=True).expand_as(y[:1])
    torch.testing.assert_close(found.image[:1], mean, rtol=0, atol=1e-5)
    ratio = 1 / net.map.steps(net.map.data_term(y, Denoising())).scale.flatten()
    assert 2 < float(ratio[1]) < float(ratio[0]) < 20


@pytest.mark.parametrize("rule", [Truncated(), Implicit(), Unrolled()])
def test_a_norm_and_a_smoothed_norm_are_learned_together(rule):
    """The smoothing of the sum is 0, and its root enters the ratio."""
    net = Restarted(PrimalDual(Sum([TV(), TV(smoothing=0.1)])), depth=3, gradient=rule).train()
    net(rand(1, 1, 6, 6), Denoising()).square().sum().backward()
    for name, p in net.named_parameters():
        assert torch.isfinite(p.grad).all(), name
    assert float(net.map.prior.weights.raw.grad.abs().max()) > 0


def test_holes_have_no_contrast(float64):
    """The ratio is the same for a brighter image, whose holes are as black as before; one for each image of a batch."""
    x, physics = torch.cat([scene(12, 1), 0.3 * scene(12, 1)]), holes(12)
    found = [PrimalDual(TV(), reg=0.01).steps(DataTerm(physics.A(v), physics)).scale for v in (x, x + 5)]
    torch.testing.assert_close(found[0], found[1])
    assert float(found[0][1]) < 0.6 * float(found[0][0])


def test_the_ratio_has_the_units_of_the_problem(float64):
    """Other units of the image, or another weight of the data, scale steps and layers, and nothing else changes."""
    y, images = scene(12, 1) + 0.1 * rand(1, 1, 12, 12), []
    for unit, sigma in ((1.0, 1.0), (100.0, 1.0), (1.0, 0.1)):
        map_ = PrimalDual(TV(smoothing=0.05 * unit), L2(sigma=sigma), reg=0.1 * unit / sigma**2)
        bound = map_.bind(map_.data_term(unit * y, Denoising()))
        u = bound.init()
        for _ in range(7):
            u = bound.layer(u)
        images.append(bound.image(u).detach() / unit)
    torch.testing.assert_close(images[1], images[0])
    torch.testing.assert_close(images[2], images[0])


def gap(bound, a, b, alpha):
    """The slack of α-averagedness, ``‖a−b‖² − (1−α)/α ‖(a−Ta)−(b−Tb)‖² − ‖Ta−Tb‖²``, relative to ``‖a−b‖²``."""
    ta, tb = bound.layer(a), bound.layer(b)
    whole = bound.norm(a - b).square()
    moved = bound.norm((a - ta) - (b - tb)).square()
    return (whole - (1 - alpha) / alpha * moved - bound.norm(ta - tb).square()) / whole


def pairs(bound, count):
    """Random states near and far, and pairs whose difference lies in the fastest directions of A and K."""
    start = bound.init()
    for seed in range(count):
        size = 10.0 ** (seed % 4 - 2)
        a, d = rand(*start.shape, seed=seed), rand(*start.shape, seed=seed + 1000)
        yield start + size * a, start + size * (a + 10.0 ** -(seed % 3) * d)


@pytest.mark.parametrize(("step_size", "balance"), [(0.95, 1.0), (0.999, 0.1), (0.999, 10.0), (0.3, 1.0)])
@pytest.mark.parametrize("case", ["tv", "box", "dense"])
def test_it_is_averaged_in_its_metric(case, step_size, balance, float64):
    if case == "dense":
        case = roughness(batch=1)
        map_, y, physics = PrimalDual(case.map.prior, step_size=step_size, balance=balance), case.y, case.physics
    else:
        box = (0.2, 0.7) if case == "box" else None
        map_ = PrimalDual(TV(), reg=0.2, step_size=step_size, balance=balance, box=box)
        physics = Blur(torch.ones(1, 1, 3, 3) / 9, padding="circular")
        y = physics.A(scene(8))
    map_.requires_grad_(False)
    term = DataTerm(y, physics)
    bound, facts = map_.bind(term), map_.guarantee(term)
    assert facts.averaged is not None
    assert facts.region is not None
    alpha = float(facts.averaged)
    assert 0.5 <= alpha < 1
    assert float(facts.region) == pytest.approx(step_size, rel=1e-6)
    assert min(float(gap(bound, a, b, alpha)) for a, b in pairs(bound, 200)) >= -1e-12


def test_beyond_the_region_it_is_not(float64):
    """So the test above can fail: with ‖A‖² too small by four, some differences grow."""
    physics = dense(spectrum(9, 9, 1.0, 1.0), (1, 3, 3))
    term = DataTerm(rand(1, 1, 1, 9), physics, sqnorm=0.25)
    map_ = PrimalDual(TV(), step_size=0.999, balance=0.1).requires_grad_(False)
    bound, facts = map_.bind(term), map_.guarantee(term)
    assert facts.averaged is not None
    growth = [float(bound.norm(bound.layer(a) - bound.layer(b)) / bound.norm(a - b)) for a, b in pairs(bound, 20)]
    assert max(growth) > 1 + 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("raw", [-60.0, -3.0, 0.0, 3.0, 60.0])
def test_no_training_leaves_the_region(raw, dtype):
    y = scene(6).to(dtype)
    map_ = PrimalDual(TV())
    for other in (-raw, 0.0, raw):
        with torch.no_grad():
            map_.step_size.raw.fill_(raw)
            map_.balance.raw.fill_(other)
        term = DataTerm(y, Denoising())
        steps = map_.steps(term)
        tau, sigma = steps.tau.detach().double(), steps.sigma.detach().double()
        used = tau * term.lipschitz + tau * sigma * steps.sqnorm
        assert 0 < float(used) < 1
        assert bool(torch.isfinite(map_.bind(term).layer(map_.bind(term).init())).all())


def test_an_image_at_rest_has_not_converged(float64):
    """Denoising starts at y, where ∇f = 0: the first step moves the multiplier only."""
    y = scene(12)
    map_ = PrimalDual(TV(), reg=0.1)
    bound = map_.bind(DataTerm(y, Denoising()))
    u = bound.init()
    torch.testing.assert_close(bound.image(bound.layer(u)), bound.image(u), rtol=0, atol=1e-15)
    net = Restarted(map_, depth=1, stop=Stop(1e-4, 2000)).eval()
    result = net.solve(y, Denoising())
    assert result.status == (Status.CONVERGED,)
    assert float((result.image - solved(map_, y, Denoising())).abs().max()) < 1e-3


def loss_at(map_, y, physics, weights, reg):
    changed = PrimalDual(map_.prior, reg=reg, box=map_.box).requires_grad_(False)
    return float((weights * solved(changed, y, physics, 1e-12, 6000)).sum())


@pytest.mark.parametrize("box", [None, (0.3, 0.55)])
def test_every_rule_has_the_gradient_of_finite_differences(box, float64):
    y, physics = scene(5, 1) + 0.1 * rand(1, 1, 5, 5), Denoising()
    weights = rand(1, 1, 5, 5, seed=9)
    map_ = PrimalDual(TV(), reg=0.03, box=box)
    h = 1e-5
    truth = (loss_at(map_, y, physics, weights, 0.03 + h) - loss_at(map_, y, physics, weights, 0.03 - h)) / (2 * h)
    assert abs(truth) > 0.1
    found = {}
    for rule in (Truncated(rtol=1e-7, max_blocks=400), Implicit(rtol=1e-7, max_blocks=4000), Truncated(blocks=60)):
        net = Restarted(map_, depth=20, restarts=100, gradient=rule).train()
        net.zero_grad()
        (weights * net(y, physics)).sum().backward()
        # d/dλ from d/d log λ
        assert map_.reg.raw.grad is not None
        found[repr(rule)] = float(map_.reg.raw.grad) / float(map_.reg.value)
        # at an equilibrium the steps have no effect
        for steps in (map_.step_size, map_.balance):
            assert steps.raw.grad is not None
            assert abs(float(steps.raw.grad)) < 1e-6 * abs(truth)
    assert found == {name: pytest.approx(truth, rel=1e-5) for name in found}


def test_gradient_error_follows_the_measured_rate(float64):
    """The decay of ‖d_K − ∇L‖ with K is the rate that a certificate measures at the equilibrium."""
    y, physics, weights = scene(5, 1) + 0.1 * rand(1, 1, 5, 5), Denoising(), rand(1, 1, 5, 5, seed=9)
    map_ = PrimalDual(TV(), reg=0.05)
    bound = map_.bind(DataTerm(y, physics))
    with torch.no_grad():
        u = bound.init()
        for _ in range(3000):
            u = bound.layer(u)
    rho = float(spectral_radius(Linearised(bound, u), 400, 2).value)
    assert 0.3 < rho < 0.99

    def gradient(rule, depth):
        state, _ = rule(map_.bind(DataTerm(y, physics)), depth, lambda: u)
        return float(torch.autograd.grad((weights * bound.image(state)).sum(), map_.reg.raw)[0])

    exact = gradient(Implicit(rtol=1e-13, max_blocks=5000), 1)
    # Complex eigenvalues make the error oscillate, so its largest values in two ranges of K are compared.
    first, last = (max(abs(gradient(Truncated(), k) - exact) for k in range(n, n + 12)) for n in (20, 60))
    assert last < first < abs(exact)
    assert (last / first) ** (1 / 40) == pytest.approx(rho, rel=0.05)


def test_at_an_equilibrium_one_layer_does_not_depend_on_the_steps(float64):
    """The coordinates of the multiplier do not follow the parameters, so K = 1 has no false gradient of the steps."""
    y, physics = scene(5, 1) + 0.1 * rand(1, 1, 5, 5), Denoising()
    map_ = PrimalDual(TV(), reg=0.05)
    bound = map_.bind(DataTerm(y, physics))
    with torch.no_grad():
        u = bound.init()
        for _ in range(3000):
            u = bound.layer(u)
    steps = [map_.step_size.raw, map_.balance.raw]
    found = torch.autograd.grad((rand(*u.shape, seed=9) * bound.layer(u)).sum(), [*steps, map_.reg.raw])
    assert max(float(g.abs()) for g in found[:2]) < 1e-8
    assert float(found[2].abs()) > 1e-3


class Overstated(PrimalDual):
    """Its norm of A is too small, and it says all the same that it is averaged."""

    def data_term(self, y, physics):
        return DataTerm(y, physics, self.data_fidelity, sqnorm=0.7)

    def guarantee(self, data_term):
        return super().guarantee(data_term)


def test_a_movement_that_grows_refutes_it(float64):
    y = scene(6, 1)
    net = Restarted(Overstated(TV(), reg=0.05, balance=0.01), depth=2, stop=Stop(1e-9, 4)).eval()
    result = net.solve(y + 0.1 * rand(1, 1, 6, 6), Denoising())
    (found,) = retune.certify(net, y + 0.0, Denoising(), result=result, max_layers=10, iterations=3, starts=1)
    assert "the movement of a layer grew from" in found.refuted
    assert found.statement == ""
    assert found.averaged.proved is None


def test_directions_that_no_image_reaches_do_not_hide_the_rate(float64):
    """A flat image: there a whirl of the multiplier stays for ever, and the image does not see it."""
    map_ = PrimalDual(TV(), reg=0.3).requires_grad_(False)
    bound = map_.bind(DataTerm(scene(4, 1), Denoising()))
    u = bound.init()
    for _ in range(2000):
        u = bound.layer(u)
    jacobian = torch.func.jacrev(bound.layer)(u).reshape(u.numel(), u.numel())
    found = torch.linalg.eigvals(jacobian)
    stay = (found - 1).abs() < 1e-6
    assert int(stay.sum()) >= 8 + 9  # at the border, and around every corner of four pixels
    seen = float(found[~stay].abs().max())
    rate = float(spectral_radius(Linearised(bound, u), 300, 3).value)
    assert 1 - rate == pytest.approx(1 - seen, rel=0.3)
    assert 1 - seen > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_of_a_batch_are_restored_each_for_itself(dtype):
    """Some settle early and leave the batch; each has a step ratio of its own."""
    y = torch.cat([0.2 * scene(12), scene(12), scene(12).flip(-1) ** 3]).to(dtype)
    y = y + 0.05 * rand(*y.shape).to(dtype)
    net = Restarted(PrimalDual(TV(), reg=0.03), depth=5, stop=Stop(1e-5, 5000)).eval()
    together = net.solve(y, Denoising())
    assert together.image.dtype == dtype
    assert len(set(together.layers.tolist())) > 1
    for i in range(3):
        alone = net.solve(y[i : i + 1], Denoising())
        torch.testing.assert_close(together.image[i], alone.image[0], rtol=0, atol=1e-5)


def test_it_starts_from_a_given_image(float64):
    y, physics = holes(8).A(scene(8, 1)), holes(8)
    net = Restarted(PrimalDual(TV(), reg=0.03, box=(0.0, 1.0)), depth=10, stop=Stop(1e-7, 4000)).eval()
    images = [net.solve(y, physics, init=start).image for start in (None, 5 * rand(1, 1, 8, 8))]
    torch.testing.assert_close(*images, rtol=0, atol=1e-3)
    with pytest.raises(ShapeError, match="expected images of shape"):
        net.solve(y, physics, init=torch.zeros(1, 1, 4, 4))


def test_adjoint_of_the_image(float64):
    bound = PrimalDual(TV()).bind(DataTerm(scene(5), Denoising()))
    u, x = rand(*bound.init().shape), rand(1, 3, 5, 5, seed=2)
    torch.testing.assert_close((bound.image(u) * x).sum(), (u * bound.image_adjoint(x)).sum())


def test_a_run_names_it_and_a_file_keeps_it(tmp_path):
    run = retune.config.from_dict(
        {
            "prior": {"type": "tv", "options": {"isotropic": False}},
            "map": {"options": {"box": [0.0, 1.0], "balance": 2.0}},
            "model": {"reg": 0.07, "depth": 4},
        }
    )
    net = retune.build.network_of(run, 3)
    assert type(net.map) is PrimalDual  # by the prior
    named = retune.config.from_dict({"prior": {"type": "tv"}, "map": {"type": "primal_dual"}})
    assert type(retune.build.network_of(named, 1).map) is PrimalDual
    net.save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors")
    assert again.describe() == net.describe()
    assert again.map.box == (0.0, 1.0)
    y = scene(8)
    torch.testing.assert_close(again.eval().solve(y, Denoising()).image, net.eval().solve(y, Denoising()).image)
    assert net.map.learned()["reg"] == pytest.approx([0.07])


def test_the_certificate_says_what_is_proved(float64):
    y = scene(10) + 0.05 * rand(1, 3, 10, 10)
    net = Restarted(PrimalDual(TV(), reg=0.05), depth=10, stop=Stop(1e-5, 5000))
    (found,) = retune.certify(net, y, Denoising())
    assert found.row == "analysis prior, primal–dual"
    assert found.statement == "the iterates converge to a minimiser"
    assert found.verdict.startswith("Proved: the iterates converge to a minimiser; no rate is proved; estimated: ")
    # no distance, no factor: nothing in the Euclidean norm
    for claim in ("distance", "relative_distance", "rmse", "layer_factor", "block_factor", "gradient_error"):
        assert found.claims[claim].proved is None, claim
    assert found.averaged.proved is not None
    assert 0.5 < found.averaged.proved.value < 1
    assert "‖x‖² − τ⟨x, Qx⟩ + ‖q‖²" in found.averaged.proved.how
    assert "τL + τς‖K‖² = 0.95 < 1" in found.averaged.proved.how
    assert all(a.checked for a in found.assumptions)
    assert "averaged, α" in str(retune.certify(net, y, Denoising(), learning=False))
    fast = Restarted(net.map, depth=10, solver=Anderson(), stop=net.stop)
    assert "for Anderson this is measured, not proved" in retune.certify(fast, y, Denoising())[0].statement


def test_a_prior_of_somebody_is_trusted_and_tested(float64):
    case = roughness(batch=1)
    net = Restarted(case.map, depth=10, stop=Stop(1e-6, 2000))
    (found,) = retune.certify(net, case.y, case.physics)
    assert found.verdict.startswith(
        "Proved, if the unchecked assumptions hold: the iterates converge to a minimiser, if"
    )
    bind = case.map.prior.bind
    for fault, words in (
        ({"sqnorm": torch.tensor([0.2])}, r"‖K‖² is at least 1"),
        ({"adjoint": lambda z: -(z @ case.map.prior.matrix).unflatten(1, (1, 3, 4))}, "adjoint is wrong"),
        ({"dual_prox": lambda p, sigma: -p}, "not firmly non-expansive"),
    ):

        def wrong(shape, layer, gamma, fault=fault):
            bound = bind(shape, layer, gamma)
            return dataclasses.replace(bound, analysis=dataclasses.replace(bound.analysis, **fault))

        case.map.prior.bind = wrong
        facts = case.map.guarantee(DataTerm(case.y, case.physics))
        assert facts.averaged is None
        assert facts.statement == ""
        assert any(a.refuted and words in a.how for a in facts.assumptions), (words, facts.assumptions)


def test_what_it_does_not_take():
    with pytest.raises(
        InvalidParameterError, match=r"analysis form g\(Kx\) \(has_analysis\), got WaveletL1, which has"
    ):
        PrimalDual(WaveletL1("haar", 2))
    with pytest.raises(InvalidParameterError, match="box must be"):
        PrimalDual(TV(), box=(1.0, 0.0))
    with pytest.raises(InvalidParameterError, match="step_size must lie strictly between 0 and 1"):
        PrimalDual(TV(), step_size=1.0)
    with pytest.raises(InvalidParameterError, match="relaxation must be at least 1 and below 2, got 2"):
        PrimalDual(TV(), relaxation=2.0)
    with pytest.raises(InvalidParameterError, match="needs the value of the objective"):
        Restarted(PrimalDual(TV()), depth=2, solver=retune.Descent()).eval()(torch.rand(1, 1, 4, 4), Denoising())
    case = roughness()
    with pytest.raises(InvalidParameterError, match="has no value"):
        case.map.objective(torch.rand(2, 1, 3, 4), DataTerm(case.y, case.physics))


def test_another_fidelity(float64):
    """A smooth neighbour of ℓ1: the optimality condition, with the multiplier of the state."""
    y = scene(8, 1)
    map_ = PrimalDual(TV(), Rounded(), reg=0.05, lipschitz=1.0).requires_grad_(False)
    term = map_.data_term(y, Denoising())
    image = solved(map_, y, Denoising(), 1e-8, 2000)
    value = float(map_.objective(image, term))
    for seed in range(20):
        other = image + 10.0 ** -(seed % 4) * rand(*image.shape, seed=seed)
        assert float(map_.objective(other, term)) >= value * (1 - 1e-8)
    assert map_.guarantee(term).statement == "converge to a minimiser, if there is one"
