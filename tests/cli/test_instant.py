"""``retune restore`` without a network, and noise of counts on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import torch

from commands import invoke, smooth
from retune.jobs.assess import gain_of_errors
from retune.jobs.sections import gain_in_words

GAIN, READ = 0.01, 0.005


def counts(seed, side=64):
    rng = np.random.default_rng(seed)
    image = np.linspace(0.05, 0.95, side)[:, None] * np.ones(side)
    return (GAIN * rng.poisson(image / GAIN) + READ * rng.normal(size=image.shape)).astype(np.float32)


def record(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def at_once(*arguments):
    return invoke("restore", *arguments, "--device", "cpu", "--no-certificate", "--no-report")


def test_noise_of_counts_is_found_told_and_removed(tmp_path):
    tifffile.imwrite(tmp_path / "y.tif", counts(0, 128))
    arguments = (tmp_path / "y.tif", "--problem", "denoise", "-o", tmp_path / "out")
    result, text = at_once(*arguments)
    assert result.exit_code == 0, text
    told = record(tmp_path / "out", "y.tif")
    kind, _, values = told["noise"].partition(":")
    assert kind == "poisson"
    assert float(values.split(",")[0]) == pytest.approx(GAIN, rel=0.1)
    assert told["problem"]["sigma"] == "estimate"
    truth = np.linspace(0.05, 0.95, 128)[:, None]
    error = np.sqrt(np.mean((tifffile.imread(tmp_path / "out" / "y.tif") - truth) ** 2))
    assert error < 0.6 * np.sqrt(np.mean((counts(0, 128) - truth) ** 2))
    _, text = at_once(*arguments)
    assert "done before" in text
    _, text = at_once(*arguments, "--noise", "poisson:0.02")
    assert "1 restored" in text
    assert record(tmp_path / "out", "y.tif")["noise"] == "poisson:0.02,0"


def test_noise_of_one_level_is_told_as_such(tmp_path):
    np.save(tmp_path / "y.npy", smooth(48, 48).astype(np.float32))
    result, text = at_once(tmp_path / "y.npy", "--problem", "denoise", "-o", tmp_path / "out")
    assert result.exit_code == 0, text
    kind, _, level = record(tmp_path / "out", "y.npy")["noise"].partition(":")
    assert (kind, float(level)) == ("gaussian", pytest.approx(0.05, rel=0.2))


def test_a_stack_in_colour_and_by_two_workers(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([counts(1, 32), counts(2, 32)]))
    np.save(tmp_path / "b.npy", smooth(24, 20, 3).astype(np.float32))
    told = ["--problem", "deblur", "--kernel", "gaussian:1", "--noise", f"poisson:{GAIN},{READ}", "--workers", 2]
    result, text = invoke("restore", tmp_path / "a.tif", tmp_path / "b.npy", *told, "-o", tmp_path / "out")
    assert result.exit_code == 0, text
    assert tifffile.imread(tmp_path / "out" / "a.tif").shape == (2, 32, 32)
    assert np.load(tmp_path / "out" / "b.npy").shape == (24, 20, 3)
    assert record(tmp_path / "out", "a.tif")["certificate"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"poisson:{GAIN}" in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-p", "denoise", "--noise", "poisson:1", "--sigma", "0.1"), "both give the noise"),
        (("-p", "denoise", "--noise", "poisson"), "expected poisson:GAIN"),
        (("-p", "denoise", "--noise", "poisson:0.1/0.2"), "2 channels, but the measurement has 1"),
        (("-p", "inpaint", "--noise", "poisson:0.1"), "inpaint has no noise"),
        (("-p", "deblur"), "the blur kernel is unknown"),
        (("-p", "denoise", "--sigma", "-1"), "problem.sigma"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, arguments, says):
    np.save(tmp_path / "y.npy", counts(0, 16))
    result, text = at_once(tmp_path / "y.npy", *arguments, "-o", tmp_path / "out")
    assert result.exit_code != 0
    assert says in text


def test_counts_need_their_white(tmp_path):
    np.save(tmp_path / "y.npy", counts(0, 32) / GAIN)
    result, text = at_once(tmp_path / "y.npy", "-p", "denoise", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "--white" in text
    result, text = at_once(tmp_path / "y.npy", "-p", "denoise", "--white", 1 / GAIN, "-o", tmp_path / "out")
    assert result.exit_code == 0, text
    assert np.load(tmp_path / "out" / "y.npy").mean() == pytest.approx(0.5 / GAIN, rel=0.1)


def test_a_gain_that_is_not_clear_is_not_said_to_be_none():
    """Where most of the error is guessed, the defaults are kept unless the tuning is better by two standard errors."""
    before = torch.tensor([1.0, 2.0, 3.0, 4.0])
    after = torch.tensor([1.5, 1.0, 3.4, 3.5])
    unclear = gain_of_errors(before, after, clearly=2.0)
    assert not unclear.better
    assert unclear.gain > 0
    assert "smaller, but not clearly" in gain_in_words(unclear)
    assert gain_of_errors(before, after).better
    worse = gain_of_errors(before, before + 1, clearly=2.0)
    assert "no smaller estimated error" in gain_in_words(worse)
    assert gain_of_errors(before, before / 4, clearly=2.0).better


def test_a_network_keeps_its_noise(run, tmp_path):
    np.save(tmp_path / "y.npy", counts(0, 16))
    result, text = at_once(run, tmp_path / "y.npy", "--noise", "poisson:0.1", "-o", tmp_path / "out")
    assert result.exit_code != 0
    assert "cannot change a restoration" in text


def test_tune_learns_the_strength_for_counts(tmp_path):
    np.save(tmp_path / "y.npy", counts(0, 32))
    told = ["-p", "deblur", "--kernel", "gaussian:1", "--noise", f"poisson:{GAIN},{READ},0.02", "--no-report"]
    few = [w for f in ("optimiser.steps=2", "data.crop=24", "model.restarts=3") for w in ("--set", f)]
    out = tmp_path / "run"
    result, text = invoke("tune", tmp_path / "y.npy", *told, *few, "-o", out, "--device", "cpu")
    assert result.exit_code == 0, text
    assert f"poisson:{GAIN},{READ},0.02" in text
    assert json.loads((out / "tune.json").read_text())["noise"] == f"poisson:{GAIN},{READ},0.02"
    result, text = at_once(out, tmp_path / "y.npy", "-o", tmp_path / "out")
    assert result.exit_code == 0, text
    assert np.load(tmp_path / "out" / "y.npy").mean() == pytest.approx(0.48, abs=0.03)
    result, text = invoke("certify", out, tmp_path / "y.npy", "--device", "cpu")
    assert result.exit_code == 0, text
    before = (out / "model.safetensors").read_bytes()
    result, text = invoke("tune", "--resume", "-o", out, "--device", "cpu", "--no-report")
    assert result.exit_code == 0, text
    assert (out / "model.safetensors").read_bytes() == before


OWN = """
from deepinv.physics import Blur
import torch
def box(img_size, device="cpu"):
    return Blur(torch.full((1, 1, 3, 3), 1 / 9), padding="circular", device=device)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_own_physics_is_restored_at_once_by_workers_too(tmp_path, monkeypatch, workers):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"own_box{workers}.py").write_text(OWN)
    image = smooth(32, 32).astype(np.float32)
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", image)
    told = ["-p", f"own_box{workers}:box", "--workers", workers]
    result, text = at_once(tmp_path / "a.npy", tmp_path / "b.npy", *told, "-o", tmp_path / "out")
    assert result.exit_code == 0, text
    one, two = (np.load(tmp_path / "out" / f"{name}.npy") for name in "ab")
    assert np.array_equal(one, two)
    assert not np.array_equal(one, np.load(tmp_path / "a.npy"))
    assert record(tmp_path / "out", "a.npy")["noise"].startswith("gaussian:")
    result, text = at_once(tmp_path / "a.npy", tmp_path / "b.npy", *told, "-o", tmp_path / "out")
    assert "2 done before" in " ".join(text.split())


def test_workers_restore_counts_as_one_process_does(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        np.save(tmp_path / f"{name}.npy", counts(seed))
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        result, text = at_once(*(tmp_path / f"{n}.npy" for n in "ab"), "-p", "denoise", "--workers", workers, "-o", out)
        assert result.exit_code == 0, text
    for name in ("a.npy", "b.npy"):
        assert record(tmp_path / "out1", name)["noise"] == record(tmp_path / "out2", name)["noise"]
        assert np.allclose(np.load(tmp_path / "out1" / name), np.load(tmp_path / "out2" / name), atol=1e-5)
