"""What version 0.1.0 wrote is still read: a network, and the folder of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import retune
from commands import invoke

OLD = Path(__file__).parent / "fixtures" / "0.1.0"


@pytest.fixture
def run(tmp_path):
    """The run, and its images where its configuration looks for them."""
    shutil.copytree(OLD / "run", tmp_path / "run")
    (tmp_path / "data").mkdir()
    for i in range(2):
        shutil.copyfile(OLD / f"image{i}.npy", tmp_path / "data" / f"{i}.npy")
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace("/tmp/fx/data", (tmp_path / "data").as_posix()))
    return tmp_path / "run"


def test_a_network():
    net = retune.load(OLD / "network.safetensors")
    assert (net.depth, net.restarts, net.gradient.blocks, type(net.solver).__name__) == (4, 3, 2, "Anderson")
    y, physics = retune.problems.denoise(0.1).measure(torch.linspace(0, 1, 256).reshape(1, 1, 16, 16))
    assert float(net.solve(y, physics).image.mean()) == pytest.approx(0.50517, abs=1e-4)


def test_a_run_restores_what_it_restored(run, tmp_path):
    done, told = invoke("restore", run, OLD / "image0.npy", "--out", tmp_path / "out", "--device", "cpu")
    assert done.exit_code == 0, told
    np.testing.assert_allclose(np.load(tmp_path / "out" / "image0.npy"), np.load(OLD / "restored.npy"), atol=1e-4)


def test_a_run_is_certified(run):
    done, told = invoke("certify", run, OLD / "image0.npy", "--device", "cpu", lines=200)
    assert done.exit_code == 0, told
    assert "Proved" in told


def test_a_run_goes_on_from_its_checkpoint(run):
    (run / "model.safetensors").unlink()
    done, told = invoke("train", "--resume", "--out", run, "--device", "cpu")
    assert done.exit_code == 0, told
    assert retune.load(run / "model.safetensors").depth == 4
