"""What a certificate takes over from operators and priors, and how an estimate refutes it."""

import pytest
import torch
from deepinv.optim.prior import L1Prior
from deepinv.physics import Blur, Denoising, Inpainting

from known_answers import quadratic
from retune import (
    ForwardBackward,
    Restarted,
    certify,
)
from retune.guarantee import Convexity
from retune.priors import WaveletL1, WaveletL12
from small_parts import Quadratic, Rounded, dense, rand, spectrum

QUICK = {"iterations": 5, "starts": 2}


def guarantee(physics, y, prior=None, **options):
    map_ = ForwardBackward(WaveletL1("haar", 1) if prior is None else prior, **options)
    return map_.guarantee(map_.data_term(y, physics))


def slight_blur():
    """x + x(· − 1)/4 on a circle: |m|² between 9/16 and 25/16."""
    kernel = torch.zeros(1, 1, 3, 3)
    kernel[0, 0, 1, :2] = torch.tensor([0.25, 1.0])
    return Blur(filter=kernel, padding="circular")


def test_strong_convexity_from_the_operator():
    y = rand(1, 1, 8, 8)
    mask = torch.full((1, 1, 8, 8), 0.5)
    mask[0, 0, 0, 0] = 1.0
    facts = guarantee(Inpainting((1, 8, 8), mask=mask), y)
    assert float(facts.strong_convexity) == pytest.approx(0.25, rel=1e-4)
    assert float(guarantee(Denoising(), y).strong_convexity) == 1.0
    assert float(guarantee(Inpainting((1, 8, 8), mask=0.5), y).strong_convexity) == 0.0
    facts = guarantee(slight_blur(), y)
    assert facts.lipschitz_kind == "exact"
    assert float(facts.lipschitz) == pytest.approx(25 / 16, rel=1e-5)
    assert float(facts.strong_convexity) == pytest.approx(9 / 16, rel=1e-4)
    # A dense operator is injective too, but that is not known.
    assert float(guarantee(dense(spectrum(70, 64, 0.5, 1.0), (1, 8, 8)), rand(1, 1, 1, 70)).strong_convexity) == 0.0


def test_a_redundant_frame_has_no_strong_convexity_from_the_operator():
    union, margin = WaveletL1(("haar", "db2"), 1), WaveletL1("haar", 1, margin=2)
    for prior, size, physics in (
        (union, 8, Denoising()),
        (WaveletL1("haar", 1), 7, slight_blur()),
        (margin, 8, slight_blur()),
    ):
        facts = guarantee(physics, rand(1, 1, size, size), prior)
        assert float(facts.strong_convexity) == 0.0
        assert "not orthonormal" in facts.strong_convexity_from
        largest = float(facts.lipschitz)
        facts = guarantee(physics, rand(1, 1, size, size), prior, strong_convexity=0.25)
        assert float(facts.strong_convexity) == 0.25
        assert float(facts.lipschitz) == pytest.approx(largest + 0.25)


def test_where_the_measurement_is_continued_the_operator_sees_every_pixel():
    for prior, size in ((WaveletL1("haar", 1), 7), (WaveletL1("haar", 1, margin=2), 8)):
        facts = guarantee(Denoising(), rand(1, 1, size, size), prior)
        assert float(facts.strong_convexity) == 1.0


@pytest.mark.parametrize("y", [rand(1, 1, 8, 8), rand(1, 1, 7, 9)], ids=["basis", "frame"])
@pytest.mark.parametrize("physics", [Denoising(), Blur(filter=torch.rand(1, 1, 3, 3), padding="reflect")])
def test_factor_bounds_the_true_one_for_wavelets(physics, y, float64):
    """With ε, for a frame that is not orthonormal and a norm that is estimated."""
    y = y.double()
    map_ = ForwardBackward(WaveletL12("haar", 1), step_size=0.7, reg=0.1, strong_convexity=0.1)
    problem = map_.data_term(y, physics.double())
    bound = map_.requires_grad_(False).bind(problem)
    factor = float(map_.guarantee(problem).factors().max())
    assert factor < 1
    u = bound.init()
    jacobian = torch.func.jacrev(bound.layer)(u).reshape(u.numel(), u.numel())
    assert float(torch.linalg.matrix_norm(jacobian, 2)) <= factor + 1e-12


def test_an_estimated_norm_shows_in_the_words():
    case = quadratic(batch=1)
    map_ = ForwardBackward(L1Prior(), reg=0.1, strong_convexity=0.1)
    certificate = certify(Restarted(map_, 3, 2), case.y, case.physics, **QUICK)
    number = certificate[0].rmse.proved
    assert number.kind == "proved with probability 1 − 1e-06"
    assert any("Lanczos value × 1.05" in a.how and a.probability == 1 - 1e-6 for a in number.assumptions)
    assert certificate[0].verdict.startswith("Proved with probability 1 − 1e-06: the image is within")
    assert "proved*" in str(certificate)
    exact = certify(Restarted(map_, 3, 2), rand(1, 1, 4, 4), Denoising(), **QUICK)
    assert exact[0].rmse.proved.kind == "proved"
    assert exact[0].verdict.startswith("Proved: the image is within")


def test_what_somebody_says_is_not_checked():
    case = quadratic(batch=1)
    image = certify(Restarted(case.map, 3, 2), case.y, case.physics, **QUICK)[0]
    assert image.rmse.proved.kind == "proved if its unchecked assumptions hold"
    assert image.verdict.startswith("Proved, if the unchecked assumptions hold:")
    other = ForwardBackward(L1Prior(), Rounded(), reg=0.1, lipschitz=1.0, strong_convexity=0.1)
    facts = other.guarantee(other.problem(rand(1, 1, 4, 4), Denoising()))
    assert not facts.checked
    assert float(facts.strong_convexity) == pytest.approx(0.1)


class Liar(Quadratic):
    """Says that it is convex, but its prox expands."""

    def convexity(self):
        return Convexity(how="I say so")

    def prox(self, x, *args, gamma=1.0, **kwargs):
        return 1.5 * x


def test_a_prox_that_cannot_be_one_is_found_out():
    map_ = ForwardBackward(Liar(torch.ones(1, 1, 4, 4)))
    facts = map_.guarantee(map_.data_term(rand(1, 1, 4, 4), Denoising()))
    assert not facts.convex
    assert facts.factors() is None
    assert any("refuted" in a.how for a in facts.assumptions)


class Boaster(L1Prior):
    """A right prox, and more strong convexity than there is: on random pairs nothing shows."""

    def convexity(self):
        return Convexity(strong=4.0, how="I say so")


def test_an_estimate_above_its_bound_refutes_it(float64):
    """The layers leave 0.4 of an error where nothing is thresholded, and the prior says 0.4/1.6."""
    y = 1 + rand(1, 1, 4, 4).abs()
    images = {}
    for prior in (L1Prior(), Boaster()):
        net = Restarted(ForwardBackward(prior, step_size=0.3, reg=0.25), 4, 4)
        for learning in (True, False):
            images[type(prior), learning] = image = certify(net, y, Denoising(), learning=learning, **QUICK)[0]
            bounds = [n for claim in image.claims.values() for n in claim.numbers if n.is_bound]
            assert bool(image.refuted) is (prior.__class__ is Boaster)
            assert bool(bounds) is not bool(image.refuted)
    image = images[Boaster, True]
    assert image.statement == ""
    assert image.verdict.startswith("Nothing is proved: the factor of one layer is at least 0.4, but its bound is")
    assert image.assumptions[-1].how.startswith("refuted: ")
    assert image.to_dict()["refuted"] == image.refuted
    assert images[L1Prior, True].rmse.proved.kind == "proved"


@pytest.mark.parametrize(("step", "depth"), [(0.75, 40), (0.51, 10), (0.6, 16)])
def test_a_factor_too_small_to_be_squared_refutes_nothing(step, depth):
    """In float32 the squares of what a deep block leaves of a direction underflow."""
    net = Restarted(ForwardBackward(L1Prior(), step_size=step, reg=0.01), depth, 4)
    image = certify(net, 1 + rand(1, 1, 8, 8).abs(), Denoising(), **QUICK)[0]
    assert image.refuted == ""
    assert image.block_factor.estimated.value <= 1.01 * image.block_factor.proved.value + 1e-6


def test_a_finite_difference_refutes_nothing_by_its_own_error():
    net = Restarted(ForwardBackward(WaveletL12("db4", 2), step_size=0.5002), 4, 4)
    assert certify(net, rand(1, 1, 16, 16), Denoising(), learning=False, **QUICK)[0].refuted == ""
