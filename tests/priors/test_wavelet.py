"""The wavelet priors as deepinv priors, and what they refuse."""

import pytest
import torch
from deepinv.optim.prior import Prior

from retune.errors import InvalidParameterError, ShapeError, TooManyLevelsError, UnknownNameError
from retune.priors import WaveletL1, WaveletL12
from small_parts import rand

MAKE = {
    "l1": lambda **k: WaveletL1("db2", 2, **k),
    "l12": lambda **k: WaveletL12("db2", 2, **k),
    "channel": lambda **k: WaveletL12("db2", 2, over="channel", **k),
    "band": lambda **k: WaveletL12("db2", 2, over=("band",), **k),
}


def randomise(prior):
    for p in prior.parameters():
        p.data.copy_(0.5 * rand(*p.shape, seed=p.numel()))
    return prior


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("kind", MAKE)
def test_prox_minimises_in_the_image_domain(kind, coarse, float64):
    prior = randomise(MAKE[kind](channels=2, coarse=coarse))
    assert isinstance(prior, Prior)
    v = rand(2, 2, 8, 4)
    with torch.no_grad():
        u = prior.prox(v, gamma=0.7)

        def objective(x):
            return 0.5 * (x - v).square().flatten(1).sum(1) + 0.7 * prior.fn(x)

        best = objective(u)
        for seed in range(50):
            for size in (1e-6, 1e-3, 1e-1):
                assert bool((objective(u + size * rand(*v.shape, seed=seed)) >= best - 1e-12).all())


@pytest.mark.parametrize("kind", MAKE)
def test_fn_is_positively_homogeneous_and_per_image(kind, float64):
    prior = randomise(MAKE[kind](channels=3))
    x = rand(3, 3, 7, 9)
    value = prior.fn(x)
    assert value.shape == (3,)
    torch.testing.assert_close(prior.fn(-2.5 * x), 2.5 * value)
    torch.testing.assert_close(prior.fn(x, gamma=0.3), 0.3 * value)
    torch.testing.assert_close(prior.fn(x[1:2]), value[1:2])
    torch.testing.assert_close(prior.fn(x, gamma=torch.tensor([1.0, 2.0, 3.0])), value * torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("kind", MAKE)
def test_evaluating_changes_nothing(kind):
    prior, x = MAKE[kind](), rand(1, 1, 8, 8)
    kept = x.clone()
    first = prior.prox(x, gamma=0.1)
    for _ in range(3):
        prior.fn(x)
    assert torch.equal(prior.prox(x, gamma=0.1), first)
    assert torch.equal(x, kept)


def test_groups_of_one_are_l1(float64):
    """On one channel the channel groups have one entry each."""
    x = rand(2, 1, 8, 8)
    a, b = WaveletL12("db2", 2, over="channel"), WaveletL1("db2", 2)
    torch.testing.assert_close(a.fn(x), b.fn(x))
    torch.testing.assert_close(a.prox(x, gamma=0.4), b.prox(x, gamma=0.4))


def test_scales_go_from_fine_to_coarse(float64):
    """A large weight on the finest scale removes a checkerboard, one on the coarsest does not."""
    x = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).mul(2.0).sub(1)[None, None].to(torch.float64)
    fine = WaveletL1("haar", 2, scale_weights=[[100.0, 1e-6]], learn=False).prox(x)
    coarse = WaveletL1("haar", 2, scale_weights=[[1e-6, 100.0]], learn=False).prox(x)
    assert float(fine.abs().max()) < 1e-10
    assert float((coarse - x).abs().max()) < 1e-4


def test_bands_and_channels_have_their_own_weights(float64):
    """Vertical stripes live in the first band, horizontal ones in the second."""
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 2, 8, 8)
    prior = WaveletL1("haar", 1, channels=2, weights=[[[100.0, 1e-9, 1e-9]], [[1e-9, 100.0, 1e-9]]], learn=False)
    u = prior.prox(stripes)
    assert float(u[:, 0].abs().max()) < 1e-10
    torch.testing.assert_close(u[:, 1], stripes[:, 1], rtol=0, atol=1e-7)
    turned = prior.prox(stripes.mT)
    assert float(turned[:, 1].abs().max()) < 1e-10
    torch.testing.assert_close(turned[:, 0], stripes.mT[:, 0], rtol=0, atol=1e-7)


def test_coarse_is_kept_unless_asked(float64):
    x = torch.full((1, 1, 8, 8), 3.0)
    torch.testing.assert_close(WaveletL12("db2", 2).prox(x, gamma=100.0), x)
    assert bool((WaveletL12("db2", 2, coarse=True).prox(x, gamma=100.0) == 0).all())


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("coarse", [False, True])
def test_everything_learnable_is_a_parameter_and_has_a_gradient(kind, coarse):
    prior = randomise(MAKE[kind](channels=2, coarse=coarse))
    names = {n for n, _ in prior.named_parameters()}
    assert names == {"weights.raw", "scale_weights.raw"} | ({"coarse_weights.raw"} if coarse else set())
    assert names == set(prior.state_dict())
    prior.prox(rand(1, 2, 8, 8), gamma=0.1).square().sum().backward()
    for name, p in prior.named_parameters():
        assert bool((p.grad != 0).all()), name


def test_frozen_prior_learns_nothing():
    assert not any(p.requires_grad for p in WaveletL12(learn=False, coarse=True).parameters())


def test_image_prox_is_refused_where_it_has_no_closed_form():
    for prior, size in ((WaveletL1("db2", 2), (8, 7)), (WaveletL1(("db2", "haar"), 2), (8, 8))):
        with pytest.raises(InvalidParameterError, match=rf"images \({size[0]}, {size[1]}\).*ForwardBackward"):
            prior.prox(rand(1, 1, *size))


@pytest.mark.parametrize("cls", [WaveletL1, WaveletL12])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"wavelet": "dbb4"}, UnknownNameError, "unknown wavelet 'dbb4'.*did you mean.*'db4'"),
        ({"wavelet": ["db4", "nothing-like-it"]}, UnknownNameError, "nothing-like-it.*Known"),
        ({"wavelet": "bior1.3"}, InvalidParameterError, "bior1.3.*not orthogonal.*use one of"),
        ({"wavelet": []}, InvalidParameterError, "non-empty sequence of names, got an empty one"),
        ({"levels": 0}, InvalidParameterError, "at least 1, got 0"),
        ({"channels": 0}, InvalidParameterError, "channels.*got 0"),
        ({"weights": 0.0}, InvalidParameterError, "weights must be positive and finite, got 0.0"),
        ({"weights": [1.0, 2.0]}, InvalidParameterError, r"weights.*shape \(1, 1, 3\), got shape \(2,\)"),
        ({"scale_weights": -1}, InvalidParameterError, "scale_weights must be positive and finite, got -1"),
    ],
)
def test_bad_arguments(cls, options, error, message):
    with pytest.raises(error, match=message):
        cls(**options)


def test_bad_groups():
    with pytest.raises(UnknownNameError, match=r"unknown group axis 'channels'.*did you mean 'channel'"):
        WaveletL12(over="channels")
    for over in ((), ("band", "band")):
        with pytest.raises(InvalidParameterError, match="use WaveletL1 for a prior without groups"):
            WaveletL12(over=over)


def test_wrong_number_of_channels():
    with pytest.raises(ShapeError, match=r"weights for 3 channels, but the image has 1.*channels=None"):
        WaveletL12(levels=1, channels=3).fn(rand(1, 1, 8, 8))


def test_too_many_levels():
    with pytest.raises(TooManyLevelsError, match=r"4 wavelet levels .* 8×12: at most 3 do; lower levels"):
        WaveletL1(levels=4).fn(rand(1, 1, 8, 12))


@pytest.mark.parametrize("prior", [WaveletL1("haar", 2), WaveletL12("haar", 2)])
def test_the_subgradient_at_zero_is_finite(prior):
    gradient = prior.grad(torch.zeros(1, 3, 16, 16))
    assert torch.equal(gradient, torch.zeros_like(gradient))
