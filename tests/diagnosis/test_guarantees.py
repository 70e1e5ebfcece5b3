"""The norm, the null space, and the guarantees that they allow."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from deepinv.optim.prior import L1Prior
from deepinv.physics import Blur, Downsampling, Inpainting

import retune
from examined import HEALTHY, NOTE, OK, PROBLEM, WARNING, lopsided, one, photo
from retune import doctor, problems
from small_parts import as_matrix, dense, rand


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
