"""The problems by name: reproducible, built as deepinv physics, with clear errors."""

from __future__ import annotations

import pytest
import torch
from deepinv.physics import Blur, BlurFFT, Denoising, Downsampling, Inpainting

from retune import DataTerm, problems
from retune.errors import InvalidParameterError, NotFiniteError, ShapeError, UnknownNameError
from retune.operators import facts


def image(channels=3, height=40, width=37, dtype=torch.float32):
    return torch.rand(2, channels, height, width, dtype=dtype)


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("denoise", {"sigma": 0.1}, Denoising),
        ("denoise", {"sigma": (0.1, 0.25, 0.5)}, Denoising),
        ("inpaint", {"keep": 0.1}, Inpainting),
        ("deblur", {"boundary": "reflect"}, Blur),
        ("deblur", {"boundary": "circular", "kernel": "gaussian:1.6"}, BlurFFT),
        ("deblur", {"kernel": "uniform:5"}, Blur),
        ("deblur", {"kernel": "motion:9@30", "sigma": 0.1}, Blur),
        ("superres", {}, Downsampling),
        ("superres", {"factor": 3, "kernel": None}, Downsampling),
        ("superres", {"factor": 4, "kernel": "gaussian:1.6", "boundary": "circular"}, Downsampling),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_seed_same_measurement(name, options, kind, dtype):
    x = image(dtype=dtype)
    problem = problems.get(name, **options)
    y, physics = problem.measure(x, seed=3)
    again, _ = problem.measure(x, seed=3)
    other, _ = problem.measure(x, seed=4)
    assert isinstance(physics, kind)
    assert y.dtype == dtype
    assert torch.equal(y, again)
    assert not torch.equal(y, other)


def test_the_global_generator_is_left_alone():
    x = image()
    before = torch.get_rng_state()
    for name in problems.names():
        problems.get(name).measure(x, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_noise_levels_per_channel():
    x = torch.zeros(1, 3, 200, 200)
    y, _ = problems.denoise((0.1, 0.25, 0.5)).measure(x, seed=0)
    assert torch.allclose(y.std((0, 2, 3)), torch.tensor([0.1, 0.25, 0.5]), rtol=0.02)


def test_inpainting_keeps_the_share_and_masks_all_channels_together():
    x = torch.ones(2, 3, 100, 100)
    y, physics = problems.inpaint(keep=0.1, sigma=0.0).measure(x, seed=0)
    assert abs(y.mean().item() - 0.1) < 0.01
    assert torch.equal(y[:, 0], y[:, 2])
    assert not torch.equal(y[0], y[1])  # a mask of its own for every image
    assert torch.equal(physics.A(x), y)


def test_three_motions_are_lines_of_25_pixels():
    taps = problems.kernel("three-motions")
    assert taps.shape == (1, 3, 25, 25)
    assert torch.allclose(taps.sum((-2, -1)), torch.ones(1, 3))
    vertical, horizontal, diagonal = taps[0]
    assert torch.equal(vertical[:, 12], torch.full((25,), 1 / 25))
    assert torch.equal(horizontal, vertical.T)
    assert torch.equal(diagonal, torch.eye(25) / 25)


@pytest.mark.parametrize("spec", ["gaussian:2", "uniform:9", "motion:15@30", "motion:1", "motion:8@90"])
def test_kernels_sum_to_one(spec):
    taps = problems.kernel(spec)
    assert taps.ndim == 4
    assert (taps >= 0).all()
    assert taps.sum().item() == pytest.approx(1, abs=1e-6)


def test_a_horizontal_motion_is_one_row():
    taps = problems.kernel("motion:9@0")[0, 0]
    assert torch.allclose(taps[4].sum(), torch.tensor(1.0))


def test_the_operator_of_a_blur_is_made_once():
    problem = problems.deblur()
    assert problem.physics((3, 64, 64), seed=0) is problem.physics((3, 64, 64), seed=9)
    assert problem.physics((3, 64, 64)) is not problem.physics((3, 64, 65))


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("size", [(24, 36), (25, 37), (23, 26)], ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("boundary", ["reflect", "circular"])
def test_superres_at_any_size(factor, size, boundary):
    """⌈H/s⌉ × ⌈W/s⌉ samples, the image comes back at its own size, and a constant image stays constant."""
    x = torch.full((2, 3, *size), 0.7)
    y, physics = problems.superres(factor, boundary=boundary, sigma=0.0).measure(x)
    assert y.shape == (2, 3, -(-size[0] // factor), -(-size[1] // factor))
    assert torch.allclose(y, torch.full_like(y, 0.7), atol=1e-6)
    problem = DataTerm(y, physics)
    assert problem.shape == x.shape
    divisible = size[0] % factor == 0 and size[1] % factor == 0
    assert problem.sqnorm_kind == ("exact" if boundary == "circular" and divisible else "estimated")


def test_superres_keeps_every_second_pixel_without_a_filter():
    x = image()
    y, _ = problems.superres(2, kernel=None, sigma=0.0).measure(x)
    assert torch.equal(y, x[..., ::2, ::2])


def test_the_operator_of_superres_is_examined_once(monkeypatch):
    """deepinv replaces buffers of Downsampling at every call; what is known of it stays known."""
    calls = []
    examine = facts._examine
    monkeypatch.setattr(facts, "_examine", lambda *args: calls.append(1) or examine(*args))
    problem = problems.superres(2)
    y, physics = problem.measure(image())
    before = DataTerm(y, physics).sqnorm[0]
    for seed in range(3):
        DataTerm(*problem.measure(image(), seed=seed))
    assert len(calls) == 1
    physics.update(filter=physics.filter * 2)
    torch.testing.assert_close(DataTerm(y, physics).sqnorm[0], 4 * before)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: problems.get("debluring"), UnknownNameError, "did you mean 'deblur'"),
        (lambda: problems.get("inpaint", kep=0.5), InvalidParameterError, "kep"),
        (lambda: problems.inpaint(keep=0.0), InvalidParameterError, "0.0"),
        (lambda: problems.inpaint(sigma=-1), InvalidParameterError, "-1"),
        (lambda: problems.deblur(boundary="reflct"), UnknownNameError, "did you mean 'reflect'"),
        (lambda: problems.deblur("gausian:2"), UnknownNameError, "gaussian"),
        (lambda: problems.deblur("gaussian:x"), InvalidParameterError, "gaussian:x"),
        (lambda: problems.deblur("motion:-3@1"), InvalidParameterError, "motion:-3@1"),
        (lambda: problems.deblur(torch.ones(2, 3, 5, 5)), ShapeError, "(2, 3, 5, 5)"),
        (lambda: problems.deblur(torch.full((3, 3), torch.nan)), NotFiniteError, "NaN"),
        (lambda: problems.deblur(torch.zeros(3, 3)), InvalidParameterError, "zero everywhere"),
        (lambda: problems.deblur().measure(image(1)), ShapeError, "3 channels, the image has 1"),
        (
            lambda: problems.deblur("uniform:41", "circular").measure(image()),
            InvalidParameterError,
            "too large for images (40, 37)",
        ),
        (lambda: problems.superres(1), InvalidParameterError, "at least 2, got 1"),
        (lambda: problems.superres(2.0), InvalidParameterError, "factor must be a whole number"),
        (lambda: problems.superres(kernel="bicubc"), UnknownNameError, "did you mean 'bicubic'"),
        (lambda: problems.superres(kernel="gaussian:x"), InvalidParameterError, "gaussian:x"),
        (lambda: problems.superres(boundary="reflct"), UnknownNameError, "did you mean 'reflect'"),
        (lambda: problems.superres(kernel="three-motions").measure(image(1)), ShapeError, "3 channels"),
        (lambda: problems.superres(4).measure(image(3, 8, 8)), InvalidParameterError, "too large for images (8, 8)"),
        (lambda: problems.denoise((0.1, 0.2)).measure(image()), ShapeError, "2 channels"),
        (lambda: problems.denoise().measure(torch.rand(3, 8, 8)), ShapeError, "(3, 8, 8)"),
    ],
)
def test_bad_input(make, error, says):
    with pytest.raises(error) as caught:
        make()
    assert says in str(caught.value)
