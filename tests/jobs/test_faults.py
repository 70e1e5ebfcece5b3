"""Killed at any moment, and started again: the same result, bit for bit, and no half-written file."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import time
import tomllib
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from safetensors import safe_open

import retune
from killing import finish, run_command, run_restore, run_train, start


def check_whole(folder):
    """Whatever has its final name can be read, in the folder and those below."""
    for path in folder.rglob("[!.]*"):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                assert list(file.keys())
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".toml":
            tomllib.loads(path.read_text())
        elif path.suffix == ".npy":
            assert np.isfinite(np.load(path)).all()
        elif path.suffix == ".png":
            assert iio.imread(path).size


def litter(out):
    """Files that no reader asked for, in the folder and those below."""
    return sorted(str(p.relative_to(out)) for p in out.rglob(".*"))


def kill_often(kills, longest, folders, start_one, compare):
    """Kill `kills` times, each after a random time; whenever the work comes to its end, compare and begin anew.

    Only a kill that ended a process at work counts: one that had come to its end by itself is not hit any more.
    """
    draw, done, left = random.Random(0), 0, 0
    for ends, out in enumerate(folders, 1):
        while done < kills:
            process = start_one(out)
            process.join(draw.uniform(0.02, longest))
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            done += 1
            left += bool(litter(out))
            check_whole(out)
        if done == kills:
            finish(start_one(out))
        compare(out)
        assert litter(out) == []
        if done == kills:
            print(
                f"{done} kills of a process at work ({left} left a temporary file), {ends} results: no loss, no litter"
            )
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
KILLS = int(os.environ.get("RETUNE_KILLS", "2"))
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


def killed_and_begun_again(arguments, tmp_path, same=same_but_for_times):
    """The verb is killed at random moments, and the same command is given again each time."""
    finish(start(run_command, *arguments, "--out", tmp_path / "warm"))
    begin = time.perf_counter()
    finish(start(run_command, *arguments, "--out", tmp_path / "whole"))
    seconds = time.perf_counter() - begin
    folders = (tmp_path / str(i) for i in range(10 * KILLS))
    again = ["--resume"] if arguments[0] in ("tune", "compare") else []
    kill_often(
        KILLS,
        seconds,
        folders,
        lambda out: start(run_command, *arguments, *again, "--out", out),
        lambda out: same(tmp_path / "whole", out),
    )


@pytest.mark.slow
def test_tuning_that_is_killed(images, tmp_path):
    told = ["--problem", "denoise", "--sigma", "0.1", "--set", "optimiser.checkpoint_every=1", "--device", "cpu"]
    killed_and_begun_again(["tune", images, *told, *SETS], tmp_path)


@pytest.mark.slow
def test_two_workers_that_lose_their_process(images, reference, tmp_path):
    killed_and_begun_again(["restore", reference[0], images, "--workers", 2, "--device", "cpu"], tmp_path)


def same_comparison(one: Path, two: Path):
    """The same files; of the tables everything but the times and the memory, which a process measures of itself."""
    names = {str(p.relative_to(one)) for p in one.rglob("*") if p.is_file()}
    assert {str(p.relative_to(two)) for p in two.rglob("*") if p.is_file()} == names
    for name in names:
        if name.endswith((".csv", ".json")) and "log.csv" not in name:
            continue
        if name.startswith(("models/", "images/")) or name.endswith(("log.csv", "model.safetensors")):
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
    tables = [list(csv.DictReader((f / "results.csv").read_text().splitlines())) for f in (one, two)]
    for row in (row for table in tables for row in table):
        for measured in ("seconds", "seconds_restoring", "memory"):
            assert float(row.pop(measured)) >= 0
    assert tables[0] == tables[1]
    assert [row["method"] for row in tables[0]] == ["variational", "retune"]
    entries = [json.loads((f / "progress.json").read_text())["entries"].keys() for f in (one, two)]
    assert entries[0] == entries[1]


@pytest.mark.slow
def test_comparing_that_is_killed(images, tmp_path):
    fields = [f"{name}={images}" for name in ("data.train", "data.validation", "compare.test")]
    fields += ["data.batch_size=2", "optimiser.checkpoint_every=1", "compare.validation_crop=32", "compare.grid=4"]
    told = [word for field in (*fields, "compare.far=2") for word in ("--set", field)]
    methods = ["--methods", "variational,retune", "--device", "cpu"]
    killed_and_begun_again(["compare", "denoise", *methods, *told, *SETS], tmp_path, same_comparison)
