"""Whoever watches a solve or a training sees it, and changes nothing."""

from __future__ import annotations

import torch

import retune
from retune import problems
from retune.config import Config
from retune.instant import instant_network


def watched(problem, side=24):
    torch.manual_seed(1)
    y, _ = problem.measure(torch.rand(1, 1, side, side))
    net, _ = instant_network(Config(), problem, y)
    return net, y, problem.operator(y)


def test_watching_changes_no_bit_and_sees_every_check():
    net, y, physics = watched(problems.deblur("gaussian:1", sigma=0.05))
    moments, images = [], []
    found = net.solve(y, physics, watch=lambda m: (moments.append(m), images.append(m.image.clone())))
    again = net.solve(y, physics, trace=True)
    assert torch.equal(found.image, again.image)
    assert again.trace is not None
    assert tuple(m.layers for m in moments) == again.trace.layers
    assert torch.equal(torch.stack([m.residual for m in moments]), again.trace.residual)
    assert torch.equal(images[-1], found.image)
    assert torch.allclose(moments[0].change * net.depth, moments[0].residual)
    assert [m.settled for m in moments] == [False] * (len(moments) - 1) + [True]


def test_the_objective_of_a_moment_is_that_of_the_map_up_to_a_constant(float64):
    """In float64: near the end the falls are below the rounding of the values in float32."""
    for noise in ({"sigma": 0.05}, {"noise": "poisson:0.01,0.02"}):  # with a quadratic data term, and over a root
        net, y, physics = watched(problems.deblur("gaussian:1", **noise))
        net, data_term = net.double(), net.map.data_term(y, physics)
        seen: list[float] = []
        known: list[float] = []

        def look(moment, seen=seen, known=known, net=net, data_term=data_term):
            seen.append(float(moment.objective[0]))
            known.append(float(net.map.objective(moment.image, data_term)[0]))

        net.solve(y, physics, watch=look)
        assert len(seen) > 2
        assert seen[-1] < seen[0]
        falls = torch.tensor(seen) - seen[-1], torch.tensor(known) - known[-1]
        assert torch.allclose(*falls, rtol=2e-2, atol=1e-3 * float(falls[1].max()))


def test_an_objective_that_is_unknown_is_none():
    net, y, physics = watched(problems.denoise(0.1))
    objectives = []
    net.solve(y, physics, watch=lambda m: objectives.append(m.objective))
    assert objectives
    assert set(objectives) == {None}


def test_a_training_tells_its_steps():
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL1("haar", 1)), depth=2, restarts=1)
    told = []
    retune.fit(
        net, [torch.rand(1, 16, 16)], problems.denoise(0.1), steps=3, crop=16, batch_size=1, progress=False,
        note=told.append,
    )  # fmt: skip
    assert [record.step for record in told] == [1, 2, 3]
