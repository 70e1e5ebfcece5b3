"""A toy of each kind, in a file of its own, taken through all that is done with our own classes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import retune
from commands import invoke, smooth
from programs import python
from retune import config, registry
from retune.comparison.run import compare
from retune.errors import CheckpointError
from retune.jobs.train import train

TOYS = Path(__file__).parent / "toys"
#: what a run says of each toy, and where the network holds it
RUNS = {
    "halfway": ({"model": {"solver": "halfway", "solver_options": {"theta": 0.7}}}, lambda net: net.solver, "theta"),
    "last_layer": ({"gradient": {"rule": "last_layer", "options": {"scale": 0.5}}}, lambda net: net.gradient, "scale"),
    "quadratic": ({"prior": {"type": "quadratic", "options": {"weight": 0.3}}}, lambda net: net.map.priors[0], None),
    "averaged_step": ({"map": {"type": "averaged_step"}}, lambda net: net.map, None),
    "weighted": (
        {
            "data_fidelity": {"type": "weighted", "options": {"weight": 2.0}},
            "map": {"options": {"lipschitz": 2.0}},
        },
        lambda net: net.map.data_fidelity,
        "weight",
    ),
    "dimmed": ({"problem": {"name": "dimmed", "options": {"factor": 0.6}}}, None, "factor"),
}


@pytest.fixture(scope="module", autouse=True)
def _toys_are_registered():
    for name in RUNS:
        registry.load_plugin(TOYS / f"{name}.py")


@pytest.fixture
def run(request, tmp_path):
    """The run of a toy: two steps on small images."""
    for folder in ("train", "validation", "test"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "a.npy", smooth(32, 32).astype(np.float32))
    values = {
        "problem": {"name": "denoise", "sigma": 0.1},
        "prior": {"levels": 2, "wavelet": "haar", "weights_per_channel": False},
        "model": {"depth": 2, "restarts": 2, "max_layers": 60},
        "data": {k: str(tmp_path / k) for k in ("train", "validation")} | {"crop": 16, "batch_size": 2},
        "optimiser": {"steps": 2},
        "compare": {"test": str(tmp_path / "test"), "validation_crop": 16, "grid": 4, "far": 2},
    }
    for section, fields in RUNS[request.param][0].items():
        values[section] = fields if section == "prior" else values.get(section, {}) | fields
    return request.param, config.from_dict(values)


@pytest.mark.parametrize("run", RUNS, indirect=True)
def test_a_toy_is_trained_saved_loaded_restored_certified_and_compared(run, tmp_path):
    name, run = run
    _, part, option = RUNS[name]
    result = train(run, tmp_path / "run", device="cpu", progress=False)
    assert len(result.steps) == 2
    assert config.load(tmp_path / "run" / "config.toml") == run
    net = retune.load(tmp_path / "run" / "model.safetensors")
    if part is not None:
        assert type(part(net)).__module__ == name
        if option is not None:
            assert [getattr(part(net), option)] == [
                v[option] for s in RUNS[name][0].values() for v in s.values() if isinstance(v, dict) and option in v
            ]
    y, physics = retune.build.problem_of(run.problem).measure(torch.rand(1, 1, 16, 16))
    net.save(tmp_path / "again.safetensors")
    again = retune.load(tmp_path / "again.safetensors")
    assert torch.equal(net.solve(y, physics).image, again.solve(y, physics).image)
    assert "rate" in str(retune.certify(net, y, physics))
    assert retune.plan(net, (1, 16, 16), 1).step_bytes > 0

    np.save(tmp_path / "y.npy", smooth(16, 20).astype(np.float32))
    given = ["--problem", "dimmed"] if name == "dimmed" else []
    done, told = invoke("restore", tmp_path / "run", tmp_path / "y.npy", "--out", tmp_path / "out", *given)
    assert done.exit_code == 0, told
    assert json.loads((tmp_path / "out" / "y.npy.json").read_text())["certificate"]
    done, told = invoke("certify", tmp_path / "run", tmp_path / "y.npy", lines=200)
    assert done.exit_code == 0, told

    key = name if name == "last_layer" else "retune"
    results = compare(run, tmp_path / "comparison", methods=["variational", key], device="cpu")
    (section,) = results.problems.values()
    assert section.methods[key].failure is None


@pytest.mark.parametrize("run", ["last_layer"], indirect=True)
def test_a_rule_of_the_run_is_a_method_of_its_own(run):
    from retune.comparison.methods import methods_of

    assert methods_of(run[1])["last_layer"].label == "LastLayer"
    assert "last_layer" not in methods_of(config.Config())


CHILD = """
import sys, retune
from pathlib import Path
toys, files = Path(sys.argv[1]), sys.argv[2:]
for file in files:
    try:
        retune.load(file)
        sys.exit(f"{file} was loaded, though nothing was registered")
    except retune.errors.CheckpointError as error:
        assert "--plugin FILE.py" in str(error), error
assert not {p.stem for p in toys.glob("*.py")} & set(sys.modules)
for file in toys.glob("*.py"):
    retune.registry.load_plugin(file)
for file in files:
    print(retune.load(file).extra_repr())
"""


def test_in_another_process_a_file_is_loaded_once_its_class_is_registered(tmp_path):
    """And nothing is imported because a file names it."""
    files = []
    for name, (values, part, _) in RUNS.items():
        if part is not None:
            files.append(tmp_path / f"{name}.safetensors")
            retune.build.network_of(config.from_dict(values), 1).save(files[-1])
    words = [*python(), "-c", CHILD, str(TOYS), *map(str, files)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, cwd=TOYS)
    assert done.returncode == 0, done.stderr
    assert "Halfway(theta=0.7)" in done.stdout


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model": {"solver": "halfway", "solver_options": {"teta": 1}}}, r"model\.solver_options\.teta = 1.*'theta'"),
        ({"prior": {"type": "quadratic", "options": {"w": 1}}}, r"prior\.options\.w = 1"),
        ({"map": {"type": "averaged_step"}, "model": {"reg": 0.3}}, r"model\.reg = 0\.3: the map .* has no reg"),
        ({"map": {"type": "averaged_step"}, "data_fidelity": {"options": {"sigma": 2.0}}}, "has no data_fidelity"),
    ],
)
def test_an_option_that_a_toy_does_not_have_is_named(values, says):
    with pytest.raises(retune.errors.ConfigError, match=says):
        retune.build.network_of(config.from_dict(values), 1)


def test_a_broken_description_is_a_checkpoint_error(tmp_path):
    net = retune.build.network_of(config.from_dict(RUNS["halfway"][0]), 1)
    told = net.describe()
    told["solver"]["extra"] = 1
    retune._checkpoint.write(tmp_path / "a.safetensors", net.state_dict(), told, {})
    with pytest.raises(CheckpointError, match="extra"):
        retune.load(tmp_path / "a.safetensors")
