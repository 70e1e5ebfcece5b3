"""A verb reads the file of its model once, and binds the network to an image once for a solve and its certificate."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch

import retune
from commands import SETS, invoke, smooth
from retune import _checkpoint, config
from retune.comparison.run import compare
from retune.errors import CheckpointError
from retune.jobs.opened import open_model
from retune.operators.data_term import DataTerm

_watched: set[str] = set()
_openings: list[str] = []


def _hook(event, arguments):
    if event == "open" and _watched and str(arguments[0]) in _watched and not int(arguments[2] or 0) & 3:
        _openings.append(str(arguments[0]))


sys.addaudithook(_hook)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a small training run, whose network knows its unit."""
    folder = tmp_path_factory.mktemp("run")
    np.save(folder / "0.npy", smooth().astype(np.float32))
    sets = [*SETS, "--set", f"data.train={folder}", "--set", "data.white=1.0"]
    result, text = invoke("train", "denoise", *sets, "-o", folder / "a", "--device", "cpu")
    assert result.exit_code == 0, text
    return folder / "a"


@pytest.fixture
def images(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(2):
        np.save(tmp_path / "photos" / f"{i}.npy", smooth(24, 20 + i).astype(np.float32))
    return tmp_path / "photos"


@pytest.fixture
def counted(run, monkeypatch):
    """What happens: readings of the model file, and what is bound, solved and certified, in its order."""
    happened = []

    def count(owner, name, label):
        before = getattr(owner, name)

        def counting(*args, **kwargs):
            happened.append(label)
            return before(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(_checkpoint, "opened", "parsed")
    count(DataTerm, "__init__", "data term")
    count(retune.ForwardBackward, "bind", "bound")
    count(retune.Restarted, "solve", "solved")
    _watched.add(str(run / "model.safetensors"))
    _openings.clear()
    yield lambda: {"read": len(_openings)} | {label: happened.count(label) for label in dict.fromkeys(happened)}
    _watched.clear()


ONCE_FOR_TWO_IMAGES = {"read": 1, "parsed": 1, "data term": 2, "bound": 2, "solved": 2}


@pytest.mark.parametrize("more", [[], ["--no-certificate"]])
def test_restore_reads_once_and_binds_once_for_an_image(run, images, counted, tmp_path, more):
    result, text = invoke("restore", run, images, "-o", tmp_path / "out", "--device", "cpu", *more)
    assert result.exit_code == 0, text
    assert "1 counts as white, as in the network's training" in text
    assert counted() == ONCE_FOR_TWO_IMAGES


def test_certify_reads_once_and_binds_once_for_an_image(run, images, counted, tmp_path):
    result, text = invoke("certify", run, images, "--json", tmp_path / "c.json", "--device", "cpu", lines=99)
    assert result.exit_code == 0, text
    assert counted() == ONCE_FOR_TWO_IMAGES


def test_tiles_are_bound_once_each(run, counted, tmp_path):
    np.save(tmp_path / "large.npy", smooth(48, 40).astype(np.float32))
    more = ["--tile", "8", "--overlap", "8", "--device", "cpu"]
    result, text = invoke("restore", run, tmp_path / "large.npy", "-o", tmp_path / "out", *more)
    assert result.exit_code == 0, text
    found = counted()
    assert found["read"] == 1
    assert found["bound"] == found["data term"] == found["solved"] > 2


def test_compare_reads_a_trained_model_once(run, counted, tmp_path):
    comparison = config.load("demo-denoise", [
        "problem.sigma=0.1", "data.grey=true", "compare.crop=32", "compare.validation_crop=32", "compare.certify=1",
        "compare.run_on=[]", "compare.certified=[]", "compare.far=2",
    ])  # fmt: skip
    results = compare(comparison, tmp_path / "out", methods=[], models=[run])
    assert [m.label for p in results.problems.values() for m in p.methods.values()] == [run.name]
    found = counted()
    assert (found["read"], found["parsed"]) == (1, 1)
    assert (found["solved"], found["bound"]) == (1, 3)  # figures of two images, and the solve of one certificate


def test_an_opened_model_goes_to_another_process_by_name(run):
    model = open_model(run, {"boundary": None})
    sent = pickle.dumps(model)
    assert len(sent) < 10_000
    again = pickle.loads(sent)
    assert (again.file, again.problem, again.white, again.digest) == (model.file, model.problem, 1.0, model.digest)
    for name, weight in model.net.state_dict().items():
        assert torch.equal(weight, again.net.state_dict()[name])


def test_a_file_that_is_longer_than_it_says_is_refused_before_it_is_read(run, tmp_path):
    """A sparse file of a terabyte takes no memory, and no time."""
    content = (run / "model.safetensors").read_bytes()
    path = tmp_path / "net.safetensors"
    with path.open("wb") as file:
        file.write(content)
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match=r"cannot be read as a checkpoint \(1099511627776 bytes\)"):
        open_model(path)
