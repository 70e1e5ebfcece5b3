"""``retune tune`` through the command itself: no ground truth, on images of the user's."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import retune
from commands import invoke, smooth

FIELDS = (
    "prior.levels=2",
    "prior.wavelet=db2",
    "model.depth=4",
    "model.restarts=2",
    "data.crop=16",
    "optimiser.lr=0.2",
)
SETS = [word for f in FIELDS for word in ("--set", f)]
STEPS = ["--set", "optimiser.steps=3", "--set", "optimiser.checkpoint_every=1"]


@pytest.fixture
def noisy(tmp_path):
    """A smooth image with much noise: far more than the default strength expects."""
    return _noisy(tmp_path, 32)


def _noisy(folder, side):
    truth = np.linspace(0.2, 0.8, side)[:, None] * np.ones(side)
    np.save(folder / "truth.npy", truth.astype(np.float32))
    noise = np.random.default_rng(0).normal(size=truth.shape)
    np.save(folder / "y.npy", (truth + 0.2 * noise).astype(np.float32))
    return folder / "y.npy"


def test_it_finds_better_parameters_without_seeing_the_truth(tmp_path):
    """36 blocks of pixels, so that the run can say how sure it is, and is held to what it says."""
    out, noisy = tmp_path / "run", _noisy(tmp_path, 192)
    arguments = ["tune", noisy, "-p", "denoise", "--sigma", 0.2, "-o", out, "--device", "cpu", *SETS]
    result, text = invoke(*arguments, "--set", "optimiser.steps=20", "--set", "model.reg=0.02")
    assert result.exit_code == 0, text
    assert "σ = 0.2" in text
    found = json.loads((out / "tune.json").read_text())
    assert found["certificate"]["claims"]["rmse"][0]["kind"].startswith(("proved", "estimated"))
    assert "RMSE from its equilibrium" in text
    y, x = (torch.from_numpy(np.load(f))[None, None] for f in (noisy, tmp_path / "truth.npy"))
    net, physics = retune.load(out / "model.safetensors"), retune.problems.denoise(0.2).operator(y)
    error = float((net(y, physics) - x).square().mean())
    assert error < 0.2**2 / 4
    told = found["comparison"]
    assert told["better"]
    assert told["gain"] > 2 * told["spread"]
    assert told["uncertainty"] < 1
    assert abs(told["after"] + 10 * np.log10(error)) < 3 * told["uncertainty"]
    assert found["parameters"]["reg"][0] > 0.02
    assert json.loads((out / "run.json").read_text())["tuned"]["images"] == [str(noisy)]
    for verb in (["restore", out, noisy, "-o", tmp_path / "restored"], ["certify", out, noisy]):
        result, text = invoke(*verb, "--device", "cpu")
        assert result.exit_code == 0, text


@pytest.mark.parametrize("loss", ["sure", "r2r", "auto"])
def test_an_unknown_noise_level_is_estimated(noisy, tmp_path, loss):
    result, text = invoke(
        *("tune", noisy, "-p", "deblur", "--kernel", "gaussian:0.6", "--sigma", "estimate", "--loss", loss),
        *("-o", tmp_path / "run", "--device", "cpu", *SETS, *STEPS),
    )
    assert result.exit_code == 0, text
    found = json.loads((tmp_path / "run/tune.json").read_text())
    assert abs(found["sigma"] - 0.2) < 0.03
    assert ("R2R" in found["loss"]) == (loss != "sure")


def test_one_block_of_pixels_does_not_say_how_sure_it_is(noisy, tmp_path):
    out = tmp_path / "run"
    arguments = ["tune", noisy, "-p", "denoise", "--sigma", 0.2, "-o", out, "--device", "cpu", *SETS, *STEPS]
    result, text = invoke(*arguments)
    assert result.exit_code == 0, text
    assert "how sure is not known" in text
    found = json.loads((out / "tune.json").read_text(), parse_constant=pytest.fail)  # Infinity is no JSON
    assert found["comparison"]["spread"] is None
    assert found["comparison"]["uncertainty"] is None


def test_missing_pixels_need_the_mask_and_nothing_else(noisy, tmp_path):
    mask = (np.random.default_rng(1).random((32, 32)) < 0.6).astype(np.uint8) * 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    arguments = ["tune", noisy, "-p", "inpaint", "--sigma", 0.2, "-o", tmp_path / "run", "--device", "cpu"]
    result, text = invoke(*arguments, "--mask", tmp_path / "mask.png", *SETS, *STEPS)
    assert result.exit_code == 0, text
    assert "splitting" in text


def test_resume_needs_only_the_folder_and_ends_the_same(noisy, tmp_path):
    out = tmp_path / "run"
    arguments = ["tune", noisy, "-p", "denoise", "--sigma", 0.2, "-o", out, "--device", "cpu", *SETS, *STEPS]
    assert invoke(*arguments)[0].exit_code == 0
    before = {name: (out / name).read_bytes() for name in ("model.safetensors", "log.csv")}
    (out / "model.safetensors").unlink()
    sorted(out.glob("checkpoint-*"))[-1].unlink()
    result, text = invoke("tune", "--resume", "-o", out, "--device", "cpu")
    assert result.exit_code == 0, text
    assert {name: (out / name).read_bytes() for name in before} == before


def test_defaults_that_are_better_are_kept(noisy, tmp_path):
    """A learning rate that throws the strength away: what it ends with must not be what is used."""
    out = tmp_path / "run"
    arguments = ["tune", noisy, "-p", "denoise", "--sigma", 0.2, "-o", out, "--device", "cpu", *SETS]
    result, text = invoke(
        *arguments, "--set", "optimiser.lr=8.0", "--set", "optimiser.steps=1", "--set", "model.reg=0.4"
    )
    assert result.exit_code == 0, text
    found = json.loads((out / "tune.json").read_text())
    assert found["comparison"]["better"] == ("are kept" not in text)
    if not found["comparison"]["better"]:
        assert found["parameters"]["reg"] == pytest.approx([0.4])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "no problem was named"),
        (["-p", "denoisee", "--sigma", "0.1"], "did you mean 'denoise'"),
        (["-p", "deblur", "--sigma", "0.1"], "give the kernel"),
        (["-p", "inpaint", "--sigma", "0.1"], "--mask FILE"),
        (["-p", "inpaint"], "give the noise level"),
        (["-p", "denoise", "--sigma", "0"], "nothing to tune"),
        (["-p", "denoise", "--sigma", "0.1", "--loss", "sur"], "did you mean 'sure'"),
        (["-p", "denoise", "--sigma", "0.1,0.2,0.3"], "3 channels"),
        (["-p", "denoise", "--sigma", "0.1", "--set", "model.dpeth=3"], "did you mean 'depth'"),
        (["-p", "denoise", "--sigma", "0.1", "--device", "tpu9"], "tpu9"),
        (["-p", "deblur", "--kernel", "uniform:99", "--sigma", "0.1", "--set", "data.crop=16"], "kernel"),
        (["--run", "no.toml"], "there is no file no.toml"),
    ],
)
def test_tuning_with_bad_options(noisy, tmp_path, options, says):
    result, text = invoke("tune", noisy, "-o", tmp_path / "run", *SETS[:4], *options)
    assert result.exit_code == 1
    assert says in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-p", "denoise", "--sigma", "0.1"], "no images were named"),
        (["--resume"], "holds no run of retune tune"),
        (["nowhere.png", "-p", "denoise", "--sigma", "0.1"], "there is no file nowhere.png"),
    ],
)
def test_tuning_on_nothing(tmp_path, arguments, says):
    result, text = invoke("tune", *arguments, "-o", tmp_path / "run")
    assert result.exit_code == 1
    assert says in text


def test_grey_and_colour_together_are_refused(noisy, tmp_path):
    np.save(tmp_path / "c.npy", smooth(32, 32, 3).astype(np.float32))
    result, text = invoke("tune", noisy, tmp_path / "c.npy", "-p", "denoise", "--sigma", 0.2, "-o", tmp_path / "run")
    assert result.exit_code == 1
    assert "grey and colour separately" in text


def test_ctrl_c_saves_and_leaves(noisy, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "retune", "tune", str(noisy), "-p", "denoise", "--sigma", "0.2", "-o", str(out)),
            *(*SETS, "--set", "optimiser.steps=100000", "--set", "optimiser.checkpoint_every=1", "--device", "cpu"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(out.glob("checkpoint-*.safetensors")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "stopped" in said
    assert not list(out.glob(".*"))
