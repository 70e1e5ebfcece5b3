"""The operator as such, and the report: healthy ones pass quietly, broken ones are found, nothing is modified."""

from __future__ import annotations

import ctypes
import importlib
import json

import numpy as np
import pytest
import torch
from deepinv.physics import Blur, BlurFFT, Denoising, GaussianNoise, Inpainting, LinearPhysics, Physics, Tomography

import retune
from examined import HEALTHY, NOTE, OK, PROBLEM, WARNING, blurs, lopsided, one, photo
from retune import doctor
from retune.diagnosis import Finding
from retune.errors import InvalidParameterError, NotFiniteError, PhysicsError, ShapeError, UnknownNameError


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
