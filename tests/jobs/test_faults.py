"""Killed at any moment, and started again: the same result, bit for bit, and no half-written file."""

from __future__ import annotations

import json
import os
import random
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import retune
from killing import finish, run_command, run_restore, run_train, start


def check_whole(folder):
    """Whatever has its final name can be read."""
    for path in folder.glob("[!.]*"):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                assert list(file.keys())
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".toml":
            tomllib.loads(path.read_text())
        elif path.suffix == ".npy":
            assert np.isfinite(np.load(path)).all()


def kill_often(kills, longest, folders, start_one, compare):
    """Kill `kills` times, each after a random time; whenever the work comes to its end, compare and begin anew."""
    draw, done = random.Random(0), 0
    for out in folders:
        while done < kills:
            process = start_one(out)
            process.join(draw.uniform(0.02, longest))
            if process.exitcode is not None:
                assert process.exitcode == 0
                break
            process.kill()
            process.join()
            done += 1
            check_whole(out)
        if done == kills:
            finish(start_one(out))
        compare(out)
        assert not list(out.glob(".*"))
        if done == kills:
            return
    raise AssertionError(f"only {done} of {kills} processes could be killed in time")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(8):
        ramp = np.linspace(0.2, 0.8, 40)[:, None] * np.linspace(0.5, 1, 48)
        np.save(folder / f"{i}.npy", (ramp + 0.1 * np.random.default_rng(i).normal(size=ramp.shape)).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def reference(images, tmp_path_factory):
    """The run that nothing interrupted, and how long it took."""
    out = tmp_path_factory.mktemp("reference") / "run"
    finish(start(run_train, images, tmp_path_factory.mktemp("warm") / "run"))  # the server imports everything once
    begin = time.perf_counter()
    finish(start(run_train, images, out))
    return out, time.perf_counter() - begin


#: of each verb; RETUNE_KILLS=60 python -m pytest tests/jobs/test_faults.py
KILLS = int(os.environ.get("RETUNE_KILLS", "4"))
SETS = [
    word
    for field in ("prior.levels=2", "prior.wavelet=db2", "data.crop=16", "optimiser.steps=12", "model.restarts=2")
    for word in ("--set", field)
]


@pytest.mark.slow
def test_training_that_is_killed(images, reference, tmp_path):
    expected, seconds = reference

    def compare(out: Path):
        one, two = (retune.load(f / "model.safetensors").state_dict() for f in (expected, out))
        assert all(one[k].equal(two[k]) for k in one)
        assert (out / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
        assert (out / "log.csv").read_text() == (expected / "log.csv").read_text()
        assert {p.name for p in out.iterdir()} == {p.name for p in expected.iterdir()}

    folders = (tmp_path / str(i) for i in range(10 * KILLS))
    kill_often(KILLS, seconds, folders, lambda out: start(run_train, images, out), compare)


@pytest.mark.slow
def test_restoring_that_is_killed(images, reference, tmp_path):
    model = reference[0] / "model.safetensors"
    begin = time.perf_counter()
    finish(start(run_restore, images, model, tmp_path / "whole"))
    seconds = time.perf_counter() - begin

    def compare(out: Path):
        assert {p.name for p in out.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}
        for path in out.glob("*.npy"):
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
        for path in out.glob("*.json"):
            one, two = (json.loads((f / path.name).read_text()) for f in (out, tmp_path / "whole"))
            assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in two.items() if k != "seconds"}

    folders = (tmp_path / str(i) for i in range(10 * KILLS))
    kill_often(KILLS, seconds, folders, lambda out: start(run_restore, images, model, out), compare)


def same_but_for_times(one: Path, two: Path):
    """The same files; of those that tell how long it took, the same but for that."""
    names = {str(p.relative_to(one)) for p in one.rglob("*") if p.is_file()}
    assert {str(p.relative_to(two)) for p in two.rglob("*") if p.is_file()} == names
    for name in names:
        if name.endswith((".npy", ".csv", ".safetensors", ".toml")) and "checkpoint" not in name:
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert not [name for name in names if Path(name).name.startswith(".")]


def killed_and_begun_again(arguments, tmp_path):
    """The verb is killed at random moments, and the same command is given again each time."""
    finish(start(run_command, *arguments, "--out", tmp_path / "warm"))
    begin = time.perf_counter()
    finish(start(run_command, *arguments, "--out", tmp_path / "whole"))
    seconds = time.perf_counter() - begin
    folders = (tmp_path / str(i) for i in range(10 * KILLS))
    again = ["--resume"] if arguments[0] == "tune" else []
    kill_often(
        KILLS,
        seconds,
        folders,
        lambda out: start(run_command, *arguments, *again, "--out", out),
        lambda out: same_but_for_times(tmp_path / "whole", out),
    )


@pytest.mark.slow
def test_tuning_that_is_killed(images, tmp_path):
    told = ["--problem", "denoise", "--sigma", "0.1", "--set", "optimiser.checkpoint_every=1", "--device", "cpu"]
    killed_and_begun_again(["tune", images, *told, *SETS], tmp_path)


@pytest.mark.slow
def test_two_workers_that_lose_their_process(images, reference, tmp_path):
    killed_and_begun_again(["restore", reference[0], images, "--workers", 2, "--device", "cpu"], tmp_path)
