"""Files from strangers decide nothing but what the user asked for: no code, no other files, no escape sequences."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from commands import SETS, invoke, smooth
from programs import python
from retune import plugins
from retune.errors import ConfigError

OWN = """
from pathlib import Path
from functools import partial
from subprocess import check_output
from deepinv.physics import LinearPhysics
Path(__file__).with_suffix(".executed").write_text("x")
def scan(img_size, device="cpu"):
    return LinearPhysics(A=lambda x, **_: 0.5 * x, A_adjoint=lambda y, **_: 0.5 * y)
part = partial(scan)
"""
RUN = """
[problem]
name = "{name}"
sigma = 0.1
[prior]
levels = 2
wavelet = "db2"
[data]
crop = 16
[optimiser]
steps = 1
"""


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch):
    """Each test starts as a fresh process does: no code was named."""
    monkeypatch.setattr(plugins, "_modules", {})
    monkeypatch.setattr(plugins, "_functions", set())
    monkeypatch.setattr(plugins, "_loaded", [])


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of a name of its own, in the working directory."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def executed(folder):
    return bool(list(folder.glob("*.executed")))


def verbs(run, folder):
    """Each verb that reads a run, with a run."""
    return {
        "train": ["train", run, "-o", folder / "out", "--device", "cpu"],
        "compare": ["compare", run, "-o", folder / "out", "--methods", "none", "--model", folder, "--device", "cpu"],
        "doctor": ["doctor", run, "--size", "16x16"],
        "tune": ["tune", folder / "a.npy", "--run", run, "-o", folder / "out", "--device", "cpu"],
    }


@pytest.mark.parametrize("verb", ["train", "compare", "doctor", "tune"])
@pytest.mark.parametrize("name", ["{own}:scan", "torch.hub:load", "os:system", "{own}.sub:scan", ":scan", "a:b:c"])
def test_a_run_names_no_code(own, tmp_path, verb, name):
    name = name.format(own=own)
    run = tmp_path / "my.toml"
    run.write_text(RUN.format(name=name))
    np.save(tmp_path / "a.npy", smooth().astype(np.float32))
    result, text = invoke(*verbs(run, tmp_path)[verb])
    assert result.exit_code == 1
    assert not executed(tmp_path)
    assert own not in sys.modules
    if verb != "compare":  # it says first that there is no such model
        assert f"names the code {name!r}" in text
        assert f"--plugin {name.partition(':')[0]}" in text


@pytest.mark.parametrize(
    "words",
    [
        ["--plugin", "{own}"],
        ["--plugin", "{own}.py"],
        ["--problem", "{own}:scan"],
        ["--problem", "{own}:part", "--plugin", "{own}"],
    ],
)
def test_code_that_the_user_typed_is_run(own, tmp_path, words):
    (tmp_path / "my.toml").write_text(RUN.format(name=f"{own}:scan"))
    _, text = invoke("doctor", "my.toml", "--size", "16x16", *(w.format(own=own) for w in words), lines=60)
    assert "linearity" in text, text
    assert executed(tmp_path)


def test_set_on_the_command_line_is_typed_too(own, tmp_path, sharp):
    words = ["--set", f"problem.name={own}:scan", "--set", f"data.train={sharp}"]
    sets = [w for pair in zip(SETS[::2], SETS[1::2], strict=True) if "name=" not in pair[1] for w in pair]
    result, text = invoke("train", "denoise", *sets, *words, "-o", tmp_path / "run", "--device", "cpu")
    assert result.exit_code == 0, text
    assert f"--problem {own}:scan" in text  # the command that restores, as it has to be typed
    plugins._functions.clear()
    result, text = invoke("train", "--resume", "-o", tmp_path / "run", "--device", "cpu")
    assert result.exit_code == 1
    assert f"--plugin {own}" in text
    result, text = invoke("train", "--resume", "-o", tmp_path / "run", "--plugin", own, "--device", "cpu")
    assert result.exit_code == 0, text
    np.save(tmp_path / "a.npy", smooth().astype(np.float32))
    plugins._functions.clear(), plugins._modules.clear()
    restore = ["restore", tmp_path / "run", tmp_path / "a.npy", "-o", tmp_path / "r", "--device", "cpu"]
    result, text = invoke(*restore)
    assert result.exit_code == 1
    assert f"--plugin {own}" in text
    result, text = invoke(*restore, "--plugin", own)
    assert result.exit_code == 0, text


def test_a_module_gives_only_what_it_defines(own, tmp_path):
    plugins.load_plugin(own)
    assert plugins.named_function(f"{own}:scan")
    for imported in ("check_output", "Path", "part"):
        with pytest.raises(Exception, match=f"--problem {own}:{imported}"):
            plugins.named_function(f"{own}:{imported}")
    plugins.accept(f"{own}:part")
    assert plugins.named_function(f"{own}:part")


def test_one_function_is_not_its_module(own):
    plugins.accept(f"{own}:scan")
    with pytest.raises(ConfigError, match="names the code"):
        plugins.require_accepted(f"{own}:other", "problem.name")


@pytest.mark.parametrize("name", ["no_such.py", "no_such_module", "json.py"])
def test_a_plugin_that_cannot_be_loaded(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("")
    result, text = invoke("doctor", "denoise", "--plugin", name)
    assert result.exit_code == 1
    assert name.removesuffix(".py") in text


def test_workers_get_the_code_that_was_typed(own):
    plugins.load_plugin(f"{own}.py")
    plugins.accept("mine:f")
    named = plugins.given()
    plugins._modules.clear(), plugins._functions.clear(), plugins._loaded.clear()
    plugins.repeat(named)
    assert plugins.is_accepted(f"{own}:scan")
    assert plugins.is_accepted("mine:f")


def rewritten(run, folder, **problem):
    """The model of a run in a folder of its own, with other facts of its problem."""
    folder.mkdir()
    with safe_open(run / "model.safetensors", framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    notes = json.loads(metadata["notes"])
    notes["problem"] = json.dumps(json.loads(notes["problem"]) | problem)
    save_file(tensors, folder / "model.safetensors", metadata | {"notes": json.dumps(notes)})
    return folder


@pytest.mark.parametrize("way", ["absolute", "../", "..\\", "link"])
def test_a_model_reads_no_file_from_elsewhere(run, tmp_path, way):
    secret = tmp_path / "secret.npy"
    np.save(secret, np.ones((3, 3), np.float32) / 9)
    name = {"absolute": str(secret), "../": "../secret.npy", "..\\": "..\\secret.npy", "link": "k.npy"}[way]
    model = rewritten(run, tmp_path / "model", name="deblur", kernel=name)
    if way == "link":
        (model / "k.npy").symlink_to(secret)
    np.save(tmp_path / "a.npy", smooth().astype(np.float32))
    words = ["restore", model, tmp_path / "a.npy", "-o", tmp_path / "r", "--device", "cpu"]
    result, text = invoke(*words)
    assert result.exit_code == 1
    assert "reads no files from other folders" in text.replace("read no files", "reads no files")
    result, text = invoke(*words, "--kernel", secret)
    assert result.exit_code == 0, text


def test_a_kernel_that_is_a_pickle_is_not_executed(run, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    model = rewritten(run, tmp_path / "model", name="deblur", kernel="k.npy")
    np.save(model / "k.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.save(tmp_path / "a.npy", smooth().astype(np.float32))
    result, _ = invoke("restore", model, tmp_path / "a.npy", "-o", tmp_path / "r", "--device", "cpu")
    assert result.exit_code == 1
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("sigma", ["0.3", "0.1,0.1", "estimate"])
@pytest.mark.parametrize("verb", ["restore", "certify"])
def test_another_noise_level_is_refused(run, tmp_path, verb, sigma):
    np.save(tmp_path / "a.npy", smooth().astype(np.float32))
    out = ["-o", tmp_path / "r"] if verb == "restore" else []
    result, text = invoke(verb, run, tmp_path / "a.npy", "--sigma", sigma, *out, "--device", "cpu")
    assert result.exit_code == 1
    assert "was made for sigma = 0.1" in text
    assert "retune tune IMAGES" in text


def test_the_noise_level_of_the_model_is_taken(run, tmp_path):
    np.save(tmp_path / "a.npy", smooth().astype(np.float32))
    result, text = invoke("restore", run, tmp_path / "a.npy", "--sigma", "0.1", "-o", tmp_path / "r", "--device", "cpu")
    assert result.exit_code == 0, text


def test_names_and_notes_cannot_drive_the_terminal(run, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    np.save(folder / "a\x1b]0;owned\x07.npy", smooth().astype(np.float32))
    (folder / "b\x1b[2J\r.npy").write_bytes(b"no array")
    model = rewritten(run, tmp_path / "model", sigma="\x1b[2J")
    for words in (
        ["restore", run, folder, "-o", tmp_path / "r"],
        ["certify", run, folder],
        ["doctor", folder, "-p", "denoise"],
        ["restore", model, folder, "-o", tmp_path / "s"],
        ["train", "\x1b[2J.toml"],
        ["train", "denoise", "--set", "\x1b[2J=1"],
        ["\x1b[2J"],
        ["train", "--\x1b[2J"],
    ):
        result, _ = invoke(*words, lines=200)
        assert "\x1b" not in result.output.replace("\x1b[0m", "").replace("\x1b[1m", "").replace("\x1b[31m", "")
        assert "\r" not in result.output
        assert "\\x1b" in result.output or "\\u001B" in result.output


FOREVER = """
import signal, time, typer
from retune.cli.errors import one_screen
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with SIGINT ignored
def main():
    with one_screen(False, lambda: "do it again"):
        print("ready", flush=True)
        time.sleep(60)
typer.run(main)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, "stopped by SIGTERM"), (signal.SIGINT, "stopped")])
def test_a_signal_says_how_to_go_on(number, said):
    command = [sys.executable, "-c", FOREVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert err == f"{said}; do it again\n"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_training_that_is_terminated_says_how_to_go_on(tmp_path, sharp):
    out = tmp_path / "run"
    words = ["train", "denoise", *SETS, "--set", f"data.train={sharp}", "--set", "optimiser.steps=100000", "-o", out]
    process = subprocess.Popen(
        [*python(), "-m", "retune", *map(str, words), "--device", "cpu"], stderr=subprocess.PIPE, text=True
    )
    while not list(out.glob("checkpoint-*")) and process.poll() is None:
        time.sleep(0.1)
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    # The command is in a line of its own, to be copied.
    assert f"stopped by SIGTERM; continue with\n  retune train --resume --out {out}\n" in err
    assert "Traceback" not in err
