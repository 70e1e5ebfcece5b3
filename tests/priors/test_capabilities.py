"""What priors say of themselves, what a stranger's prior is asked for, and what is not inherited."""

import deepinv
import pytest
import torch
from deepinv.models import TVDenoiser
from deepinv.optim.prior import Prior, TVPrior
from deepinv.physics import Denoising
from torch import nn

import retune
from retune import DataTerm, ForwardBackward, GradientStep, Restarted, Stop, certify
from retune.errors import InvalidParameterError
from retune.guarantee import Convexity, Smoothness
from retune.maps.base import guarantee_of
from retune.priors import RED, AbstractPrior, BoundPrior, Denoiser, Ridge, WaveletL1, WaveletL12, adapt, priors_of
from retune.priors.capabilities import convexity_of, smoothness_of
from small_parts import rand


class Shrink(AbstractPrior):
    """A stranger's prior with everything: ``½‖x‖²``."""

    has_prox = has_grad = has_value = True

    def bind(self, shape, layer, gamma):
        return BoundPrior(
            prox=lambda v: v / (1 + gamma), grad=lambda u: u, fn=lambda u: 0.5 * gamma * u.square().sum((1, 2, 3))
        )

    def convexity(self):
        return Convexity(strong=1.0, how="½‖x‖²", checked=True)

    def smoothness(self, like):
        return Smoothness(1.0, 0.0, "½‖x‖²", checked=True)


class Bare(AbstractPrior):
    """A stranger's prior that can do nothing."""

    def bind(self, shape, layer, gamma):
        return BoundPrior()


class Empty(Bare):
    """It declares what it does not give."""

    has_prox = has_grad = True

    def smoothness(self, like):
        return Smoothness(1.0)


def facts_of(map_, y=None):
    return guarantee_of(map_, map_.data_term(rand(1, 1, 8, 8).abs() if y is None else y, Denoising()))


@pytest.mark.parametrize("make", [ForwardBackward, GradientStep])
def test_a_strangers_prior_is_solved_and_trusted_not_checked(make):
    y = rand(2, 1, 6, 6)
    net = Restarted(make(Shrink(), reg=0.5), stop=Stop(1e-7, 500)).eval()
    torch.testing.assert_close(net(y, Denoising()), y / 1.5, rtol=0, atol=1e-5)
    facts = facts_of(net.map)
    assert facts.convex
    assert not facts.checked
    assert net.map.bind(DataTerm(y, Denoising())).select(torch.tensor([1])).init().shape == (1, 1, 6, 6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ForwardBackward(Bare()), r"ForwardBackward needs .*\(has_prox\), got Bare.*has_prox = True.*bind"),
        (lambda: GradientStep(Bare()), r"GradientStep needs .*\(has_grad\), got Bare.*has_grad = True.*bind"),
        (lambda: ForwardBackward(Ridge(1, (2, 3), (3, 2))), r"ForwardBackward needs .*\(has_prox\), got Ridge"),
        (lambda: GradientStep(WaveletL1()), r"GradientStep needs .*\(has_grad\), got WaveletL1"),
        (lambda: ForwardBackward(Empty()).bind(DataTerm(rand(1, 1, 4, 4), Denoising())), "Empty declares has_prox"),
        (lambda: GradientStep(Empty()).bind(DataTerm(rand(1, 1, 4, 4), Denoising())), "Empty declares has_grad"),
    ],
)
def test_a_capability_that_is_missing_is_named(make, words):
    with pytest.raises(InvalidParameterError, match=words):
        make()


def test_what_deepinvs_priors_can_do():
    for prior, prox, grad, value in (
        (deepinv.optim.prior.L1Prior(), True, True, True),
        (deepinv.optim.prior.Tikhonov(), True, True, True),
        (Prior(g=lambda x: x.square().sum((1, 2, 3))), False, True, True),
        (Prior(), False, False, False),
    ):
        able = adapt(prior)
        assert (able.has_prox, able.has_grad, able.has_value) == (prox, grad, value)
    assert adapt(deepinv.optim.prior.L1Prior()).per_image
    assert not adapt(TVPrior()).per_image


def test_what_our_priors_say():
    unet = retune.networks.SmallUNet(1)
    l1, pnp, red = WaveletL1("db2", 3), Denoiser(unet, 0.1, strength=0.5, bfloat16=True), RED(unet, 0.1)
    assert (l1.alignment, l1.on_coefficients, l1.may_expand) == (8, True, False)
    assert (pnp.may_expand, pnp.uses_strength, pnp.trains_in_bfloat16) == (True, False, True)
    assert set(pnp.tunables()) == {"sigma", "strength"}
    assert len(red.networks((1, 1, 8, 8))) == 1
    assert l1.networks((1, 1, 8, 8)) == ()
    assert set(ForwardBackward(l1).learned()) == {"reg", "step_size", "weights", "scale_weights"}
    assert set(ForwardBackward(pnp).learned()) == {"reg", "step_size", "sigma", "strength"}
    net = Restarted(ForwardBackward(l1))
    priors_of(net)[0].hold_scales()
    assert not any(p.requires_grad for p in l1.parameters())


# --- facts hold for exact types -------------------------------------------------------------------------------------


def hard(soft):
    return lambda v: torch.where(soft(v) != 0, v, torch.zeros_like(v))


class ChangedBind(WaveletL1):
    def bind_cycle(self, *args):
        bound = list(super().bind_cycle(*args))
        for b in bound:
            b.prox = hard(b.prox)
        return bound


class ChangedProx(WaveletL1):
    def prox(self, x, *args, gamma=1.0, **kwargs):
        return x * (x.abs() > gamma)


class Stated(ChangedBind):
    def convexity(self):
        return Convexity(how="I say so", checked=True)


class Renamed(WaveletL12):
    """Nothing is changed, but nobody looked."""


def replaced():
    prior = WaveletL1("haar", 2)
    prior.bind_cycle = ChangedBind.bind_cycle.__get__(ChangedBind("haar", 2))
    return prior


def other_weights():
    class Negative(nn.Module):
        def forward(self):
            return -torch.ones(1, 2)

    prior = WaveletL1("haar", 2)
    prior.scale_weights = Negative()
    return prior


@pytest.mark.parametrize(
    "make", [lambda: ChangedBind("haar", 2), lambda: ChangedProx("haar", 2), lambda: Renamed("haar", 2), replaced,
             other_weights]
)  # fmt: skip
def test_what_was_proved_of_a_prior_is_not_inherited(make):
    map_ = ForwardBackward(make(), reg=0.1)
    assert convexity_of(map_.priors[0]) is None
    facts = facts_of(map_)
    assert facts.factors() is None
    assert not facts.checked
    assert any("proofs of the original" in a.how for a in facts.assumptions)
    assert "Proved:" not in str(certify(Restarted(map_, 2, 1).eval(), rand(1, 1, 8, 8), Denoising(), learning=False))


def test_the_originals_are_proved():
    """So the test above can fail."""
    facts = facts_of(ForwardBackward(WaveletL1("haar", 2), reg=0.1))
    assert facts.checked
    assert facts.factors() is not None


def test_a_statement_of_a_subclass_is_tried():
    facts = facts_of(ForwardBackward(Stated("haar", 2), reg=0.1))
    assert any(a.refuted for a in facts.assumptions)
    assert not facts.convex

    class Honest(WaveletL1):
        def convexity(self):
            return Convexity(how="as it was", checked=True)

    facts = facts_of(ForwardBackward(Honest("haar", 2), reg=0.1))
    assert facts.convex
    assert not facts.checked


def test_a_changed_prox_on_images_is_the_one_that_is_iterated():
    y = rand(1, 1, 8, 8)
    map_ = ForwardBackward(ChangedProx("haar", 2), step_size=0.5, reg=0.4)
    torch.testing.assert_close(map_.bind(DataTerm(y, Denoising())).layer(y), y * (y.abs() > 0.4))


def ridge():
    return Ridge(1, (2, 3), (3, 2))


class Steep(Ridge):
    def grad(self, x, *args, **kwargs):
        return 50 * super().grad(x)


class SteepBind(Ridge):
    def bind_cycle(self, *args):
        bound = list(super().bind_cycle(*args))
        for b in bound:
            b.grad = lambda u, grad=b.grad: 50 * grad(u)
        return bound


@pytest.mark.parametrize("kind", [Steep, SteepBind])
def test_what_was_proved_of_a_ridge_is_not_inherited(kind):
    prior = kind(1, (2, 3), (3, 2))
    assert smoothness_of(prior, torch.zeros(1)) is None
    with pytest.raises(InvalidParameterError, match=f"∇R of {kind.__name__} is unknown"):
        GradientStep(prior)
    assert any(a.refuted for a in facts_of(GradientStep(prior, prior_lipschitz=1e-3)).assumptions)
    assert facts_of(GradientStep(ridge())).checked


class Doubled(ForwardBackward):
    def bind(self, data_term):
        bound = super().bind(data_term)
        layer = bound.layer
        bound.layer = lambda u, k=0: 2 * layer(u, k)
        return bound


class Told(Doubled):
    def guarantee(self, data_term):
        return super().guarantee(data_term)


def test_what_was_proved_of_a_map_is_not_inherited():
    assert facts_of(Doubled(WaveletL1("haar", 2))).factors() is None
    told = facts_of(Told(WaveletL1("haar", 2)))
    assert told.convex
    assert not told.checked


# --- a memory -------------------------------------------------------------------------------------------------------


class Momentum(Prior):
    """It keeps its last input in an attribute."""

    def __init__(self):
        super().__init__()
        self.last = None

    def prox(self, x, *args, gamma=1.0, **kwargs):
        out = x if self.last is None or self.last.shape != x.shape else x + 0.3 * (x - self.last)
        self.last = x.detach()
        return 0.5 * out


class Buffered(Momentum):
    """It changes a buffer in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def prox(self, x, *args, gamma=1.0, **kwargs):
        self.mean.mul_(0.5).add_(x.mean())
        return 0.5 * x + self.mean


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [lambda: TVPrior(n_it_max=20), Momentum, Buffered])
def test_a_memory_is_isolated(make, training):
    y = rand(1, 1, 16, 16)
    prior = make().train(training)
    bound = ForwardBackward(prior, reg=0.3).bind(DataTerm(y, Denoising()))
    first = bound.layer(y)
    bound.layer(rand(1, 1, 16, 16, seed=5))
    torch.testing.assert_close(bound.layer(y), first, rtol=0, atol=1e-6)
    again = ForwardBackward(prior, reg=0.3).bind(DataTerm(y, Denoising()))
    torch.testing.assert_close(again.layer(y), first, rtol=0, atol=1e-6)


def test_the_memory_of_a_network_is_isolated():
    y = rand(1, 1, 16, 16)
    bound = ForwardBackward(Denoiser(TVDenoiser(n_it_max=20), 0.3)).bind(DataTerm(y, Denoising()))
    first = bound.layer(y)
    bound.layer(rand(1, 1, 16, 16, seed=5))
    torch.testing.assert_close(bound.layer(y), first, rtol=0, atol=1e-6)


class Listing(nn.Module):
    """A denoiser that keeps its last input in a list."""

    def __init__(self):
        super().__init__()
        self.kept = [None]

    def forward(self, x, sigma):
        before, self.kept[0] = self.kept[0], x.detach().clone()
        return 0.9 * x if before is None else 0.9 * x + 0.05 * before


class Counted(nn.Module):
    """A denoiser that counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x, sigma):
        self.calls.add_(1)
        return 0.9 * x + 0.01 * self.calls


@pytest.mark.parametrize("make", [Listing, Counted])
def test_a_network_with_a_memory_is_the_same_map_whenever_it_is_bound(make):
    y, prior = rand(1, 1, 16, 16), Denoiser(make(), 0.1)
    results = []
    for seed in range(3):  # the first call after binding is isolated, too
        bound = ForwardBackward(prior).bind(DataTerm(y, Denoising()))
        bound.layer(rand(1, 1, 16, 16, seed=seed))
        results.append(bound.layer(y))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_restored_buffers_are_no_changed_weights():
    y, physics = rand(1, 1, 16, 16), Denoising()
    net = Restarted(ForwardBackward(Denoiser(Counted(), 0.1))).eval()
    certificate = certify(net, y, physics, iterations=2, starts=1, learning=False)
    assert certificate[0].status == "converged"
    bound = net.bind(y, physics)
    with torch.no_grad():
        y.mul_(0.5)
    with pytest.raises(InvalidParameterError, match="y or the weights were changed"):
        net.solve(y, physics, bound=bound)


def hidden_memory():
    held = []

    class Hidden(Prior):
        def prox(self, x, *args, gamma=1.0, **kwargs):
            held.append(x)
            return x / len(held)

    return Hidden()


class Random(Prior):
    def prox(self, x, *args, gamma=1.0, **kwargs):
        return x + 0.1 * torch.randn_like(x)


@pytest.mark.parametrize("make", [hidden_memory, Random])
def test_a_memory_that_cannot_be_isolated_is_named(make):
    with pytest.raises(InvalidParameterError, match=r"(Hidden|Random)\.prox gives a different result .* same image"):
        ForwardBackward(make()).bind(DataTerm(rand(1, 1, 8, 8), Denoising()))


def test_a_prior_is_tried_once():
    calls = []

    class Counting(Prior):
        def prox(self, x, *args, gamma=1.0, **kwargs):
            calls.append(1)
            return 0.5 * x

    map_ = ForwardBackward(Counting())
    for _ in range(3):
        map_.bind(DataTerm(rand(1, 1, 8, 8), Denoising()))
    assert len(calls) == 3
