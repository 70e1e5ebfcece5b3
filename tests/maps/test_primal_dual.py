"""Condat–Vũ: its fixed points are the minimisers, it is averaged in its metric, and its gradients are exact."""

import dataclasses

import pytest
import torch
from deepinv.optim import L2
from deepinv.physics import Blur, Denoising
from deepinv.physics.functional.blur import gaussian_blur
from skimage.restoration import denoise_tv_chambolle

import retune
from known_answers import roughness
from retune import Anderson, DataTerm, Implicit, PrimalDual, Restarted, Status, Stop, Truncated, Unrolled
from retune.data import grey, photograph
from retune.errors import InvalidParameterError, ShapeError
from retune.priors import TV, Sum, WaveletL1
from retune.priors.total_variation import differences
from small_parts import Rounded, as_matrix, rand
from small_photographs import holes, scene, solved

KINDS = [(iso, vec) for iso in (True, False) for vec in (True, False)]


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
