"""Each finding both ways: what is healthy passes quietly, what is broken is found; nothing given is modified."""

from __future__ import annotations

import ctypes
import importlib
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deepinv.optim.prior import L1Prior
from deepinv.physics import (
    MRI,
    Blur,
    BlurFFT,
    Denoising,
    Downsampling,
    GaussianNoise,
    Inpainting,
    InpaintingMultiScaler,
    LinearPhysics,
    LinearPhysicsMultiScaler,
    Pansharpen,
    Physics,
    PoissonNoise,
    Ptychography,
    PtychographyLinearOperator,
    Tomography,
)
from deepinv.physics.forward import StackedLinearPhysics
from skimage import data

import retune
from known_answers import as_matrix, dense, rand
from retune import doctor, problems
from retune.diagnosis import Finding, Severity
from retune.errors import InvalidParameterError, NotFiniteError, PhysicsError, ShapeError, UnknownNameError

OK, NOTE, WARNING, PROBLEM = Severity.OK, Severity.NOTE, Severity.WARNING, Severity.PROBLEM


def one(diagnosis, check) -> Finding:
    (finding,) = diagnosis.of(check)
    return finding


def photo(side=64, channels=1, top=100, left=80):
    grey = torch.tensor(data.camera()[top : top + side, left : left + side] / 255, dtype=torch.float32)
    return grey.expand(1, channels, side, side).clone()


def lopsided():
    """An asymmetric kernel, centred in mass to a third of a pixel, of sum 1; unlike any turned copy of itself."""
    k = torch.zeros(5, 5)
    k[0, 2], k[1, 2], k[2, 2], k[3, 3], k[4, 1], k[2, 4] = 0.1, 0.2, 0.3, 0.2, 0.15, 0.05
    return k[None, None]


HEALTHY = {
    "denoise": lambda: problems.denoise(0.1),
    "denoise by channel": lambda: problems.denoise((0.1, 0.25, 0.5)),
    "inpaint": lambda: problems.inpaint(0.5, 0.05),
    "deblur": lambda: problems.deblur("gaussian:1.2"),
    "deblur by channel": lambda: problems.deblur("three-motions"),
    "deblur circular": lambda: problems.deblur("gaussian:1.2", "circular"),
    "superres": lambda: problems.superres(2),
    "superres circular": lambda: problems.superres(4, boundary="circular"),
}


@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY.keys())
def test_a_healthy_problem_passes(make):
    x = photo(channels=3)
    # a scene that is circular where the physics is: nothing contradicts its boundary
    y, physics = make().measure(x)
    diagnosis = doctor(physics, y)
    assert diagnosis.ok, str(diagnosis)
    checks = {f.check for f in diagnosis.findings}
    assert {"linearity", "adjoint", "norm", "null space", "guarantees", "finite", "noise", "range"} <= checks
    json.dumps(diagnosis.to_dict(), allow_nan=False)
    for finding in diagnosis.findings:
        assert finding.advice or finding.severity is OK


@pytest.mark.parametrize("padding", ["valid", "circular", "replicate", "reflect", "constant"])
@pytest.mark.parametrize("make", [Blur, Downsampling], ids=["blur", "subsampled"])
def test_the_boundary_is_named(padding, make):
    options = {} if make is Blur else {"img_size": (1, 32, 32), "factor": 2}
    diagnosis = doctor(make(filter=lopsided(), padding=padding, **options), img_size=(1, 32, 32))
    finding = one(diagnosis, "boundary")
    assert finding.numbers["boundary"] == {"constant": "zeros"}.get(padding, padding)
    assert finding.severity is (NOTE if padding in ("circular", "constant") else OK)
    assert one(diagnosis, "convolution").severity is OK


def test_a_boundary_that_deepinv_lacks_is_named_too():
    """SciPy's default: the edge is repeated."""

    def forward(x, **_):
        rows = torch.cat([x[..., :2, :].flip(-2), x, x[..., -2:, :].flip(-2)], -2)
        both = torch.cat([rows[..., :2].flip(-1), rows, rows[..., -2:].flip(-1)], -1)
        return F.conv2d(both, lopsided().flip(-2, -1).to(x))

    physics = LinearPhysics(A=forward, img_size=(1, 24, 24))
    diagnosis = doctor(physics, kernel=lopsided())
    assert one(diagnosis, "boundary").numbers["boundary"] == "symmetric"
    assert one(diagnosis, "convolution").severity is OK


def test_blurfft_is_circular_and_points_have_no_boundary():
    assert one(doctor(BlurFFT((1, 24, 24), lopsided())), "boundary").numbers["boundary"] == "circular"
    assert doctor(Denoising(), img_size=(1, 24, 24)).of("boundary") == ()
    assert doctor(Inpainting((1, 24, 24), mask=0.5)).of("boundary") == ()


def blurs(kernel):
    size = (1, 32, 32)
    return {
        "reflect": Blur(kernel, padding="reflect"),
        "valid": Blur(kernel, padding="valid"),
        "fft": BlurFFT(size, kernel),
        "subsampled": Downsampling(size, filter=kernel, factor=2, padding="reflect"),
        "subsampled valid": Downsampling(size, filter=kernel, factor=3, padding="valid"),
    }


@pytest.mark.parametrize("name", blurs(lopsided()))
def test_a_flipped_kernel_is_called_flipped(name):
    k = lopsided()
    right = one(doctor(blurs(k)[name], kernel=k, img_size=(1, 32, 32)), "convolution")
    assert right.severity is OK
    wrong = one(doctor(blurs(k.flip(-2, -1))[name], kernel=k, img_size=(1, 32, 32)), "convolution")
    assert wrong.severity is PROBLEM
    assert "your kernel is applied flipped" in wrong.found
    assert "kernel.flip(-2, -1)" in wrong.advice


def correlation(kernel, gain=1.0):
    """PyTorch's conv2d, which correlates, with zeros outside."""
    p = kernel.shape[-1] // 2
    return LinearPhysics(
        A=lambda x, **_: gain * F.conv2d(x, kernel.to(x), padding=p),
        A_adjoint=lambda y, **_: gain * F.conv_transpose2d(y, kernel.to(y), padding=p),
    )


def test_the_conv2d_of_torch_is_found_to_correlate():
    found = one(doctor(correlation(lopsided()), kernel=lopsided(), img_size=(1, 24, 24)), "convolution")
    assert "your kernel is applied flipped" in found.found
    turned = lopsided().flip(-2, -1)
    assert one(doctor(correlation(turned), kernel=lopsided(), img_size=(1, 24, 24)), "convolution").severity is OK


@pytest.mark.parametrize(
    ("change", "severity", "says"),
    [
        (lambda k: k.mT, PROBLEM, "transposed"),
        (lambda k: k.flip(-1), PROBLEM, "flipped left to right"),
        (lambda k: k.flip(-2), PROBLEM, "flipped upside down"),
        (lambda k: torch.roll(F.pad(k, (2, 2, 2, 2)), (1, -2), (-2, -1)), WARNING, "+1 rows, -2 columns"),
        (lambda k: 3 * k, WARNING, "times 3"),
        (lambda k: torch.ones_like(k) / k.numel(), PROBLEM, "a different kernel"),
    ],
    ids=["transposed", "left-right", "upside-down", "moved", "scaled", "other"],
)
def test_what_is_wrong_with_a_kernel_is_named(change, severity, says):
    physics = Blur(change(lopsided()), padding="reflect")
    found = one(doctor(physics, kernel=lopsided(), img_size=(1, 32, 32)), "convolution")
    assert found.severity is severity
    assert says in found.found


def test_a_symmetric_kernel_is_the_same_flipped():
    found = one(doctor(problems.deblur("gaussian:1.2").physics((1, 32, 32)), img_size=(1, 32, 32)), "convolution")
    assert found.severity is OK
    assert found.numbers["symmetric"]
    assert not one(doctor(Blur(lopsided(), padding="reflect")), "convolution").numbers["symmetric"]


def test_even_kernels_are_centred_either_way():
    k = rand(1, 1, 4, 6).abs()
    for padding in ("reflect", "circular"):
        assert one(doctor(Blur(k, padding=padding), img_size=(1, 32, 32)), "convolution").severity is OK
    assert one(doctor(BlurFFT((1, 32, 32), k)), "convolution").severity is OK


def test_a_kernel_for_what_is_no_convolution():
    for physics in (Inpainting((1, 16, 16), mask=0.5), dense(rand(6, 16), (1, 4, 4))):
        found = one(doctor(physics, kernel=lopsided(), img_size=physics.img_size or (1, 4, 4)), "convolution")
        assert found.severity is WARNING
        assert "not a convolution" in found.found
    small = one(doctor(BlurFFT((1, 8, 8), lopsided())), "convolution")
    assert small.severity is NOTE
    assert "too small" in small.found


@pytest.mark.parametrize(
    ("kernel", "severity", "says"),
    [
        (lopsided(), OK, "sums to 1"),
        (2 * lopsided(), WARNING, "sums to 2, not 1"),
        (F.pad(lopsided(), (4, 0, 0, 0)), WARNING, "from the middle"),
        (torch.full((1, 1, 4, 4), 1 / 16), NOTE, "even"),
        (torch.tensor([[[[-0.1, 1.2, -0.1]]]]), NOTE, "negative"),
    ],
    ids=["good", "sum", "off-centre", "even", "negative"],
)
def test_the_kernel_by_itself(kernel, severity, says):
    found = doctor(Blur(kernel, padding="circular"), img_size=(1, 32, 32)).of("kernel")
    assert [f.severity for f in found] == [severity]
    assert says in found[0].found


def test_wrong_adjoints():
    def physics(wrong):
        gains = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.5
        return LinearPhysics(A=lambda x, **_: gains.to(x) * x, A_adjoint=lambda y, **_: wrong(gains.to(y) * y))

    for wrong in (lambda y: 2 * y, lambda y: y.flip(-1), lambda y: -y, lambda y: 0 * y, lambda y: y + 1e300):
        diagnosis = doctor(physics(wrong), img_size=(1, 8, 8))
        assert one(diagnosis, "adjoint").severity is PROBLEM
        assert one(diagnosis, "guarantees").severity is PROBLEM
        assert diagnosis.of("norm") == ()
    slightly = one(doctor(physics(lambda y: y * (1 + 1e-4)), img_size=(1, 8, 8)), "adjoint")
    assert slightly.severity is WARNING
    assert slightly.numbers["float64"] > 1e-5
    good = one(doctor(physics(lambda y: y), img_size=(1, 8, 8)), "adjoint")
    assert good.severity is OK
    assert good.numbers["float64"] < 1e-14
    assert good.numbers["float32"] < 1e-6


def test_no_adjoint_at_all():
    finding = one(doctor(LinearPhysics(A=lambda x, **_: 2 * x), img_size=(1, 8, 8)), "adjoint")
    assert finding.severity is PROBLEM
    assert "img_size" in finding.advice


@pytest.mark.parametrize(
    ("A", "says"),
    [
        (lambda x, **_: x.clamp(-1, 1), "not linear"),
        (lambda x, **_: x + 1, "A(0) is not 0"),
        (lambda x, **_: x + torch.rand_like(x), "different results"),
        (lambda x, **_: x @ torch.ones(3, 3), "A failed"),
    ],
    ids=["clamp", "affine", "random", "raises"],
)
@pytest.mark.parametrize("kind", [LinearPhysics, Physics])
def test_not_linear(A, says, kind):
    diagnosis = doctor(kind(A=A), img_size=(1, 8, 8))
    found = one(diagnosis, "linearity")
    assert found.severity is PROBLEM
    assert says in found.found
    assert one(diagnosis, "guarantees").numbers["convex"] is False


def test_linear_but_not_by_type():
    found = one(doctor(Physics(A=lambda x, **_: 2 * x), img_size=(1, 8, 8)), "linearity")
    assert found.severity is PROBLEM
    assert "is linear" in found.found
    assert "LinearPhysics" in found.advice


def test_precision():
    """deepinv's BlurFFT loses its phase when torch casts it; a spatial blur does not."""
    lost = one(doctor(BlurFFT((1, 16, 16), lopsided())), "precision")
    assert lost.severity is NOTE
    assert lost.numbers["change"] > 0.01
    assert doctor(Blur(lopsided()), img_size=(1, 16, 16)).of("precision") == ()
    only = LinearPhysics(A=lambda x, **_: x @ torch.eye(8), A_adjoint=lambda y, **_: y @ torch.eye(8))
    found = one(doctor(only, img_size=(1, 8, 8)), "adjoint")
    assert found.severity is NOTE
    assert "float64 could not be tested" in found.found


def test_norm_and_scale(float64):
    matrix = rand(20, 16)
    true = float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    diagnosis = doctor(dense(matrix, (1, 4, 4)), rand(1, 1, 1, 20))
    norm = one(diagnosis, "norm")
    assert norm.numbers["kind"] == "estimated"
    assert true <= norm.numbers["sqnorm"][0] <= 1.051 * true
    assert one(doctor(dense(100 * matrix, (1, 4, 4)), rand(1, 1, 1, 20)), "scale").severity is WARNING
    assert one(doctor(dense(4 * matrix / true**0.5, (1, 4, 4)), rand(1, 1, 1, 20)), "scale").severity is NOTE
    assert doctor(dense(matrix / true**0.5, (1, 4, 4)), rand(1, 1, 1, 20)).of("scale") == ()
    assert one(doctor(Inpainting((1, 4, 4), mask=torch.zeros(1, 4, 4))), "norm").severity is PROBLEM


def test_null_space(float64):
    mask = (torch.arange(64) % 4 != 0).double().view(1, 1, 8, 8)
    found = one(doctor(Inpainting((1, 8, 8), mask=mask)), "null space")
    assert found.numbers["share_unobserved"] == [0.25]
    assert found.severity is NOTE
    lone = torch.eye(64)[0].view(1, 1, 8, 8)
    assert one(doctor(Inpainting((1, 8, 8), mask=lone)), "null space").severity is WARNING
    weights = one(doctor(Inpainting((1, 8, 8), mask=0.5 + torch.rand(1, 1, 8, 8))), "null space")
    assert weights.severity is OK
    assert weights.numbers["lambda_min"] >= 0.25
    fewer = one(doctor(Downsampling((1, 8, 8), filter=None, factor=2)), "null space")
    assert fewer.numbers["share_unseen"] == 0.75

    physics = Blur(lopsided().double() + F.pad(torch.ones(1, 1, 1, 1), (2, 2, 2, 2)), padding="circular")
    eigenvalues = torch.linalg.eigvalsh(as_matrix(lambda x: physics.A_adjoint(physics.A(x)), (1, 12, 12)))
    circular = one(doctor(physics, img_size=(1, 12, 12)), "null space").numbers
    assert circular["kind"] == "exact"
    assert circular["lambda_min"] == pytest.approx(float(eigenvalues[0]))
    physics.padding = "reflect"
    eigenvalues = torch.linalg.eigvals(as_matrix(lambda x: physics.A_adjoint(physics.A(x)), (1, 12, 12))).real
    bound = one(doctor(physics, img_size=(1, 12, 12)), "null space").numbers
    assert bound["kind"] == "estimated"
    assert float(eigenvalues.min()) <= bound["lambda_min"] <= 2 * float(eigenvalues.min())


def test_guarantees(float64):
    contraction = one(doctor(Inpainting((1, 4, 4), mask=torch.where(rand(1, 1, 4, 4) > 0, 1.0, 0.6))), "guarantees")
    assert contraction.numbers["contraction"]
    assert contraction.numbers["rho"] == pytest.approx(1 - 0.36)
    none = one(doctor(Inpainting((1, 4, 4), mask=0.5)), "guarantees")
    assert none.numbers == {
        "convex": "proved",
        "contraction": False,
        "rho": None,
        "ridge": "proved",
        "denoiser": "measured",
    }
    assert one(doctor(Blur(lopsided().double(), padding="reflect")), "guarantees").numbers["convex"] == "estimated"


def strongest(owner, y, physics):
    """The proved factor of a layer, at a step of 1/L."""
    return float(owner.guarantee(retune.DataTerm(y, physics)).factors().max())


@pytest.mark.parametrize("make", [*HEALTHY.values(), lambda: problems.inpaint(1.0)], ids=[*HEALTHY, "all pixels"])
def test_the_guarantees_are_those_of_the_maps(make):
    """Doctor promises a contraction where, and only where, the maps that it names have a factor below 1."""
    y, physics = make().measure(photo(channels=3))
    numbers = one(doctor(physics, y), "guarantees").numbers
    half = {"step_size": 0.5}
    orthonormal, redundant = (retune.priors.WaveletL1(w, levels=2) for w in ("db2", ("haar", "db2")))
    for prior in (orthonormal, L1Prior()):
        rho = strongest(retune.ForwardBackward(prior, **half), y, physics)
        assert (rho < 1 - 1e-6) is numbers["contraction"]
        if numbers["contraction"]:
            assert rho == pytest.approx(numbers["rho"], abs=1e-5)
    assert strongest(retune.ForwardBackward(redundant, **half), y, physics) == pytest.approx(1.0)
    ridge = retune.GradientStep(retune.priors.Ridge(3, (2, 3), (3, 3), convexity="convex"), **half)
    assert (strongest(ridge, y, physics) < 1 - 1e-6) is numbers["contraction"]


def test_a_redundant_frame_contracts_only_with_an_added_term():
    y, physics = problems.denoise(0.1).measure(photo())
    assert one(doctor(physics, y), "guarantees").numbers["contraction"]
    for wavelet, damping, contracts in (
        ("haar", 0.0, True),
        (("haar", "db2"), 0.0, False),
        (("haar", "db2"), 0.1, True),
    ):
        prior = retune.priors.WaveletL1(wavelet, levels=2)
        owner = retune.ForwardBackward(prior, step_size=0.5, strong_convexity=damping)
        assert (strongest(owner, y, physics) < 1 - 1e-6) is contracts


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


def test_tomography():
    exact = doctor(Tomography(angles=12, img_width=16, normalize=True))
    assert exact.ok
    assert one(exact, "adjoint").numbers["float64"] < 1e-12
    unmatched = Tomography(angles=12, img_width=16, normalize=True, adjoint_via_backprop=False)
    assert one(doctor(unmatched), "adjoint").severity in (WARNING, PROBLEM)


@pytest.mark.parametrize("name", ["reflect", "fft", "subsampled"])
def test_nothing_given_is_modified(name):
    physics = blurs(lopsided())[name]
    physics.set_noise_model(GaussianNoise(0.1, rng=torch.Generator().manual_seed(3)))
    x = photo(32)
    y = physics(x)
    state = {k: v.clone() for k, v in physics.state_dict().items()}
    kept, plain, random = (
        y.clone(),
        {k: v for k, v in vars(physics).items() if isinstance(v, tuple)},
        torch.get_rng_state(),
    )
    noise = physics.noise_model.rng.get_state()
    doctor(physics, y, kernel=lopsided(), x=x)
    assert torch.equal(y, kept)
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(noise, physics.noise_model.rng.get_state())
    assert {k: v for k, v in vars(physics).items() if isinstance(v, tuple)} == plain
    after = physics.state_dict()
    assert all(v.dtype == after[k].dtype and torch.equal(v, after[k]) for k, v in state.items())


def test_batches_and_precision():
    physics = Inpainting((1, 16, 16), mask=torch.stack([torch.ones(1, 16, 16), torch.eye(16)[None]]))
    found = doctor(physics)
    assert found.subject == "Inpainting on images 2×1×16×16, float32"
    assert one(found, "null space").numbers["share_unobserved"] == [0.0, 1 - 1 / 16]
    assert "float64" in doctor(Denoising(), photo().double()).subject


def test_a_learned_mask_with_a_graph():
    mask = torch.rand(1, 1, 8, 8, requires_grad=True) * 2
    assert one(doctor(Inpainting((1, 8, 8), mask=mask)), "norm").severity is OK


def test_a_physics_that_cannot_be_copied(tmp_path):
    with open(tmp_path / "a", "w") as handle:
        physics = Denoising()
        physics.log = handle
        assert one(doctor(physics), "copy").severity is NOTE


def test_what_cannot_be_copied_is_tested_in_its_own_precision():
    """As deepinv's NonCartesianMRI, whose library holds pointers: its adjoint is right, and is not called wrong."""
    physics = LinearPhysics(A=lambda x, **_: x.roll(1, -1), A_adjoint=lambda y, **_: y.roll(-1, -1))
    physics.plan = ctypes.pointer(ctypes.c_int(1))
    finding = one(doctor(physics, img_size=(1, 16, 16)), "adjoint")
    assert finding.severity is NOTE
    assert finding.numbers.keys() == {"float32"}
    assert "cannot be copied" in finding.advice
    physics.A_adjoint = lambda y, **_: y
    assert one(doctor(physics, img_size=(1, 16, 16)), "adjoint").severity is PROBLEM


def test_what_is_printed():
    y = 255 * photo()
    diagnosis = doctor(Blur(lopsided().flip(-2, -1), padding="reflect"), y, kernel=lopsided())
    assert not diagnosis.ok
    assert diagnosis.worst is PROBLEM
    text = str(diagnosis)
    assert text.splitlines()[0] == "Blur on images 1×1×64×64, float32"
    assert text.index("applied flipped") < text.index("A(2a + b)")  # the gravest first
    assert "→ Divide y by 255" in text
    assert max(map(len, text.splitlines())) <= 110
    plain = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert plain["worst"] == "problem"
    assert [f["check"] for f in plain["findings"]] == [f.check for f in diagnosis.findings]


def test_numbers_that_are_not_finite_are_still_json():
    assert Finding("a", OK, "", "", {"b": [float("inf"), 1.0], "c": float("nan")}).to_dict()["numbers"] == {
        "b": [None, 1.0],
        "c": None,
    }


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: doctor(torch.nn.Identity()), PhysicsError, "Identity; wrap"),
        (lambda: doctor(Denoising), PhysicsError, "the class Denoising itself"),
        (lambda: doctor(LinearPhysics(A=lambda x, **_: x)), InvalidParameterError, r"img_size=\(C, H, W\)"),
        (lambda: doctor(Denoising(), "y"), ShapeError, "must be a tensor"),
        (lambda: doctor(Denoising(), torch.zeros(0, 1, 8, 8)), ShapeError, "empty"),
        (lambda: doctor(Denoising(), photo(), x=photo()[0]), ShapeError, r"x must be a batch"),
        (lambda: doctor(Denoising(), x=photo()), InvalidParameterError, "give y as well"),
        (lambda: doctor(Denoising(), photo(), x=np.zeros(3)), InvalidParameterError, "x must be a tensor"),
        (lambda: doctor(Denoising(), img_size=(8, 8)), InvalidParameterError, r"got \(8, 8\)"),
        (lambda: doctor(Denoising(), kernel="gausian"), UnknownNameError, "gaussian"),
        (lambda: doctor(Denoising(), kernel=torch.full((3, 3), torch.nan)), NotFiniteError, "NaN"),
    ],
)
def test_unusable_input(call, error, says):
    with pytest.raises(error, match=says):
        call()


def test_it_is_found_under_its_name():
    importlib.import_module("retune.diagnosis.doctor")  # must not put a module in the place of the function
    assert retune.doctor is doctor
    assert callable(doctor)


FOURIER = LinearPhysics(
    A=lambda x, **_: torch.fft.fft2(x, norm="ortho"), A_adjoint=lambda y, **_: torch.fft.ifft2(y, norm="ortho")
)


def test_complex_images_are_a_finding():
    diagnosis = doctor(FOURIER, FOURIER.A(rand(1, 1, 16, 16)))
    assert "complex images are not supported" in one(diagnosis, "images").found
    assert diagnosis.of("noise") == ()


def test_volumes_are_refused_by_name():
    with pytest.raises(ShapeError, match=r"volumes and sequences \(B, C, D, H, W\) are not supported yet"):
        doctor(Denoising(), rand(1, 1, 4, 16, 16))


def test_what_is_no_picture_is_not_judged_as_one():
    physics = MRI(mask=(rand(1, 1, 32, 32) > 0.5).to(torch.get_default_dtype()), img_size=(32, 32))
    diagnosis = doctor(physics, physics.A(rand(1, 2, 32, 32)))
    assert diagnosis.of("range") == diagnosis.of("clipping") == ()
    assert "not a picture" in one(diagnosis, "noise").found


@pytest.mark.filterwarnings("ignore:At least one input physics is a DecomposablePhysics")
def test_a_mask_inside_a_composition_is_no_clipping():
    mask, blur = Inpainting((1, 32, 32), mask=0.5), Blur(problems.kernel("gaussian:1.0"), padding="reflect")
    physics = mask * blur
    diagnosis = doctor(physics, physics.A(rand(1, 1, 32, 32)))
    assert one(diagnosis, "clipping").severity is OK


def test_stacked_measurements_are_examined():
    assert doctor(Pansharpen((3, 32, 32)), img_size=(3, 32, 32)).ok


def test_advice_on_a_wrong_adjoint_works():
    wrong = LinearPhysics(A=lambda x, **_: x.roll(1, -1), A_adjoint=lambda y, **_: y)
    advice = one(doctor(wrong, img_size=(1, 16, 16)), "adjoint").advice
    assert "deepinv.physics.LinearPhysics(A=physics.A, img_size=(1, 16, 16))" in advice
    assert doctor(eval("LinearPhysics(A=physics.A, img_size=(1, 16, 16))", {**globals(), "physics": wrong})).ok
    sinogram = Tomography(angles=12, img_width=16, adjoint_via_backprop=False, normalize=True)
    assert "adjoint_via_backprop=True" in one(doctor(sinogram), "adjoint").advice
    outside = LinearPhysics(A=lambda x, **_: x.detach().roll(1, -1), A_adjoint=lambda y, **_: y)
    assert "Correct A_adjoint. Leaving it out" in one(doctor(outside, img_size=(1, 16, 16)), "adjoint").advice


def ptychography():
    return PtychographyLinearOperator((1, 32, 32), probe=torch.ones(1, 32, 32), shifts=torch.tensor([[0, 0], [3, 4]]))


class TwoChannels(LinearPhysics):
    """What the advice on complex images says: real and imaginary part are two channels."""

    def __init__(self, physics):
        super().__init__(img_size=(2, 32, 32))
        self.physics_of_complex = physics

    def A(self, x, **_):
        return self.physics_of_complex.A(torch.view_as_complex(x.movedim(1, -1).contiguous())[:, None])

    def A_adjoint(self, y, **_):
        return torch.view_as_real(self.physics_of_complex.A_adjoint(y)[:, 0]).movedim(-1, 1)


def test_advice_on_complex_images_works():
    """Of ptychography's linear part, whatever of size, image and measurement is given."""
    physics, x = ptychography(), photo(32)
    for given in ({}, {"y": physics.A(x + 0j)}):
        found = one(doctor(physics, given.get("y"), img_size=(1, 32, 32)), "images")
        assert found.severity is PROBLEM
        assert "torch.view_as_complex inside A" in found.advice
    both = TwoChannels(physics)
    assert doctor(both, both.A(torch.cat([x, x], 1))).ok
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL12("haar", 1, channels=2), reg=0.01), 5, 3)
    result = net.eval().solve(both.A(torch.cat([x, 0.5 * x], 1)), both, stop=retune.Stop(1e-3, 500))
    assert float((result.image - torch.cat([x, 0.5 * x], 1)).square().mean().sqrt()) < 0.05


def test_advice_on_measurements_without_a_phase_works():
    """|Bx|² is not linear. Its linear part is restored with, once the phase is known."""
    shifts = torch.tensor([[0, 0], [3, 4]])
    physics, x = Ptychography((1, 32, 32), probe=torch.ones(1, 32, 32), shifts=shifts), photo(32)
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL12("haar", 1, channels=2), reg=0.01), 5, 3)
    for y in (None, physics.A(x + 0j)):
        found = one(doctor(physics, y, img_size=(1, 32, 32)), "linearity")
        assert found.severity is PROBLEM
        assert "give the linear part physics.B" in found.advice
    with pytest.raises(PhysicsError, match=r"got Ptychography\. .* give the linear part physics\.B"):
        net.solve(physics.A(x + 0j), physics)
    whole = torch.cat([x, 0.5 * x], 1)
    both = TwoChannels(physics.B)  # the next advice: doctor calls its images complex
    y = both.A(whole)
    assert torch.allclose(y.abs().square(), physics.A(torch.complex(x, 0.5 * x)), rtol=1e-4, atol=1e-4)
    assert "torch.view_as_complex inside A" in one(doctor(physics.B, y, img_size=(1, 32, 32)), "images").advice
    assert doctor(both, y).ok
    assert float((net.eval().solve(y, both, stop=retune.Stop(1e-3, 500)).image - whole).square().mean().sqrt()) < 0.05


@pytest.mark.parametrize("scale", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:At least one input physics is a DecomposablePhysics")
def test_advice_on_a_mask_at_each_of_its_scales_works(scale):
    torch.manual_seed(0)
    x = F.avg_pool2d(photo(32) + 0.01 * torch.randn(1, 1, 32, 32), 2**scale)
    physics = InpaintingMultiScaler(Inpainting((1, 32, 32), mask=0.7), (1, 32, 32), factors=[2, 4])
    physics.set_scale(scale)
    if scale:  # the image is smaller than the physics says
        assert "Check the image size" in one(doctor(physics), "linearity").advice

    size = tuple(x.shape[1:])
    found = doctor(physics, physics.A(x), img_size=size)
    assert found.ok, found
    used, norm = physics, max(one(found, "norm").numbers["sqnorm"]) ** 0.5
    for finding in found.of("scale"):
        assert "Divide A and y by ‖A‖" in finding.advice
        used = LinearPhysics(A=lambda v, **_: physics.A(v) / norm, A_adjoint=lambda y, **_: physics.A_adjoint(y) / norm)
        assert not doctor(used, used.A(x), img_size=size).of("scale")
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL12("haar", 1, channels=1), reg=1e-3), 5, 3)
    restored = net.eval().solve(used.A(x), used, stop=retune.Stop(1e-4, 2000))
    assert not restored.status[0].failed
    assert float((used.A(restored.image) - used.A(x)).norm() / used.A(x).norm()) < 0.05


def test_advice_on_a_tomography_works():
    x = photo(32)
    wrong = Tomography(angles=20, img_width=32, adjoint_via_backprop=False, normalize=True)
    assert "adjoint_via_backprop=True" in one(doctor(wrong, wrong.A(x), img_size=(1, 32, 32)), "adjoint").advice
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL12("haar", 1, channels=1), reg=0.01), 5, 3)
    with pytest.raises(PhysicsError, match="Build Tomography with adjoint_via_backprop=True"):
        net.solve(wrong.A(x), wrong)
    right = Tomography(angles=20, img_width=32, adjoint_via_backprop=True, normalize=True)
    assert doctor(right, right.A(x), img_size=(1, 32, 32)).ok
    assert not net.eval().solve(right.A(x), right, stop=retune.Stop(1e-2, 100)).status[0].failed


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearPhysicsMultiScaler(
            BlurFFT((1, 32, 32), problems.kernel("gaussian:1")), (1, 32, 32), factors=[2, 4]
        ),
        lambda: LinearPhysicsMultiScaler(Inpainting((1, 32, 32), mask=0.5), (1, 32, 32), factors=[2, 4]),
        lambda: Pansharpen((3, 32, 32), factor=4),
    ],
    ids=["blur at scales", "mask at scales", "pansharpening"],
)
@pytest.mark.filterwarnings("ignore:At least one input physics is a DecomposablePhysics")
def test_operators_of_several_scales_are_sound_and_restored_with(make):
    physics = make()
    x = photo(32, 3 if isinstance(physics, Pansharpen) else 1)
    y = physics.A(x)
    diagnosis = doctor(physics, y, img_size=tuple(x.shape[1:]))
    assert diagnosis.ok, diagnosis
    net = retune.Restarted(
        retune.ForwardBackward(retune.priors.WaveletL12("haar", 1, channels=x.shape[1]), reg=0.01), 5, 3
    )
    result = net.eval().solve(y, physics, stop=retune.Stop(1e-2, 200))
    assert not result.status[0].failed
    assert float((result.image - x).square().mean()) < float(x.square().mean())


def test_an_operator_that_gives_nan_is_not_called_linear():
    mask = torch.full((1, 1, 8, 8), float("nan"))
    found = one(doctor(Inpainting((1, 8, 8), mask=mask), img_size=(1, 8, 8)), "linearity")
    assert found.severity is Severity.PROBLEM
    assert found.found == "A gives NaN or Inf for a finite image"
