"""Every proved bound holds on random draws of the closed-form problems, and is not vacuous."""

import copy
from dataclasses import dataclass

import pytest
import torch
from deepinv.optim.prior import L1Prior
from deepinv.physics import Denoising, Inpainting, LinearPhysics
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from retune import Anderson, DataTerm, ForwardBackward, Restarted, Stop, Truncated, certify, problems
from retune.data import photograph
from retune.maps import AbstractMap
from retune.priors import WaveletL1, WaveletL12
from small_parts import Quadratic, dense, rand, soft, spectrum

DRAWS = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
#: what the problems are made of, beside the damping
PROBLEM = {
    "seed": st.integers(0, 10_000),
    "step": st.floats(0.05, 0.97),
    "reg": st.floats(0.05, 1.0),
    "low": st.floats(0.2, 0.9),
}


@dataclass
class Draw:
    """A problem with its equilibrium state, for one or two images."""

    map: AbstractMap
    y: Tensor
    physics: LinearPhysics
    answer: Tensor


def uniform(seed, *shape, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def dense_quadratic(seed, step, reg, damping, low):
    """½‖Ax − y‖² + ½λ‖Wx‖² + ½ε‖x‖²: the norm of A is estimated, μ comes from W and ε."""
    shape, matrix = (1, 3, 4), spectrum(14, 12, low, 1.1, seed=seed)
    y = rand(2, 1, 1, 14, seed=seed + 1)
    prior = Quadratic(uniform(seed, 1, *shape, low=0.5, high=1.5))
    net = ForwardBackward(prior, step_size=step, reg=reg, strong_convexity=damping)
    system = matrix.T @ matrix + reg * (2 * prior.log_weight).exp().flatten().diag() + damping * torch.eye(12)
    answer = torch.linalg.solve(system, (y.flatten(1) @ matrix).T).T.unflatten(1, shape)
    return Draw(net, y, dense(matrix, shape), answer.detach())


def diagonal_quadratic(seed, step, reg, damping, low):
    """The same with A = diag(m) and one weight: separable, and μ is known exactly."""
    mask = uniform(seed, 1, 1, 3, 4, low=low, high=1.2)
    y = rand(2, 1, 3, 4, seed=seed + 1)
    prior = Quadratic(torch.full((1, 1, 1, 1), 0.8))
    net = ForwardBackward(prior, step_size=step, reg=reg, strong_convexity=damping)
    return Draw(net, y, Inpainting((1, 3, 4), mask=mask), mask * y / (mask**2 + reg * 0.64 + damping))


def diagonal_l1(seed, step, reg, damping, low):
    """``x* = soft(m y, λ)/(m² + ε)``."""
    mask = uniform(seed, 1, 1, 3, 4, low=low, high=1.2)
    y = rand(2, 1, 3, 4, seed=seed + 1)
    net = ForwardBackward(L1Prior(), step_size=step, reg=reg, strong_convexity=damping)
    return Draw(net, y, Inpainting((1, 3, 4), mask=mask), soft(mask * y, reg) / (mask**2 + damping))


def denoise_l1(seed, step, reg, damping, low):
    """``u* = soft(Dᵀy, λ w)/(1 + ε)`` on an orthonormal wavelet basis."""
    y = rand(2, 1, 4, 4, seed=seed)
    prior = WaveletL1("haar", 1, weights=low + 0.5)
    net = ForwardBackward(prior, step_size=step, reg=reg, strong_convexity=damping)
    u = prior.frame(y.shape, y.dtype, y.device).analysis(y)
    threshold = reg * (low + 0.5) * torch.cat([torch.ones(12), torch.zeros(4)])
    return Draw(net, y, Denoising(), soft(u, threshold) / (1 + damping))


PROBLEMS = [dense_quadratic, diagonal_quadratic, diagonal_l1, denoise_l1]


@pytest.mark.parametrize("make", PROBLEMS, ids=lambda f: f.__name__)
@DRAWS
@given(
    **PROBLEM,
    damping=st.sampled_from([0.0, 0.02, 0.3]),
    depth=st.integers(1, 6),
    layers=st.integers(0, 30),
)
def test_proved_bounds_hold(make, float64, seed, step, reg, damping, low, depth, layers):
    draw = make(seed, step, reg, damping, low)
    net = Restarted(draw.map, depth, 1, gradient=Truncated(), stop=Stop(0.0, layers * depth))
    certificate = certify(net, draw.y, draw.physics, iterations=2, starts=1)
    u = net.eval().solve(draw.y, draw.physics).state
    bound = draw.map.requires_grad_(False).bind(DataTerm(draw.y, draw.physics))
    loss = rand(u[0].numel(), seed=seed + 2)
    for i, image in enumerate(certificate):
        proved = {name: claim.proved.value for name, claim in image.claims.items() if claim.proved}
        assert image.row.startswith("convex prior")
        assert proved["step_size"] == pytest.approx(step)

        # One layer and the block are Lipschitz with these constants: between any two states, and in the derivative.
        a, b = rand(*u.shape, seed=seed + 3), rand(*u.shape, seed=seed + 4)
        for depth_, name in ((1, "layer_factor"), (depth, "block_factor")):
            moved = (bound.block(a, depth_) - bound.block(b, depth_))[i].norm() / (a - b)[i].norm()
            assert float(moved) <= proved[name] + 1e-12, name
        jacobian = torch.func.jacrev(lambda z, i=i: bound.layer(_put(u, z, i))[i])(u[i]).reshape(len(loss), -1)
        power = torch.linalg.matrix_power(jacobian, depth)
        assert float(torch.linalg.matrix_norm(power, 2)) <= proved["block_factor"] + 1e-12

        # The distance to the closed-form equilibrium.
        true = float((u[i] - draw.answer[i]).norm())
        assert proved["block_factor"] < 1
        rounding = 1e-13 * float(u[i].norm())
        assert true <= proved["distance"] * (1 + 1e-9) + rounding / (1 - proved["block_factor"])
        pixels = true / u[i].numel() ** 0.5  # the frames of these problems are orthonormal
        assert pixels <= proved["rmse"] * (1 + 1e-9) + rounding / (1 - proved["block_factor"])

        # The adjoint of the K-layer gradient, against the whole series.
        whole = torch.linalg.solve(torch.eye(len(loss)) - power.T, loss)
        assert float((whole - loss).norm()) <= proved["gradient_error"] * float(whole.norm()) + 1e-12


@DRAWS
@given(
    **PROBLEM,
    damping=st.sampled_from([0.0, 0.02, 0.3]),
    depth=st.integers(1, 6),
    blocks=st.integers(1, 3),
)
def test_bounds_are_not_vacuous(float64, seed, step, reg, damping, low, depth, blocks):
    """On the strongly convex quadratic: factors, distance and gradient error within a factor 3 of the truth."""
    draw = diagonal_quadratic(seed, step, reg, damping, low)
    net = Restarted(draw.map, depth, 1, gradient=Truncated(blocks=blocks), stop=Stop(0.0, depth))
    certificate = certify(net, draw.y, draw.physics, iterations=2, starts=1)
    u = net.eval().solve(draw.y, draw.physics).state
    bound = draw.map.requires_grad_(False).bind(DataTerm(draw.y, draw.physics))
    slopes = torch.func.jacrev(lambda z: bound.layer(_put(u, z, 0))[0])(u[0]).reshape(12, 12).diagonal()
    truth = {
        "layer_factor": float(slopes.abs().max()),
        "block_factor": float(slopes.abs().max()) ** depth,
        "distance": float((u[0] - draw.answer[0]).norm()),
        # the worst loss points along the slowest pixel
        "gradient_error": float(slopes.abs().max()) ** (depth * blocks),
    }
    for name, true in truth.items():
        value = certificate[0].claims[name].proved.value
        assert true * (1 - 1e-9) <= value + 1e-13, name
        assert value <= 3 * true + 1e-9, name


def _put(u, z, i):
    """The batch u with image i replaced."""
    return torch.cat([u[:i], z[None], u[i + 1 :]])


@pytest.mark.parametrize("make", PROBLEMS, ids=lambda f: f.__name__)
@DRAWS
@given(
    **PROBLEM,
    damping=st.sampled_from([0.02, 0.3]),
    depth=st.integers(1, 6),
)
def test_the_distance_is_bounded_within_a_factor_of_three(make, float64, seed, step, reg, damping, low, depth):
    """By the layers that are run beyond the result, whatever the constants of the problem."""
    draw = make(seed, step, reg, damping, low)
    net = Restarted(draw.map, depth, 1, gradient=Truncated(), stop=Stop(0.0, depth))
    certificate = certify(net, draw.y, draw.physics, iterations=2, starts=1)
    u = net.eval().solve(draw.y, draw.physics).state
    for i, image in enumerate(certificate):
        true = float((u[i] - draw.answer[i]).norm())
        assert true * (1 - 1e-9) - 1e-13 <= image.distance.proved.value <= 3 * true + 1e-9


def distance_in_float32(owner, y, physics, layers=400):
    """Proved and true RMSE of a float32 restoration; the truth from the same problem in float64."""
    exact_y, exact_physics, exact_map = y.double(), copy.deepcopy(physics).to(torch.float64), copy.deepcopy(owner)
    reference = Restarted(exact_map.double(), 5, 1, solver=Anderson(), stop=Stop(1e-14, 20000)).eval()
    exact = reference.solve(exact_y, exact_physics).image
    net = Restarted(owner, 5, 1, stop=Stop(0.0, layers)).eval()
    restored = net.solve(y, physics)
    certificate = certify(net, y, physics, result=restored, iterations=2, starts=1)
    true = (restored.image.double() - exact).square().mean((1, 2, 3)).sqrt()
    return [(c.rmse.proved.value, float(t)) for c, t in zip(certificate, true, strict=True)]


@settings(DRAWS, max_examples=40)
@given(
    **PROBLEM,
    damping=st.sampled_from([0.02, 0.3]),
)
@pytest.mark.parametrize("make", PROBLEMS[1:], ids=lambda f: f.__name__)
def test_bounds_hold_in_float32_too(make, seed, step, reg, damping, low):
    """At rest, where nothing is left of the distance but rounding."""
    draw = make(seed, step, reg, damping, low)
    for proved, true in distance_in_float32(draw.map, draw.y, draw.physics):
        assert 0 < true <= proved or true == 0


@pytest.mark.parametrize("name", ["denoise", "inpaint"])
def test_bounds_hold_on_a_photograph_in_float32(name):
    x = photograph("astronaut")[None, :, 60:124, 190:254]
    prior = WaveletL12("db4", levels=3, channels=3)
    owner = ForwardBackward(prior, reg=0.1, strong_convexity=0.0 if name == "denoise" else 0.05)
    y, physics = problems.get(name, sigma=0.1).measure(x)
    for proved, true in distance_in_float32(owner, y, physics):
        assert 0 < true <= proved < 1e-3
