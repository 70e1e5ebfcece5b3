"""Filter banks: an exact adjoint, and a norm that is at most 1 for every image, whatever the weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import conv2d

from retune.errors import InvalidParameterError, ShapeError
from retune.priors.filters import FilterBank, norm_bound
from ridges import trained, wave
from small_parts import as_matrix, rand

BANKS = {
    "grey": ((1, 4, 6), (5, 3)),
    "colour": ((3, 4, 8), (4, 3)),
    "one": ((2, 5), (3,)),
    "three": ((1, 2, 3, 4), (3, 1, 2)),
}


def bank(name: str, seed: int = 0) -> FilterBank:
    torch.manual_seed(seed)
    return FilterBank(*BANKS[name])


@torch.no_grad()
def largest_gain(bound, x: torch.Tensor, steps: int) -> float:
    """``‖W x‖/‖x‖`` after power iterations: a lower bound of ‖W‖ that approaches it."""
    for _ in range(steps):
        x = bound.adjoint(bound(x))
        x = x / x.norm()
    return float(bound(x).norm())


@pytest.mark.parametrize("size", [(9, 9), (10, 13), (15, 11), (16, 7)])
@pytest.mark.parametrize("name", BANKS)
def test_adjoint(name, size, float64):
    filters = bank(name)
    bound = filters.bind(torch.float64, torch.device("cpu"))
    x = rand(2, filters.channels[0], *size, seed=1)
    r = rand(*bound(x).shape, seed=2)
    assert r.shape == (2, filters.channels[-1], *(n - filters.reach for n in size))
    assert bound.adjoint(r).shape == x.shape
    torch.testing.assert_close((bound(x) * r).sum(), (x * bound.adjoint(r)).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BANKS)
def test_composed_kernels_do_what_the_convolutions_do(name, float64):
    filters = bank(name)
    kernels = filters.kernels()
    assert kernels.shape == (filters.channels[-1], filters.channels[0], filters.reach + 1, filters.reach + 1)
    x = rand(2, filters.channels[0], 12, 11)
    bound = filters.bind(x.dtype, x.device)
    torch.testing.assert_close(conv2d(x, kernels), bound(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", BANKS)
def test_zero_mean_per_filter_and_channel(name, float64):
    filters = trained(bank(name))
    assert float(filters.kernels().detach().sum((2, 3)).abs().max()) < 1e-13
    flat = torch.rand(1, filters.channels[0], 1, 1).expand(-1, -1, 9, 9)
    assert float(filters.bind(flat.dtype, flat.device)(flat).detach().abs().max()) < 1e-13


@pytest.mark.parametrize("steps", [0, 5])
@pytest.mark.parametrize("name", BANKS)
def test_norm_by_singular_values_on_small_images(name, steps, float64):
    filters = trained(bank(name), steps)
    bound = filters.bind(torch.float64, torch.device("cpu"))
    before = 0.0
    for side in (filters.reach + 1, filters.reach + 5):
        matrix = as_matrix(bound, (filters.channels[0], side, side))
        norm = float(torch.linalg.matrix_norm(matrix.detach(), 2))
        assert before < norm <= 1
        before = norm


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("name", BANKS)
def test_norm_on_large_and_adversarial_images(name, steps, float64):
    """The worst plane wave comes close to the bound: it holds, and it is not vacuous."""
    filters = trained(bank(name), steps)
    bound = filters.bind(torch.float64, torch.device("cpu"))
    adversarial = wave(filters.kernels().detach(), 64)
    gain = largest_gain(bound, adversarial, 15)
    assert 0.9 <= gain <= 1
    assert largest_gain(bound, rand(1, filters.channels[0], 40, 53), 15) <= 1


@pytest.mark.parametrize("name", BANKS)
def test_norm_in_single_precision_and_for_weights_of_any_size(name):
    for scale in (1e-6, 1.0, 1e4):
        filters = bank(name)
        with torch.no_grad():
            for w in filters.parameters():
                w *= scale
        bound = filters.bind(torch.float32, torch.device("cpu"))
        gain = largest_gain(bound, wave(filters.kernels().detach(), 48).float(), 10)
        assert gain <= 1 + 1e-5
        assert gain >= 0.9 or scale == 1e-6  # tiny filters may stay tiny


def test_filters_that_vanish_stay_finite():
    filters = bank("grey")
    with torch.no_grad():
        filters.weights[0].fill_(0.3)  # nothing but a mean
    out = filters.bind(torch.float32, torch.device("cpu"))(rand(1, 1, 9, 9))
    assert float(out.detach().norm()) < 1e-4


def test_gradient_of_the_bound(float64):
    kernels = rand(3, 2, 4, 4, seed=3)
    kernels.requires_grad_()
    assert torch.autograd.gradcheck(norm_bound, (kernels,), eps=1e-7, atol=1e-5)


def test_gradient_of_a_response_through_the_normalisation(float64):
    filters = bank("colour")
    x = rand(1, 3, 9, 8)
    probe = rand(1, 8, 4, 3, seed=4)

    def value() -> torch.Tensor:
        return (filters.bind(x.dtype, x.device)(x).square() * probe).sum()

    for w in filters.parameters():
        (slope,) = torch.autograd.grad(value(), w)
        direction = rand(*w.shape, seed=6)
        with torch.no_grad():
            w += 1e-6 * direction
            up = value()
            w -= 2e-6 * direction
            down = value()
            w += 1e-6 * direction
        torch.testing.assert_close((up - down) / 2e-6, (slope * direction).sum(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("degree", [1, 4, 8])
def test_samples_of_a_trigonometric_polynomial_bound_it(degree, float64):
    """max ≤ max of M samples / cos(πd/M), per variable; a shifted cosine attains it."""
    samples, fine = 4 * degree, 60 * degree
    order = torch.arange(-degree, degree + 1)

    def at(coefficients, grid):
        basis = torch.polar(
            torch.ones(grid, 2 * degree + 1), 2 * math.pi / grid * torch.arange(grid)[:, None] * order.double()
        )
        return (basis @ coefficients @ basis.T).real

    factor = 1 / math.cos(math.pi * degree / samples) ** 2
    for seed in range(20):
        c = torch.complex(rand(2 * degree + 1, 2 * degree + 1, seed=seed), rand(*[2 * degree + 1] * 2, seed=seed + 99))
        c = c + c.flip(0, 1).conj()  # real values
        assert float(at(c, fine).abs().max()) <= factor * float(at(c, samples).abs().max()) * (1 + 1e-12)
    # cos(d(t − π/M)) is ±cos(πd/M) at the neighbours of its largest value
    t = 2 * math.pi / samples * torch.arange(samples)
    worst = torch.cos(degree * (t - math.pi / samples)).abs().max() / math.cos(math.pi * degree / samples)
    assert float(worst) == pytest.approx(1.0)


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_the_bound_covers_every_frequency(grid, float64):
    """The symbol on a grid much finer than the one that is sampled."""
    kernels = rand(4, 2, 2 + grid, 2 + grid, seed=grid)
    spectrum = torch.fft.rfft2(kernels, s=(240, 240)).flatten(2)
    gram = torch.einsum("ncf,ndf->fcd", spectrum.conj(), spectrum)
    largest = float(torch.linalg.eigvalsh(gram)[:, -1].max())
    assert largest <= float(norm_bound(kernels)) <= 1.15 * largest


@pytest.mark.parametrize("shape", [(1, 1, 6, 20), (1, 3, 9, 9), (1, 9, 9)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(ShapeError, match=r"\(B, 1, H, W\) with sides of at least 7 pixels, got"):
        bank("grey").bind(torch.float32, torch.device("cpu"))(torch.zeros(shape))


@pytest.mark.parametrize(
    ("channels", "sizes", "message"),
    [
        ((1, 4), (1,), "the first at least 2"),
        ((1, 4, 4), (3,), r"n \+ 1 channel counts"),
        ((1,), (), "n kernel sides"),
        ((0, 4), (3,), "≥ 1"),
        ((1, 4), (3.0,), "sizes must be a whole number, got 3.0"),
    ],
)
def test_bad_arguments(channels, sizes, message):
    with pytest.raises(InvalidParameterError, match=message):
        FilterBank(channels, sizes)
