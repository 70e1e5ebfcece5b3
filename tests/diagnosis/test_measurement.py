"""The measurement: its range, its noise, and whether it fits the operator."""

from __future__ import annotations

import pytest
import torch
from deepinv.physics import (
    Blur,
    BlurFFT,
    Denoising,
    Downsampling,
    GaussianNoise,
    Inpainting,
    LinearPhysics,
    PoissonNoise,
)
from deepinv.physics.forward import StackedLinearPhysics

from examined import NOTE, OK, PROBLEM, WARNING, correlation, lopsided, one, photo
from retune import doctor, problems
from small_parts import rand


def test_not_finite():
    y = photo()
    assert one(doctor(Denoising(), y), "finite").severity is OK
    y[0, 0, 3, 3], y[0, 0, 4, 4] = float("nan"), float("inf")
    diagnosis = doctor(Denoising(), y)
    found = one(diagnosis, "finite")
    assert found.severity is PROBLEM
    assert found.numbers["bad"] == 2
    assert diagnosis.of("noise") == ()


@pytest.mark.parametrize(
    ("change", "severity", "says"),
    [
        (lambda y: y, OK, "as expected for images in [0, 1]"),
        (lambda y: 255 * y, PROBLEM, "0 to 255"),
        (lambda y: 255 * y + 10 * rand(*y.shape), PROBLEM, "0 to 255"),
        (lambda y: 65535 * y, PROBLEM, "0 to 65535"),
        (lambda y: 2 * y - 1, WARNING, "negative"),
        (lambda y: y / 255, WARNING, "very dark"),
    ],
    ids=["good", "8 bits", "8 bits, noisy", "16 bits", "signed", "dark"],
)
def test_range(change, severity, says):
    for physics in (Denoising(), Blur(lopsided(), padding="reflect"), Blur(5 * lopsided(), padding="reflect")):
        found = one(doctor(physics, physics.A(change(photo()))), "range")
        assert found.severity is severity, found.found
        assert says in found.found


def test_clipping():
    y = photo() + 0.1 * rand(1, 1, 64, 64)
    assert one(doctor(Denoising(), y), "clipping").severity is OK
    found = one(doctor(Denoising(), (1.5 * y).clamp(0.1, 1)), "clipping")
    assert found.severity is WARNING
    assert found.numbers["share_high"] > 0.01
    mask = (rand(1, 1, 64, 64, seed=2) > 0).float()
    assert one(doctor(Inpainting((1, 64, 64), mask=mask), mask * y), "clipping").severity is OK


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.3])
def test_noise_level(sigma):
    y = photo(128) + sigma * rand(1, 1, 128, 128)
    found = one(doctor(Denoising(GaussianNoise(sigma)), y), "noise")
    assert found.severity is OK
    assert found.numbers["sigma"][0][0] == pytest.approx(sigma, rel=0.3)
    for declared in (sigma / 10, 4 * sigma):
        wrong = one(doctor(Denoising(GaussianNoise(declared)), y), "noise")
        assert wrong.severity is WARNING
        assert "the physics says" in wrong.found


def test_noise_level_by_channel():
    y, physics = problems.denoise((0.1, 0.25, 0.5)).measure(photo(128, 3))
    found = one(doctor(physics, y), "noise")
    assert found.numbers["sigma"][0] == pytest.approx([0.1, 0.25, 0.5], rel=0.15)
    swapped = one(doctor(problems.denoise((0.5, 0.25, 0.1)).physics((3, 128, 128)), y), "noise")
    assert swapped.severity is WARNING


@pytest.mark.parametrize(("keep", "method"), [(0.5, "2×2 blocks"), (0.1, "neighbours")])
def test_noise_level_under_a_mask(keep, method):
    """Only observed pixels enter: the mask's own pattern would look like noise of the size of the image."""
    y, physics = problems.inpaint(keep, 0.1).measure(photo(128))
    found = one(doctor(physics, y), "noise")
    assert method in found.found
    assert found.numbers["sigma"][0][0] == pytest.approx(0.1, rel=0.4)
    assert found.severity is OK


def test_noise_that_cannot_be_told():
    tiny = one(doctor(Denoising(), photo(8)), "noise")
    assert "too few" in tiny.found
    y, physics = problems.inpaint(0.02, 0.1).measure(photo(32))
    assert "too few neighbouring" in one(doctor(physics, y), "noise").found
    stack = StackedLinearPhysics([Denoising(), Denoising()])
    assert one(doctor(stack, stack.A(photo())), "noise").severity is NOTE
    poisson = one(doctor(Denoising(PoissonNoise(0.1)), photo()), "noise")
    assert poisson.severity is NOTE
    assert "PoissonNoise" in poisson.advice


def scene(kernel, sigma=0.01):
    """A photograph blurred with what lies beyond its border, as a camera does."""
    blurred = Blur(problems.kernel(kernel), padding="valid").A(photo(160))[..., 30:126, 30:126]
    return blurred + sigma * rand(*blurred.shape)


def test_consistency_with_the_kernel():
    y = scene("gaussian:1.6", 0.005)
    right = one(doctor(problems.deblur("gaussian:1.6").physics((1, 96, 96)), y), "consistency")
    wrong = one(doctor(problems.deblur("motion:15@30").physics((1, 96, 96)), y), "consistency")
    assert right.severity is OK
    assert right.numbers["ratio"] < 1.4
    assert wrong.severity is WARNING
    assert wrong.numbers["ratio"] > 2.5


def test_consistency_with_the_boundary():
    y = scene("gaussian:1.6")
    reflect = one(doctor(problems.deblur("gaussian:1.6").physics((1, 96, 96)), y), "consistency")
    circular = one(doctor(problems.deblur("gaussian:1.6", "circular").physics((1, 96, 96)), y), "consistency")
    assert reflect.severity is OK
    assert circular.severity is WARNING
    assert "borders" in circular.found


@pytest.mark.parametrize("kernel", ["gaussian:1.6", "motion:9@30"])
@pytest.mark.parametrize("padding", ["valid", "reflect", "circular"])
def test_fine_texture_without_noise_is_fitted_slowly_and_contradicts_nothing(padding, kernel):
    """20 least-squares steps leave much of a small sharp image behind, though y = Ax exactly."""
    lines = torch.arange(32.0)
    waves = 0.5 + 0.25 * (1.7 * lines[:, None]).sin() + 0.25 * (2.3 * lines).sin()
    physics = Blur(problems.kernel(kernel), padding=padding)
    for x in (photo(32), photo(32, top=10, left=150), waves[None, None]):
        size = (1, *x.shape[-2:])
        assert one(doctor(physics, physics.A(x), img_size=size), "consistency").severity is OK
    if padding != "valid":  # whose measurements have the size of their kernel
        wrong = Blur(problems.kernel("motion:15@120"), padding=padding)
        assert one(doctor(wrong, physics.A(photo(96))), "consistency").severity is WARNING


def test_consistency_with_a_mask():
    x = photo() + 0.05 * rand(1, 1, 64, 64)
    mask = (rand(1, 1, 64, 64, seed=2) > 0).float()
    physics = Inpainting((1, 64, 64), mask=mask)
    assert one(doctor(physics, mask * x), "consistency").severity is OK
    assert one(doctor(physics, (1 - mask) * x), "consistency").severity is PROBLEM
    assert one(doctor(physics, x), "consistency").severity is PROBLEM
    thinner = mask * (rand(1, 1, 64, 64, seed=3) > 0)
    assert one(doctor(physics, thinner * x), "consistency").severity is WARNING


def test_a_residual_that_says_nothing():
    finding = one(doctor(Denoising(), photo()), "consistency")
    assert "cannot find an error" in finding.found


@pytest.mark.parametrize("make", [lambda k: Blur(k, padding="reflect"), lambda k: correlation(k.flip(-2, -1))])
def test_a_measured_pair(make):
    x, k = photo(), lopsided()
    y = Blur(k, padding="reflect").A(x) + 0.01 * rand(1, 1, 64, 64)
    assert one(doctor(Blur(k, padding="reflect"), y, x=x), "pair").severity is OK
    flipped = one(doctor(make(k.flip(-2, -1)), y, x=x), "pair")
    assert flipped.severity is PROBLEM
    assert "applied flipped" in flipped.found


def test_a_point_source_is_a_pair():
    x = torch.zeros(1, 1, 33, 33)
    x[..., 16, 16] = 1
    y = Blur(lopsided(), padding="reflect").A(x)
    assert one(doctor(BlurFFT((1, 33, 33), lopsided()), y, x=x), "pair").severity is OK
    flipped = BlurFFT((1, 33, 33), lopsided().flip(-2, -1))
    assert "applied flipped" in one(doctor(flipped, y, x=x), "pair").found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda y: torch.roll(y, (3, -2), (-2, -1)), "+3 rows and -2 columns"),
        (lambda y: 0.5 * y, "y = 0.5·Ax"),
        (lambda y: y + 0.2, "+ 0.2"),
        (lambda y: y + 0.1 * torch.sin(torch.arange(64) / 4), "times what the noise explains"),
    ],
    ids=["moved", "scaled", "offset", "other"],
)
def test_a_pair_that_does_not_fit(change, says):
    x, physics = photo(), Blur(lopsided(), padding="reflect")
    y = change(physics.A(x)) + 0.005 * rand(1, 1, 64, 64)
    found = one(doctor(physics, y, x=x), "pair")
    assert found.severity is WARNING
    assert says in found.found


def test_a_measurement_of_another_shape():
    for physics, y in (
        (Inpainting((1, 16, 16), mask=0.5), rand(1, 1, 17, 17)),
        (Downsampling((1, 16, 16), filter=None, factor=2), rand(1, 1, 9, 9)),
        (LinearPhysics(A=lambda x, **_: x[..., ::2], A_adjoint=lambda y, **_: y), rand(1, 1, 4, 4)),
    ):
        diagnosis = doctor(physics, y)
        assert one(diagnosis, "shape").severity is PROBLEM
        assert diagnosis.of("noise") == ()
