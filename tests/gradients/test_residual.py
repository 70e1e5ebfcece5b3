"""The adjoint equation by minimal residuals, against dense linear algebra and against the series."""

from __future__ import annotations

import pytest
import torch

from retune.errors import InvalidParameterError
from retune.gradients import Implicit, Truncated
from retune.gradients._residual import first_direction, minimal_residual
from small_parts import rand

SIZE = 30


def matrix(low: float, high: float, skew: float = 0.0, seed: int = 0):
    """Symmetric with eigenvalues spread over [low, high], plus a skew part."""
    q, _ = torch.linalg.qr(rand(SIZE, SIZE, seed=seed))
    lower = rand(SIZE, SIZE, seed=seed + 1).tril(-1)
    lower = lower - lower.T
    return q @ torch.diag(torch.linspace(low, high, SIZE)) @ q.T + skew * lower / torch.linalg.matrix_norm(lower, 2)


def solved(J, v, **options):
    calls = []

    def vjp(p):
        calls.append(p)
        return torch.stack([row @ j for row, j in zip(p, J, strict=True)])

    found = minimal_residual(vjp, v, **({"rtol": 1e-6, "most": 1000, "memory": 3} | options))
    assert len(calls) == found.products
    exact = torch.stack([torch.linalg.solve(torch.eye(SIZE) - j.T, row) for j, row in zip(J, v, strict=True)])
    return found, (found.w - exact).norm(dim=1) / exact.norm(dim=1)


def series(j, v, rtol):
    """Terms of the Neumann series until the true relative error is below rtol."""
    exact, w, term, count = torch.linalg.solve(torch.eye(SIZE) - j.T, v[0]), v[0], v[0], 0
    while (w - exact).norm() > rtol * exact.norm():
        term = term @ j
        w, count = w + term, count + 1
    return count


@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (-0.8, 0.9), (-0.8, 0.99), (0.5, 0.999)])
@pytest.mark.parametrize("skew", [0.0, 0.003])
def test_the_true_error_is_the_requested_one(low, high, skew, rtol, float64):
    J = matrix(low, high, skew)
    found, error = solved([J], rand(1, SIZE, seed=5), rtol=rtol)
    assert float(error) <= 2 * rtol
    assert bool(found.alive.all())


@pytest.mark.parametrize(("high", "share"), [(0.9, 0.7), (0.99, 0.3), (0.999, 0.1)])
def test_fewer_products_than_the_series(high, share, float64):
    J, v = matrix(-0.8, high), rand(1, SIZE, seed=5)
    found, error = solved([J], v, rtol=1e-4)
    assert found.products <= share * series(J, v, float(error))


@pytest.mark.parametrize("memory", [1, 3])
def test_the_residual_falls_at_least_as_fast_as_that_of_the_series(memory, float64):
    """Non-normal too: each step is measured against multiplying its own residual by Jᵀ."""
    J, v = matrix(-0.5, 0.95, skew=0.3), rand(1, SIZE, seed=5)
    before = v
    for most in range(1, 15):
        w = solved([J], v, rtol=0.0, most=most, memory=memory)[0].w
        residual = v + w @ J - w
        assert float(residual.norm()) <= float((before @ J).norm()) * (1 + 1e-9)
        before = residual


def test_images_do_not_know_of_each_other(float64):
    J, v = [matrix(0.0, 0.3), matrix(-0.8, 0.95, seed=3)], rand(2, SIZE, seed=5)
    together, _ = solved(J, v, rtol=0.0, most=20)
    for i in range(2):
        alone, _ = solved(J[i : i + 1], v[i : i + 1], rtol=0.0, most=20)
        torch.testing.assert_close(together.w[i], alone.w[0], rtol=0, atol=1e-9)


def test_zero_and_nilpotent_and_expansive(float64):
    shift = torch.diag(torch.ones(SIZE - 1), 1)
    J = [torch.zeros(SIZE, SIZE), 3 * torch.eye(SIZE), matrix(0.0, 0.9)]
    found, error = solved(J, rand(3, SIZE, seed=5), rtol=1e-9)
    assert found.alive.tolist() == [True, False, True]
    assert float(error[0]) < 1e-12
    assert float(error[2]) < 2e-9
    assert torch.isfinite(found.w).all()
    assert float(solved([shift], rand(1, SIZE, seed=5), rtol=1e-9)[1]) < 1e-8
    nothing, _ = solved([J[2]], torch.zeros(1, SIZE))
    assert torch.equal(nothing.w, torch.zeros(1, SIZE))


@pytest.mark.parametrize(("low", "high"), [(-0.8, 0.9), (-0.8, 0.99), (0.5, 0.999)])
@pytest.mark.parametrize("scale", [1.0, -1e3, 1e-4])
def test_a_start_saves_products_and_no_accuracy(low, high, scale, float64):
    """At any scale; the true error stays the requested one, however far from the solution the start is."""
    J, v = matrix(low, high), rand(1, SIZE, seed=5)
    exact = torch.linalg.solve(torch.eye(SIZE) - J.T, v[0])[None]
    cold, _ = solved([J], v, rtol=1e-4)
    for noise in (0.0, 1e-5, 1e-3, 1e-1, 10.0):
        start = scale * (exact + noise * exact.norm() / SIZE**0.5 * rand(1, SIZE, seed=7))
        found, error = solved([J], v, rtol=1e-4, start=start, gain=cold.gain)
        assert float(error) <= 2e-4
        assert float(found.left) <= 1
        if noise <= 1e-5:
            assert found.products < cold.products / 2
    assert solved([J], v, rtol=1e-4, start=exact, gain=cold.gain)[0].products == 1


def test_a_start_may_be_anything(float64):
    """Per image: random, opposite, not finite, unknown; the last two begin with v itself."""
    J = [matrix(-0.8, 0.95)] * 4
    v = rand(1, SIZE, seed=5).expand(4, SIZE).clone()
    start = torch.stack([rand(SIZE, seed=9), -v[1], torch.full((SIZE,), torch.nan), torch.zeros(SIZE)])
    cold, _ = solved(J, v, rtol=0.0, most=12)
    warm, _ = solved(J, v, rtol=0.0, most=12, start=start)
    torch.testing.assert_close(warm.w[1:], cold.w[1:])
    together, errors = solved(J, v, rtol=1e-6, start=start)
    assert float(errors.max()) <= 2e-6
    w, r = first_direction(lambda p: p @ J[0], v, start)
    torch.testing.assert_close(r, v - (w - w @ J[0]))
    assert bool((r.norm(dim=1) <= v.norm(dim=1)).all())
    torch.testing.assert_close(together.left, r.norm(dim=1) / v.norm(dim=1))


def test_float32():
    J, v = matrix(-0.8, 0.99), rand(1, SIZE, seed=5)
    found, error = solved([J], v, rtol=1e-3)
    assert found.w.dtype == torch.float32
    assert float(error) < 2e-3


@pytest.mark.parametrize("rule", [Truncated, Implicit])
def test_bad_memory(rule):
    with pytest.raises(InvalidParameterError, match="-1"):
        rule(memory=-1)


@pytest.mark.parametrize("memory", [1, 3])
def test_negative_curvature_keeps_what_was_found_before(memory, float64):
    """One eigenvalue of 1.5: no solution of the series. What is kept solves most of the stable part."""
    j, v = matrix(0.0, 0.95), rand(1, SIZE, seed=3)
    values, vectors = torch.linalg.eigh(j)
    stable = vectors[:, :-1]
    j = j + (1.5 - values[-1]) * torch.outer(vectors[:, -1], vectors[:, -1])
    v = v - 0.9 * (v @ vectors[:, -1:]) @ vectors[:, -1:].T
    found, _ = solved([j], v, memory=memory)
    assert not found.alive
    wanted = stable @ ((stable.T @ v[0]) / (1 - values[:-1]))
    error, before = ((stable @ (stable.T @ (w - wanted))).norm() / wanted.norm() for w in (found.w[0], v[0]))
    assert error < 0.6 * before
    assert torch.isfinite(found.w).all()
