"""The restarted network as its users meet it."""

import deepinv
import pytest
import torch
from deepinv.models import Reconstructor
from deepinv.optim.prior import L1Prior
from deepinv.physics import Denoising, Inpainting
from torch import nn

import retune
from known_answers import CASES, quadratic
from retune import ForwardBackward, Implicit, Restarted, Status, Stop, Truncated, Unrolled
from retune.errors import DivergedError, InvalidParameterError, NotConvergedWarning, NotFiniteError, ShapeError
from retune.priors import WaveletL1, WaveletL12
from small_parts import Transparent, rand


def inpainting(batch=2, channels=3, size=(17, 22), seed=0):
    torch.manual_seed(seed)
    physics = Inpainting((channels, *size), mask=(torch.rand(1, channels, *size) > 0.4).float())
    return rand(batch, channels, *size, seed=seed) * physics.mask, physics


def network(**options):
    options = {"depth": 4, "restarts": 2, **options}
    return Restarted(ForwardBackward(WaveletL12("db2", 2, channels=3), reg=0.1), **options)


def test_it_is_a_reconstructor():
    y, physics = inpainting()
    net = network()
    assert isinstance(net, Reconstructor)
    assert net(y, physics).shape == y.shape


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (13, 31)], ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_precision(batch, channels, size, dtype):
    y, physics = inpainting(batch, channels, size)
    y, physics = y.to(dtype), physics.to(dtype)
    net = Restarted(ForwardBackward(WaveletL12("db3", 2), reg=0.3), 4, 3, stop=Stop(1e-3)).to(dtype)
    for mode in (True, False):
        image = net.train(mode)(y, physics)
        assert image.shape == y.shape
        assert image.dtype == dtype
        assert bool(torch.isfinite(image).all())
        assert image.requires_grad is mode
    net.train()(y, physics).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert bool(torch.isfinite(p.grad).all()), name


def test_train_mode_runs_what_it_says(float64):
    """R restarts of K layers without graph, and K with: the image is that of K(R + 1) layers."""
    case = quadratic()
    bound = case.bind()
    for depth, restarts in ((3, 4), (1, 0), (5, 1)):
        net = Restarted(case.map, depth, restarts).train()
        expected = bound.block(bound.init(), depth * (restarts + 1))
        torch.testing.assert_close(net(case.y, case.physics), expected, rtol=1e-12, atol=1e-12)
    net = Restarted(case.map, 6, 9, gradient=Unrolled()).train()
    torch.testing.assert_close(net(case.y, case.physics), bound.block(bound.init(), 6))


def test_unrolled_in_eval_mode_stops_at_its_depth(float64):
    case = quadratic()
    net = Restarted(case.map, 6, gradient=Unrolled()).eval()
    result = net.solve(case.y, case.physics)
    torch.testing.assert_close(result.image, case.bind().block(case.bind().init(), 6))
    assert result.layers.tolist() == [6, 6]
    assert set(result.status) == {Status.DEPTH_REACHED}


def test_each_image_of_a_batch_as_if_alone(float64):
    """Unequal difficulty: a flat image beside noise, one result each. Products of matrices round by the batch."""
    y, physics = inpainting(3)
    y[0], y[1] = 0.5, y[1] * 10
    y = y * physics.mask
    net = network(stop=Stop(1e-3, 1000)).eval()
    together = net.solve(y, physics)
    assert bool(together.converged.all())
    assert len(set(together.layers.tolist())) > 1
    for i in range(3):
        alone = net.solve(y[i : i + 1], physics)
        assert int(alone.layers) == int(together.layers[i])
        torch.testing.assert_close(alone.image[0], together.image[i], rtol=1e-5, atol=1e-5)


def test_the_output_does_not_depend_on_when_it_stops():
    y, physics = inpainting(size=(16, 16), batch=1)
    net = network(stop=Stop(1e-5, 3000)).eval()
    settled = net.solve(y, physics)
    assert bool(settled.converged.all())
    longer = net.solve(y, physics, stop=Stop(rtol=0.0, max_layers=3 * int(settled.layers)))
    assert float((longer.image - settled.image).norm() / settled.image.norm()) < 1e-3


def test_init_is_where_it_starts(float64):
    """From the answer nothing is left to do; from elsewhere the same answer."""
    case = quadratic()
    net = Restarted(case.map, 1, stop=Stop(1e-10)).eval()
    answer = case.answer().detach()
    assert int(net.solve(case.y, case.physics, init=answer).layers.max()) <= 10
    far = net.solve(case.y, case.physics, init=answer + 100)
    torch.testing.assert_close(far.image, answer, rtol=0, atol=1e-7)
    with pytest.raises(ShapeError, match=r"expected images of shape .* got \(2, 1, 3, 3\)"):
        net.solve(case.y, case.physics, init=torch.zeros(2, 1, 3, 3))


@pytest.mark.parametrize("gradient", [Truncated, Unrolled])
def test_init_is_honoured_in_train_mode(gradient, float64):
    case = quadratic()
    start = rand(*case.answer().shape, seed=8)
    net = Restarted(case.map, 2, 0, gradient=gradient()).train()
    result = net.solve(case.y, case.physics, init=start)
    torch.testing.assert_close(result.image, case.bind().block(start, 2))


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("case", ["quadratic", "denoise_l12"])
def test_observing_changes_nothing(case, mode):
    case = CASES[case]()
    net = Restarted(case.map, 2, 30, stop=Stop(1e-5)).train(mode)
    seen = []

    def vandal(layers, image):
        seen.append(layers)
        image.mul_(0).add_(3)

    plain = net.solve(case.y, case.physics)
    watched = net.solve(case.y, case.physics, observe=vandal, trace=True)
    assert torch.equal(plain.image, watched.image)
    assert torch.equal(plain.residual, watched.residual)
    assert seen
    assert watched.trace.layers == tuple(seen)
    assert torch.equal(net.solve(case.y, case.physics).image, plain.image)


def test_results_are_not_views_of_each_other_or_of_what_was_given():
    """Writing into a returned image touches neither the measurement nor the start."""
    y = rand(1, 1, 4, 4)
    kept = y.clone()
    net = Restarted(ForwardBackward(L1Prior()), 1).eval()
    for stop in (Stop(0.0, 0), Stop(0.0, 1)):
        start = y.clone()
        net.solve(y, Denoising(), init=start, stop=stop).image.zero_()
        assert torch.equal(start, kept)
        assert torch.equal(y, kept)


def test_divergence_is_told_and_raised():
    net = Restarted(ForwardBackward(Transparent(lambda v: 3 * v)), 5).eval()
    y = rand(2, 1, 4, 4)
    y[0] = 0
    result = net.solve(y, Denoising())
    assert result.status == (Status.CONVERGED, Status.DIVERGED)
    assert bool(torch.isfinite(result.image).all())
    assert "image 1: diverged" in repr(result)
    with pytest.raises(DivergedError, match=r"1 of 2 images failed \(image 1: diverged\).*step size"):
        net(y, Denoising())
    with pytest.raises(DivergedError):
        net.train()(y, Denoising())


@pytest.mark.parametrize("gradient", [Truncated, Unrolled, Implicit])
@pytest.mark.parametrize("mode", [True, False])
def test_nan_from_a_map_is_told(gradient, mode):
    weight = nn.Parameter(torch.tensor(float("nan")))
    net = Restarted(ForwardBackward(Transparent(lambda v: weight * v, weight)), 2, 3, gradient=gradient()).train(mode)
    result = net.solve(rand(1, 1, 4, 4), Denoising())
    assert result.status == (Status.NOT_FINITE,)
    assert bool(torch.isfinite(result.image).all()) or mode
    with pytest.raises(DivergedError, match=r"not finite.*NaN or Inf appeared"):
        net(rand(1, 1, 4, 4), Denoising())


def test_not_settled_warns_in_eval_mode_only():
    y, physics = inpainting()
    net = network(stop=Stop(1e-6, 8)).eval()
    with pytest.warns(NotConvergedWarning, match=r"images \[0, 1\] had not settled after 8 layers.*raise Stop"):
        net(y, physics)
    net.train()(y, physics)  # a warning would be an error


def test_the_report_callback_gets_the_equilibrium():
    y, physics = inpainting()
    got = []
    net = network().train()
    image = net(y, physics, report=got.append)
    assert got[0].image is image
    assert got[0].gradient.relative_error is None
    image.square().sum().backward()
    assert bool((got[0].gradient.relative_error > 0).all())
    assert got[0].residual.shape == got[0].layers.shape == (2,)


def test_nan_in_the_measurement():
    y, physics = inpainting()
    y[1, 0, 0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match="mask them out"):
        network()(y, physics)


def test_wrong_number_of_channels():
    y, physics = inpainting(channels=1)
    with pytest.raises(ShapeError, match="3 channels, but the image has 1"):
        network()(y, physics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, r"depth must be a positive multiple.*1 layer\(s\), got 0"),
        ({"depth": -2}, "got -2"),
        ({"depth": 2.0}, "got 2.0"),
        ({"restarts": -1}, "restarts must be ≥ 0, got -1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(InvalidParameterError, match=message):
        network(**options)


def test_depth_must_fit_the_cycle():
    with pytest.raises(InvalidParameterError, match=r"cycle of 3 layer\(s\), got 4"):
        Restarted(ForwardBackward(WaveletL1(), layers=3), depth=4)


def test_what_is_learned_is_what_is_saved():
    """Every parameter changes the image, has a gradient, and is in the state dict; and nothing else is there."""
    net = Restarted(ForwardBackward(WaveletL12("db2", 2, channels=3, coarse=True), reg=0.1), 2, 3).train()
    y, physics = inpainting()
    names = dict(net.named_parameters())
    assert set(names) == set(net.state_dict())
    assert set(names) == {
        "map.step_size.raw", "map.reg.raw",
        "map.priors.0.weights.raw", "map.priors.0.scale_weights.raw", "map.priors.0.coarse_weights.raw",
    }  # fmt: skip
    net(y, physics).square().sum().backward()
    before = net(y, physics).detach()
    for name, p in names.items():
        assert p.requires_grad
        assert bool((p.grad != 0).any()), name
        with torch.no_grad():
            p += 0.5
            assert not torch.equal(net(y, physics), before), name
            p -= 0.5


def test_frozen_parameters_are_not_learned():
    net = Restarted(ForwardBackward(WaveletL1(learn=False), learn_step_size=False))
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["map.reg.raw"]


def test_untied_layers_have_their_own_parameters():
    net = Restarted(ForwardBackward(WaveletL1("db2", 1), layers=3), depth=6)
    assert net.map.reg.raw.shape == (3,)
    weights = [p.weights.raw for p in net.map.priors]
    assert len({id(w) for w in weights}) == 3
    y, physics = inpainting()
    net.train()(y, physics).square().sum().backward()
    assert all(bool((w.grad != 0).any()) for w in weights)
    assert bool((net.map.reg.raw.grad != 0).all())


def test_training_reduces_the_loss():
    torch.manual_seed(0)
    clean = torch.linspace(0, 1, 16).expand(2, 3, 16, 16)
    y = clean + 0.2 * rand(2, 3, 16, 16)
    net = network().train()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    losses = []
    for _ in range(15):
        loss = (net(y, Denoising()) - clean).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_lazy_names():
    assert set(retune.__all__) <= set(dir(retune))
    for name in retune.__all__:
        assert getattr(retune, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        retune.nonsense  # noqa: B018


def test_a_fidelity_other_than_l2():
    """Huber-like data terms work through a network once their Lipschitz constant is given."""

    class Smooth(deepinv.optim.DataFidelity):
        def __init__(self):
            super().__init__()
            self.d = deepinv.optim.distance.Distance(d=lambda u, y: ((1 + (u - y) ** 2).sqrt() - 1).sum((1, 2, 3)))

    x = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    physics = deepinv.physics.Denoising()
    options = {"reg": 0.02, "data_fidelity": Smooth()}
    prior = retune.priors.WaveletL1("haar", 2)
    net = retune.Restarted(retune.ForwardBackward(prior, **options, lipschitz=1.0), stop=retune.Stop(1e-9, 5000))
    result = net.double().eval().solve(x, physics)
    assert all(result.converged)
    # At the minimiser the coarse coefficients are not penalised, so the gradient of f has none there.
    coarse, _ = prior.frame(x.shape, x.dtype, x.device).basis.unpack(
        prior.frame(x.shape, x.dtype, x.device).analysis((result.image - x) / (1 + (result.image - x) ** 2).sqrt())
    )
    assert coarse.abs().max() < 1e-7
    with pytest.raises(InvalidParameterError, match="lipschitz"):
        retune.Restarted(retune.ForwardBackward(prior, **options)).eval()(x, physics)


def test_a_cycle_is_never_left_half_way():
    prior = WaveletL1("haar", 2)
    net = Restarted(ForwardBackward(prior, reg=[0.01, 0.1], layers=2), depth=4, stop=Stop(0.0, 5)).eval()
    result = net.solve(rand(1, 1, 8, 8, dtype=torch.float32), Denoising())
    assert result.layers.tolist() == [6]


def test_layers_count_those_that_are_differentiated():
    x = rand(1, 1, 8, 8, dtype=torch.float32)
    for rule, expected in ((Truncated(), 12), (Implicit(), 9), (Unrolled(), 4)):
        net = Restarted(ForwardBackward(WaveletL1("haar", 2)), depth=4, restarts=2, gradient=rule).train()
        assert net.solve(x, Denoising()).layers.tolist() == [expected]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("prior", ["wavelet", "denoiser", "ridge"])
def test_autocast_changes_nothing(prior, training):
    """Priors with convolutions and matrix products would compute in bfloat16, and rest elsewhere."""
    maps = {
        "wavelet": lambda: ForwardBackward(retune.priors.WaveletL12("db2", levels=2, channels=1)),
        "denoiser": lambda: ForwardBackward(retune.priors.Denoiser(retune.weights.load("denoiser-gray"), 0.1)),
        "ridge": lambda: retune.GradientStep(retune.weights.load("ridge-convex-gray").prior, reg=0.1),
    }
    net = Restarted(maps[prior](), depth=2, restarts=3).train(training)
    y, physics = retune.problems.deblur("gaussian:1.0", sigma=0.05).measure(torch.rand(1, 1, 24, 24))
    plain = net(y, physics, stop=retune.Stop(0.0, 6))
    with torch.autocast("cpu", torch.bfloat16):
        inside = net(y, physics, stop=retune.Stop(0.0, 6))
        assert torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(inside, plain, rtol=0, atol=1e-6)


def test_plain_restarts_are_accelerated_where_that_is_sound(float64):
    """The same equilibrium in fewer layers; every other network is returned as it is."""
    case = quadratic(low=0.05, step_size=0.5, reg=0.01)
    net = Restarted(case.map, 5, solver=retune.Picard(), stop=Stop(1e-9, 20_000)).eval()
    faster = net.accelerated()
    assert isinstance(faster.solver, retune.Inertial)
    assert isinstance(net.solver, retune.Picard)
    assert faster.map is net.map
    plain, sooner = net.solve(case.y, case.physics), faster.solve(case.y, case.physics)
    assert int(sooner.layers.max()) < 0.6 * int(plain.layers.max())
    torch.testing.assert_close(sooner.image, case.answer().detach(), rtol=0, atol=1e-6)
    assert network(gradient=Unrolled()).accelerated().solver.plain
    assert isinstance(network(solver=retune.Anderson()).accelerated().solver, retune.Anderson)
    untied = Restarted(ForwardBackward(WaveletL12("db2", 2, channels=3), reg=0.1, layers=2), 4)
    assert untied.accelerated() is untied
    assert not retune.PrimalDual(retune.priors.TV()).symmetric


def test_the_fastest_sound_solver_is_the_default(float64):
    """A network that is given no solver reaches the equilibrium as an inertial one does, and says so."""
    case = quadratic(low=0.05, step_size=0.5, reg=0.01)
    stop = Stop(1e-9, 20_000)
    net = Restarted(case.map, 5, stop=stop).eval()
    inertial = Restarted(case.map, 5, solver=retune.Inertial(), stop=stop).eval()
    found, same = net.solve(case.y, case.physics), inertial.solve(case.y, case.physics)
    assert torch.equal(found.image, same.image)
    assert found.layers.tolist() == same.layers.tolist()
    assert "(chosen; Picard() in training)" in repr(net)
    assert "chosen" not in repr(inertial)
    assert net.accelerated() is net


def test_near_the_precision_plain_restarts_are_chosen():
    """Ten times the change of a single layer stays above 1e-7 in float32, but K layers may return to their start."""
    net = Restarted(ForwardBackward(WaveletL12("db2", 2, channels=1), reg=0.1), 10).eval()
    y = rand(1, 1, 16, 16).float()
    assert isinstance(net.solve(y, Denoising(), stop=Stop(1e-7, 30)).solver, retune.Picard)
    assert isinstance(net.solve(y, Denoising(), stop=Stop(1e-4, 30)).solver, retune.Inertial)
    assert isinstance(net.double().solve(y.double(), Denoising(), stop=Stop(1e-7, 30)).solver, retune.Inertial)


def test_a_solver_that_is_a_module_is_registered():
    class Learned(retune.Picard, torch.nn.Module):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.weight = torch.nn.Parameter(torch.ones(()))

    net = network()
    net.solver = Learned()
    assert isinstance(net.solver, Learned)
    assert net.training_solver is net.solver
    assert not net.solver_chosen
    assert "solver.weight" in dict(net.named_parameters())


def test_a_given_number_of_layers_is_one_of_plain_layers(float64):
    case = quadratic(low=0.05, step_size=0.5, reg=0.01)
    net = Restarted(case.map, 5).eval()
    plain = Restarted(case.map, 5, solver=retune.Picard()).eval()
    for stop in (Stop(0.0, 20), Stop(0.0, 7)):
        found, same = (n.solve(case.y, case.physics, stop=stop).image for n in (net, plain))
        assert torch.equal(found, same)
    assert not torch.equal(net(case.y, case.physics), plain(case.y, case.physics))


def test_training_runs_plain_restarts_unless_another_solver_is_given():
    assert isinstance(network().training_solver, retune.Picard)
    assert isinstance(network(solver=retune.Inertial()).training_solver, retune.Inertial)
    expanding = Restarted(ForwardBackward(retune.priors.Denoiser(torch.nn.Identity(), sigma=None)))
    assert isinstance(expanding.training_solver, retune.Damped)
    assert isinstance(expanding.solver, retune.Damped)


def test_a_chosen_solver_is_chosen_again_after_loading(tmp_path):
    """A file that names no solver gets the one of its map; a file with a solver keeps it."""
    for solver, kind in ((None, retune.Inertial), (retune.Picard(), retune.Picard)):
        path = tmp_path / f"{kind.__name__}.safetensors"
        Restarted(ForwardBackward(WaveletL12("db2", 2, channels=1), reg=0.1), 4, solver=solver).save(path)
        again = retune.load(path)
        assert type(again.solver) is kind
        assert again.solver_chosen is (solver is None)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda x: x.double(), InvalidParameterError, "init is torch.float64, but y is torch.float32"),
        (lambda x: x.half(), InvalidParameterError, "init is torch.float16, but y is torch.float32"),
        (lambda x: x * 1j, InvalidParameterError, "init is torch.complex64"),
        (lambda x: lambda usual: None, InvalidParameterError, r"the result of init must be a tensor \(B, C, H, W\)"),
        (lambda x: lambda usual: usual.double(), InvalidParameterError, "the result of init is torch.float64"),
        (lambda x: x.numpy(), InvalidParameterError, "init must be an image"),
        (lambda x: "zeros", InvalidParameterError, "init must be an image .* got 'zeros'"),
        (lambda x: x / 0, NotFiniteError, "init contains NaN or Inf"),
    ],
)
def test_a_start_that_is_no_image_is_named(make, error, words):
    y = torch.ones(1, 1, 8, 8)
    net = Restarted(ForwardBackward(L1Prior(), reg=0.1), 2, 2).eval()
    with pytest.raises(error, match=words):
        net.solve(y, Denoising(), init=make(y))


@pytest.mark.parametrize(("make", "words"), [("to_sparse", "a sparse tensor"), ("meta", "on the device meta")])
def test_a_measurement_without_values_is_named(make, words):
    y = torch.ones(1, 1, 8, 8)
    y = y.to("meta") if make == "meta" else y.to_sparse()
    net = Restarted(ForwardBackward(L1Prior(), reg=0.1), 2, 2).eval()
    with pytest.raises(InvalidParameterError, match=words):
        net.solve(y, Denoising())


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    net = Restarted(ForwardBackward(WaveletL1("haar", 1)), 2, 2, stop=Stop(1e-4, 10**6))
    with pytest.raises(InvalidParameterError, match="could not be read again: max_layers = 1000000"):
        net.save(tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
