"""Sums of priors: values, gradients and stacked analysis forms, learned weights, run and file."""

import dataclasses

import pytest
import torch
from deepinv.optim.prior import Tikhonov
from deepinv.physics import Denoising

import retune
from averaged import least_slack
from known_answers import mixed
from retune import DataTerm, GradientStep, PrimalDual, Restarted, Stop
from retune.errors import InvalidParameterError
from retune.priors import TGV, TV, Ridge, Sum, WaveletL1
from small_parts import rand


def test_values_and_gradients_are_added(float64):
    parts = [TV(smoothing=0.5), Tikhonov()]
    prior, x = Sum(parts, [0.7, 0.2]), rand(2, 2, 4, 5)
    expected = 0.7 * parts[0].fn(x) + 0.2 * 0.5 * x.square().flatten(1).sum(1)
    torch.testing.assert_close(prior.fn(x).detach(), expected)
    bound = prior.bind(x.shape, 0, torch.tensor([2.0, 3.0]).reshape(2, 1, 1, 1))
    assert bound.fn is not None
    assert bound.grad is not None
    assert bound.analysis is None
    torch.testing.assert_close(bound.fn(x).detach(), torch.tensor([2.0, 3.0]) * expected)
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(prior.fn(y).sum(), y)
    torch.testing.assert_close(bound.grad(x).detach(), gradient)
    stated = prior.smoothness(x)
    assert stated is not None
    each = float(parts[0].smoothness(x).lipschitz)
    assert float(torch.as_tensor(stated.lipschitz).detach()) == pytest.approx(0.7 * each + 0.2)
    convex = prior.convexity()
    assert convex is not None
    assert float(torch.as_tensor(convex.strong).detach()) == pytest.approx(0.2)
    assert convex.checked


def by_descent(y, parts, weights, reg, steps=4000):
    """Accelerated gradient descent on ``½‖x − y‖² + λΣ w_i R_i(x)`` by autograd: a second solver for smooth parts."""
    x = v = y.clone()
    for k in range(steps):
        v = v.detach().requires_grad_()
        value = 0.5 * (v - y).square().sum() + reg * sum(w * p.fn(v).sum() for w, p in zip(weights, parts, strict=True))
        (gradient,) = torch.autograd.grad(value, v)
        new = v.detach() - gradient / (1 + reg * 2 * 8 / 0.5)
        x, v = new, new + k / (k + 3) * (new - x)
    return x


def test_two_maps_find_the_minimiser_of_a_sum(float64):
    """Both parts smoothed: by gradient steps, by primal–dual steps on stacked conjugates, and by a second solver."""
    y = rand(1, 2, 5, 4)
    parts, weights = [TV(smoothing=0.5), TV(isotropic=False, vectorial=False, smoothing=0.7)], [0.6, 0.4]
    prior = Sum(parts, weights)
    expected = by_descent(y, parts, weights, 0.3, 1500)
    for map_ in (GradientStep(prior, reg=0.3), PrimalDual(prior, reg=0.3)):
        net = Restarted(map_, depth=10, stop=Stop(1e-8, 4000)).eval()
        torch.testing.assert_close(net(y, Denoising()), expected, rtol=0, atol=1e-5)


def test_a_sum_of_one_prior_twice_is_that_prior(float64):
    """Exact priors, one of them with a further variable; and the map is averaged."""
    y = rand(1, 1, 5, 4)
    for prior in (TV(), TGV()):
        twice = Sum([prior, prior], [0.3, 0.7])
        nets = [Restarted(PrimalDual(p, reg=0.2), depth=10, stop=Stop(1e-8, 6000)).eval() for p in (prior, twice)]
        torch.testing.assert_close(nets[0](y, Denoising()), nets[1](y, Denoising()), rtol=0, atol=1e-5)
    both = PrimalDual(Sum([TV(), TGV()]), reg=0.2).requires_grad_(False)
    bound, facts = both.bind(DataTerm(y, Denoising())), both.guarantee(DataTerm(y, Denoising()))
    assert facts.statement == "converge to a minimiser"
    assert facts.averaged is not None
    assert all(a.checked for a in facts.assumptions)
    assert -1e-12 <= least_slack(bound, facts.averaged, pairs=50) < 0.9


def test_training_finds_the_weights_that_made_the_images(float64):
    """Targets are the minimisers for other weights; λ is fixed, so both weights are found."""
    y = torch.cat([rand(1, 1, 5, 4, seed=s) for s in range(3)])
    truth = Sum([TV(smoothing=2.0), Tikhonov()], [0.2, 0.6])
    with torch.no_grad():
        target = Restarted(GradientStep(truth, reg=0.5), depth=10, stop=Stop(1e-9, 2000)).eval()(y, Denoising())
    prior = Sum([TV(smoothing=2.0), Tikhonov()], [1.0, 1.0])
    net = Restarted(GradientStep(prior, reg=0.5, learn_reg=False), depth=10, restarts=4).train()
    optimiser = torch.optim.Adam([prior.weights.raw], lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        (net(y, Denoising()) - target).square().sum().backward()
        optimiser.step()
    assert prior.weights.value.tolist() == pytest.approx([0.2, 0.6], rel=0.05)


def test_a_stranger_is_tested_and_not_trusted(float64):
    case = mixed(batch=1)
    facts = case.map.guarantee(case.map.data_term(case.y, case.physics))
    assert facts.statement.startswith("converge to a minimiser")
    assert not all(a.checked for a in facts.assumptions)
    part = case.map.prior.priors[0]
    bind = part.bind

    def wrong(shape, layer, gamma):
        bound = bind(shape, layer, gamma)
        analysis = dataclasses.replace(bound.analysis, sqnorm=torch.tensor([0.1]), checked=True)
        return dataclasses.replace(bound, analysis=analysis)

    part.bind = wrong
    case.map.prior.priors[1].bind = lambda *given, own=case.map.prior.priors[1].bind: dataclasses.replace(
        own(*given), analysis=dataclasses.replace(own(*given).analysis, sqnorm=torch.tensor([0.1]))
    )
    facts = case.map.guarantee(case.map.data_term(case.y, case.physics))
    assert any(a.refuted and "‖K‖² is at least" in a.how for a in facts.assumptions)


def test_a_run_names_it_and_a_file_keeps_it(tmp_path):
    run = retune.config.from_dict(
        {
            "prior": {
                "type": "sum",
                "options": {"priors": [{"type": "tv"}, {"type": "tgv", "ratio": 1.5}], "weights": [0.3, 0.7]},
            },
            "model": {"reg": 0.1, "depth": 4},
        }
    )
    net = retune.build.network_of(run, 1).eval()
    assert type(net.map) is PrimalDual
    net.save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors").eval()
    assert again.map.learned()["weights"] == pytest.approx([0.3, 0.7])
    assert again.map.learned()["1.ratio"] == pytest.approx([1.5])
    y = rand(1, 1, 6, 6)
    torch.testing.assert_close(again.solve(y, Denoising()).image, net.solve(y, Denoising()).image)


def test_what_it_does_not_take():
    with pytest.raises(InvalidParameterError, match="a list of two priors or more"):
        Sum([TV()])
    with pytest.raises(InvalidParameterError, match="got TV, WaveletL1, of which one works on wavelet coefficients"):
        Sum([TV(), WaveletL1("haar", 2)])
    with pytest.raises(InvalidParameterError, match="or all an analysis form"):
        Sum([TV(), Ridge()])
    with pytest.raises(InvalidParameterError, match="TGV has no value"):
        Sum([TV(), TGV()]).fn(torch.zeros(1, 1, 4, 4))
    with pytest.raises(InvalidParameterError, match="weights must be positive"):
        Sum([TV(), TV()], [1.0, 0.0])
