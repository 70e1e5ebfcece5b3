"""The toys on the command line: a class of somebody's, in one file, in every verb, by ``--plugin`` and a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from commands import command, one_after_the_other, smooth

TOYS = Path(__file__).parents[1] / "toys"
#: what a run says of each toy, and what the files that are made then say
RUNS = {
    "halfway": ({"model": {"solver": "halfway", "solver_options": {"theta": 0.7}}}, '"type": "Halfway", "theta": 0.7'),
    "last_layer": ({"gradient": {"rule": "last_layer", "options": {"scale": 0.5}}}, '"type": "LastLayer"'),
    "quadratic": ({"prior": {"type": "quadratic", "options": {"weight": 0.3}}}, '"type": "Quadratic"'),
    "averaged_step": ({"map": {"type": "averaged_step"}}, '"type": "AveragedStep"'),
    "weighted": (
        {"data_fidelity": {"type": "weighted", "options": {"weight": 2.0}}, "map": {"options": {"lipschitz": 2.0}}},
        '"type": "Weighted", "weight": 2.0',
    ),
    "dimmed": ({"problem": {"name": "dimmed", "options": {"factor": 0.6}}}, '"factor": 0.6'),
}


def toml(tables):
    """Numbers, strings and lists are written in JSON as in TOML."""
    lines = []
    for name, fields in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{k} = {json.dumps(v)}" for k, v in fields.items() if not isinstance(v, dict)]
        for k, v in fields.items():
            if isinstance(v, dict):
                lines += [f"[{name}.{k}]", *(f"{key} = {json.dumps(value)}" for key, value in v.items())]
    return "\n".join(lines) + "\n"


def written(folder, name):
    """The run of a toy, and the small images that it is for."""
    for part in ("train", "test"):
        (folder / part).mkdir()
        np.save(folder / part / "a.npy", smooth(24, 24).astype(np.float32))
    np.save(folder / "y.npy", smooth(16, 20).astype(np.float32))
    tables = {
        "problem": {"name": "denoise", "sigma": 0.1},
        "prior": {"levels": 1, "wavelet": "haar", "weights_per_channel": False},
        "model": {"depth": 2, "restarts": 1, "max_layers": 40},
        "data": {"train": str(folder / "train"), "validation": str(folder / "train"), "crop": 16, "batch_size": 1},
        "optimiser": {"steps": 1},
        "compare": {"test": str(folder / "test"), "validation_crop": 16, "grid": 4, "far": 2},
    }
    for section, fields in RUNS[name][0].items():
        tables[section] = fields if section == "prior" else tables.get(section, {}) | fields
    (folder / "run.toml").write_text(toml(tables))
    return folder / "run.toml"


def verbs(folder, name):
    run, model, plugin = folder / "run.toml", folder / "run", ("--plugin", TOYS / f"{name}.py")
    methods = "variational,last_layer" if name == "last_layer" else "variational,retune"
    return {
        "train": ("train", run, "--out", model, "--device", "cpu", *plugin),
        "restore": ("restore", model, folder / "y.npy", "--out", folder / "out", *plugin),
        "certify": ("certify", model, folder / "y.npy", *plugin),
        "compare": ("compare", run, "--methods", methods, "--out", folder / "all", "--device", "cpu", *plugin),
    }


@pytest.mark.parametrize("name", RUNS)
def test_a_toy_goes_through_every_verb(name, tmp_path):
    written(tmp_path, name)
    for words, (status, told) in zip(
        verbs(tmp_path, name).values(), one_after_the_other(*verbs(tmp_path, name).values()), strict=True
    ):
        assert status == 0, (words[0], told)
        assert "Traceback" not in told
    assert np.load(tmp_path / "out" / "y.npy").shape == (16, 20)
    assert json.loads((tmp_path / "out" / "y.npy.json").read_text())["certificate"]
    saved = (tmp_path / "run" / "model.safetensors").read_bytes().replace(b"\\", b"").replace(b" ", b"")
    assert RUNS[name][1].replace(" ", "").encode() in saved
    (section,) = json.loads((tmp_path / "all" / "results.json").read_text())["problems"].values()
    key = "last_layer" if name == "last_layer" else "retune"
    assert section["methods"][key]["psnr"] > 0
    assert section["methods"][key]["failure"] is None


def test_each_verb_loads_the_plugin_and_without_it_says_what_is_missing(tmp_path):
    """In a process each, as a user does."""
    written(tmp_path, "quadratic")
    words = verbs(tmp_path, "quadratic")
    for verb in ("train", "restore", "certify"):
        done = command(*words[verb][:-2])
        assert done.returncode == 1, done.stdout
        assert "--plugin" in " ".join(done.stderr.split()), done.stderr
        done = command(*words[verb])
        assert done.returncode == 0, done.stderr
