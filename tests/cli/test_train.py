"""``retune train`` through the command itself, with good input and with bad."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import retune
from commands import SETS, invoke, smooth
from programs import python
from retune.cli.main import app
from retune.jobs.opened import open_model


def test_a_run_folder_says_everything(run):
    settings = tomllib.loads((run / "config.toml").read_text())
    assert settings["optimiser"]["steps"] == 4
    assert settings["model"]["depth"] == 2
    facts = json.loads((run / "run.json").read_text())
    assert facts["seed"] == 0
    assert len(facts["data"]) == 64
    assert facts["versions"]["retune"] == retune.__version__
    assert {"torch", "deepinv", "python"} <= facts["versions"].keys()
    assert len(list(run.glob("checkpoint-*.safetensors"))) == 2
    assert len((run / "log.csv").read_text().splitlines()) == 5
    assert retune.load(run / "model.safetensors").depth == 2
    certified = json.loads((run / "certificate.json").read_text())
    assert certified["image"] in ("first training image", "first validation image")
    claims = certified["certificate"]["claims"]
    assert claims["rmse"][0]["kind"].startswith(("proved", "estimated"))
    assert claims["gradient_error"][-1]["kind"] == "estimated"  # how wrong the learning gradient is


def test_resume_needs_only_the_folder_and_ends_the_same(run, tmp_path, sharp):
    again = tmp_path / "b"
    arguments = ["train", "denoise", *SETS, "--set", f"data.train={sharp}", "-o", again, "--device", "cpu"]
    assert invoke(*arguments)[0].exit_code == 0
    (again / "model.safetensors").unlink()
    sorted(again.glob("checkpoint-*"))[-1].unlink()
    result, text = invoke("train", "--resume", "-o", again, "--device", "cpu")
    assert result.exit_code == 0, text
    told = json.loads((again / "certificate.json").read_text())["solver"]
    assert told.startswith("Inertial(")
    assert told.endswith("(chosen; Picard() in training)")
    assert f"Solver: {told}" in " ".join(text.split())
    one, two = (retune.load(f / "model.safetensors").state_dict() for f in (run, again))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_warm_starts_from_the_command_line(tmp_path, sharp):
    warm = ["--set", "optimiser.warm_start=true", "--set", f"data.train={sharp}", "--device", "cpu"]
    result, text = invoke("train", "denoise", *SETS, *warm, "-o", tmp_path / "w")
    assert result.exit_code == 0, text
    assert tomllib.loads((tmp_path / "w" / "config.toml").read_text())["optimiser"]["warm_start"] is True
    ended = (tmp_path / "w" / "model.safetensors").read_bytes()
    sorted((tmp_path / "w").glob("checkpoint-*"))[-1].unlink()
    result, text = invoke("train", "--resume", "-o", tmp_path / "w", "--device", "cpu")
    assert result.exit_code == 0, text
    assert (tmp_path / "w" / "model.safetensors").read_bytes() == ended


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("model.depth=5", "model.depth was 2, now 5"),
        ("gradient.rule=implicit", "gradient.rule was 'truncated', now 'implicit'"),
        ("prior.levels=1", "prior.levels was 2, now 1"),
        ("optimiser.lr=0.5", "optimiser.lr was 0.05, now 0.5"),
    ],
)
def test_a_run_is_resumed_as_it_was_or_not_at_all(run, tmp_path, sharp, change, says):
    again = tmp_path / "b"
    shutil.copytree(run, again)
    (again / "model.safetensors").unlink()
    sorted(again.glob("checkpoint-*"))[-1].unlink()
    before = (again / "config.toml").read_bytes()
    arguments = ["train", "denoise", *SETS, "--set", f"data.train={sharp}", "-o", again, "--device", "cpu", "--resume"]
    result, text = invoke(*arguments, "--set", change)
    assert result.exit_code == 1
    assert says in text
    assert (again / "config.toml").read_bytes() == before
    assert not (again / "model.safetensors").exists()
    assert invoke(*arguments, "--set", "optimiser.checkpoint_every=2")[0].exit_code == 0


def test_images_may_have_moved(run, tmp_path, sharp):
    """They are known by what they are, not by where."""
    again, images = tmp_path / "b", tmp_path / "images"
    shutil.copytree(run, again)
    shutil.copytree(sharp, images)
    sorted(again.glob("checkpoint-*"))[-1].unlink()
    told = ["--set", f"data.train={images}", "-o", again, "--device", "cpu", "--resume"]
    result, text = invoke("train", "denoise", *SETS, *told)
    assert result.exit_code == 0, text
    np.save(images / "0.npy", smooth().astype(np.float32))
    result, text = invoke("train", "denoise", *SETS, *told)
    assert result.exit_code == 1
    assert "images was" in text


def test_a_run_is_not_resumed_with_another_kernel_under_the_same_name(tmp_path, sharp):
    np.save(tmp_path / "k.npy", np.eye(3, dtype=np.float32) / 3)
    small = [w for a, b in zip(SETS[::2], SETS[1::2], strict=True) if "problem" not in b for w in (a, b)]
    kernel = ["--set", f"problem.kernel={tmp_path / 'k.npy'}", "--set", f"data.train={sharp}"]
    arguments = ["train", "deblur", *small, *kernel, "-o", tmp_path / "r", "--device", "cpu"]
    result, text = invoke(*arguments)
    assert result.exit_code == 0, text
    np.save(tmp_path / "k.npy", np.ones((3, 3), dtype=np.float32) / 9)
    result, text = invoke(*arguments, "--resume")
    assert result.exit_code == 1
    assert "the file of the kernel has changed" in text


def test_sharp_images_have_a_unit_too(tmp_path, sharp):
    """Twelve bits as floats are refused without it, and are the same images with it; the network remembers it."""
    (tmp_path / "twelve").mkdir()
    for file in sharp.iterdir():
        np.save(tmp_path / "twelve" / file.name, np.load(file) * np.float32(4096))
    images = ["--set", f"data.train={tmp_path / 'twelve'}", "--device", "cpu"]
    result, text = invoke("train", "denoise", *SETS, *images, "-o", tmp_path / "no")
    assert result.exit_code == 1
    assert "give the intensity of white, for example data.white=4095" in text
    result, text = invoke("train", "denoise", *SETS, *images, "--set", "data.white=4096.0", "-o", tmp_path / "r")
    assert result.exit_code == 0, text
    same = ["--set", f"data.train={sharp}", "--device", "cpu"]
    assert invoke("train", "denoise", *SETS, *same, "-o", tmp_path / "s")[0].exit_code == 0
    one, two = (retune.load(tmp_path / n / "model.safetensors").state_dict() for n in "rs")
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert open_model(tmp_path / "r").white == 4096
    assert open_model(tmp_path / "s").white is None
    result, text = invoke("restore", tmp_path / "r", tmp_path / "twelve", "-o", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 0, text
    assert "4096 counts as white" in text
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "eight.png")
    result, text = invoke("restore", tmp_path / "r", tmp_path / "eight.png", "-o", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 1
    assert "4096 cannot be its white" in text
    for verb in (["restore", "-o", tmp_path / "out"], ["certify"]):
        result, text = invoke(verb[0], tmp_path / "r", sharp, *verb[1:], "--device", "cpu")
        assert result.exit_code == 1
        assert "4096 as white: give the intensity of white for this file, for example --white 1" in text


def test_facts_that_cannot_be_read(tmp_path, run):
    shutil.copytree(run, tmp_path / "r")
    (tmp_path / "r" / "run.json").write_text('{"seed"')
    result, text = invoke("train", "--resume", "-o", tmp_path / "r", "--device", "cpu")
    assert result.exit_code == 1
    assert "run.json cannot be read" in text


def test_want_of_memory_is_no_traceback(tmp_path, monkeypatch):
    """PyTorch has no MemoryError: on a CPU it is a RuntimeError like any other."""

    def torch_says(*_, **__):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"
        )

    monkeypatch.setattr("retune.jobs.train.train", torch_says)
    result, text = invoke("train", "denoise", "-o", tmp_path / "r")
    assert result.exit_code == 1
    assert "out of memory" in text
    assert "data.crop=64" in text

    def fault(*_, **__):
        raise RuntimeError("another one")

    monkeypatch.setattr("retune.jobs.train.train", fault)
    with pytest.raises(RuntimeError, match="another one"):  # is shown as what it is
        CliRunner().invoke(app, ["train", "denoise", "-o", str(tmp_path / "r")], catch_exceptions=False)


def test_a_run_keeps_its_kernel_when_it_is_moved(tmp_path, sharp, photos):
    """What the kernel was read from may go; nothing that was restored is restored again."""
    np.save(tmp_path / "k.npy", np.eye(3, dtype=np.float32) / 3)
    small = [w for a, b in zip(SETS[::2], SETS[1::2], strict=True) if "problem" not in b for w in (a, b)]
    fields = ["--set", f"problem.kernel={tmp_path / 'k.npy'}", "--set", f"data.train={sharp}"]
    result, text = invoke("train", "deblur", *small, *fields, "-o", tmp_path / "r", "--device", "cpu")
    assert result.exit_code == 0, text
    kernel = retune.problems.kernel(str(tmp_path / "k.npy"))
    (tmp_path / "k.npy").unlink()
    restore = ["restore", tmp_path / "r", photos, "-o", tmp_path / "out", "--device", "cpu", "--no-certificate"]
    result, text = invoke(*restore)
    assert result.exit_code == 0, text

    moved = tmp_path / "elsewhere" / "r"
    moved.parent.mkdir()
    (tmp_path / "r").rename(moved)
    restore[1] = moved / "model.safetensors"
    result, text = invoke(*restore)
    assert result.exit_code == 0, text
    assert text.count("done before") >= 2
    assert torch.equal(retune.problems.kernel(open_model(moved).problem.kernel), kernel)
    result, text = invoke("train", "--resume", "-o", moved, "--device", "cpu")
    assert result.exit_code == 0, text

    kept = next(moved.glob("kernel-*.npy"))
    problem = {"name": "deblur", "kernel": f"/gone/{kept.name}"}  # as models were written once
    retune.load(moved / "model.safetensors").save(moved / "old.safetensors", problem=json.dumps(problem))
    assert open_model(moved / "old.safetensors").problem.kernel == str(kept)
    kept.unlink()
    result, text = invoke(*restore)
    assert result.exit_code == 1
    assert "is not in the same folder" in text
    assert "--kernel" in text
    assert invoke(*restore, "--kernel", "uniform:3")[0].exit_code == 0


def test_relative_paths_mean_the_same_from_everywhere(tmp_path, monkeypatch, sharp):
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(sharp, tmp_path / "scharf")
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "denoise", *SETS, "--set", "data.train=scharf", "-o", "r", "--device", "cpu"]
    assert invoke(*arguments)[0].exit_code == 0
    sorted((tmp_path / "r").glob("checkpoint-*"))[-1].unlink()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result, text = invoke("train", "--resume", "-o", tmp_path / "r", "--device", "cpu")
    assert result.exit_code == 0, text


def test_init_prints_a_file_that_trains(tmp_path, sharp):
    result = CliRunner().invoke(app, ["train", "--init", "deblur"])
    assert result.exit_code == 0
    (tmp_path / "my.toml").write_text(result.output)
    small = [w for a, b in zip(SETS[::2], SETS[1::2], strict=True) if "problem" not in b for w in (a, b)]
    result, text = invoke(
        "train", tmp_path / "my.toml", *small, "--set", f"data.train={sharp}", "-o", tmp_path / "r", "--device", "cpu"
    )
    assert result.exit_code == 0, text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train"], "no run was given"),
        (["train", "deblurr"], "did you mean 'deblur'"),
        (["train", "deblur", "--set", "model.dpeth=3"], "unknown key model.dpeth; did you mean 'depth'"),
        (["train", "deblur", "--set", "model.depth=0"], "model.depth = 0: it should be greater than or equal to 1"),
        (["train", "--init", "debulr"], "did you mean 'deblur'"),
        (["train", "deblur", "--set", "data.train=nowhere"], "there is no file or folder nowhere"),
        (["train", "deblur", "--set", "data.crop=5000"], "crop=5000 does not fit"),
        (["train", "deblur", "--device", "tpu9"], "tpu9"),
        (["train", "deblur", "--set", "problem.kernel=uniform:99"], "is too large for images (64, 64)"),
        (["train", "deblur", "--set", "problem.sigma=estimate"], "retune tune estimates it"),
    ],
)
def test_training_with_bad_input(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    result, text = invoke(*arguments)
    assert result.exit_code == 1
    assert says in text


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["train", "deblurr", "--debug"])
    assert isinstance(result.exception, retune.errors.ConfigError)


def test_a_run_is_not_overwritten(run, sharp):
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    result, text = invoke("train", "denoise", *SETS, "--set", f"data.train={sharp}", "--set", "seed=3", "-o", run)
    assert result.exit_code == 1
    assert "already contains a run" in text
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_ctrl_c_saves_and_leaves(tmp_path, sharp):
    process = subprocess.Popen(
        [
            *(*python(), "-m", "retune", "train", "denoise", *SETS, "--set", "optimiser.steps=100000"),
            *("--set", f"data.train={sharp}", "-o", str(tmp_path / "run"), "--device", "cpu"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list((tmp_path / "run").glob("checkpoint-*.safetensors")):
        pass
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "stopped" in said
    assert not list(Path(tmp_path / "run").glob(".*"))
