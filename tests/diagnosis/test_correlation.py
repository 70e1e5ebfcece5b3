"""Noise that is alike in neighbouring pixels is said, by every command, and white noise over photographs is not."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data, transform

import retune
from commands import invoke
from retune.diagnosis.correlation import correlation
from retune.diagnosis.glance import doubts

PHOTOGRAPHS = ["astronaut", "brick", "camera", "coins", "grass", "gravel", "moon", "page", "text"]


def photograph(name):
    image = getattr(data, name)()[:512, :512].astype(float) / 255
    return image.mean(-1) if image.ndim == 3 else image


def found(image):
    return correlation(torch.from_numpy(np.ascontiguousarray(image))[None, None])


def noisy(name="camera", sigma=0.05):
    image = photograph(name)
    return image + sigma * np.random.default_rng(0).normal(size=image.shape)


def enlarged(image, order=1):
    return transform.resize(image[:300, :300], (450, 450), order=order, mode="reflect", anti_aliasing=False)


def compressed(image, quality=60):
    stream = io.BytesIO()
    Image.fromarray((255 * image.clip(0, 1)).round().astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream)) / 255


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_white_noise_over_a_photograph_is_no_alarm(name):
    image = photograph(name)
    rng = np.random.default_rng(1)
    for sigma in (0.01, 0.02, 0.05):
        y = image + sigma * rng.normal(size=image.shape)
        assert found(y) is None
        assert found((255 * y.clip(0, 1)).round() / 255) is None
    assert found(0.01 * rng.poisson(image / 0.01)) is None


@pytest.mark.parametrize(
    "change",
    [
        enlarged,
        lambda image: enlarged(image, 3),
        lambda image: transform.rotate(image, 7, order=1)[70:-70, 70:-70],
        compressed,
    ],
    ids=["bilinear", "cubic", "rotated", "JPEG"],
)
def test_what_correlates_the_noise_is_seen(change):
    for name in ("camera", "brick", "moon"):
        assert found(change(noisy(name))) > 1.9


def test_without_noise_there_is_nothing_to_say():
    ramp = np.linspace(0, 1, 64)[:, None] * np.ones(64)
    for image in (ramp, np.zeros((64, 64)), ramp**2, np.random.default_rng(0).normal(size=(16, 16))):
        assert found(image) is None


def test_doctor_tune_and_restore_say_it(tmp_path):
    y = enlarged(noisy())[:160, :160].astype(np.float32)
    np.save(tmp_path / "y.npy", y)
    np.save(tmp_path / "white.npy", noisy()[:160, :160].astype(np.float32))
    result, text = invoke("doctor", tmp_path / "y.npy", "-p", "denoise", "--sigma", "estimate", lines=40)
    assert result.exit_code == 1
    assert "alike in neighbouring pixels" in " ".join(text.split())
    problem = retune.problems.denoise(0.05)
    said = list(doubts(problem, [("y.npy", torch.from_numpy(y)[None, None])]))
    assert any("JPEG" in doubt for doubt in said)
    arguments = (tmp_path / "y.npy", tmp_path / "white.npy", "-p", "denoise", "--sigma", 0.05, "-o", tmp_path / "out")
    result, text = invoke("restore", *arguments, "--device", "cpu", "--no-report", "--no-certificate")
    assert result.exit_code == 0, text
    assert text.count("noise not white") == 1
