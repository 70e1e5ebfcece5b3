"""Denoisers in bfloat16 far from the equilibrium: the same result, to the tolerance of the solve."""

from __future__ import annotations

import pytest
import torch
from deepinv.physics import Denoising

import retune
from retune import ForwardBackward, Restarted, Status, Stop
from retune._torch.precision import wants_coarse_networks
from retune.build import network_of
from retune.config import from_dict
from retune.errors import InvalidParameterError
from retune.priors import Denoiser, WaveletL1

SIZE = 24


def network(**options) -> Restarted:
    prior = Denoiser(retune.weights.load("denoiser-gray"), 0.1, strength=0.5)
    return Restarted(ForwardBackward(prior), 5, stop=Stop(1e-4, 2000), **options).eval()


def measurement():
    photograph = retune.data.grey(retune.data.photograph("chelsea"))
    x = torch.stack([photograph[:, i : i + SIZE, 60 : 60 + SIZE] for i in (40, 90)])
    return retune.problems.deblur("gaussian:0.8", sigma=0.05).measure(x, 1)


def precisions(net: Restarted) -> list[bool]:
    """For each coming call of the denoiser, whether it computes in bfloat16."""
    seen: list[bool] = []
    prior = net.map.priors[0]
    call = prior._call

    def recorded(x, levels):
        seen.append(wants_coarse_networks())
        return call(x, levels)

    prior._call = recorded
    net.bind(*measurement())  # a changed prior is examined first, once
    seen.clear()
    return seen


def test_the_result_is_the_same_and_the_last_layers_are_in_full_precision():
    y, physics = measurement()
    plain = network(coarse_start=False).solve(y, physics)
    net = network(coarse_start=True)
    seen = precisions(net)
    found = net.solve(y, physics)
    assert plain.status == found.status == (Status.CONVERGED,) * 2
    assert float(found.residual.max()) <= 1e-4
    torch.testing.assert_close(found.image, plain.image, rtol=0, atol=5e-4)
    assert seen == sorted(seen, reverse=True)  # first in bfloat16, then not
    assert seen[0]
    assert not seen[-1]
    assert int(found.layers.max()) == len(seen)
    # A layer at the result moves it as little as one of the solve that never was coarse.
    bound = net.bind(y, physics).map
    with torch.no_grad():
        moved = (bound.layer(found.state) - found.state).norm() / found.state.norm()
    assert float(moved) < 1e-4


def test_what_diverges_coarsely_begins_again(monkeypatch):
    """The result is that of full precision, bit by bit."""
    y, physics = measurement()
    plain = network(coarse_start=False).solve(y, physics)
    net = network(coarse_start=True)
    inner = net.map.priors[0].denoiser.forward
    seen = precisions(net)

    def spoilt(x, sigma):
        return inner(x, sigma) * (float("nan") if torch.is_autocast_enabled("cpu") else 1.0)

    monkeypatch.setattr(net.map.priors[0].denoiser, "forward", spoilt)
    found = net.solve(y, physics)
    assert any(seen)
    assert torch.equal(found.image, plain.image)
    assert found.layers.tolist() == plain.layers.tolist()
    assert found.status == plain.status


@pytest.mark.parametrize(("most", "coarse"), [(20, 5), (400, 30)])
def test_an_image_that_does_not_settle_coarsely_begins_again(most, coarse, monkeypatch):
    """It has a quarter of the layers and six blocks to do so. The result is that of full precision, bit by bit."""
    monkeypatch.setattr("retune._iteration.COARSE", 1e-5)
    y, physics = measurement()
    stop = Stop(1e-6, most)
    plain = network(coarse_start=False).solve(y, physics, stop=stop)
    net = network(coarse_start=True)
    seen = precisions(net)
    found = net.solve(y, physics, stop=stop)
    assert sum(seen) == coarse
    assert torch.equal(found.image, plain.image)
    assert found.layers.tolist() == plain.layers.tolist()
    assert found.status == plain.status


@pytest.mark.parametrize("stop", [Stop(0.0, 10), Stop(1e-2, 100)])
def test_given_layers_and_coarse_tolerances_are_computed_in_full_precision(stop):
    y, physics = measurement()
    net = network(coarse_start=True)
    seen = precisions(net)
    net.solve(y, physics, stop=stop)
    assert seen
    assert not any(seen)


def test_a_given_start_is_not_spoilt():
    y, physics = measurement()
    net = network(coarse_start=True)
    rest = net.solve(y, physics).image
    seen = precisions(net)
    again = net.solve(y, physics, init=rest)
    assert not any(seen)
    assert again.layers.tolist() == [5, 5]


@pytest.mark.parametrize("most", [4, 5, 19])
def test_the_last_cycle_is_never_coarse(most):
    prior = Denoiser(retune.weights.load("denoiser-gray"), [0.1] * 5, strength=0.5)
    net = Restarted(ForwardBackward(prior, layers=5), 5, stop=Stop(1e-6, most), coarse_start=True).eval()
    seen = precisions(net)
    net.solve(*measurement())
    assert len(seen) == -(-most // 5) * 5
    assert sum(seen) <= most // 4
    assert not any(seen[-5:])


def test_training_is_not_touched():
    y, physics = measurement()
    net = network(coarse_start=True).train()
    seen = precisions(net)
    net.solve(y, physics)
    assert not any(seen)


def term(y):
    return retune.DataTerm(y, Denoising())


def test_auto_asks_the_processor_the_precision_and_the_prior(monkeypatch, tmp_path):
    y, _ = measurement()
    wavelets = Restarted(ForwardBackward(WaveletL1("haar", 1)), 5)

    class Foreign(torch.nn.Module):
        def forward(self, x, sigma):
            return x

    foreign = Restarted(ForwardBackward(Denoiser(Foreign(), 0.1)), 5)
    for fast in (True, False):
        monkeypatch.setattr("retune.model.fast_bfloat16", lambda device, fast=fast: fast)
        assert network()._starts_coarsely(term(y)) is fast
        for net, image in ((wavelets, y), (foreign, y), (network(), y.double())):
            assert net._starts_coarsely(term(image)) is False
        assert network(coarse_start=True)._starts_coarsely(term(y)) is True
        assert network(coarse_start=True)._starts_coarsely(term(y.double())) is False
    with pytest.raises(InvalidParameterError, match="coarse_start must be True, False"):
        network(coarse_start="maybe")
    network(coarse_start=False).save(tmp_path / "net.safetensors")
    assert retune.load(tmp_path / "net.safetensors").coarse_start is False
    assert "coarse_start" not in network().describe()


def test_a_run_may_say_it():
    for told in (True, False, "auto"):
        run = from_dict({"model": {"coarse_start": told}})
        assert network_of(run, 1).coarse_start == told


def test_what_is_observed_counts_all_layers():
    y, physics = measurement()
    told: list[int] = []
    found = network(coarse_start=True).solve(y, physics, observe=lambda n, image: told.append(n))
    assert told == sorted(set(told))
    assert told[-1] == int(found.layers.max())
