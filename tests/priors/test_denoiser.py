"""Denoisers as priors: any network, σ and strength learned through the equilibrium, and what is refused."""

from __future__ import annotations

import pytest
import torch
from deepinv.models import DRUNet, MedianFilter, TVDenoiser
from deepinv.models.GSPnP import GSPnP
from deepinv.optim import GD, L2, PGD
from deepinv.optim.prior import RED as deepinv_RED
from deepinv.optim.prior import PnP
from deepinv.physics import Denoising, Inpainting
from torch import nn

from retune import (
    DataTerm,
    ForwardBackward,
    GradientStep,
    Implicit,
    Restarted,
    Status,
    Stop,
    Truncated,
    Unrolled,
    load,
    weights,
)
from retune.errors import CutGradientError, DivergedError, DoubtfulWarning, InvalidParameterError, ShapeError
from retune.networks import SmallUNet
from retune.priors import RED, Denoiser, Ridge
from small_parts import rand


class Shrink(nn.Module):
    """``D_σ(x) = w x/(1 + σ²)``, linear, so that everything has a closed form."""

    def __init__(self, weight=0.9):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.calls = 0

    def forward(self, x, sigma):
        self.calls += 1
        return self.weight * x / (1 + sigma.view(-1, 1, 1, 1) ** 2)


class Blind(nn.Module):
    def forward(self, x):
        return 0.8 * x


class Cut(nn.Module):
    def forward(self, x, sigma):
        return 0.5 * x.detach()


def unet(channels=1):
    torch.manual_seed(0)
    return SmallUNet(channels, (4, 6), 1)


def measurement(channels=1, batch=2, shape=(8, 9)):
    mask = (torch.rand(1, channels, *shape, generator=torch.Generator().manual_seed(4)) > 0.4) * 1.0
    physics = Inpainting((channels, *shape), mask=mask.to(torch.get_default_dtype()))
    return physics.A(0.5 + 0.2 * rand(batch, channels, *shape)), physics


def step(prior, y, physics, layer=0, **options):
    """(one layer, the point at which the denoiser was called)."""
    net = ForwardBackward(prior, step_size=0.5, **options)
    problem = DataTerm(y, physics)
    u = rand(*problem.shape, seed=7)
    return net.bind(problem).layer(u, layer), u - problem.grad(u) / problem.lipschitz.view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("make", "sigma"),
    [
        (unet, 0.1),
        (Shrink, 0.1),
        (Blind, None),
        (MedianFilter, None),
        (lambda: MedianFilter(kernel_size=3), 0.1),
        (lambda: DRUNet(1, 1, nc=(4, 4, 4, 4), nb=1, pretrained=None), 0.1),
        (lambda: TVDenoiser(n_it_max=5), 0.1),
    ],
)
def test_any_network_is_called_at_the_gradient_step(make, sigma):
    y, physics = measurement(shape=(16, 16))
    with torch.no_grad():
        torch.manual_seed(3)
        found, point = step(Denoiser(make(), sigma), y, physics)
        torch.manual_seed(3)
        denoiser = make().eval()  # a new one: deepinv's TVDenoiser starts from what it returned before
        level = () if sigma is None else (torch.full((2,), sigma),)
        torch.testing.assert_close(found, denoiser(point, *level), rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.25, 0.9])
def test_strength_averages(alpha, float64):
    y, physics = measurement()
    found, point = step(Denoiser(Shrink(), 0.1, strength=alpha), y, physics)
    torch.testing.assert_close(found, (1 - alpha) * point + alpha * 0.9 * point / 1.01, rtol=1e-7, atol=1e-7)


def test_noise_levels_and_strengths_per_layer(float64):
    y, physics = measurement()
    denoiser = Shrink()
    prior = Denoiser(denoiser, [0.1, 0.5], strength=[0.3, 0.8])
    for k, (sigma, alpha) in enumerate(((0.1, 0.3), (0.5, 0.8))):
        found, point = step(prior, y, physics, layer=k, layers=2)
        expected = (1 - alpha) * point + alpha * 0.9 * point / (1 + sigma**2)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    net = ForwardBackward(prior, layers=2)
    assert net.priors[0].denoiser is denoiser
    assert sum(name.endswith("weight") for name, _ in net.named_parameters()) == 1


@pytest.mark.parametrize("kind", ["denoiser", "red"])
def test_a_map_leaves_the_prior_as_it_was(kind):
    """One σ becomes one per layer in the map's copy; the network is shared."""
    prior = Denoiser(Shrink(), 0.1) if kind == "denoiser" else RED(Shrink(), 0.1)
    raw, make = prior.sigma.raw, ForwardBackward if kind == "denoiser" else GradientStep
    for layers in (3, 2, 1):
        net = make(prior, layers=layers)
        own = net.priors[0] if kind == "denoiser" else net.prior
        assert own.sigma.raw.numel() == layers
        assert own.denoiser is prior.denoiser
    assert prior.sigma.raw is raw
    assert raw.numel() == 1
    with pytest.raises(InvalidParameterError, match="parameters for 2 layers, but the map has a cycle of 1"):
        make(type(prior)(Shrink(), [0.1, 0.2]))


def closed_form(sigma, weight, alpha, y):
    """A = I, τ = 1: x* = D(y); with s = ½: x = (1 − α + α w/(1 + σ²)) y."""
    return (1 - alpha + alpha * weight / (1 + sigma**2)) * y


@pytest.mark.parametrize("rule", [Implicit(1e-10), Truncated(rtol=1e-10), Unrolled()], ids=lambda r: type(r).__name__)
def test_gradients_through_the_equilibrium(rule, float64):
    """σ, α and the weight of the denoiser: against the closed form of the equilibrium."""
    y = rand(2, 1, 4, 5)
    prior = Denoiser(Shrink(), 0.3, strength=0.6, learn_denoiser=True)
    net = Restarted(ForwardBackward(prior, step_size=0.35), depth=60, restarts=2, gradient=rule).train()
    sigma, alpha, weight = prior.sigma()[0], prior.strength()[0], prior.denoiser.weight
    tau = 2 * net.map.step_size()[0]
    d = 1 - alpha + alpha * weight / (1 + sigma**2)
    expected = d * tau * y / (1 - d * (1 - tau))
    image = net(y, Denoising())
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-9)
    probe, wanted = rand(*y.shape, seed=3), [prior.sigma.raw, prior.strength.raw, weight, net.map.step_size.raw]
    exact = torch.autograd.grad((probe * expected).sum(), wanted)
    found = torch.autograd.grad((probe * image).sum(), wanted)
    for e, f in zip(exact, found, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-6, atol=1e-9)


def test_learned_sigma_of_a_network_against_finite_differences(float64):
    y, physics = 0.5 + 0.2 * rand(1, 1, 8, 9), Denoising()
    prior = Denoiser(unet(), 0.1, strength=0.5)
    with torch.no_grad():
        prior.denoiser.tail.weight.mul_(0.3)
    map = ForwardBackward(prior, step_size=0.3)  # 0.4 x + 0.6 y goes into the denoiser: a contraction
    net = Restarted(map, depth=1, restarts=60, gradient=Implicit(1e-10), stop=Stop(1e-13, 4000))
    probe = rand(*y.shape, seed=3)
    (found,) = torch.autograd.grad((probe * net.train()(y, physics)).sum(), prior.sigma.raw)
    values = []
    for shift in (1e-5, -2e-5):
        prior.sigma.raw.data += shift
        values.append(float((probe * net.eval()(y, physics)).sum()))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(found), rel=1e-4)


def test_frozen_or_trained():
    for learn in (False, True):
        prior = Denoiser(unet(), 0.1, learn_denoiser=learn, learn_sigma=not learn)
        assert all(p.requires_grad is learn for p in prior.denoiser.parameters())
        assert prior.sigma.raw.requires_grad is not learn
    net = ForwardBackward(Denoiser(unet(), 0.1))
    assert sorted(n for n, p in net.named_parameters() if p.requires_grad) == ["priors.0.sigma.raw", "step_size.raw"]


def test_the_denoiser_stays_in_eval_mode():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = nn.BatchNorm2d(1), nn.Dropout(0.5)

        def forward(self, x, sigma):
            return 0.9 * self.drop(self.norm(x))

    prior = Denoiser(Normed(), 0.1, learn_denoiser=True)
    net = Restarted(ForwardBackward(prior), depth=2, restarts=2).train()
    y, physics = measurement()
    before = {k: v.clone() for k, v in prior.denoiser.state_dict().items()}
    net(y, physics).sum().backward()
    assert net.map.training
    assert not any(m.training for m in prior.denoiser.modules())
    assert all(torch.equal(v, before[k]) for k, v in prior.denoiser.state_dict().items())


@pytest.mark.parametrize("rule", [Truncated(), Implicit(), Unrolled()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize(
    "make",
    [
        lambda: ForwardBackward(Denoiser(Cut(), 0.1)),
        lambda: ForwardBackward(Denoiser(Cut(), 0.1, strength=0.5)),
        lambda: GradientStep(RED(Cut(), 0.1)),
    ],
    ids=["plain", "averaged", "red"],
)
def test_a_cut_gradient_is_refused_by_name(make, rule):
    y, physics = measurement()
    net = Restarted(make(), depth=2, restarts=1, gradient=rule)
    with pytest.raises(CutGradientError, match="gradient is cut inside Cut"):
        net.train()(y, physics)
    assert net.eval().solve(y, physics, stop=Stop(0.0, 3)).image.shape == y.shape  # inference needs no gradient


def test_a_gradient_step_denoiser_of_deepinv_that_frees_its_graph_is_named():
    y, physics = measurement(1)
    inner = DRUNet(1, 1, nc=(4, 4, 4, 4), nb=1, pretrained=None)
    denoiser = GSPnP(inner, 0.5)
    net = Restarted(ForwardBackward(Denoiser(denoiser, 0.1, learn_denoiser=True)), 2, 1)
    with pytest.raises(CutGradientError, match=r"GSPnP was made with detach=True.*denoiser.detach = False"):
        net.train()(y, physics)
    assert torch.isfinite(net.eval().solve(y, physics, stop=Stop(0.0, 4)).image).all()
    denoiser.detach = False
    net.train()(y, physics).square().mean().backward()
    assert all(p.grad is not None for p in inner.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", [Denoiser, RED])
def test_a_denoiser_has_no_value(kind):
    with pytest.raises(InvalidParameterError, match=rf"{kind.__name__} has no value.*Ridge"):
        kind(unet(1), 0.1).fn(rand(1, 1, 8, 8))


@pytest.mark.parametrize("kind", ["red", "ridge"])
def test_gradient_steps_give_the_iterates_of_deepinvs_gradient_descent(kind):
    """RED against deepinv's own prior of that name; a ridge regulariser, which deepinv takes as its own."""
    y, physics = measurement(1)
    sigma, reg = 0.1, 0.7
    mine = RED(unet(1), sigma) if kind == "red" else Ridge(1, (2, 4), (3, 3), sigma=sigma)
    theirs = deepinv_RED(mine.denoiser) if kind == "red" else mine
    ours = GradientStep(mine, step_size=0.1, reg=reg)
    problem = DataTerm(y, physics)
    tau = 0.2 / float(problem.lipschitz + reg * ours.prior_constant(problem.adjoint_y).detach())
    descent = GD(
        data_fidelity=L2(), prior=theirs, stepsize=tau, lambda_reg=reg, max_iter=5, early_stop=False,
        sigma_denoiser=sigma, custom_init=lambda y, physics: physics.A_adjoint(y),
    )  # fmt: skip
    with torch.no_grad():
        found = ours.bind(problem).block(problem.adjoint_y, 5)
        torch.testing.assert_close(found, descent(y, physics), rtol=1e-5, atol=1e-6)
        assert float((found - problem.adjoint_y).abs().max()) > 1e-2


@pytest.mark.parametrize("sigma", [0.1, [0.05, 0.1]])
def test_a_grey_network_runs_on_every_channel(sigma):
    y, physics = measurement(3)
    denoiser, layers = unet(1), 1 if isinstance(sigma, float) else 2
    found, point = step(Denoiser(denoiser, sigma), y, physics, layers=layers)
    level = sigma if isinstance(sigma, float) else sigma[0]
    expected = torch.cat([denoiser(point[:, c : c + 1], level) for c in range(3)], 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    per_image = torch.tensor([0.02, 0.15])
    found = Denoiser(denoiser, 0.1).prox(point, per_image)
    for b in range(2):
        expected = torch.cat([denoiser(point[b : b + 1, c : c + 1], float(per_image[b])) for c in range(3)], 1)
        torch.testing.assert_close(found[b], expected[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_colour_network_refuses_other_images(channels):
    y, physics = measurement(channels)
    net = Restarted(ForwardBackward(Denoiser(unet(3), 0.1)))
    with pytest.raises(ShapeError, match=rf"SmallUNet denoises images with 3 channel.*have {channels}; use a denoiser"):
        net.eval()(y, physics)


def test_another_shape_and_nan():
    class Smaller(nn.Module):
        def forward(self, x, sigma):
            return x[..., 1:]

    class Broken(nn.Module):
        def forward(self, x, sigma):
            return torch.where(torch.arange(len(x)).view(-1, 1, 1, 1) == 1, torch.nan, 0.5 * x)

    class Pair(nn.Module):
        def forward(self, x, sigma):
            return x, sigma

    y, physics = measurement()
    for network, given in ((Smaller(), r"returned \(2, 1, 8, 8\)"), (Pair(), "returned tuple")):
        with pytest.raises(ShapeError, match=f"must return an image of its input's shape.*{given}"):
            Restarted(ForwardBackward(Denoiser(network, 0.1))).eval()(y, physics)
    net = Restarted(ForwardBackward(Denoiser(Broken(), 0.1))).eval()
    result = net.solve(y, physics)
    assert result.status == (Status.CONVERGED, Status.NOT_FINITE)
    assert bool(torch.isfinite(result.image).all())
    with pytest.raises(DivergedError, match="image 1: not finite"):
        net(y, physics)


def test_a_denoiser_that_expands_is_damped_or_reported():
    """D = −1.4 x: plain restarts diverge, the damped ones settle; D = 3x has no stable equilibrium."""
    y, _ = measurement()
    for weight, settled in ((-3.0, True), (3.0, False)):
        net = Restarted(ForwardBackward(Denoiser(Shrink(weight), 0.01), step_size=0.25), depth=1).eval()
        result = net.solve(y, Denoising())
        assert all((s is Status.CONVERGED) is settled for s in result.status)


@pytest.mark.parametrize("prior", [Denoiser, RED])
def test_one_call_per_layer(prior):
    y, physics = measurement()
    denoiser = Shrink()
    net = (ForwardBackward if prior is Denoiser else GradientStep)(prior(denoiser, 0.1))
    bound = net.bind(DataTerm(y, physics))
    assert denoiser.calls == 0
    bound.block(bound.init(), 7)
    assert denoiser.calls == 7


@pytest.mark.parametrize("strength", [None, 0.4])
def test_same_iterates_as_deepinv(strength, float64):
    """deepinv's PGD takes it as its own: the prior's σ, or one given there."""
    y, physics = measurement()
    prior = Denoiser(unet(), 0.05, strength=strength)
    for sigma in (None, 0.12):
        ours = ForwardBackward(Denoiser(prior.denoiser, sigma or 0.05, strength=strength), step_size=0.6)
        problem = DataTerm(y, physics)
        bound = ours.bind(problem)
        tau = float(2 * ours.step_size.value / problem.lipschitz)
        for iterations in (1, 2, 6):
            theirs = PGD(
                data_fidelity=L2(), prior=prior, stepsize=tau, lambda_reg=1.0, max_iter=iterations, early_stop=False,
                sigma_denoiser=sigma, custom_init=lambda y, physics: physics.A_adjoint(y),
            )  # fmt: skip
            with torch.no_grad():
                expected = theirs(y, physics)
                torch.testing.assert_close(
                    bound.block(bound.state(problem.adjoint_y), iterations), expected, rtol=0, atol=1e-7
                )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Denoiser("drunet"), "denoiser must be a denoiser .nn.Module., got 'drunet'.*retune.weights.load"),
        (lambda: Denoiser(PnP(Blind())), "must be a network, got the prior PnP.*prior.denoiser"),
        (lambda: ForwardBackward(PnP(Blind())), "does not expose its noise level.*retune.priors.Denoiser"),
        (lambda: Denoiser(unet(), 25), "sigma=25 is outside the range.*0 ≤ sigma ≤ 0.1961.*divide.*255"),
        (lambda: Denoiser(unet(), -0.01), "sigma=-0.01 is outside the range"),
        (lambda: Denoiser(unet(), [0.1, float("nan")]), "outside the range"),
        (lambda: Denoiser(Shrink(), -0.1), "sigma must be positive and finite, got -0.1"),
        (lambda: Denoiser(Shrink(), "0.1"), "sigma must be a number, or one number per layer, got '0.1'"),
        (lambda: Denoiser(Shrink(), []), "sigma must be a number, or one number per layer"),
        (lambda: Denoiser(Shrink(), [[0.1, 0.2]]), "sigma must be a number, or one number per layer"),
        (lambda: Denoiser(Shrink(), True), "sigma must be a number, or one number per layer"),
        (lambda: Denoiser(Shrink(), 0.1, sigma_range=(0.2, 0.1)), r"0 ≤ low < high, got \(0.2, 0.1\)"),
        (lambda: Denoiser(Shrink(), 0.1, strength=1.0), "strength must lie strictly between 0 and 1, got 1.0"),
        (lambda: Denoiser(Shrink(), 0.1, strength="a"), "strength must be a number"),
        (lambda: RED(Shrink(), 0.1, lipschitz=0.0), "lipschitz must be a positive finite number, got 0.0"),
        (lambda: ForwardBackward(RED(Shrink())), "needs a prior with an exact prox .*, got RED"),
        (lambda: ForwardBackward(Denoiser(Shrink(), [0.1, 0.2, 0.3]), layers=2), "for 3 layers, but .*a cycle of 2"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InvalidParameterError, match=message):
        make()


def test_what_cannot_be_described_is_said_when_it_is_saved(tmp_path):
    for map in (ForwardBackward(Denoiser(Shrink())), ForwardBackward([Denoiser(unet()), Denoiser(unet())], layers=2)):
        with pytest.raises(InvalidParameterError, match="a checkpoint cannot describe"):
            Restarted(map).save(tmp_path / "net.safetensors")


@pytest.mark.parametrize("sigma", [0.0, 50 / 255, torch.tensor(50 / 255)])
def test_the_ends_of_the_range_are_allowed_and_can_be_left(sigma):
    prior = Denoiser(unet(), sigma)
    found = prior.sigma()
    assert float(found.detach()) == pytest.approx(float(sigma), abs=2.1e-3 * 50 / 255)
    (slope,) = torch.autograd.grad(found.sum(), prior.sigma.raw)
    assert float(slope) > 1e-4
    with pytest.raises(InvalidParameterError, match=r"≤ sigma ≤ 0\.1961"):
        Denoiser(unet(), 50.1 / 255)


class InPlace(nn.Module):
    def forward(self, x, sigma):
        return x.mul_(0.5)


@pytest.mark.parametrize("prior", [Denoiser(InPlace(), 0.1, strength=0.5), RED(InPlace(), 0.1)])
def test_a_denoiser_that_changes_its_input_is_refused(prior):
    bound = prior.bind((1, 1, 4, 4), 0, torch.ones(()))
    function = bound.prox or bound.grad
    with pytest.raises(InvalidParameterError, match=r"InPlace changes its input in place.*x\.clone"):
        function(torch.ones(1, 1, 4, 4))


@pytest.mark.parametrize(("own", "given"), [(3, 1), (1, 3)])
def test_channels_of_a_network_that_does_not_say_how_many_it_has(own, given):
    foreign = DRUNet(own, own, nc=(4, 4, 4, 4), nb=1, pretrained=None)
    with pytest.raises(ShapeError, match=rf"DRUNet cannot take images \(1, {given}, 16, 16\) with {given} channel"):
        Denoiser(foreign, 0.1).prox(torch.rand(1, given, 16, 16))


def test_images_of_another_precision_than_the_weights():
    with pytest.raises(InvalidParameterError, match=r"SmallUNet has weights in torch.float32.*are torch.float64"):
        Denoiser(unet(), 0.1).prox(torch.rand(1, 1, 8, 8, dtype=torch.float64))


class Precision(nn.Module):
    """A convolution that notes the dtype in which it was computed, and returns it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        nn.init.constant_(self.conv.weight, 1 / 17)
        self.seen = []

    def forward(self, x, sigma):
        out = self.conv(x)
        self.seen.append(out.dtype)
        return out


@pytest.mark.parametrize("kind", [Denoiser, RED])
def test_bfloat16_is_for_the_network_in_training_only(kind):
    network = Precision()
    prior = kind(network, 0.1, learn_denoiser=True, bfloat16=True)
    net = Restarted((ForwardBackward if kind is Denoiser else GradientStep)(prior), 2, 2, Truncated())
    y, physics = measurement()
    net.train()
    image = net(y, physics)
    image.square().mean().backward()
    # the first step of a foreign network compares gradients with finite differences, which bfloat16 would drown
    assert set(network.seen) == {torch.bfloat16, torch.float32}
    assert image.dtype == torch.float32
    assert network.conv.weight.grad.dtype == torch.float32
    assert bool(network.conv.weight.grad.abs().sum() > 0)
    network.seen.clear()
    net(y, physics)
    assert set(network.seen) == {torch.bfloat16}
    call = prior.prox if kind is Denoiser else prior.grad
    coarse = call(image.detach())
    network.seen.clear()
    net.eval()(y, physics)
    assert set(network.seen) == {torch.float32}
    prior.eval()
    assert 0 < float((coarse - call(image.detach())).detach().abs().max()) < 4e-3


def test_bfloat16_leaves_float64_alone(float64):
    network = Precision().double()
    prior = Denoiser(network, 0.1, bfloat16=True).train()
    x = rand(1, 1, 6, 7)
    assert prior.prox(x).dtype == torch.float64
    assert set(network.seen) == {torch.float64}


def test_bfloat16_is_kept_in_a_file(tmp_path):
    net = Restarted(ForwardBackward(Denoiser(unet(), 0.1, bfloat16=True)), 2)
    net.save(tmp_path / "net.safetensors")
    assert load(tmp_path / "net.safetensors").map.priors[0].trains_in_bfloat16 is True
    with pytest.raises(InvalidParameterError, match="bfloat16"):
        Denoiser(unet(), 0.1, bfloat16="yes")


@pytest.mark.parametrize("kind", [Denoiser, RED])
def test_a_noise_level_given_with_the_images_is_looked_at(kind):
    prior, x = kind(unet(), 0.1), rand(2, 1, 6, 7)
    call = prior.prox if kind is Denoiser else prior.grad
    levels = torch.tensor([0.05, 0.1])
    torch.testing.assert_close(call(x, sigma=levels)[1:], call(x[1:], sigma=0.1))
    for sigma in (25.0, torch.tensor([0.1, 25.0])):
        with pytest.raises(InvalidParameterError, match="outside the range of this denoiser"):
            call(x, sigma=sigma)
    with pytest.raises(InvalidParameterError, match=r"one per image of the batch of 2, got shape \(3,\)"):
        call(x, sigma=torch.full((3,), 0.1))
    with pytest.raises(InvalidParameterError, match="sigma must be a number"):
        call(x, sigma="a")
    free = kind(unet(), 0.1, sigma_range=(0, 30))
    free_call = free.prox if kind is Denoiser else free.grad
    assert bool(free_call(x, sigma=25.0).isfinite().all())


class Whole(nn.Module):
    def forward(self, x, sigma):
        return (255 * x).int()


def test_an_image_in_integers_is_refused():
    with pytest.raises(InvalidParameterError, match=r"in floating point.*returned torch.int32"):
        Denoiser(Whole(), 0.1).prox(rand(1, 1, 4, 4))


def test_bfloat16_is_not_for_deepinvs_algorithms_in_eval_mode():
    network = Precision()
    y, physics = measurement()
    prior = Denoiser(network, 0.1, bfloat16=True)
    PGD(prior=prior, data_fidelity=L2(), stepsize=0.5, g_param=0.1, max_iter=2).eval()(y, physics)
    assert set(network.seen) == {torch.float32}


@pytest.mark.parametrize("make", [Denoiser, RED])
def test_a_noise_level_of_0_to_255_is_doubted(make):
    """25 is more than the whole range of intensities; a denoiser that knows its range refuses it."""
    with pytest.warns(DoubtfulWarning, match=r"give sigma=25/255 = 0\.0980"):
        make(Shrink(), 25)
    with pytest.warns(DoubtfulWarning, match="sigma=50 is more noise"):
        make(Shrink(), [0.1, 50])
    with pytest.raises(InvalidParameterError, match="divide a level on 0…255 by 255"):
        make(weights.load("denoiser-gray"), 25)
