"""Potentials of several variables: projections onto balls of the ℓ1 norm, their envelopes and their derivatives."""

from __future__ import annotations

import pytest
import torch

from retune.priors import profile, projection
from retune.priors.profile import CONVEXITY, Profile
from retune.priors.projection import _Derivative, curvature_of_groups, derivative_of_groups, value_of_groups
from small_parts import rand

#: Variables of a potential.
SIZES = (2, 3, 4, 5)


def inputs(size: int, batch: int = 2, tables: int = 1, seed: int = 0) -> list[torch.Tensor]:
    """Responses of two groups, three radii and their weights; no response lies on an edge."""
    limits = rand(tables, 2, 3, 1, 1, seed=seed).abs().cumsum(2) + 0.1
    r = 2 * rand(batch, 2 * size, 1, 2, seed=seed + 1)
    return [t.requires_grad_() for t in (r, limits, rand(tables, 2, 3, 1, 1, seed=7))]


def nearest(z: torch.Tensor, radius: float) -> torch.Tensor:
    """The nearest point of the ball: the threshold by bisection."""
    low, high = 0.0, float(z.abs().max())
    for _ in range(80):
        middle = (low + high) / 2
        inside = float((z.abs() - middle).clamp_min(0).sum()) <= radius
        low, high = (low, middle) if inside else (middle, high)
    return z.sign() * (z.abs() - high).clamp_min(0) if float(z.abs().sum()) > radius else z


@pytest.mark.parametrize("size", SIZES)
def test_projections_onto_the_ball(size, float64):
    r, limits, jumps = (t.detach() for t in inputs(size))
    expected = torch.zeros_like(r)
    for image in range(2):
        for group in range(2):
            here = slice(group * size, (group + 1) * size)
            for column in range(2):
                for j in range(3):
                    p = nearest(r[image, here, 0, column], float(limits[0, group, j]))
                    expected[image, here, 0, column] += float(jumps[0, group, j]) * p
    torch.testing.assert_close(derivative_of_groups(r, limits, jumps), expected, rtol=0, atol=1e-12)


def test_one_variable_is_clipped(float64):
    r, limits, jumps = (t.detach() for t in inputs(1))
    clipped = sum(r.clamp(-limits[:, :, j], limits[:, :, j]) * jumps[:, :, j] for j in range(3))
    torch.testing.assert_close(derivative_of_groups(r, limits, jumps), clipped)


def test_ties_and_zeros(float64):
    z = torch.tensor([[1.0, -1, 1, 0], [2, 2, -2, 2], [0, 0, 0, 0]]).reshape(3, 4, 1, 1)
    found = derivative_of_groups(z, torch.ones(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1)).flatten(1)
    third, quarter = 1 / 3, 1 / 4
    expected = torch.tensor([[third, -third, third, 0], [quarter, quarter, -quarter, quarter], [0, 0, 0, 0]])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("tables", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_value_has_this_derivative(size, tables, float64):
    r, limits, jumps = inputs(size, tables=tables)
    (slope,) = torch.autograd.grad(value_of_groups(r, limits, jumps).sum(), r)
    torch.testing.assert_close(slope, derivative_of_groups(r, limits, jumps), rtol=0, atol=1e-12)
    assert torch.equal(value_of_groups(torch.zeros_like(r), limits, jumps), torch.zeros(2))


@pytest.mark.parametrize("tables", [1, 2])
def test_first_second_and_forward_derivatives(tables, float64):
    given = inputs(4, tables=tables)
    assert torch.autograd.gradcheck(_Derivative.apply, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(_Derivative.apply, given)


@pytest.mark.parametrize("mode", ["jacrev", "jacfwd"])
def test_function_transforms(mode, float64):
    given = [t.detach() for t in inputs(3, tables=2)]
    found = getattr(torch.func, mode)(_Derivative.apply, argnums=(0, 1, 2))(*given)
    for k, table in enumerate(found):
        step = 1e-6 * rand(*given[k].shape, seed=k)
        ends = [_Derivative.apply(*[t + s * step if i == k else t for i, t in enumerate(given)]) for s in (1, -1)]
        change = torch.tensordot(table, step, step.ndim)
        torch.testing.assert_close(change, (ends[0] - ends[1]) / 2, rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize("in_dims", [(1, None, None), (3, None, 2), (None, 1, None), (0, 0, 0)])
@pytest.mark.parametrize("module", [profile, projection])
def test_vmap_is_a_loop(module, in_dims, float64):
    """Along any axis of each argument, with one table for all images or one for each."""
    size = 3 if module is projection else 1
    r, limits, jumps = rand(2, 2 * size, 3, 4), rand(1, 2, 3, 1, 1, seed=1).abs(), rand(2, 2, 3, 1, 1, seed=2)
    given = [
        t if d is None else torch.stack([t, 0.5 * t, -t if k != 1 else 2 * t], d)
        for k, (t, d) in enumerate(zip((r, limits, jumps), in_dims, strict=True))
    ]
    found = torch.func.vmap(module._Derivative.apply, in_dims=in_dims)(*given)
    for i in range(3):
        one = [t if d is None else t.select(d, i) for t, d in zip(given, in_dims, strict=True)]
        torch.testing.assert_close(found[i], module._Derivative.apply(*one))


@pytest.mark.parametrize("convexity", CONVEXITY)
@pytest.mark.parametrize("size", SIZES)
def test_curvature_stays_within_the_slopes(size, convexity, float64):
    """The eigenvalues of the Hessian of a potential are its slopes and 0, and nothing else."""
    torch.manual_seed(0)
    made = Profile(2 * size, 3, convexity, group=size).requires_grad_(False)
    for p in made.parameters():
        p += 0.7 * torch.randn_like(p)
    bound = made.bind(torch.tensor(0.1).reshape(1, 1, 1, 1))
    slopes = bound.slopes[0]
    met = set()
    for seed in range(60):
        r = (0.02 + 0.002 * seed) * rand(1, 2 * size, 1, 1, seed=seed)
        product = bound.second_derivative(r)
        columns = [product(e.reshape(1, -1, 1, 1)).flatten() for e in torch.eye(2 * size)]
        hessian = torch.stack(columns)
        torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-12)
        for group in range(2):
            here = slice(group * size, (group + 1) * size)
            for value in torch.linalg.eigvalsh(hessian[here, here]):
                known = torch.cat([slopes[group], torch.zeros(1)])
                distance, at = (known - value).abs().min(0)
                assert float(distance) < 1e-9
                met.add((group, int(at)))
    assert len(met) > 4  # not only the innermost ball
    low, high = bound.curvature
    assert float(low) == min(0.0, float(slopes.min()))
    assert float(high) == max(0.0, float(slopes.max()))


def test_product_with_the_curvature_is_the_derivative_of_the_derivative(float64):
    r, limits, jumps = (t.detach() for t in inputs(4))
    v = rand(*r.shape, seed=4)
    change = torch.func.jvp(lambda z: _Derivative.apply(z, limits, jumps), (r,), (v,))[1]
    torch.testing.assert_close(curvature_of_groups(r, limits, jumps)(v), change, rtol=0, atol=1e-12)


def test_slices_are_the_whole():
    """More groups than the processor takes at a time."""
    r, limits, jumps = rand(2, 20, 5, 6), rand(1, 5, 3, 1, 1, seed=1).abs(), rand(1, 5, 3, 1, 1, seed=2)
    whole = derivative_of_groups(r, limits, jumps)
    for g in range(5):
        part = derivative_of_groups(r[:, 4 * g : 4 * g + 4], limits[:, g : g + 1], jumps[:, g : g + 1])
        torch.testing.assert_close(whole[:, 4 * g : 4 * g + 4], part, rtol=0, atol=0)
