"""Choosing what is "auto" is a step of its own, with a result; restoring changes nothing of the network."""

from __future__ import annotations

import pytest
import torch
from deepinv.physics import Inpainting

import retune
from retune import ForwardBackward, Implicit, Restarted, Truncated, Unrolled
from retune.priors import WaveletL1
from retune.training.unsupervised import recorrupted

OPTIONS = {
    "numbers": {"depth": 3, "restarts": 2},
    "auto": {"depth": "auto", "restarts": "auto", "accuracy": 1e-2},
    "auto depth, of a rule with a tolerance": {"depth": "auto", "gradient": Truncated(rtol=1e-2)},
    "implicit": {"depth": 2, "gradient": Implicit()},
    "unrolled": {"depth": 4, "gradient": Unrolled()},
}


def network(**options):
    return Restarted(ForwardBackward(WaveletL1("haar", 1), step_size=0.25, reg=0.05), **options)


def batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.where(torch.rand(1, 1, 8, 8, generator=generator) > 0.5, 1.0, 0.6)
    return torch.rand(2, 1, 8, 8, generator=generator), Inpainting((1, 8, 8), mask=mask)


def state(thing):
    """All that hangs on an object: attributes, submodules and weights, down to plain values."""
    if isinstance(thing, torch.Tensor):
        return (id(thing), thing.dtype, thing.requires_grad, thing.detach().flatten().tolist())
    if isinstance(thing, dict):
        return {k: state(v) for k, v in thing.items()}
    if isinstance(thing, torch.nn.Module):
        hooks = {k for k in vars(thing) if "hooks" in k}
        return (type(thing), {k: state(v) for k, v in vars(thing).items() if k not in hooks})
    return (type(thing), repr(thing))


def calls(net, y, physics):
    return {
        "solve": lambda: net.solve(y, physics),
        "solve with a trace": lambda: net.solve(y, physics, trace=True, observe=lambda layers, image: None),
        "solve without graph": lambda: torch.no_grad()(net.solve)(y, physics),
        "solve what is bound": lambda: net.solve(y, physics, bound=net.bind(y, physics)),
    }


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_solving_changes_nothing(options, training):
    net, (y, physics) = network(**options).train(training), batch()
    before = state(net)
    for name, call in calls(net, y, physics).items():
        call()
        assert state(net) == before, name
    net.choose(y, physics)
    assert (state(net) != before) is (net.auto is not None)
    before = state(net)
    for name, call in calls(net, y, physics).items():
        call()
        assert state(net) == before, name


@pytest.mark.filterwarnings("ignore::retune.errors.NotConvergedWarning")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_calling_the_network_changes_nothing_once_it_was_chosen(options):
    net, (y, physics) = network(**options).eval(), batch()
    before = state(net)
    net(y, physics)  # nothing is chosen in eval mode
    assert state(net) == before
    net.train().choose(y, physics)
    before = state(net)
    net(y, physics).sum()
    assert state(net) == before


def test_choosing_has_a_result_and_the_first_call_of_a_loop_of_ones_own_comes_to_the_same():
    (y, physics), options = batch(), OPTIONS["auto"]
    chosen, called = network(**options), network(**options).train()
    choice = chosen.choose(y, physics)
    called(y, physics)
    assert choice == chosen.auto.choice == called.auto.choice
    assert (choice.depth, choice.restarts, choice.blocks) == (called.depth, called.restarts, called.gradient.blocks)
    assert choice.why in repr(chosen)
    assert chosen.choose(y[:1], physics) is choice  # once
    assert network(depth=3).choose(y, physics) is None


@pytest.mark.parametrize("loss", [None, recorrupted(0.1)], ids=["supervised", "recorrupted"])
def test_fit_chooses_before_its_first_step_and_the_steps_change_no_choice(monkeypatch, loss):
    """On what the first step shows to the network, which a loss may have changed."""
    events = []
    choose, forward = Restarted.choose, Restarted.forward

    def choosing(self, y, physics):
        already = self.auto.choice
        found = choose(self, y, physics)
        if already is None:
            events.append(("chosen", y.clone()))
        return found

    def calling(self, y, physics, **options):
        before = (self.depth, self.restarts, self.gradient)
        found = forward(self, y, physics, **options)
        if self.training:
            events.append(("step", y.clone()))
            assert (self.depth, self.restarts, self.gradient) == before
        return found

    monkeypatch.setattr(Restarted, "choose", choosing)
    monkeypatch.setattr(Restarted, "forward", calling)
    net = network(**OPTIONS["auto"])
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    options = retune.FitOptions(steps=2, batch_size=2, crop=8, loss=loss, device="cpu", progress=False)
    retune.fit(net, retune.training.TrainingData(images, retune.problems.denoise(0.1)), options)
    assert [name for name, _ in events] == ["chosen", "step", "step"]
    assert torch.equal(events[0][1], events[1][1])
    assert not torch.equal(events[1][1], events[2][1])
    assert net.depth == net.auto.choice.depth


def test_a_network_with_an_energy_chooses_too():
    """Its solver has to be bound to the objective, and the rate is that of the layers that are differentiated."""
    torch.manual_seed(0)
    prior = retune.priors.Energy(retune.networks.EnergyNet(1, (4,), 1), 0.1, learn_network=True)
    net = Restarted(retune.GradientStep(prior, box=(0, 1)), "auto", "auto", Truncated(), accuracy=0.1).train()
    physics = retune.problems.denoise(0.1).physics((1, 8, 8))
    y = torch.rand(1, 1, 8, 8)
    choice = net.choose(y, physics)
    assert choice is not None
    assert 0 < choice.rate < 1
    assert bool(torch.isfinite(net(y, physics)).all())
