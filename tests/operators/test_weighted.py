"""Weighted least squares: its gradient, its constants, its variances, and what a saved network keeps of it."""

import copy
import math
import pickle

import pytest
import torch
from deepinv.physics import Blur, Denoising

import retune
from retune import DataTerm
from retune.certificate import certify
from retune.errors import InvalidParameterError, ShapeError
from retune.operators.fidelity import facts_of_fidelity
from retune.operators.weighted import AVERAGED, FLOOR, NoiseWeighted, smoothed, variance
from small_parts import dense, rand

CASES = {
    "counts": NoiseWeighted(0.02),
    "with read noise": NoiseWeighted(0.02, 0.05),
    "with an offset": NoiseWeighted(0.02, 0.05, 0.3),
    "no counts": NoiseWeighted(0.0, 0.1),
}


@pytest.mark.parametrize("fidelity", CASES.values(), ids=CASES)
def test_the_gradient_is_that_of_the_value(fidelity, float64):
    physics = Blur(filter=rand(1, 1, 3, 3).abs() / 9, padding="reflect")
    y, x = 0.6 + 0.1 * rand(2, 1, 9, 7), rand(2, 1, 9, 7, seed=1).requires_grad_()
    value = fidelity.fn(x, y, physics)
    assert value.shape == (2,)
    (expected,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(fidelity.grad(x, y, physics), expected)
    term = DataTerm(y, physics, fidelity)
    torch.testing.assert_close(term.grad(x), expected)
    torch.testing.assert_close(term.fn(x), value)
    assert not term.quadratic


def test_each_image_and_each_channel_has_its_own_weights(float64):
    fidelity = NoiseWeighted([0.02, 0.0, 0.1], [0.05, 0.1, 0.0])
    x, y = rand(2, 3, 8, 8), 0.5 + 0.1 * rand(2, 3, 8, 8, seed=1)
    both = fidelity.fn(x, y, Denoising())
    for i in range(2):
        alone = fidelity.fn(x[i : i + 1], y[i : i + 1], Denoising())
        torch.testing.assert_close(both[i : i + 1], alone)
    torch.testing.assert_close(1 / fidelity.weights(y)[:, 1], torch.full((2, 8, 8), 0.01))


@pytest.mark.parametrize("fidelity", CASES.values(), ids=CASES)
def test_the_constants_are_those_of_the_matrix(fidelity, float64):
    """The Hessian of a quadratic function is the matrix of its gradient."""
    physics, y = dense(rand(30, 12), (1, 3, 4)), 0.4 + 0.3 * rand(2, 1, 1, 30)
    facts = facts_of_fidelity(fidelity, y)
    assert facts.checked
    assert facts.convex
    for i in range(2):
        one = y[i : i + 1]
        # of d(u, y) in u, by autograd
        inner = torch.autograd.functional.hessian(lambda u, one=one: facts.value(u, one).sum(), one).reshape(30, 30)
        eigenvalues = torch.linalg.eigvalsh(inner)
        assert float(facts.lipschitz[i]) == pytest.approx(float(eigenvalues.max()))
        assert facts.strong <= float(eigenvalues.min()) * (1 + 1e-9)
        # of d(Ax, y) in x
        term = DataTerm(one, physics, fidelity)
        outer = torch.autograd.functional.jacobian(term.grad, torch.zeros(1, 1, 3, 4)).reshape(12, 12)
        assert float(torch.linalg.eigvalsh(outer).max()) <= float(term.lipschitz) * (1 + 1e-9)
    smallest = min(float(fidelity.weights(y[i : i + 1]).min()) for i in range(2))
    assert facts.strong == pytest.approx(smallest)


def test_the_variance_is_that_of_the_model(float64):
    y = torch.full((1, 1, 12, 12), 0.7)
    torch.testing.assert_close(variance(y, 0.02, 0.05, 0.2), torch.full_like(y, 0.02 * 0.5 + 0.0025))
    torch.testing.assert_close(variance(y, 0.0, 0.05), torch.full_like(y, 0.0025))
    noisy = y + 0.1 * rand(1, 1, 12, 12)
    torch.testing.assert_close(variance(noisy, 0.02, 0.0), 0.02 * smoothed(noisy))
    assert float(smoothed(noisy).var()) < float(noisy.var()) / 4
    torch.testing.assert_close(smoothed(y), y)


@pytest.mark.parametrize("y", [torch.zeros(1, 1, 6, 6), -torch.rand(1, 1, 6, 6), torch.zeros(1, 1, 1, 1)])
def test_a_dark_image_has_finite_weights(y):
    """One count in what the Gaussian sees is the least that can be told from darkness."""
    weights = NoiseWeighted(0.02).weights(y)
    torch.testing.assert_close(weights, torch.full_like(y, AVERAGED / 0.02**2))
    assert math.isfinite(float(facts_of_fidelity(NoiseWeighted(0.02), y).lipschitz))


def test_a_dark_place_has_no_weight_beyond_the_floor():
    y = torch.zeros(1, 1, 40, 40)
    y[..., 20:] = 1.0
    found = variance(y, 0.001, 1e-6)
    assert float(found.max() / found.min()) == pytest.approx(1 / FLOOR, rel=1e-4)


def test_weights_are_kept_for_one_measurement_and_follow_its_changes():
    fidelity, y = NoiseWeighted(0.02, 0.05), torch.rand(1, 1, 8, 8)
    first = fidelity.weights(y)
    assert fidelity.weights(y) is first
    y += 1
    assert float((fidelity.weights(y) - first).abs().min()) > 0
    torch.testing.assert_close(fidelity.weights(y), 1 / variance(y, 0.02, 0.05))
    for other in (copy.deepcopy(fidelity), pickle.loads(pickle.dumps(fidelity))):
        torch.testing.assert_close(other.weights(y), fidelity.weights(y))


def test_a_measurement_that_is_differentiated_can_be_so_twice(float64):
    fidelity, x = NoiseWeighted(0.02, 0.05), rand(1, 1, 4, 4)
    y = rand(1, 1, 4, 4, seed=1).abs().requires_grad_()
    for _ in range(2):
        fidelity.fn(x, y, Denoising()).sum().backward()
    assert not facts_of_fidelity(fidelity, y).lipschitz.requires_grad
    assert torch.autograd.gradcheck(lambda z: fidelity.fn(x, z, Denoising()), y)


def test_inference_mode_works():
    with torch.inference_mode():
        y = torch.rand(1, 1, 8, 8)
        y += 1
        torch.testing.assert_close(NoiseWeighted(0.02).weights(y), 1 / variance(y, 0.02, 0.0))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((-0.1,), "gain"),
        ((0.1, [0.1, -1]), "read"),
        ((0, 0), "both 0"),
        (("a",), "gain"),
        ((0.1, 0, math.nan), "offset"),
    ],
)
def test_what_is_no_noise_is_refused(arguments, says):
    with pytest.raises(InvalidParameterError, match=says):
        NoiseWeighted(*arguments)


def test_a_measurement_that_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match=r"\(B, C, h, w\)"):
        NoiseWeighted(0.1).weights(torch.rand(1, 8, 8))
    with pytest.raises(InvalidParameterError, match="2 channels, but the measurement has 3"):
        NoiseWeighted([0.1, 0.2]).weights(torch.rand(1, 3, 8, 8))


def test_only_the_class_itself_is_proved():
    class Changed(NoiseWeighted):
        pass

    replaced = NoiseWeighted(0.02)
    replaced.grad = lambda *given: None
    y = torch.rand(1, 1, 4, 4)
    assert not facts_of_fidelity(Changed(0.02), y).checked
    assert not facts_of_fidelity(replaced, y).checked


def test_a_saved_network_keeps_the_noise_and_its_step_is_proved(tmp_path):
    problem = retune.problems.deblur("gaussian:1", noise=retune.problems.PoissonGaussian(0.02, 0.03, 0.1))
    x = torch.rand(1, 1, 16, 16)
    y, _ = problem.measure(x)
    prior = retune.priors.WaveletL1("db2", levels=2)
    net = retune.Restarted(
        retune.ForwardBackward(prior, reg=1.0, data_fidelity=problem.noise.fidelity()), depth=5, restarts=40
    ).eval()
    net.save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors")
    physics = problem.operator(y)
    torch.testing.assert_close(again(y, physics), net(y, physics), rtol=0, atol=0)
    step = certify(again, y, physics, learning=False)[0].step_size.proved
    assert step is not None
    assert 0 < step.value < 1
    assert all(a.checked for a in step.assumptions)
