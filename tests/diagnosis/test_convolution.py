"""The kernel and the boundary: each is recognised, and each fault is named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from deepinv.physics import Blur, BlurFFT, Denoising, Downsampling, Inpainting, LinearPhysics

from examined import NOTE, OK, PROBLEM, WARNING, blurs, correlation, lopsided, one
from retune import doctor, problems
from small_parts import dense, rand


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


@pytest.mark.parametrize("name", blurs(lopsided()))
def test_a_flipped_kernel_is_called_flipped(name):
    k = lopsided()
    right = one(doctor(blurs(k)[name], kernel=k, img_size=(1, 32, 32)), "convolution")
    assert right.severity is OK
    wrong = one(doctor(blurs(k.flip(-2, -1))[name], kernel=k, img_size=(1, 32, 32)), "convolution")
    assert wrong.severity is PROBLEM
    assert "your kernel is applied flipped" in wrong.found
    assert "kernel.flip(-2, -1)" in wrong.advice


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
