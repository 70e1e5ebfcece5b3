"""The gradient-step map: the objective never rises, and its equilibrium is the minimiser."""

from __future__ import annotations

import json

import pytest
import torch
from deepinv.optim.prior import RED as DeepinvRED
from deepinv.optim.prior import L1Prior, PnP, Prior, Tikhonov
from deepinv.physics import Blur, Denoising, Inpainting

import retune
from retune import DataTerm, ForwardBackward, GradientStep, Implicit, Restarted, Stop
from retune.errors import InvalidParameterError, ShapeError
from retune.networks import SmallUNet
from retune.priors import RED, Denoiser, Ridge
from retune.priors.profile import CONVEXITY
from small_parts import central_difference, dense, rand, spectrum


def ridge(convexity="convex", channels=1, **options) -> Ridge:
    torch.manual_seed(1)
    return Ridge(channels, (3, 5), (3, 2), knots=3, convexity=convexity, **options)


def measurement(channels=1, batch=2, side=10):
    mask = (torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(4)) > 0.4) * 1.0
    physics = Inpainting((channels, side, side), mask=mask.to(torch.get_default_dtype()))
    return physics.A(0.5 + 0.3 * rand(batch, channels, side, side)), physics


@pytest.mark.parametrize("root", [None, 0.1])
def test_strong_convexity_may_pull_towards_the_start(root, float64):
    """½ε‖x − x₀‖²: a layer descends along the gradient of the objective, for a part of the batch, too."""
    y, physics = measurement()
    net = GradientStep(
        ridge(), reg=0.7, strong_convexity=0.4, towards_start=True, root=root, box=None if root is None else (0, 9)
    )
    problem = DataTerm(y, physics)
    bound = net.requires_grad_(False).bind(problem)
    image = (0.5 + 0.2 * rand(*problem.shape, seed=8)).requires_grad_()
    u = bound.state(image)
    u = u.detach().requires_grad_()
    (expected,) = torch.autograd.grad(net.objective(bound.image(u), problem).sum(), u)
    found = bound._direction(u, bound._layers[0])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    start = bound.init()
    free = GradientStep(ridge(), reg=0.7, root=root, box=net.box).requires_grad_(False)
    same = free.objective(bound.image(start), problem)
    torch.testing.assert_close(net.objective(bound.image(start), problem), same)  # no pull at the start
    u = u.detach()
    assert float((net.objective(bound.image(u), problem) - free.objective(bound.image(u), problem)).min()) > 0.01
    part = bound.select(torch.tensor([1]))
    assert part is not None
    torch.testing.assert_close(part._direction(u[1:], part._layers[0]), found[1:])
    assert net.describe()["towards_start"] is True
    if root is None:
        assert "½ε‖x − x₀‖², ε = 0.4" in net.guarantee(problem).strong_convexity_from


@pytest.mark.parametrize("box", [None, (0.2, 0.7)])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("convexity", CONVEXITY)
@pytest.mark.parametrize("step_size", [0.3, 0.9, 0.999])
def test_the_objective_never_rises(step_size, convexity, learned, box, float64):
    y, physics = measurement()
    net = GradientStep(ridge(convexity), step_size=step_size, reg=0.7, box=box)
    if learned:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, p in net.named_parameters():
                if "step_size" not in name:
                    p += 2 * torch.randn(p.shape, generator=generator).to(p)
    net.requires_grad_(False)
    problem = DataTerm(y, physics)
    bound = net.bind(problem)
    for start in (bound.init(), bound.state(rand(*problem.shape, seed=8))):
        u, before = start, net.objective(start, problem)
        first = before
        for _ in range(20):
            u = bound.layer(u)
            now = net.objective(u, problem)
            assert bool((now <= before + 1e-12 * first).all())
            before = now
        assert bool((before < first).all())
        if box:
            assert float(u.min()) >= 0.2
            assert float(u.max()) <= 0.7


def test_it_can_rise_beyond_the_certified_step(float64):
    """So the test above can fail: a constant that is too small by three makes the objective rise."""
    matrix = spectrum(9, 9, 1.0, 1.0)
    problem = DataTerm(rand(1, 1, 1, 9), dense(matrix, (1, 3, 3)), sqnorm=1.0)
    net = GradientStep(Tikhonov(), step_size=0.999, reg=9.0, prior_lipschitz=0.3).requires_grad_(False)
    u = rand(1, 1, 3, 3)
    assert float(net.objective(net.layer(u, 0, problem), problem)) > float(net.objective(u, problem))


@pytest.mark.parametrize("box", [None, (0.3, 0.6)])
def test_fixed_point_is_the_minimiser(box, float64):
    """Optimality: no gradient inside the box, an outward one on its faces; whatever the step size."""
    y, physics = measurement(batch=1, side=8)
    images = []
    for step_size in (0.4, 0.9):
        net = GradientStep(ridge(), step_size=step_size, reg=0.3, box=box)
        net = Restarted(net, depth=5, stop=Stop(1e-12, 60000), solver=retune.Anderson()).eval()
        result = net.solve(y, physics)
        assert bool(result.converged.all())
        images.append(result.image)
        x = result.image.clone().requires_grad_()
        problem = DataTerm(y, physics)
        (g,) = torch.autograd.grad(net.map.objective(x, problem).sum(), x)
        if box is None:
            assert float(g.abs().max()) < 1e-8
        else:
            inside, low, high = (x > 0.3) & (x < 0.6), x == 0.3, x == 0.6
            assert float(g[inside].abs().max()) < 1e-8
            assert bool((g[low] >= 0).all())
            assert bool((g[high] <= 0).all())
            assert int(low.sum()) > 0
    torch.testing.assert_close(*images, rtol=0, atol=1e-6)


def test_closed_form_and_its_gradient(float64):
    """``½‖Ax − y‖² + ½λ‖x‖²``: x* = (AᵀA + λ)⁻¹Aᵀy, and dx*/dλ by the implicit rule."""
    matrix = spectrum(14, 12, 0.5, 1.2)
    y = rand(2, 1, 1, 14)
    net = Restarted(
        GradientStep(Tikhonov(), reg=0.3, prior_lipschitz=1.0), depth=20, restarts=30, gradient=Implicit(1e-10)
    ).train()
    system = matrix.T @ matrix + net.map.reg()[0] * torch.eye(12)
    expected = torch.linalg.solve(system, (y.flatten(1) @ matrix).T).T.unflatten(1, (1, 3, 4))
    image = net(y, dense(matrix, (1, 3, 4)))
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-9)
    weights = rand(*image.shape, seed=3)
    found, exact = (torch.autograd.grad((weights * x).sum(), net.map.reg.raw)[0] for x in (image, expected))
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-10)


def test_gradient_through_the_equilibrium_of_a_ridge(float64):
    """Every learned number, the implicit rule against finite differences of the equilibrium."""
    y, physics = measurement(batch=1, side=8)
    net = Restarted(
        GradientStep(ridge("weakly convex"), reg=0.2), depth=10, restarts=1, gradient=Implicit(1e-9, 20000),
        solver=retune.Anderson(), stop=Stop(1e-13, 30000),
    )  # fmt: skip
    physics = Denoising()
    weights = rand(*y.shape, seed=3)

    def value():
        return (weights * net.eval().solve(y, physics).image).sum()

    start = net.eval().solve(y, physics).image
    image = net.train().solve(y, physics, init=start).image
    found = torch.autograd.grad((weights * image).sum(), list(net.parameters()))
    for k, ((name, p), g) in enumerate(zip(net.named_parameters(), found, strict=True)):
        step = 1e-5 * rand(*p.shape, seed=k)
        torch.testing.assert_close(central_difference(value, p, step), (g * step).sum(), rtol=2e-3, atol=1e-9, msg=name)


def test_untied_layers_take_turns_and_share_the_filters(float64):
    y, physics = measurement()
    prior = ridge()
    net = GradientStep(prior, step_size=[0.3, 0.9], reg=[0.1, 2.0], layers=2)
    bound = net.bind(DataTerm(y, physics))
    u = bound.init()
    for k, (s, reg) in enumerate(((0.3, 0.1), (0.9, 2.0))):
        alone = GradientStep(prior, step_size=s, reg=reg).bind(DataTerm(y, physics))
        torch.testing.assert_close(bound.layer(u, k), alone.layer(u))
        torch.testing.assert_close(bound.layer(u, k + 2), bound.layer(u, k))
    assert sum("weights" in n for n, _ in net.named_parameters()) == 2


@pytest.mark.parametrize("shape", [(1, 1, 7, 9), (2, 3, 12, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_size_channels_and_precision(shape, dtype):
    net = GradientStep(ridge("weakly convex", shape[1]), box=(0, 1)).to(dtype)
    bound = net.bind(DataTerm(rand(*shape, dtype=dtype), Denoising()))
    u = bound.layer(bound.init())
    assert u.dtype == dtype
    assert u.shape == shape
    u.square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in net.parameters())


def test_nothing_is_remembered_or_modified():
    y, physics = measurement()
    net = GradientStep(ridge())
    bound = net.bind(DataTerm(y, physics))
    u = rand(*y.shape)
    kept, state = u.clone(), {k: v.clone() for k, v in net.state_dict().items()}
    assert torch.equal(bound.layer(u), bound.layer(u))
    net.objective(u, DataTerm(y, physics))
    assert torch.equal(u, kept)
    assert not u.requires_grad
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())


class Half(torch.nn.Module):
    """A denoiser that halves: x − D(x) = x/2."""

    def forward(self, x, sigma):
        return x * 0.5


def test_red_in_closed_form(float64):
    """x − y + λx/2 = 0: x* = y/(1 + λ/2)."""
    y = rand(2, 1, 4, 5)
    net = Restarted(GradientStep(RED(Half(), sigma=0.1, lipschitz=0.5), reg=0.6), stop=Stop(1e-12)).eval()
    torch.testing.assert_close(net(y, Denoising()), y / 1.3, rtol=0, atol=1e-9)
    assert not net.map.nonexpansive
    with pytest.raises(InvalidParameterError, match="RED has a gradient but no value"):
        net.map.objective(y, DataTerm(y, Denoising()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradientStep(ridge("weakly convex", 1, sigma=0.03), reg=[0.2, 0.3], layers=2, box=(0.0, 1.0)),
        lambda: GradientStep(RED(SmallUNet(1, (4, 6), 1), sigma=[0.02, 0.05], lipschitz=1.5), layers=2),
        lambda: ForwardBackward(Denoiser(SmallUNet(1, (4, 6), 1), 0.03, strength=0.7, learn_denoiser=True)),
    ],
)
def test_save_and_load(make, tmp_path):
    net = Restarted(make(), depth=2, restarts=1, stop=Stop(0.0, 4)).eval()
    net.save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors")
    y, physics = measurement()
    assert torch.equal(again(y, physics), net(y, physics))
    assert rounded(again.describe()) == rounded(net.describe())
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in net.parameters()]


def rounded(description: dict) -> dict:
    """σ and α are stored as the networks hold them, in single precision."""
    return json.loads(json.dumps(description), parse_float=lambda number: round(float(number), 6))


def test_a_function_as_prior_has_an_objective():
    prior = Prior(g=lambda x: 0.5 * x.square().flatten(1).sum(1))
    net = GradientStep(prior, prior_lipschitz=1.0, reg=2.0)
    y = rand(2, 1, 3, 3)
    problem = DataTerm(y, Denoising())
    torch.testing.assert_close(net.objective(y, problem), y.square().flatten(1).sum(1))
    assert bool(torch.isfinite(net.layer(y, 0, problem)).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientStep(ridge(), layers=0), "layers must be at least 1.*got 0"),
        (lambda: GradientStep(ridge(), step_size=1.0), "step_size.*between 0 and 1, got 1.0"),
        (lambda: GradientStep(ridge(), reg=0.0), "reg must be positive and finite, got 0.0"),
        (lambda: GradientStep(ridge(), box=(1, 0)), r"low < high, got \(1, 0\)"),
        (lambda: GradientStep(ridge(), box=3), "two numbers.*got 3"),
        (lambda: GradientStep(ridge(), prior_lipschitz=2.0), "Ridge states its own constant"),
        (lambda: GradientStep(L1Prior()), "the gradient of L1Prior has jumps.*use its prox"),
        (lambda: GradientStep(L1Prior(), prior_lipschitz=1.0), "the gradient of L1Prior has jumps.*any value"),
        (lambda: GradientStep(Prior(g=lambda x: x.sum((1, 2, 3)))), "∇R of Prior is unknown; give it as prior_lips"),
        (lambda: GradientStep(Tikhonov(), prior_lipschitz=-1.0), "positive finite number, got -1.0"),
        (lambda: GradientStep(torch.nn.ReLU()), r"prior must be a deepinv Prior, got ReLU\(\)"),
        (
            lambda: GradientStep(Denoiser(Half())),
            r"got Denoiser, which has none.*priors.RED\(denoiser",
        ),
        (
            lambda: GradientStep(PnP(Half()), prior_lipschitz=1.0),
            "PnP prior does not expose its noise level.*priors.RED",
        ),
        (lambda: GradientStep(DeepinvRED(Half()), prior_lipschitz=1.0), "RED prior does not expose its noise level"),
        (
            lambda: GradientStep(Prior(), prior_lipschitz=1.0),
            r"a gradient or a value \(has_grad\), got Prior",
        ),
        (lambda: GradientStep(ridge(), 0.5), "data_fidelity must be a deepinv DataFidelity"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InvalidParameterError, match=message):
        make()


def test_images_that_do_not_fit():
    for shape in ((1, 3, 9, 9), (1, 1, 3, 9)):
        with pytest.raises(ShapeError, match="these filters need images"):
            GradientStep(ridge()).bind(DataTerm(rand(*shape), Denoising()))
    bound = GradientStep(ridge()).bind(DataTerm(rand(1, 1, 9, 9), Denoising()))
    with pytest.raises(ShapeError, match=r"\(1, 1, 9, 9\) for this data term, got \(1, 1, 9, 8\)"):
        bound.state(rand(1, 1, 9, 8))


@pytest.mark.parametrize("size", [(5, 5), (4, 6), (3, 1)])
def test_a_blurred_image_is_begun_with_its_measurement_continued_by_mirror_images(size, float64):
    """`deepinv.physics.Blur` with padding "valid" shows a part of the image; the start has the measurement there."""
    kernel = torch.zeros(1, 1, *size)
    kernel[..., (size[0] - 1) // 2, (size[1] - 1) // 2] = 2.0  # where deepinv has the middle: only brighter
    kernel = kernel.flip(-2, -1)
    physics = Blur(filter=kernel, padding="valid")
    x = rand(2, 1, 14, 15)
    y = physics.A(x)
    bound = GradientStep(ridge()).bind(DataTerm(y, physics))
    start = bound.init()
    assert start.shape == x.shape
    torch.testing.assert_close(physics.A(start), y)  # the kernel is a dirac
    free = GradientStep(ridge(), box=(0.4, 0.6)).bind(DataTerm(y, physics)).init()
    assert 0.4 <= float(free.min()) < float(free.max()) <= 0.6


def test_a_kernel_without_a_positive_sum_begins_at_the_back_projection(float64):
    kernel = torch.zeros(1, 1, 3, 3)
    kernel[..., 1, 0], kernel[..., 1, 2] = 1, -1
    physics = Blur(filter=kernel, padding="valid")
    term = DataTerm(physics.A(rand(1, 1, 9, 9)), physics)
    assert term.continued is None
    bound = GradientStep(ridge()).bind(term)
    torch.testing.assert_close(bound.init(), term.adjoint_y / term.sqnorm.reshape(-1, 1, 1, 1))


def test_the_start_of_some_images_of_a_batch_with_a_kernel_for_each(float64):
    kernel = rand(3, 1, 3, 3).abs() * torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1)
    physics = Blur(filter=kernel, padding="valid")
    term = DataTerm(physics.A(rand(3, 1, 9, 9)), physics)
    part = term.select(torch.tensor([2, 0]))
    assert part is not None
    assert part.continued is not None
    assert term.continued is not None
    torch.testing.assert_close(part.continued, term.continued[[2, 0]])
