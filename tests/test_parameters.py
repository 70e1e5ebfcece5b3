"""Constrained parameters cannot leave their constraint, whatever the optimiser does."""

import math

import pytest
import torch

import retune
from retune.errors import InvalidParameterError
from retune.maps import Bounded, Positive
from retune.parameters import ScalarParameter, scalars


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("raw", [-1000.0, -50.0, 0.0, 50.0, 1000.0])
def test_no_escape(raw, dtype):
    step, reg = Bounded(0.9).to(dtype), Positive(0.1).to(dtype)
    for module in (step, reg):
        module.raw.data.fill_(raw)
        assert 0 < float(module.value) < float("inf")
        (slope,) = torch.autograd.grad(module(), module.raw)
        assert bool(torch.isfinite(slope))
    assert 0 < float(step.value) < 1
    assert 1 - float(step.value) > torch.finfo(dtype).eps


@pytest.mark.parametrize("value", [1e-6, 0.1, 1.0, 37.5])
def test_positive_starts_where_it_was_told(value):
    assert float(Positive(value).value) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("value", [0.01, 0.5, 0.9, 0.99])
def test_bounded_starts_where_it_was_told(value):
    assert float(Bounded(value).value) == pytest.approx(value, rel=1e-6)
    assert float(Bounded(2 * value - 1, low=-1, high=1).value) == pytest.approx(2 * value - 1, abs=1e-6)


def test_tables():
    assert Positive(2.0, (3, 2)).value.shape == (3, 2)
    torch.testing.assert_close(Positive([1.0, 2.0], (3, 2)).value, torch.tensor([1.0, 2.0]).expand(3, 2))
    assert not Positive(1.0, learn=False).raw.requires_grad
    assert Positive(1.0).value.requires_grad is False


@pytest.mark.parametrize("given", [0.0, -1.0, float("nan"), float("inf"), [1.0, -2.0]])
def test_not_positive(given):
    with pytest.raises(InvalidParameterError, match=r"reg must be positive and finite, got"):
        Positive(given, (2,), name="reg")


@pytest.mark.parametrize("given", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_out_of_bounds(given):
    with pytest.raises(InvalidParameterError, match=r"step_size must lie strictly between 0 and 1, got"):
        Bounded(given, name="step_size")


def test_wrong_shape():
    with pytest.raises(InvalidParameterError, match=r"reg must be one number or have shape \(3,\), got shape \(2,\)"):
        Positive([1.0, 2.0], (3,), name="reg")


def test_the_scalars_of_a_map_are_listed_with_their_intervals():
    prior = retune.priors.Denoiser(retune.networks.SmallUNet(1, (4, 6), 1), sigma=0.1, sigma_range=(0.01, 0.2))
    found = scalars(retune.ForwardBackward(prior, learn_step_size=False))
    assert {name: p.interval for name, p in found.items()} == {
        "priors.0.sigma": (0.01, 0.2),
        "step_size": (0.0, 1.0),
        "reg": (0.0, math.inf),
    }
    assert [name for name, p in found.items() if p.learned] == ["priors.0.sigma"]
    assert [name for name, p in found.items() if p.logarithmic] == ["reg"]


def test_the_scalars_of_a_map_alone():
    map_ = retune.GradientStep(retune.priors.Ridge(features=(2, 3)))
    assert set(scalars(map_, nested=False)) == {"step_size", "reg"}
    assert set(scalars(map_)) == {"step_size", "reg", "prior.sigma"}


def test_a_parameter_of_somebody_has_no_limits_unless_it_says_some():
    class Shift(ScalarParameter):
        def __init__(self):
            super().__init__()
            self.raw = torch.nn.Parameter(torch.zeros(1))

        def forward(self):
            return self.raw

    holder = torch.nn.Module()
    holder.shift = Shift()
    (found,) = scalars(holder).values()
    assert (found.interval, found.logarithmic) == ((-math.inf, math.inf), False)
