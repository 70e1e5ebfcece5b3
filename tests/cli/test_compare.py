"""``retune compare`` through the command itself: the table, the page, and what an interruption leaves."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import time

import numpy as np
import pytest
from safetensors import safe_open

import retune
from commands import command, invoke, smooth
from programs import python
from retune.comparison.search import line_search
from retune.comparison.tuning import Tuned, _at
from retune.config import Config

KEYS = ["variational", "pnp", "unrolled", "jfb", "implicit", "retune"]
FIELDS = (
    "compare.validation_crop=16",
    "compare.grid=4",
    "compare.far=3",
    "prior.levels=2",
    "prior.wavelet=db2",
    "model.depth=2",
    "model.restarts=1",
    "data.crop=16",
    "data.batch_size=2",
    "optimiser.steps=2",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three folders of images, and the fields of a run that is over in seconds."""
    place = tmp_path_factory.mktemp("images")
    for folder, count in (("train", 2), ("val", 2), ("test", 3)):
        (place / folder).mkdir()
        for i in range(count):
            np.save(place / folder / f"{i}.npy", smooth(24, 26 + i, 3).astype(np.float32))
    data = (f"data.train={place}/train", f"data.validation={place}/val", f"compare.test={place}/test")
    return ["denoise", "--device", "cpu", *(w for f in (*FIELDS, *data) for w in ("--set", f))]


@pytest.fixture(scope="module")
def compared(run, tmp_path_factory):
    """All six methods, in a process of its own, so that the table is what a user sees."""
    out = tmp_path_factory.mktemp("compared") / "out"
    done = command("compare", *run, "-o", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_warm_starts_are_not_equal_terms(run, tmp_path):
    result, text = invoke("compare", *run, "--set", "optimiser.warm_start=true", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "compared from the same starts" in text
    assert not (tmp_path / "out").exists()


def test_equal_time_instead_of_equal_steps(run, tmp_path):
    """The number of steps is found once: a resumed comparison does not measure the time again."""
    out = tmp_path / "out"
    options = (*run, "--set", "compare.seconds=0.4", "--methods", "unrolled,retune", "-o", out)
    result, text = invoke("compare", *options, lines=80)
    assert result.exit_code == 0, text
    rows = json.loads((out / "results.json").read_text())["problems"]["denoise"]["methods"]
    steps = {key: row["steps"] for key, row in rows.items()}
    assert {key: len(row["training"]["loss"]) for key, row in rows.items()} == steps
    assert steps["unrolled"] > steps["retune"] > 2
    result, text = invoke("compare", *options, "--resume", lines=80)
    assert result.exit_code == 0, text
    again = json.loads((out / "results.json").read_text())["problems"]["denoise"]["methods"]
    assert {key: row["steps"] for key, row in again.items()} == steps


def test_every_method_has_every_figure(compared):
    out, shown = compared
    results = json.loads((out / "results.json").read_text())
    rows = results["problems"]["denoise"]["methods"]
    assert list(rows) == KEYS
    for key, row in rows.items():
        assert row["certificate"]["images"][0]["claims"]["residual"], key
        assert len(row["psnr_per_image"]) == 3
        assert row["psnr"] == pytest.approx(np.mean(row["psnr_per_image"]))
        for figure in ("ssim", "psnr_trained", "psnr_3x", "residual", "distance", "seconds", "seconds_restoring"):
            assert row[figure] > 0, (key, figure)
        assert row["memory"] > 0
        assert row["layers_trained"] == (2 if key == "unrolled" else 4)
        assert (out / "models" / f"{key}.safetensors").is_file()
    assert "at 3×" in " ".join(shown.split()) or "3×" in shown
    assert "Trained on 2 images, tuned on 2 images" in " ".join(shown.split())
    assert "reported on 3 images" in " ".join(shown.split())


def test_the_figures_are_those_of_the_networks_that_are_kept(compared, run):
    """Anybody can check a row: the network is there, and so are its images and measurements."""
    out, _ = compared
    row = json.loads((out / "results.json").read_text())["problems"]["denoise"]["methods"]["retune"]
    test = next(f for f in run if str(f).startswith("compare.test=")).removeprefix("compare.test=")
    net, problem = retune.load(out / "models/retune.safetensors"), retune.problems.denoise(0.1)
    for i, psnr in enumerate(row["psnr_per_image"]):
        x = retune.data.as_images(test)[i][None]
        y, physics = problem.measure(x, 1000 + i)
        error = (net.solve(y, physics).image - x).square().mean()
        assert -10 * np.log10(float(error)) == pytest.approx(psnr, abs=1e-3)


def test_the_table_is_a_csv_too(compared):
    out, _ = compared
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    results = json.loads((out / "results.json").read_text())["problems"]["denoise"]["methods"]
    assert [r["method"] for r in rows] == KEYS
    for row in rows:
        assert float(row["psnr_3x"]) == pytest.approx(results[row["method"]]["psnr_3x"])
        assert float(row["distance"]) == pytest.approx(results[row["method"]]["distance"])


def test_the_page_needs_no_other_file(compared):
    out, _ = compared
    page = (out / "report.html").read_text()
    assert len(re.findall(r'<img[^>]+src="data:image/', page)) > 6
    assert not re.findall(r'src="(?!data:)|<link|<script|url\((?!data:)', page)
    for words in ("Plug-and-Play", "Unrolled", "JFB", "ReTune", "at 3 times", "reported on 3 images"):
        assert words in page, words
    assert list((out / "figures").glob("*.png"))


def test_a_folder_of_results_is_not_replaced_and_resume_computes_nothing_twice(compared, run):
    out, _ = compared
    results = json.loads((out / "results.json").read_text())
    result, text = invoke("compare", *run, "-o", out)
    assert result.exit_code == 1
    assert "--resume" in text
    networks = {p: p.stat().st_mtime_ns for p in (out / "training").rglob("model.safetensors")}
    result, text = invoke("compare", *run, "-o", out, "--resume", "--methods", "variational,retune", lines=80)
    assert result.exit_code == 0, text
    assert networks == {p: p.stat().st_mtime_ns for p in (out / "training").rglob("model.safetensors")}
    again = json.loads((out / "results.json").read_text())["problems"]["denoise"]["methods"]
    assert again == {k: results["problems"]["denoise"]["methods"][k] for k in ("variational", "retune")}
    result, text = invoke("compare", *run, "--set", "model.depth=3", "-o", out, "--resume")
    assert result.exit_code == 1
    assert "depth = 3" in text  # the message shows what differs


def test_a_comparison_of_another_version_is_named_and_left_as_it_is(run, tmp_path):
    """Version 0.1.0 wrote no format."""
    progress = tmp_path / "progress.json"
    for form, says in ((None, "begun with ReTune 0.1.0"), (99, "another version of ReTune (format 99, this one has")):
        content = {"settings": {"run": "", "train": "", "validation": ""}, "entries": {}}
        progress.write_text(json.dumps(content | ({} if form is None else {"format": form})))
        before = progress.read_bytes()
        result, text = invoke("compare", *run, "-o", tmp_path, "--resume")
        assert result.exit_code == 1
        assert says in text
        assert ("retune-imaging==0.1.0" in text) == (form is None)
        assert "another --out" in text
        assert f"--model {tmp_path}" in text
        assert progress.read_bytes() == before


def test_a_search_is_found_again_whatever_step_size_it_chose(run, tmp_path, monkeypatch):
    """It is kept under the name of the run that it began with."""

    def search(begun, held_out, note):
        return Tuned(_at(begun, sigma=0.1, step_size=0.5), [{"psnr": 20.0, "sigma": 0.1, "step_size": 0.5}])

    monkeypatch.setattr("retune.comparison.run.grid_search", search)
    result, text = invoke("compare", *run, "--methods", "pnp", "-o", tmp_path / "out", lines=80)
    assert result.exit_code == 0, text
    (section,) = json.loads((tmp_path / "out" / "results.json").read_text())["problems"].values()
    assert section["methods"]["pnp"]["learned"]["step_size"] == pytest.approx([0.5])


def test_more_test_images_are_added_to_what_was_computed(run, tmp_path):
    """An image is the same task, whichever others are reported on."""
    arguments = ["compare", *run, "-o", tmp_path / "out", "--methods", "variational", "--resume"]
    assert invoke(*arguments, "--set", "compare.every=2", lines=80)[0].exit_code == 0
    results = tmp_path / "out/results.json"
    few = json.loads(results.read_text())["problems"]["denoise"]["methods"]["variational"]
    networks = (tmp_path / "out/progress.json").read_text()
    assert invoke(*arguments, lines=80)[0].exit_code == 0
    every = json.loads(results.read_text())["problems"]["denoise"]["methods"]["variational"]
    assert [every["psnr_per_image"][i] for i in (0, 2)] == few["psnr_per_image"]
    assert every["images"] == ["images/0-variational.png", "images/1-variational.png"]
    before, after = (json.loads(t)["entries"] for t in (networks, (tmp_path / "out/progress.json").read_text()))
    assert {k: after[k] for k in before} == before  # seconds and all: nothing was computed twice


def test_ctrl_c_leaves_cleanly_and_keeps_what_was_computed(run, tmp_path):
    out = tmp_path / "out"
    words = ["compare", *run, "--methods", "variational,retune", "--set", "optimiser.steps=100000", "-o", str(out)]
    process = subprocess.Popen([*python(), "-m", "retune", *words], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(out.glob("training/retune-*/log.csv")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    kept = json.loads((out / "progress.json").read_text())["entries"]
    assert [name for name in kept if name.startswith("grid/")]
    assert [name for name in kept if name.startswith("image/variational/")]
    assert not [p for p in out.rglob(".*") if p.is_file()]


def test_networks_that_are_trained_already(compared, run, tmp_path):
    model = compared[0] / "models/retune.safetensors"
    other = tmp_path / "retune.safetensors"  # of the same name
    retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL1("haar", 1)), depth=2).save(other)
    out = tmp_path / "out"
    models = ("--model", model, "--model", other)
    result, text = invoke("compare", *run, "-o", out, "--methods", "none", *models, lines=80)
    assert result.exit_code == 0, text
    rows = json.loads((out / "results.json").read_text())["problems"]["denoise"]["methods"]
    before = json.loads((compared[0] / "results.json").read_text())["problems"]["denoise"]["methods"]["retune"]
    assert list(rows) == ["model-retune", "model-retune-2"]
    assert rows["model-retune"]["psnr"] != rows["model-retune-2"]["psnr"]
    assert rows["model-retune"]["psnr"] == before["psnr"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--methods", "retunee"], "did you mean 'retune'"),
        (["--methods", "none"], "nothing to compare"),
        (["--set", "compare.gird=5"], "did you mean 'grid'"),
        (["--set", "compare.far=1"], "compare.far = 1"),
        (["--set", "compare.test=photographs"], "set data.validation and compare.test to folders"),
        (["--set", "compare.validation_crop=200"], "an image of 24×26 pixels is smaller"),
        (["--set", "compare.test=nowhere"], "there is no file or folder nowhere"),
        (["--device", "tpu9"], "device 'tpu9' is not available"),
        (["--model", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_comparing_with_bad_input(run, tmp_path, options, says):
    methods = [] if "--methods" in options else ["--methods", "variational" if "--model" not in options else "none"]
    result, text = invoke("compare", *run, "-o", tmp_path / "out", *methods, *options)
    assert result.exit_code == 1, text
    assert says in text


def test_a_model_that_is_none_is_said_before_anything_is_computed(run, tmp_path):
    (tmp_path / "no.safetensors").write_bytes(b"not a model")
    options = ["--methods", "variational", "--model", tmp_path / "no.safetensors"]
    result, text = invoke("compare", *run, "-o", tmp_path / "out", *options)
    assert result.exit_code == 1
    assert "no.safetensors cannot be read as a checkpoint" in text
    assert not (tmp_path / "out" / "progress.json").exists()


def test_a_full_disk_and_a_folder_that_is_none(run, tmp_path):
    """No file may be longer than 100 bytes: the same error from write as on a full disk."""
    done = command("compare", *run, "-o", tmp_path / "out", "--methods", "variational", limit=100)
    assert done.returncode == 1
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.stat().st_size]
    (tmp_path / "file").write_text("")
    result, text = invoke("compare", *run, "-o", tmp_path / "file/out", "--methods", "variational")
    assert result.exit_code == 1
    assert "file" in text


@pytest.mark.parametrize("best", [0.01, 0.3, 1.0, 100.0])
def test_a_search_spends_no_try_twice_and_ends_near_the_best(best):
    tried = line_search(lambda v: -abs(np.log(v / best)), (0.01, 100.0), 12)
    values = [v for v, _ in tried.tried]
    assert len(values) == len(set(np.round(np.log(values), 9))) == 12
    assert abs(np.log(tried.best / best)) < np.log(1e4) / 5 / 6 * (1 + 1e-9)


def test_a_search_that_ends_at_an_end_says_so():
    tried = [{"step_size": 0.9, "sigma": s, "psnr": p} for s, p in ((0.01, 20.0), (0.05, 25.0), (0.19, 26.0))]
    assert str(Tuned(Config(), tried).remark).endswith("0.19, is the largest that was tried")
    assert Tuned(Config(), [*tried, {"step_size": 0.5, "sigma": 0.05, "psnr": 27.0}]).remark is None


def test_the_networks_say_what_they_were_made_for(compared):
    with safe_open(compared[0] / "models/implicit.safetensors", framework="pt") as file:
        assert "denoise" in json.dumps(file.metadata())
