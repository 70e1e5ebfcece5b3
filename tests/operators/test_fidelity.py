"""The constants of data fidelities: known for deepinv's, stated by others, never believed against the evidence."""

import pytest
import torch
from deepinv.optim import L2, DataFidelity
from deepinv.optim.data_fidelity import (
    L1,
    AmplitudeLoss,
    IndicatorL2,
    LogPoissonLikelihood,
    PoissonLikelihood,
    StackedPhysicsDataFidelity,
)
from deepinv.optim.distance import Distance
from deepinv.optim.prior import L1Prior
from deepinv.physics import Denoising

from retune import DataTerm, ForwardBackward, GradientStep
from retune.errors import InvalidParameterError
from retune.operators.fidelity import FidelityFacts, facts_of_fidelity
from retune.priors import Ridge
from small_parts import Rounded, dense, rand, spectrum


class Weighted(DataFidelity):
    """A stranger's ``½‖w (u − y)‖²``, which states its constants."""

    def __init__(self, weight, factor=1.0):
        super().__init__()
        self.weight, self.factor = weight, factor
        self.d = Distance(d=lambda u, y: 0.5 * (self.weight * (u - y)).square().flatten(1).sum(1))

    def facts(self, y):
        high, low = float(self.weight.max()) ** 2, float(self.weight.min()) ** 2
        return FidelityFacts(self.factor * high, strong=low, how="½‖w(u − y)‖²", checked=True)


def kinked():
    return DataFidelity(d=lambda u, y: (u - y).abs().flatten(1).sum(1))


def smooth(prior, fidelity, lipschitz):
    return GradientStep(Ridge(1, (2, 3), (3, 2)), fidelity, lipschitz=lipschitz)


@pytest.mark.parametrize("given", [None, 1.0, 1e6])
@pytest.mark.parametrize("make", [ForwardBackward, smooth])
@pytest.mark.parametrize(
    ("fidelity", "words"),
    [
        (L1(), "the gradient of L1 is not Lipschitz.*for any value of lipschitz.*Use deepinv.optim.L2"),
        (IndicatorL2(radius=0.1), "the gradient of IndicatorL2 is not Lipschitz"),
        (AmplitudeLoss(), "the gradient of AmplitudeLoss is not Lipschitz"),
        (PoissonLikelihood(), "the gradient of PoissonLikelihood is not Lipschitz.*background above 0"),
    ],
)
def test_a_fidelity_that_is_not_smooth_is_refused(fidelity, words, make, given):
    map_ = make(L1Prior(), fidelity, lipschitz=given)
    with pytest.raises(InvalidParameterError, match=words):
        map_.data_term(rand(1, 1, 8, 8).abs(), Denoising())


def test_a_strangers_kink_is_found_out():
    with pytest.raises(InvalidParameterError, match=r"the gradient of DataFidelity changes .* times faster"):
        DataTerm(rand(1, 1, 8, 8), Denoising(), kinked(), lipschitz=1.0)
    with pytest.raises(InvalidParameterError, match="the gradient of Weighted changes 2 times faster"):
        DataTerm(rand(1, 1, 8, 8), Denoising(), Weighted(torch.tensor(1.0), factor=0.5))
    changed = L2()
    changed.grad = lambda x, y, physics: 3 * (x - y)
    with pytest.raises(InvalidParameterError, match="the gradient of L2 changes 3 times faster"):
        DataTerm(rand(1, 1, 8, 8), Denoising(), changed, lipschitz=1.0)


def test_stated_constants_are_used_and_called_trusted(float64):
    weight = torch.rand(1, 1, 1, 15) + 0.5
    term = DataTerm(rand(2, 1, 1, 15), dense(spectrum(15, 12, 0.5, 1.0), (1, 3, 4)), Weighted(weight))
    torch.testing.assert_close(term.lipschitz, term.sqnorm * float(weight.max()) ** 2)
    for seed in range(20):
        a, b = rand(2, 1, 3, 4, seed=seed), rand(2, 1, 3, 4, seed=seed + 100)
        moved, apart = (t.flatten(1).norm(dim=1) for t in (term.grad(a) - term.grad(b), a - b))
        assert bool((moved <= term.lipschitz * apart).all())
    facts = ForwardBackward(L1Prior(), Weighted(torch.tensor(0.5))).guarantee(
        DataTerm(rand(1, 1, 4, 4), Denoising(), Weighted(torch.tensor(0.5)))
    )
    assert facts.convex
    assert not facts.checked
    assert float(facts.strong_convexity) == pytest.approx(0.25)
    assert any("trusted" in a.how for a in facts.assumptions)


def test_a_number_for_a_fidelity_that_has_one():
    with pytest.raises(InvalidParameterError, match=r"lipschitz=1.0 was given, but the constant of L2 is 4 "):
        DataTerm(rand(1, 1, 4, 4), Denoising(), L2(0.5), lipschitz=1.0)
    assert float(DataTerm(rand(1, 1, 4, 4), Denoising(), L2(0.5), lipschitz=5.0).lipschitz) == 5.0
    with pytest.raises(InvalidParameterError, match="lipschitz must be a positive finite number, got -1"):
        DataTerm(rand(1, 1, 4, 4), Denoising(), Rounded(), lipschitz=-1)


def test_poisson_with_a_background(float64):
    y = torch.poisson(3 * torch.rand(2, 1, 6, 6)) / 3
    fidelity = PoissonLikelihood(bkg=0.1, gain=1 / 3)
    facts = facts_of_fidelity(fidelity, y)
    assert facts.convex
    assert facts.domain == (0.0, float("inf"))
    for seed in range(20):
        a, b = rand(2, 1, 6, 6, seed=seed).abs() * 0.01, rand(2, 1, 6, 6, seed=seed + 50).abs() * 0.01
        moved = (fidelity.d.grad(a, y) - fidelity.d.grad(b, y)).norm()
        assert float(moved) <= facts.lipschitz * float((a - b).norm())
    guarantee = ForwardBackward(L1Prior(), fidelity).guarantee(DataTerm(y, Denoising(), fidelity))
    assert any("A x stays between 0 and inf" in a.statement and not a.checked for a in guarantee.assumptions)


def test_the_constant_of_the_logarithmic_one(float64):
    fidelity, y = LogPoissonLikelihood(N0=10.0, mu=0.5), torch.rand(1, 1, 4, 4)
    assert facts_of_fidelity(fidelity, y).lipschitz == pytest.approx(2.5)


def test_a_sum_takes_the_largest():
    found = facts_of_fidelity(StackedPhysicsDataFidelity([L2(1.0), L2(0.5)]), [torch.ones(1), torch.ones(1)])
    assert (found.lipschitz, found.strong, found.checked, found.quadratic) == (4.0, 1.0, True, False)
    with pytest.raises(InvalidParameterError, match="L1 is not Lipschitz"):
        facts_of_fidelity(StackedPhysicsDataFidelity([L2(), L1()]), [torch.ones(1), torch.ones(1)])


@pytest.mark.parametrize("make", [L2, lambda: PoissonLikelihood(bkg=0.1)], ids=["squares", "poisson"])
def test_a_fidelity_whose_distance_was_replaced_is_not_that_of_its_class(make):
    fidelity = make()
    fidelity.d.grad = lambda u, y, *_: 7 * (u - y)
    with pytest.raises(InvalidParameterError, match=r"the Lipschitz constant of .* is unknown"):
        facts_of_fidelity(fidelity, rand(1, 1, 8, 8).abs())
