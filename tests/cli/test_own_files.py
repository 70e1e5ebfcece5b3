"""Files of the user are never replaced, and whatever an option names is checked before the work."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from commands import invoke, smooth
from retune._files import write_atomically
from retune.comparison.ledger import Ledger
from retune.comparison.rows import require_own
from retune.errors import InvalidParameterError
from retune.records import Results
from retune.records.results import FORMAT

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")


@pytest.fixture
def photo(tmp_path):
    np.save(tmp_path / "a.npy", smooth().astype(np.float32))
    return tmp_path / "a.npy"


def words(verb, run, photo):
    return {
        "certify": ["certify", run, photo, "--device", "cpu"],
        "doctor": ["doctor", photo, "-p", "denoise", "--sigma", 0.05],
    }[verb]


@pytest.mark.parametrize("verb", ["certify", "doctor"])
@pytest.mark.parametrize("name", ["a.npy", "mine.txt", "mine.json"])
def test_json_replaces_no_file_of_the_user(run, photo, verb, name):
    mine = photo.parent / name
    if name != "a.npy":
        mine.write_text('{"mine": 1}')
    before = mine.read_bytes()
    result, text = invoke(*words(verb, run, photo), "--json", mine, lines=60)
    assert result.exit_code == 1
    assert "does not contain results of this command" in text
    assert mine.read_bytes() == before


@pytest.mark.parametrize("verb", ["certify", "doctor"])
def test_json_replaces_its_own_result(run, photo, verb):
    path = photo.parent / "ours.json"
    for _ in range(2):
        invoke(*words(verb, run, photo), "--json", path, lines=60)
        assert json.loads(path.read_bytes())["format"] == 1
        path.write_bytes(path.read_bytes().replace(b"\n", b""))  # a changed record is still one


@pytest.mark.parametrize("verb", ["certify", "doctor"])
@pytest.mark.parametrize(("name", "says"), [("", "is empty"), (".", "is a folder")])
def test_a_json_file_without_a_name_is_refused_before_the_work(run, photo, verb, name, says):
    result, text = invoke(*words(verb, run, photo), "--json", name, lines=60)
    assert result.exit_code != 0
    assert says in text
    assert "Proved" not in text
    assert "ok range" not in text


@needs_pipes
def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    """As in `--json >(jq .)`, or /dev/stdout."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert not (tmp_path / "pipe").is_file()


@pytest.mark.parametrize("verb", ["restore", "tune", "train", "compare", "demo"])
@pytest.mark.parametrize("kind", ["file", "loop"])
def test_a_folder_that_cannot_be_one_is_named(run, photo, verb, kind):
    out = photo.parent / "out"
    out.write_text("mine") if kind == "file" else out.symlink_to(out)
    quick = ["--set", "prior.levels=2", "--set", "data.crop=16"]
    commands = {
        "restore": ["restore", run, photo],
        "tune": ["tune", photo, "-p", "denoise", "--sigma", 0.1, *quick],
        "train": ["train", "denoise", "--set", f"data.train={photo}", *quick],
        "compare": ["compare", "denoise", "--methods", "variational"],
        "demo": ["demo", "--quick", "--problem", "denoise"],
    }
    result, text = invoke(*commands[verb], "--out", out, lines=40)
    assert result.exit_code == 1
    assert "cannot be a folder" in text or "Too many levels" in text or "progress.json" in text


@pytest.mark.parametrize("name", ["results.json", "results.csv", "report.html"])
def test_a_demo_replaces_no_file_of_the_user(tmp_path, name):
    (tmp_path / name).write_text("mine")
    result, text = invoke("demo", "--quick", "--problem", "denoise", "--out", tmp_path)
    assert result.exit_code == 1
    assert f"contains {name} but no results of a comparison" in text
    assert (tmp_path / name).read_text() == "mine"


def test_results_of_a_comparison_may_be_replaced(tmp_path):
    (tmp_path / "models").mkdir()
    with pytest.raises(InvalidParameterError, match="contains models"):
        require_own(tmp_path, "models")
    Results.model_validate({"format": FORMAT, "problems": {"denoise": {"methods": {"pnp": {}}}}}).write(
        tmp_path / "results.json"
    )
    require_own(tmp_path, "models")


def test_a_comparison_that_ended_before_its_first_result_begins_again(tmp_path):
    path = tmp_path / "progress.json"
    Ledger(path, {"seed": 1}, resume=False)
    assert path.is_file()  # the folder is marked before the pictures are written
    again = Ledger(path, {"seed": 2}, resume=False)
    again.once("a", int, lambda: 3)
    with pytest.raises(InvalidParameterError, match="--resume"):
        Ledger(path, {"seed": 2}, resume=False)
    assert Ledger(path, {"seed": 2}, resume=True).once("a", int, lambda: pytest.fail("it is there")) == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-p", "deblur", "--kernel", "", "--sigma", 0.1], "problem.kernel"),
        (["-p", "inpaint", "--mask", " ", "--sigma", 0.1], "problem.mask"),
        (["-p", "deblur", "--kernel", "motion:15@nan", "--sigma", 0.1], "motion:15@nan"),
        (["-p", "deblur", "--kernel", "gaussian:", "--sigma", 0.1], "gaussian:"),
        (["-p", "deblur", "--kernel", "motion:15@", "--sigma", 0.1], "motion:15@"),
        (["-p", "denoise", "--noise", "poisson:1e30"], "gain must be 0 or a number from"),
        (["-p", "denoise", "--noise", "poisson:1e-30"], "gain must be 0 or a number from"),
        (["-p", "denoise", "--noise", "poisson:0.01,0.01,9"], "no light is left"),
        (["-p", "denoise", "--sigma", "0.1,0.2"], "levels for 2 channels, but the measurement has 1"),
        (["-p", "denoise", "--sigma", 0.1, "--white", "1e300"], "cannot be its white"),
        (["-p", "denoise", "--sigma", 0.1, "--white", "1e-300"], "cannot be its white"),
        (["-p", "denoise", "--sigma", 0.1, "--device", "meta"], "computes nothing"),
    ],
    ids=str,
)
def test_an_odd_option_of_restore_is_named(photo, options, says):
    result, text = invoke("restore", photo, *options, "--out", photo.parent / "out", lines=40)
    assert result.exit_code == 1
    assert says in text


def test_images_of_a_few_pixels_are_named_or_restored(tmp_path):
    for shape in ((1, 1), (1, 40), (2, 2)):
        np.save(tmp_path / f"{shape[0]}x{shape[1]}.npy", np.full(shape, 0.5, np.float32))
    result, text = invoke("restore", tmp_path, "-p", "denoise", "--out", tmp_path / "out", lines=40)
    assert result.exit_code == 1
    assert text.count("pixels: at least 5×5 are needed") == 3
    assert "Error:" not in text


def test_a_result_that_somebody_changed_is_not_replaced(run, photo, tmp_path):
    """Its record is ours, but the image is not the one that the record describes."""
    out = tmp_path / "o"
    asked = ["restore", run, photo, "--out", out, "--no-certificate", "--no-report"]
    assert invoke(*asked)[0].exit_code == 0
    np.save(out / "a.npy", np.zeros((3, 3)))
    assert "done before" in invoke(*asked)[1]
    result, text = invoke(*asked, "--again")
    assert result.exit_code == 1
    assert "was changed after retune restore wrote it, so it was not replaced" in text
    assert np.load(out / "a.npy").shape == (3, 3)
    (out / "a.npy").unlink()
    assert invoke(*asked, "--again")[0].exit_code == 0
    assert invoke(*asked, "--again")[0].exit_code == 0
