"""The problems by name: reproducible, built as deepinv physics, with clear errors."""

from __future__ import annotations

import pytest
import torch
from deepinv.physics import Blur, BlurFFT, Denoising, Inpainting

from retune import problems
from retune.errors import InvalidParameterError, NotFiniteError, ShapeError, UnknownNameError


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
        (lambda: problems.denoise((0.1, 0.2)).measure(image()), ShapeError, "2 channels"),
        (lambda: problems.denoise().measure(torch.rand(3, 8, 8)), ShapeError, "(3, 8, 8)"),
    ],
)
def test_bad_input(make, error, says):
    with pytest.raises(error) as caught:
        make()
    assert says in str(caught.value)
