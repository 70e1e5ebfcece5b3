"""The weighted group prox: exact against brute force, with the derivative of the implicit function theorem."""

import math

import pytest
import torch
from scipy.optimize import minimize

from retune.priors.shrinkage import group_shrink, newton_steps, soft_threshold
from small_parts import rand, soft


def shrink(v, threshold, weight2, dims=(1, 3), positions=None, steps=None):
    positions = v.shape[-1] // 3 if positions is None else positions
    if steps is None:
        steps = newton_steps(float(weight2.max() / weight2.min()), v.dtype)
    return group_shrink(v, threshold, weight2, positions, dims, steps)


def reference_root(power, reach):
    """The s ≥ 0 with Σ power/(s + reach)² = 1 in double precision, by bisection. Groups along the last axis."""
    low, high = torch.zeros(power.shape[:-1], dtype=torch.float64), power.double().sum(-1).sqrt() + 1e-300
    for _ in range(80):
        middle = (low + high) / 2
        above = (power.double() / (middle[..., None] + reach.double()) ** 2).sum(-1) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2


def random_groups(count, ratio, seed, dtype):
    """Groups of 9 (3 channels × 3 bands) with random thresholds, weights over [1, ratio], norms over 6 decades."""
    generator = torch.Generator().manual_seed(seed)
    weight = ratio ** torch.rand(3, 1, 3, 1, generator=generator, dtype=torch.float64)
    weight.flatten()[0], weight.flatten()[-1] = 1, ratio
    v = torch.randn(1, 3, 1, 3, count, generator=generator, dtype=torch.float64)
    v = v * 10 ** (6 * torch.rand(1, 3, 1, 3, count, generator=generator, dtype=torch.float64) - 3)
    return v.flatten(-2).to(dtype), (weight**2)[None].to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0, 5.0, 10.0, 30.0, 100.0])
def test_newton_steps_suffice(ratio, dtype):
    """Worst error over 1e5 random groups with weights up to 1:ratio, relative to the size of the group."""
    worst = 0.0
    for seed, threshold in enumerate((1e-3, 1e-1, 1.0, 10.0)):
        v, weight2 = random_groups(25_000, ratio, seed, dtype)
        t = torch.tensor(threshold, dtype=dtype)
        u = shrink(v, t, weight2).unflatten(-1, (3, -1)).movedim(1, -1).movedim(2, -1).flatten(-2).double()
        group = v.unflatten(-1, (3, -1)).movedim(1, -1).movedim(2, -1).flatten(-2).double()
        flat = weight2.movedim(1, -1).movedim(2, -1).flatten(-2).double()
        s = reference_root(flat * group**2, t.double() * flat)[..., None]
        expected = group * s / (s + t.double() * flat)
        error = torch.linalg.vector_norm(u - expected, dim=-1) / torch.linalg.vector_norm(group, dim=-1)
        worst = max(worst, float(error.max()))
    assert worst < 20 * torch.finfo(dtype).eps, worst


@pytest.mark.parametrize("ratio", [1.0, 3.0, 30.0])
def test_group_prox_minimises(ratio, float64):
    """No direction decreases ½‖u − v‖² + t‖Wu‖: against a quasi-Newton method started elsewhere."""
    for seed in range(4):
        v, weight2 = random_groups(1, ratio, seed, torch.float64)
        v = rand(*v.shape, seed=seed)
        w = weight2.sqrt().flatten()
        for t in (0.05, 0.4, 3.0):
            u = shrink(v, torch.tensor(t), weight2).flatten()

            def objective(z, v=v, t=t, w=w):
                z = torch.as_tensor(z)
                return float(0.5 * (z - v.flatten()).square().sum() + t * torch.linalg.vector_norm(w * z))

            ours = objective(u)
            start = u.numpy() + 0.3 * rand(9, seed=seed + 50).numpy()
            found = minimize(objective, start, method="BFGS", options={"gtol": 1e-9})
            assert ours <= found.fun + 1e-9
            for k in range(50):
                assert ours <= objective(u + 1e-4 * rand(9, seed=k)) + 1e-15


@pytest.mark.parametrize("dims", [(1,), (3,), (1, 3)])
@pytest.mark.parametrize("ratio", [1.0, 4.0, 100.0])
def test_moreau_identity(dims, ratio, float64):
    """v − prox(v) is the projection onto {z : ‖W⁻¹z‖ ≤ t}: inside, aligned, and on the boundary where prox ≠ 0."""
    weight2 = ratio ** (2 * torch.rand(1, 3, 1, 3, 1))
    v, t = rand(2, 3, 2, 3 * 50) * 3, torch.tensor(0.8)
    u = shrink(v, t, weight2, dims)
    dual = ((v - u).unflatten(-1, (3, -1)) / weight2.sqrt()).square().sum(dims).sqrt()
    primal = (weight2 * u.unflatten(-1, (3, -1)).square()).sum(dims).sqrt()
    inner = (u * (v - u)).unflatten(-1, (3, -1)).sum(dims)
    assert float(dual.max()) <= 0.8 * (1 + 1e-10)
    assert bool(((dual - 0.8).abs()[primal > 0] < 1e-9).all())
    torch.testing.assert_close(inner, 0.8 * primal, rtol=1e-9, atol=1e-12)  # Fenchel–Young equality


def test_dead_exactly_where_the_dual_norm_is_small(float64):
    weight2 = torch.tensor([0.25, 1.0, 4.0]).reshape(1, 1, 1, 3, 1)
    direction = rand(1, 1, 1, 3, 200)
    direction = direction / (direction.square() / weight2).sum(3, keepdim=True).sqrt()  # ‖W⁻¹v‖ = 1
    for factor, dead in ((1 - 1e-6, True), (1 + 1e-6, False)):
        u = shrink((factor * direction).flatten(-2), torch.tensor(1.0), weight2)
        assert bool((u == 0).all()) is dead


def test_equal_weights_are_the_closed_form():
    v, t = rand(2, 3, 1, 60), torch.tensor(1.3)
    u = shrink(v, t, torch.full((1, 1, 1, 1, 1), 4.0), steps=0)
    norm = v.unflatten(-1, (3, 20)).square().sum((1, 3), keepdim=True).sqrt()
    expected = v.unflatten(-1, (3, 20)) * (1 - 2 * t / norm).clamp_min(0)
    torch.testing.assert_close(u, expected.flatten(-2))


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e12])
def test_group_prox_survives_extreme_scales(scale):
    weight2 = torch.tensor([0.04, 1.0, 25.0]).reshape(1, 1, 1, 3, 1)
    v, t = rand(1, 2, 1, 30), torch.tensor(0.3)
    u = shrink(v * scale, t * scale, weight2)
    torch.testing.assert_close(u / scale, shrink(v, t, weight2), rtol=1e-4, atol=1e-5)


def test_zero_threshold_is_the_identity():
    weight2 = torch.tensor([0.1, 1.0, 10.0]).reshape(1, 1, 1, 3, 1)
    v = rand(1, 2, 1, 30)
    v[..., :3] = 0
    zero = torch.tensor(0.0)
    torch.testing.assert_close(shrink(v, zero, weight2), v)
    torch.testing.assert_close(soft_threshold(v, zero), v)
    leaf = v.clone().requires_grad_()
    for out in (shrink(leaf, zero, weight2), soft_threshold(leaf, zero)):
        (slope,) = torch.autograd.grad(out.sum(), leaf)
        torch.testing.assert_close(slope, torch.ones_like(v), rtol=1e-4, atol=1e-4)


def test_coarse_part_passes_unchanged():
    v = rand(2, 1, 1, 3 * 5 + 4)
    u = shrink(v, torch.tensor(10.0), torch.ones(1, 1, 1, 3, 1), positions=5)
    assert torch.equal(u[..., 15:], v[..., 15:])
    assert bool((u[..., :15] == 0).all())


@pytest.mark.parametrize("dims", [(1,), (3,), (1, 3)])
def test_implicit_derivative_against_finite_differences(dims, float64):
    """With respect to v, threshold and weights; some groups are dead, none is at the edge."""
    v = (2 * rand(2, 2, 1, 3 * 4 + 2)).requires_grad_()
    threshold = torch.tensor([0.3, 0.9]).reshape(2, 1, 1, 1, 1).requires_grad_()
    weight2 = (0.3 + 3 * torch.rand(1, 2, 1, 3, 1)).requires_grad_()

    def f(*inputs):
        return group_shrink(*inputs, 4, dims, 12)

    out = f(v, threshold, weight2)[..., :12].unflatten(-1, (3, 4)).abs().sum(dims)
    assert bool((out > 0).any())
    assert torch.autograd.gradcheck(f, (v, threshold, weight2))


def alive_and_dead(float_only_alive: bool):
    v = 3 * rand(1, 2, 1, 3 * 4)
    if not float_only_alive:
        v.unflatten(-1, (3, 4))[..., 0] *= 1e-2
    return v.requires_grad_(), torch.tensor([[[[[0.4]]]]]).requires_grad_(), (
        0.5 + torch.rand(1, 2, 1, 3, 1)
    ).requires_grad_()  # fmt: skip


@pytest.mark.parametrize("only_alive", [True, False], ids=["alive", "with-dead-groups"])
def test_second_derivative_against_finite_differences(only_alive, float64):
    inputs = alive_and_dead(only_alive)
    out = group_shrink(*inputs, 4, (1, 3), 12).unflatten(-1, (3, 4)).abs().sum((1, 3))
    assert bool((out > 0).all()) is only_alive
    assert torch.autograd.gradgradcheck(lambda *i: group_shrink(*i, 4, (1, 3), 12), inputs)


def test_dead_groups_have_zero_derivative_not_nan(float64):
    v, threshold, weight2 = alive_and_dead(False)
    grads = torch.autograd.grad(
        group_shrink(v * 1e-3, threshold, weight2, 4, (1, 3), 12).sum(), (v, threshold, weight2)
    )
    assert all(bool((g == 0).all()) for g in grads)


def test_unequal_weights_need_steps():
    """The table is not padding: with no step the answer is visibly wrong, so a zeroed table would be noticed."""
    v, weight2 = random_groups(1000, 10.0, 0, torch.float64)
    t = torch.tensor(1.0, dtype=torch.float64)
    assert float((shrink(v, t, weight2, steps=0) - shrink(v, t, weight2)).abs().max()) > 1e-3


@pytest.mark.parametrize("threshold_shape", [(), (1, 3, 1, 1), (2, 1, 1, 1)])
def test_soft_threshold(threshold_shape, float64):
    v = rand(2, 3, 1, 8).requires_grad_()
    t = (0.2 + 0.5 * torch.rand(threshold_shape)).requires_grad_()
    u = soft_threshold(v, t)
    torch.testing.assert_close(u, soft(v, t))
    assert torch.autograd.gradcheck(soft_threshold, (v, t))
    assert torch.autograd.gradgradcheck(soft_threshold, (v, t))
    (slope,) = torch.autograd.grad(u.sum(), t)
    torch.testing.assert_close(slope, -u.sign().sum_to_size(t.shape).detach())  # ∂u/∂t = −sign(u)


def test_derivatives_go_through_vmap(float64):
    """torch.func.jacrev is what the estimators are checked with."""
    v, weight2 = rand(1, 1, 1, 12), torch.tensor([0.5, 1.0, 2.0]).reshape(1, 1, 1, 3, 1)
    jacobian = torch.func.jacrev(lambda z: group_shrink(z, torch.tensor(0.2), weight2, 4, (3,), 12))(v)
    symmetric = jacobian.reshape(12, 12)
    torch.testing.assert_close(symmetric, symmetric.T)
    eigenvalues = torch.linalg.eigvalsh(symmetric)
    assert float(eigenvalues.min()) >= -1e-12  # the prox is firmly nonexpansive
    assert float(eigenvalues.max()) <= 1 + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("excess", [2e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
def test_nearly_equal_weights_give_nearly_the_closed_form(excess, dtype):
    """As after the first step of a training. Groups of zeros, of single values and of equal values are among them."""
    v = rand(1, 3, 1, 3, 500).to(dtype)
    v[..., :50] = 0
    v[:, 1:, ..., 50:100] = 0
    v[..., 100:150] = 0.5
    weight2 = 1 + excess * torch.rand(1, 3, 1, 3, 1, dtype=dtype)
    for t in (0.0, 1e-3, 0.5, 3.0, 1e3, 1e12):
        threshold = torch.tensor(t, dtype=dtype)
        u = shrink(v.flatten(-2), threshold, weight2).unflatten(-1, (3, -1))
        norm = v.square().sum((1, 3), keepdim=True).sqrt()
        expected = v * (1 - t / norm.clamp_min(1e-30)).clamp_min(0)
        assert float((u - expected).abs().max()) <= 2 * excess + 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("ratio", [2.0, 30.0, 1e3])
@pytest.mark.parametrize("t", [1e-3, 3.0, 1e3, 1e12, 1e30])
def test_groups_of_zeros_and_huge_thresholds_stay_finite(ratio, t):
    v, weight2 = random_groups(300, ratio, 0, torch.float32)
    v.unflatten(-1, (3, -1))[..., :100] = 0
    u = shrink(v, torch.tensor(t), weight2)
    assert bool(torch.isfinite(u).all())
    assert bool((u.unflatten(-1, (3, -1))[..., :100] == 0).all())
    assert t < 1e12 or bool((u == 0).all())


@pytest.mark.parametrize("dims", [(1,), (3,), (1, 3)])
def test_the_prox_goes_through_vmap(dims, float64):
    """torch.vmap adds an axis in front, to the coefficients or to the weights."""
    v, weight2, t = rand(5, 2, 3, 1, 12), 0.3 + torch.rand(5, 1, 3, 1, 3, 1), torch.tensor(0.2)
    for axes in ((0, None), (None, 0), (0, 0)):
        found = torch.vmap(lambda z, w: group_shrink(z, t, w, 4, dims, 12), axes)(
            v if axes[0] == 0 else v[0], weight2 if axes[1] == 0 else weight2[0]
        )
        for n in range(5):
            one = group_shrink(v[n * (axes[0] == 0)], t, weight2[n * (axes[1] == 0)], 4, dims, 12)
            torch.testing.assert_close(found[n], one)


def test_newton_steps_grow_with_the_ratio():
    for dtype in (torch.float32, torch.float64):
        steps = [newton_steps(r, dtype) for r in (1.0, 2.0, 50.0, 1e3, 1e6)]
        assert steps[0] == 0
        assert steps == sorted(steps)
    assert math.inf > newton_steps(1e12, torch.float64)
