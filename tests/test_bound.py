"""A network bound to a measurement once serves a solve and its certificate, and nothing else."""

from __future__ import annotations

import pytest
import torch

import retune
from retune.errors import InvalidParameterError


def test_a_certificate_of_the_bound_problem_is_that_of_a_new_one():
    torch.manual_seed(0)
    physics = retune.problems.deblur("gaussian:1.0", sigma=0.05).physics((1, 16, 16))
    y = physics(torch.rand(1, 1, 16, 16))
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL12("db2", 2, channels=1)), 4).eval()
    with torch.no_grad():
        bound = net.bind(y, physics)
    found = net.solve(y, physics, bound=bound)
    apart = net.solve(y, physics)
    assert torch.equal(found.image, apart.image)
    shared = retune.certify(net, y, physics, result=found, bound=bound, iterations=2, max_layers=40)
    assert shared.to_dict() == retune.certify(net, y, physics, result=apart, iterations=2, max_layers=40).to_dict()


@pytest.mark.parametrize("which", ["measurement", "physics"])
def test_what_was_bound_to_something_else_is_refused(which):
    problem = retune.problems.denoise(0.1)
    physics, other = problem.physics((1, 16, 16)), retune.problems.denoise(0.2).physics((1, 16, 16))
    y = torch.rand(1, 1, 16, 16)
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL12("db2", 2, channels=1)), 4).eval()
    bound = net.bind(y, physics)
    wrong = (y.clone(), physics) if which == "measurement" else (y, other)
    with pytest.raises(InvalidParameterError, match=r"another measurement: give the result of net\.bind"):
        net.solve(*wrong, bound=bound)
    with pytest.raises(InvalidParameterError, match=r"another measurement: give the result of net\.bind"):
        retune.certify(net, *wrong, bound=bound)


@pytest.mark.parametrize("which", ["network", "weights", "measurement", "type"])
def test_a_bound_that_is_out_of_date_is_refused(which):
    """The measurement is the same tensor, but the bound problem is no longer that of the network."""
    physics = retune.problems.denoise(0.1).physics((1, 16, 16))
    y = torch.rand(1, 1, 16, 16)
    net, other = (
        retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL12("db2", 2, channels=1)), 4).eval() for _ in "ab"
    )
    bound = net.bind(y, physics)
    net.solve(y, physics, bound=bound)
    asked = other if which == "network" else net
    with torch.no_grad():
        if which == "weights":
            next(net.map.parameters()).add_(0.1)
        if which == "measurement":
            y.mul_(0.5)
    given = bound.data_term if which == "type" else bound
    said = {
        "network": "belongs to another network",
        "type": r"bound must be what net\.bind\(y, physics\) returned",
    }.get(which, "y or the weights were changed")
    with pytest.raises(InvalidParameterError, match=said):
        asked.solve(y, physics, bound=given)
