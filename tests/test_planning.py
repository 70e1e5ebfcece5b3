"""Predictions of memory, against a full-size step counted byte by byte; and what is chosen from them."""

import copy
import logging

import pytest
import torch
from deepinv.optim.prior import ZeroPrior
from deepinv.physics import Inpainting
from torch import nn

from retune import (
    Anderson,
    DataTerm,
    ForwardBackward,
    GradientStep,
    Implicit,
    Inertial,
    Restarted,
    Stop,
    Truncated,
    Unrolled,
    load,
    plan,
    problems,
    weights,
)
from retune._torch.memory import StorageMeter, as_bytes, in_words, peak_of
from retune.errors import InvalidParameterError
from retune.priors import Ridge, WaveletL1, WaveletL12
from small_parts import rand

CPU = torch.device("cpu")
SIZE = (3, 32, 32)


def make(depth=12, restarts=2, gradient=None, layers=1, prior=None, solver=None):
    prior = WaveletL12("haar", 2, channels=3) if prior is None else prior
    return Restarted(ForwardBackward(prior, reg=0.1, layers=layers), depth, restarts, gradient, solver)


def ridge():
    """What is computed once, the norm of the filters, is most of the memory."""
    return Restarted(GradientStep(Ridge(3, (3, 8), (5, 3))), 6, 1)


def measured(net, batch, kind="step", problem=None):
    x = rand(batch, *SIZE, seed=1)
    if problem is None:
        physics = Inpainting(SIZE, mask=0.5)
        y = physics.A(x)
    else:
        y, physics = problem.measure(x, 1)

    def step():
        net.train().zero_grad(set_to_none=True)
        (net(y, physics) - x).square().mean().backward()

    def evaluate():  # with the solver of a tolerance: a given number of layers would be one of plain layers
        fixed = copy.copy(net).eval()
        fixed.solver = copy.copy(net.solver)
        fixed.solve(y, physics, stop=Stop(0.0, net.depth * (net.restarts + 1)))

    step()
    net.zero_grad(set_to_none=True)
    return peak_of(step if kind == "step" else evaluate, CPU)


@pytest.mark.parametrize(
    ("net", "batch", "problem"),
    [
        (lambda: make(), 5, None),
        (lambda: make(30, 1, Truncated(blocks=3)), 2, None),
        (lambda: make(20, 1, Truncated(rtol=1e-2, max_blocks=6)), 3, None),
        (lambda: make(10, 1, Implicit(rtol=1e-2, max_blocks=6)), 4, None),
        (lambda: make(15, 0, Unrolled()), 4, None),
        (lambda: make(12, 1, layers=3, prior=WaveletL1("db2", 2)), 4, None),
        (lambda: make(10, 1), 3, problems.deblur()),
        (lambda: make(10, 1, Truncated(rtol=1e-2, memory=4)), 4, None),
        (lambda: make(5, 2, solver=Anderson()), 4, None),
        (lambda: make(20, 2, solver=Inertial()), 4, None),
        (ridge, 3, None),
    ],
    ids=[
        "plain",
        "blocks",
        "rtol",
        "implicit",
        "unrolled",
        "untied",
        "blur",
        "memory",
        "anderson",
        "inertial",
        "ridge",
    ],
)
def test_predicted_memory_against_measured_peaks(net, batch, problem):
    net = net()
    found = plan(net, SIZE, batch, problem=problem)
    assert found.step_bytes == pytest.approx(measured(net, batch, problem=problem), rel=0.15)
    assert found.evaluation_bytes == pytest.approx(measured(net, batch, "evaluation", problem), rel=0.15)
    assert found.step_seconds > 0
    assert found.evaluation_seconds > 0


def shipped_ridge(depth=8):
    return Restarted(GradientStep(weights.load("ridge-convex-color").prior.requires_grad_()), depth, 1)


@pytest.mark.parametrize(("batch", "depth"), [(12, 16), (2, 2)])
def test_what_is_computed_once_hides_no_layer(batch, depth):
    """The norm of 11×11 filters takes as much as ten layers of two images of 32×32: short probes see nothing else."""
    net = shipped_ridge(depth)
    found = plan(net, SIZE, batch)
    assert found.step_bytes == pytest.approx(measured(net, batch), rel=0.15)
    assert found.evaluation_bytes == pytest.approx(measured(net, batch, "evaluation"), rel=0.15)


def test_a_depth_that_is_auto_is_planned_as_it_will_be_chosen():
    def auto():
        prior = WaveletL1("haar", 1)
        return Restarted(ForwardBackward(prior, step_size=0.25, reg=0.02), "auto", "auto", accuracy=1e-3)

    net = auto()
    physics = Inpainting(SIZE, mask=torch.where(rand(1, *SIZE, seed=3) > 0, 1.0, 0.6))
    found = plan(net, SIZE, 2, problem=physics)
    assert net.auto.choice is None
    assert (net.depth, net.restarts) == (10, 10)
    x = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(0))
    net.train()(physics(x), physics)  # as training measures it
    assert (found.depth, found.restarts) == (net.depth, net.restarts)
    assert net.depth != 10
    assert found.chosen == net.auto.choice.why
    assert found.chosen in str(found)
    again = plan(net, SIZE, 2, problem=physics)  # chosen by now
    assert (again.depth, again.chosen) == (net.depth, found.chosen)


def test_the_deepest_that_fits_fits_and_a_deeper_one_does_not():
    net = make()
    found = plan(net, SIZE, 3, "2 MiB")
    assert found.memory == 2 * 2**20
    assert found.deepest > 12
    assert found.fits
    room = found.memory - found.resident_bytes
    assert measured(make(found.deepest), 3) <= room * 1.02
    assert measured(make(found.deepest + 3), 3) > room
    assert f"the deepest that fits is {found.deepest}" in str(found)
    small = plan(net, SIZE, 3, 1000)
    assert small.deepest == 0
    assert not small.fits
    assert "no depth fits" in str(small)
    assert plan(net, SIZE, 3).fits is None


def test_planning_leaves_the_network_as_it_was():
    net = make().train()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    before = copy.deepcopy(net.state_dict())
    plan(net, SIZE, 2)
    assert net.training
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_meter_counts_what_is_alive():
    with StorageMeter() as meter:
        a = torch.zeros(1000)
        b = a + 1
        assert meter.alive == 8000
        del a
        assert meter.alive == 4000
        b.mul_(2)
        assert b[:10].numel() == 10
    assert meter.peak == 8000


@pytest.mark.parametrize(
    ("given", "expected"), [(5, 5), (1.5e3, 1500), ("2 GB", 2 * 10**9), ("1.5MiB", 3 * 2**19), ("7 kib", 7168)]
)
def test_amounts_of_memory(given, expected):
    assert as_bytes(given) == expected


@pytest.mark.parametrize("given", ["8", "many GB", "3 apples", 0, -1, True, None, float("nan")])
def test_refused_amounts(given):
    with pytest.raises(InvalidParameterError, match="memory"):
        as_bytes(given)


def test_bytes_in_words():
    assert [in_words(n) for n in (12, 2048, 3 * 2**20, 5 * 2**30)] == ["12 B", "2 KiB", "3 MiB", "5 GiB"]


@pytest.mark.parametrize(("size", "batch"), [((24, 24), 1), ((3, 0, 4), 1), (SIZE, 0)])
def test_refused_plans(size, batch):
    with pytest.raises(InvalidParameterError, match="image_size"):
        plan(make(), size, batch)


class TestAuto:
    """``depth="auto"``, ``restarts="auto"``."""

    weight = 0.6

    def net(self, **options):
        return Restarted(
            ForwardBackward(WaveletL1("haar", 1), step_size=0.25, learn_step_size=False, reg=0.05), **options
        )

    def batch(self):
        """Damped inpainting, m² in {0.36, 1}: with τ = 1/2 a layer shrinks errors by 1 − 0.36/2 or faster."""
        mask = torch.where(rand(1, 1, 8, 8, seed=3) > 0, 1.0, self.weight)
        return rand(2, 1, 8, 8, seed=1), Inpainting((1, 8, 8), mask=mask)

    def test_depth_and_restarts_follow_from_the_rate(self, caplog):
        y, physics = self.batch()
        net = self.net(depth="auto", restarts="auto", accuracy=1e-2)
        assert (net.depth, net.auto.choice) == (10, None)
        assert "to be chosen" in repr(net)
        net.eval()(y, physics)
        assert net.auto.choice is None  # chosen in training only
        with caplog.at_level(logging.INFO, "retune"):
            net.train()(y, physics).square().sum().backward()
        choice = net.auto.choice
        bound = net.map.bind(DataTerm(y, physics))
        jacobian = torch.func.jacrev(bound.layer)(net.eval().solve(y, physics).state).reshape(2, 64, 2, 64).detach()
        rate = max(float(torch.linalg.eigvals(jacobian[i, :, i]).abs().max()) for i in range(2))
        assert choice.rate == pytest.approx(rate, abs=0.01)
        layers = choice.depth * choice.blocks
        assert choice.rate**layers <= 1e-2 < choice.rate ** (layers - choice.blocks)
        assert (net.depth, net.restarts, net.gradient.blocks) == (choice.depth, choice.restarts, choice.blocks)
        assert choice.why in repr(net)
        assert choice.why in caplog.text
        # The start is not the equilibrium; after R restarts what is left is as small as asked.
        bound = net.map.bind(DataTerm(y, physics))
        u = bound.block(bound.init(), choice.depth * choice.restarts)
        far = bound.block(u, 300)
        distance = ((far - u).flatten(1).norm(dim=1) / far.flatten(1).norm(dim=1)).max()
        assert float(distance.detach()) < 2e-2
        net.train()(y, physics)
        assert net.auto.choice is choice  # once

    def test_memory_turns_depth_into_blocks(self):
        y, physics = self.batch()
        free = self.net(depth="auto", accuracy=1e-3).train()
        tight = self.net(depth="auto", accuracy=1e-3, memory=12_000).train()
        for net in (free, tight):
            net(y, physics)
        assert tight.depth < free.depth
        assert tight.gradient.blocks > free.gradient.blocks == 1
        assert tight.depth * tight.gradient.blocks >= free.depth
        assert "hold" in tight.auto.choice.why
        assert tight.auto.choice.peak <= 12_000

        def step():
            tight(y, physics).square().sum().backward()

        assert peak_of(step, CPU) == pytest.approx(tight.auto.choice.peak, rel=0.15)

    def test_too_little_memory_is_refused(self):
        y, physics = self.batch()
        with pytest.raises(InvalidParameterError, match=r"needs about .* smaller batch"):
            self.net(depth="auto", memory=100).train()(y, physics)

    def test_what_a_solver_remembers_counts(self):
        """A few layers of these images need less than the two histories of eight points of Anderson's."""
        y, physics = self.batch()
        asked = {"depth": "auto", "accuracy": 0.5}
        plain, fast = (self.net(**asked, memory="1 MB", solver=s).train() for s in (None, Anderson()))
        for net in (plain, fast):
            net(y, physics)

        def step():
            fast(y, physics).square().sum().backward()

        assert fast.auto.choice.peak > 1.5 * plain.auto.choice.peak
        assert fast.auto.choice.peak == pytest.approx(peak_of(step, CPU), rel=0.15)
        tight = self.net(**asked, memory=plain.auto.choice.peak, solver=Anderson()).train()
        with pytest.raises(InvalidParameterError, match=r"need about .* a solver with less memory"):
            tight(y, physics)

    def test_restarts_that_are_not_run_need_nothing(self):
        y, physics = self.batch()
        plain = self.net(depth="auto", accuracy=0.5, memory="1 MB").train()
        plain(y, physics)
        options = {"depth": "auto", "accuracy": 0.5, "memory": plain.auto.choice.peak, "solver": Anderson()}
        self.net(**options, restarts=0).train()(y, physics)

    def test_a_slow_image_is_not_called_accurate(self):
        """m² = 4e-4 in one pixel of 64: a layer leaves 0.9998 of its error, beyond what a depth is chosen by."""
        mask = torch.ones(1, 1, 8, 8)
        mask[..., 3, 4] = 4e-4**0.5
        y, physics = rand(1, 1, 8, 8, seed=1), Inpainting((1, 8, 8), mask=mask)
        net = Restarted(ForwardBackward(ZeroPrior(), step_size=0.25), "auto", accuracy=0.1).train()
        net(y, physics)
        choice = net.auto.choice
        assert choice.rate == pytest.approx(1 - 2e-4, abs=2e-5)
        assert choice.expected == pytest.approx(choice.rate ** (choice.depth * choice.blocks))
        assert choice.expected > 0.5  # and not the 0.1 that was asked for

    def test_only_what_is_asked_for_is_chosen(self):
        y, physics = self.batch()
        net = self.net(depth=3, restarts="auto").train()
        net(y, physics)
        assert (net.depth, net.gradient.blocks) == (3, 1)
        assert net.restarts == net.auto.choice.restarts != 10
        net = self.net(depth="auto", restarts=4, gradient=Truncated(rtol=1e-3)).train()
        net(y, physics)
        assert (net.restarts, net.gradient.rtol) == (4, 1e-3)
        assert "its own tolerance" in net.auto.choice.why

    def test_it_is_saved_with_what_was_chosen(self, tmp_path):
        y, physics = self.batch()
        net = self.net(depth="auto", restarts="auto", memory="1 MB")
        for path in (tmp_path / "before", tmp_path / "after"):
            net.save(path)
            found = load(path)
            assert found.auto == net.auto
            assert (found.depth, found.restarts) == (net.depth, net.restarts)
            assert found.describe() == net.describe()
            net.train()(y, physics)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"depth": "automatic"}, "auto"),
            ({"depth": "auto", "accuracy": 1.0}, "got 1.0"),
            ({"depth": "auto", "gradient": Unrolled()}, "Unrolled"),
            ({"memory": "1 GB"}, "plan"),
            ({"depth": 50, "restarts": "auto", "memory": 10}, "plan"),
            ({"depth": "auto", "memory": "lots"}, "lots"),
        ],
    )
    def test_refused(self, options, words):
        with pytest.raises(InvalidParameterError, match=words):
            self.net(**options)


def test_a_network_without_parameters_can_be_planned():
    net = make()
    for module in net.modules():
        for name, p in list(module._parameters.items()):
            module._parameters[name] = nn.Parameter(p.detach(), requires_grad=False)
    assert plan(net, SIZE, 2).step_bytes > 0
