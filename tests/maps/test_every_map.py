"""What holds for every map: it is averaged where it says so, for any learned values, and K layers have their error."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from deepinv.physics import Blur, Denoising

from retune import (
    DouglasRachford,
    ForwardBackward,
    GradientStep,
    HalfQuadratic,
    Implicit,
    MirrorDescent,
    PrimalDual,
    ThreeOperators,
    Truncated,
    registry,
)
from retune.maps.linearised import Linearised, spectral_radius
from retune.priors import TV, WaveletL1
from small_parts import rand

WAVELET = WaveletL1("haar", 2)
#: Each map in its use, and the α of its class: a function of the learned share s, or None without a norm.
MAPS = {
    "forward_backward": (lambda: ForwardBackward(WAVELET, reg=0.02), lambda s: 1 / (2 - s)),
    "gradient_step": (lambda: GradientStep(TV(smoothing=0.1), reg=0.02, box=(0.1, 0.7)), lambda s: 1 / (2 - s)),
    "primal_dual": (lambda: PrimalDual(TV(), reg=0.02), None),
    "douglas_rachford": (lambda: DouglasRachford(WAVELET, reg=0.02), lambda s: 0.5),
    "half_quadratic": (lambda: HalfQuadratic(WAVELET, reg=0.02), lambda s: 2 / 3),
    "three_operators": (lambda: ThreeOperators(WAVELET, reg=0.02, box=(0.2, 0.75)), lambda s: 1 / (2 - s)),
    "mirror_descent": (lambda: MirrorDescent(TV(smoothing=2.0), reg=0.02), None),
}


def test_every_map_is_here():
    ours = {n for n in registry.names("map") if registry.is_ours(n)}
    assert set(MAPS) == ours


def measured(map_, dtype):
    """A blurred image, of which every frequency is left, and the blur; for mirror descent, counts of an image."""
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, 8.0, 1.0], [0.0, 1.0, 0.0]], dtype=dtype) / 12
    physics = Blur(kernel[None, None], padding="circular")
    x = (0.5 + 0.15 * rand(1, 1, 8, 8)).to(dtype)
    if isinstance(map_, MirrorDescent):
        return torch.poisson(60 * x, generator=torch.Generator().manual_seed(0)), Denoising()
    return physics.A(x), physics


def bound_map(map_, dtype):
    """The map, bound to the measurement, and its data term."""
    term = map_.data_term(*measured(map_, dtype))
    return map_.bind(term), term


def slack(bound, alpha, count):
    """The least slack of α-averagedness over random pairs, relative to ``‖a − b‖²`` in the norm of the map."""
    start, least = bound.init(), torch.inf
    for seed in range(count):
        size = 10.0 ** (seed % 4 - 2)
        a, d = rand(*start.shape, seed=seed).to(start), rand(*start.shape, seed=seed + 1000).to(start)
        a, b = start + size * a, start + size * (a + 10.0 ** -(seed % 3) * d)
        ta, tb = bound.layer(a), bound.layer(b)
        whole, moved = bound.norm(a - b) ** 2, bound.norm(a - ta - b + tb) ** 2
        least = min(least, float((whole - (1 - alpha) / alpha * moved - bound.norm(ta - tb) ** 2) / whole))
    return least


def alpha_of(name, map_, term):
    """The α that the map states; else that of its class."""
    stated = map_.guarantee(term).averaged
    return float(stated) if stated is not None else MAPS[name][1](float(map_.step_size()))


@pytest.mark.parametrize("step_size", [0.05, 0.6, 0.99])
@pytest.mark.parametrize("name", [n for n in MAPS if n != "mirror_descent"])
def test_it_is_averaged(name, step_size, float64):
    """On 200 random pairs, in the norm of the map."""
    map_ = MAPS[name][0]().requires_grad_(False)
    map_.step_size.raw.fill_(torch.logit(torch.tensor(step_size)))
    bound, term = bound_map(map_, torch.float64)
    alpha = alpha_of(name, map_, term)
    if MAPS[name][1] is not None:
        assert alpha == pytest.approx(MAPS[name][1](step_size), rel=1e-6)
    assert slack(bound, alpha, 200) >= -1e-12
    assert slack(bound, 0.02, 40) < -1e-3  # so that the line above can fail


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("raw", [-1000.0, -20.0, 20.0, 1000.0])
@pytest.mark.parametrize("name", MAPS)
def test_no_learned_value_leaves_the_region(name, raw, dtype):
    """Steps, their ratio and strengths: layers stay finite, and nonexpansive in the norm of the map."""
    for learned in ("step_size", "balance", "reg"):
        map_ = MAPS[name][0]().requires_grad_(False)
        if not hasattr(map_, learned):
            continue
        getattr(map_, learned).raw.fill_(raw)
        assert 0 < float(map_.step_size()) < 1
        bound, term = bound_map(map_, dtype)
        u = bound.init()
        values = []
        for _ in range(4):
            values.append(u)
            u = bound.layer(u)
        assert bool(torch.isfinite(u).all()), learned
        rounding = 100 * torch.finfo(dtype).eps
        if name == "mirror_descent":
            objective = [float(map_.objective(bound.image(v), term)) for v in values]
            assert all(b <= a + rounding * abs(a) for a, b in pairwise(objective)), learned
        else:
            assert slack(bound, 1 - rounding, 20) >= -100 * rounding, learned


def test_mirror_descent_comes_nearer_in_its_own_distance(float64):
    """``D_h(x*, x_k)`` never grows: its entropy takes the place of a norm."""
    map_ = MAPS["mirror_descent"][0]().requires_grad_(False)
    bound, _ = bound_map(map_, torch.float64)
    best = bound.init()
    for _ in range(500):
        best = bound.layer(best)
    curvature = map_.reg() * map_.prior_constant(best)

    def distance(x):
        burg = bound._weights * (best / x - 1 - (best / x).log())
        return float((burg + curvature * (best - x).square() / 2).sum())

    for seed in range(5):
        u = bound.state(30 * rand(1, 1, 8, 8, seed=seed).abs() ** 3)
        before = distance(u)
        for _ in range(20):
            u = bound.layer(u)
            after = distance(u)
            assert after <= before * (1 + 1e-12)
            before = after


@pytest.mark.parametrize("name", MAPS)
def test_the_error_of_k_layers_follows_the_measured_rate(name, float64):
    """The decay of ‖d_K − d‖ with K is the rate that a certificate measures at the equilibrium.

    d is the gradient of a loss in the measurement: it has a part in every direction.
    """
    map_ = MAPS[name][0]().requires_grad_(False)
    y, physics = measured(map_, torch.float64)
    y.requires_grad_()
    with torch.no_grad():
        bound = map_.bind(map_.data_term(y, physics))
        u = bound.init()
        for _ in range(400):
            u = bound.layer(u)
        torch.testing.assert_close(bound.layer(u), u, rtol=0, atol=1e-10)
        weights = rand(*bound.image(u).shape, seed=9)
    rho = float(spectral_radius(Linearised(bound, u), 100, 1).value)
    assert 0.3 < rho < 0.97

    def gradient(rule, depth):
        live = map_.bind(map_.data_term(y, physics))
        state, _ = rule(live, depth, lambda: u)
        return torch.autograd.grad((weights * live.image(state)).sum(), y)[0]

    exact = gradient(Implicit(rtol=1e-13, max_blocks=1000), 1)
    last = int(math.log(1e-7) / math.log(rho))
    depths = (last // 2, last)
    # Complex eigenvalues make the error oscillate, so its largest values near two depths are compared.
    first, second = (max(float((gradient(Truncated(), k + i) - exact).norm()) for i in range(4)) for k in depths)
    assert second < 1e-5 * float(exact.norm())
    assert (second / first) ** (1 / (depths[1] - depths[0])) == pytest.approx(rho, rel=0.05)
