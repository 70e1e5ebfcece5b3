"""``retune study`` through the command itself: tables, page, and what an interruption leaves."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest

import retune
from commands import invoke, smooth
from retune.records import Study
from retune.report.study_page import _milliseconds

FIELDS = ("prior.levels=2", "prior.wavelet=db2", "model.depth=2", "model.restarts=1", "data.crop=16")
FIELDS += ("data.batch_size=1", "model.reg=0.1")
GRID = ("--depths", "1,2,4", "--restarts", "0,4")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two folders of images, and the fields of a run that is over in seconds."""
    place = tmp_path_factory.mktemp("images")
    for folder in ("train", "val"):
        (place / folder).mkdir()
        for i in range(2):
            np.save(place / folder / f"{i}.npy", smooth(20 + i, 24).astype(np.float32))
    data = (f"data.train={place}/train", f"data.validation={place}/val")
    return ["denoise", "--quick", "--device", "cpu", *(w for f in (*FIELDS, *data) for w in ("--set", f))]


@pytest.fixture(scope="module")
def studied(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("studied") / "out"
    words = [*run, *GRID, "--images", 2, "--crop", 16, "--train-seconds", 0.02, "-o", out]
    result, text = invoke("study", *words, lines=120)
    assert result.exit_code == 0, text
    return out, words, text


def test_every_cell_is_in_the_tables(studied):
    out, _, text = studied
    study = Study.read(out)
    rows = list(csv.DictReader((out / "study.csv").read_text().splitlines()))
    assert len(rows) == 3 * 6  # two images and the mean
    assert {r["image"] for r in rows} == {"image 1", "image 2", "mean"}
    for row in rows:
        columns = ("gradient_error", "reported", "distance", "certified", "distance_bound", "distance_expected")
        for name in (*columns, "seconds", "memory"):
            assert float(row[name]) > 0, (name, row)
        assert -1 <= float(row["cosine"]) <= 1
    assert study.command.startswith("retune study denoise --quick")
    best, worst = study.mean.at(4, 4), study.mean.at(1, 0)
    assert best.distance < worst.distance
    assert "The error of the gradient is" in text


def test_memory_grows_with_the_depth(studied):
    study = Study.read(studied[0])
    memory = {(c.depth, c.restarts): c.memory for c in study.costs}
    assert memory[1, 4] < memory[2, 4] < memory[4, 4]
    assert all(study.cost(k, 4).seconds >= study.cost(k, 0).seconds > 0 for k in study.depths)


def test_methods_are_trained_for_the_same_time(studied):
    out, _, _ = studied
    races = {one.key: one for one in Study.read(out).races}
    assert {"unrolled", "jfb", "implicit", "retune", "retune-blocks"} <= set(races)
    assert races["jfb"].depth == 1
    for one in races.values():
        assert one.failure is None
        assert one.steps >= 2
        assert one.seconds == sorted(one.seconds)
        assert len(one.psnr) == len(one.seconds) > 1
    assert (out / "races.csv").read_text().count("retune-blocks") == len(races["retune-blocks"].psnr)


def test_the_page_needs_no_other_file(studied):
    page = (studied[0] / "study.html").read_text()
    assert len(re.findall(r'<img src="data:image/png', page)) == 7
    assert not re.findall(r'src="(?!data:)|<link|<script|url\((?!data:)|href="(?!#)|https?://', page)
    for words in ("initial weights", "learned parameters", "estimated factor of a layer", "ReTune, 3 adjoint blocks"):
        assert words in page, words
    assert len(list((studied[0] / "figures").glob("study-*.png"))) == 7


def test_an_interrupted_study_continues_to_the_same_tables(studied, tmp_path):
    """What is lost is computed again, to the last digit; the rest is kept."""
    out, words, _ = studied
    again = tmp_path / "again"
    again.mkdir()
    progress = json.loads((out / "progress.json").read_text())
    lost = progress["entries"].pop("image/1")
    (again / "progress.json").write_text(json.dumps(progress))
    result, text = invoke("study", *words[:-1], again, "--resume", lines=120)
    assert result.exit_code == 0, text
    assert json.loads((again / "progress.json").read_text())["entries"]["image/1"] == lost
    for name in ("study.csv", "races.csv"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_a_study_is_not_replaced_and_has_its_settings(studied, tmp_path):
    _, words, _ = studied
    result, text = invoke("study", *words)
    assert result.exit_code == 1
    assert "--resume" in text
    result, text = invoke("study", *words, "--resume", "--set", "model.reg=0.2")
    assert result.exit_code == 1
    assert "reg = 0.2" in text
    (tmp_path / "study.csv").write_text("mine")
    result, text = invoke("study", *words[:-1], tmp_path)
    assert result.exit_code == 1
    assert "belong to something else" in text
    assert (tmp_path / "study.csv").read_text() == "mine"


def test_the_folder_of_a_run_is_studied_with_its_weights(run, studied, tmp_path):
    """The trained network is not the initial one, so its errors are others."""
    words = [w for w in run if w != "--quick"][1:]
    result, text = invoke("train", "denoise", *words, "--set", "optimiser.steps=3", "-o", tmp_path / "run", lines=40)
    assert result.exit_code == 0, text
    options = [*GRID, "--quick", "--crop", 16, "--train-seconds", 0, "--device", "cpu"]
    result, text = invoke("study", tmp_path / "run", *options, "-o", tmp_path / "out", lines=60)
    assert result.exit_code == 0, text
    found, untrained = Study.read(tmp_path / "out"), Study.read(studied[0])
    assert found.races == []
    assert found.images[0].at(2, 4).distance != untrained.images[0].at(2, 4).distance
    assert retune.load(tmp_path / "run" / "model.safetensors").depth == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--depths", "1,two"], "expected whole numbers separated by commas"),
        (["--depths", "0"], "depths must be whole numbers ≥ 1"),
        (["--device", "tpu9"], "device 'tpu9' is not available"),
        (["--crop", "0"], "crop must be at least 1"),
    ],
)
def test_studying_with_bad_input(run, tmp_path, options, says):
    result, text = invoke("study", *run, "--train-seconds", 0, *options, "-o", tmp_path / "out")
    assert result.exit_code in (1, 2), text
    assert says in text


def test_seconds_are_told_in_whole_milliseconds():
    """Not as 1.14e+03."""
    assert [_milliseconds(s) for s in (0.0118, 0.463, 0.99951, 1.1404)] == ["11.8", "463", "1000", "1140"]
    assert _milliseconds(0.021) == "21.0"
