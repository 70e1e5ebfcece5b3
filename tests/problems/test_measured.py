"""Problems on the user's own data: kernels and masks from files, noise levels, boundaries, a physics by name."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import retune
from retune import problems
from retune.errors import AdjustedWarning, InvalidParameterError, NotFiniteError, PhysicsError, ShapeError
from retune.problems.masks import read_mask
from retune.problems.measured import Measurements
from retune.problems.noise import estimate_noise
from retune.problems.own import OwnPhysics
from small_parts import as_matrix, rand


def a_kernel(side=3):
    taps = np.random.default_rng(0).random((side, side))
    return (taps / taps.sum()).astype(np.float32)


@pytest.mark.parametrize("name", ["k.npy", "k.tif"])
def test_a_kernel_from_a_file_is_used_as_it_is_if_it_sums_to_1(tmp_path, name):
    taps = a_kernel()
    np.save(tmp_path / name, taps) if name.endswith("npy") else tifffile.imwrite(tmp_path / name, taps)
    assert torch.allclose(problems.kernel(str(tmp_path / name))[0, 0], torch.from_numpy(taps), atol=1e-7)


def test_a_kernel_that_does_not_sum_to_1_is_normalised_and_said_so(tmp_path):
    np.save(tmp_path / "k.npy", 7 * a_kernel())
    with pytest.warns(AdjustedWarning, match="sums to 7, not to 1: it was divided"):
        taps = problems.kernel(str(tmp_path / "k.npy"))
    assert torch.allclose(taps[0, 0], torch.from_numpy(a_kernel()), atol=1e-6)


def test_what_identifies_a_problem_is_the_kernel_and_not_its_file(tmp_path):
    taps = a_kernel()
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, taps)
    np.save(tmp_path / "c.npy", taps.T)
    a, b, c = (problems.deblur(str(tmp_path / f"{n}.npy")).identity() for n in "abc")
    assert a == b == problems.deblur(taps).identity() != c
    assert problems.deblur("gaussian:1.6").identity() == repr(problems.deblur("gaussian:1.6"))
    mask = torch.ones(4, 4)
    masks = [problems.inpaint(mask=mask), problems.inpaint(mask=mask.tril())]
    assert masks[0].identity() != masks[1].identity()
    assert Measurements(masks[0]).identity() != Measurements(masks[1]).identity()


def test_a_kernel_from_an_image(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (5, 4), dtype=np.uint8)
    Image.fromarray(grey).convert("RGB").save(tmp_path / "k.png")
    with pytest.warns(AdjustedWarning, match=r"\(integers\), not to 1"):
        taps = problems.kernel(str(tmp_path / "k.png"))
    assert taps.shape == (1, 1, 5, 4)  # one kernel for all channels, not three
    assert torch.allclose(taps[0, 0], torch.from_numpy(grey / grey.sum()).float(), atol=1e-6)


def test_a_colour_kernel_is_normalised_per_channel(tmp_path):
    np.save(tmp_path / "k.npy", np.stack([a_kernel() * s for s in (1, 2, 3)], -1))
    with pytest.warns(AdjustedWarning, match="sums to 1, 2, 3"):
        taps = problems.kernel(str(tmp_path / "k.npy"))
    assert torch.allclose(taps.sum((-2, -1)), torch.ones(1, 3), atol=1e-5)


@pytest.mark.parametrize(
    ("array", "error", "says"),
    [
        (np.zeros((3, 3), np.float32), InvalidParameterError, "sums to"),
        (np.array([[1.0, -1.0]], np.float32), InvalidParameterError, "sums to"),
        (np.full((3, 3), np.nan, np.float32), NotFiniteError, "NaN"),
        (np.ones((2, 3, 3, 1), np.float32), ShapeError, "holds 2 images"),
    ],
)
def test_bad_kernel_files(tmp_path, array, error, says):
    np.save(tmp_path / "k.npy", array)
    with pytest.raises(error, match=says):
        problems.kernel(str(tmp_path / "k.npy"))


@pytest.mark.parametrize("boundary", ["reflect", "circular", "valid"])
def test_a_kernel_larger_than_the_image(boundary):
    with pytest.raises(InvalidParameterError, match=r"\(11, 11\) is too large for images \(10, 20\)"):
        problems.deblur("uniform:11", boundary).physics((1, 10, 20))


@pytest.mark.parametrize("sides", [(3, 5), (4, 3), (5, 2)])
def test_valid_boundary_sees_what_the_kernel_reaches(float64, sides):
    taps = torch.rand(*sides)
    problem = problems.deblur(taps, "valid", sigma=0.0)
    x = rand(1, 2, 9, 8)
    y, physics = problem.measure(x)
    assert tuple(y.shape[1:]) == (2, 9 - sides[0] + 1, 8 - sides[1] + 1)
    assert problem.image_size(tuple(y.shape[1:])) == tuple(x.shape[1:])
    assert problem.operator(y).A(x).shape == y.shape
    assert problem.frame(x).shape == y.shape
    # A delta kernel where deepinv centres it leaves the visible frame as it is.
    delta = torch.zeros(sides)
    delta[sides[0] // 2, sides[1] // 2] = 1
    assert torch.allclose(
        problems.deblur(delta, "valid", sigma=0.0).measure(x)[0], problems.deblur(delta, "valid").frame(x)
    )
    matrix = as_matrix(lambda z: physics.A(z), (2, 9, 8))
    assert torch.allclose(as_matrix(lambda z: physics.A_adjoint(z), tuple(y.shape[1:])), matrix.T, atol=1e-12)
    assert retune.DataTerm(y, physics).sqnorm >= torch.linalg.matrix_norm(matrix, 2) ** 2 * (1 - 1e-9)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_superresolution(factor):
    problem = problems.superres(factor, sigma=0.0)
    x = rand(2, 3, 24, 36)
    y, physics = problem.measure(x)
    assert tuple(y.shape[-2:]) == (24 // factor, 36 // factor)
    assert problem.image_size(tuple(y.shape[1:])) == (3, 24, 36)
    assert torch.equal(problem.operator(y).A(x), physics.A(x))
    assert torch.allclose(physics.A(torch.ones_like(x)), torch.ones_like(y), atol=1e-5)


def test_a_mask_from_a_file(tmp_path):
    mask = np.zeros((6, 8), np.uint8)
    mask[::2] = 200
    Image.fromarray(mask).save(tmp_path / "m.png")
    problem = problems.inpaint(mask=str(tmp_path / "m.png"), sigma=0.0)
    y = torch.ones(1, 3, 6, 8)
    assert torch.equal(problem.operator(y).A(y), torch.from_numpy((mask > 0).astype(np.float32)).expand(1, 3, 6, 8))
    with pytest.raises(ShapeError, match=r"mask has shape \(1, 6, 8\), the image \(3, 6, 9\)"):
        problem.operator(torch.ones(1, 3, 6, 9))


def test_crops_get_random_parts_of_the_mask():
    mask = (rand(20, 30) > 0).float()
    problem = problems.inpaint(mask=mask, sigma=0.0)
    ones = torch.ones(4, 3, 8, 8)
    y, _ = problem.measure(ones, seed=1)
    windows = mask.unfold(0, 8, 1).unfold(1, 8, 1).reshape(-1, 8, 8)
    assert all((windows == y[i, 0]).all((1, 2)).any() for i in range(4))
    assert not torch.equal(y[0], y[1])
    assert torch.equal(y, problem.measure(ones, seed=1)[0])
    assert torch.equal(problem.measure(torch.ones(1, 3, 20, 30))[0][0, 0], mask)
    with pytest.raises(ShapeError, match="does not cover"):
        problem.measure(torch.ones(1, 3, 21, 8))


def test_a_random_mask_is_no_operator_to_restore_from():
    with pytest.raises(InvalidParameterError, match="--mask"):
        problems.inpaint().operator(torch.rand(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("mask", "error", "says"),
    [
        (torch.rand(4, 4), InvalidParameterError, "16 different values"),
        (torch.zeros(4, 4), InvalidParameterError, "black everywhere"),
        (torch.tensor([[0.0, -1.0]]), InvalidParameterError, "values"),
        (torch.tensor([[0.5, 1.0]]), InvalidParameterError, "2 different values"),
        (torch.ones(2, 1, 4, 4), ShapeError, "one image"),
        (torch.ones(4), ShapeError, "one image"),
    ],
)
def test_bad_masks(mask, error, says):
    with pytest.raises(error, match=says):
        read_mask(mask)


def test_a_white_mask_and_one_with_channels():
    assert torch.equal(read_mask(torch.ones(3, 4, 4)), torch.ones(1, 1, 4, 4))
    coloured = torch.ones(3, 4, 4)
    coloured[1, 2, 2] = 0
    assert torch.equal(read_mask(coloured), coloured[None])


def test_noise_is_estimated_per_channel():
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4), size=(128, 128), mode="bilinear")
    levels = torch.tensor([0.02, 0.05, 0.1])
    estimated = estimate_noise(x + levels.view(1, 3, 1, 1) * rand(1, 3, 128, 128))
    assert estimated == pytest.approx(levels.tolist(), rel=0.05)
    assert estimate_noise((x + 0.05 * rand(1, 3, 128, 128))[:, :1]) == pytest.approx(0.05, rel=0.05)
    with pytest.raises(InvalidParameterError, match="no noise is visible"):
        estimate_noise(torch.full((1, 1, 32, 32), 0.5))


def test_a_physics_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_scanner.py").write_text(
        "from deepinv.physics import LinearPhysics\n"
        "def scan(img_size, device, gain=1.0):\n"
        "    return LinearPhysics(A=lambda x, **_: gain * x, A_adjoint=lambda y, **_: gain * y)\n"
        "def wrong(img_size, device):\n    return 3\n"
    )
    problem = OwnPhysics("my_scanner:scan", sigma=0.0, options={"gain": 0.5})
    x = torch.rand(2, 3, 5, 6)
    y, physics = problem.measure(x)
    assert torch.allclose(y, 0.5 * x)
    assert torch.allclose(problem.operator(y).A(x), y)
    assert problem.describe() == {"name": "my_scanner:scan", "options": {"gain": 0.5}, "sigma": 0.0}
    noisy, _ = OwnPhysics("my_scanner:scan", sigma=0.3).measure(torch.zeros(1, 1, 64, 64))
    assert noisy.std() == pytest.approx(0.3, rel=0.1)
    for name, error, says in (
        ("my_scanner:scn", InvalidParameterError, "did you mean 'scan'"),
        ("no_such_module:f", InvalidParameterError, "cannot import"),
        ("my_scanner:wrong", PhysicsError, "got int"),
    ):
        with pytest.raises(error, match=says):
            OwnPhysics(name).measure(x)
    with pytest.raises(InvalidParameterError, match="gian"):
        OwnPhysics("my_scanner:scan", options={"gian": 1}).measure(x)
    del physics


def test_a_file_may_be_the_filter_before_subsampling(tmp_path):
    np.save(tmp_path / "k.npy", a_kernel())
    x = rand(1, 1, 12, 14)
    one, two = (problems.superres(2, k).measure(x, 3)[0] for k in (str(tmp_path / "k.npy"), a_kernel()))
    assert torch.allclose(one, two, atol=1e-6)


def test_the_noise_model_of_a_physics_by_name_is_kept(tmp_path, monkeypatch):
    (tmp_path / "poissonian.py").write_text(
        "import deepinv as dinv\n"
        "def counts(img_size, device):\n"
        "    return dinv.physics.Denoising(dinv.physics.PoissonNoise(0.1))\n"
        "def silent(img_size, device):\n"
        "    return dinv.physics.LinearPhysics(img_size=img_size)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    x = torch.ones(1, 1, 8, 8)
    y, physics = OwnPhysics("poissonian:counts", sigma=0.05).measure(x)
    assert type(physics.noise_model).__name__ == "PoissonNoise"
    assert torch.allclose(y / 0.1, (y / 0.1).round(), atol=1e-4)  # counts
    assert type(OwnPhysics("poissonian:silent", sigma=0.05).physics((1, 8, 8)).noise_model).__name__ == "GaussianNoise"


def test_problems_say_what_they_can():
    y = torch.rand(1, 1, 8, 8)
    mask = torch.ones(8, 8)
    mask[2:4] = 0
    known, drawn = problems.inpaint(mask=mask), problems.inpaint()
    assert torch.equal(known.observed(y)[0, 0], mask > 0)
    assert (known.has_gaps, known.mirrors, known.subsamples, known.has_parts) == (True, True, False, True)
    with pytest.raises(InvalidParameterError, match="--mask FILE"):
        drawn.observed(y)
    blur = problems.deblur("gaussian:1.0")
    assert blur.observed(y) is None
    assert blur.crop().boundary == "valid"
    assert (blur.has_gaps, blur.mirrors) == (False, False)
    assert problems.superres(2).subsamples
    assert OwnPhysics.has_parts is False
