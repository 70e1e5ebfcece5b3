"""What is said of a measured kernel on the command line, the options that mend it, and what a model keeps of them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from commands import invoke, smooth
from point_spreads import gauss, moved
from retune import _checkpoint, problems
from retune.build import problem_of
from retune.config import ProblemConfig, from_dict, load
from retune.jobs.opened import open_model
from retune.jobs.restore import Options
from retune.jobs.restore import restore as restore_files

# "always": every command says it anew; once per command is what the default filter makes of it
pytestmark = pytest.mark.filterwarnings(
    "always::retune.errors.DoubtfulWarning", "ignore::retune.errors.AdjustedWarning"
)
QUICK = ["--set", "optimiser.steps=1", "--set", "prior.levels=2", "--set", "prior.wavelet=db2", "--set", "data.crop=24"]
CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Measurements, and kernels that are right, over a background, and out of their place."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("a", "b"):
        np.save(folder / f"{name}.npy", smooth(32, 40).astype(np.float32))
    np.save(folder / "right.npy", gauss(15, 1.5) / gauss(15, 1.5).sum())
    np.save(folder / "raised.npy", np.round(4000 * gauss(15, 1.5) + 100))
    np.save(folder / "aside.npy", moved(gauss(15, 1.2), 3, -2))
    return folder


@pytest.fixture(scope="module")
def tuned(files, tmp_path_factory):
    """A network that was tuned with a kernel without its background."""
    out = tmp_path_factory.mktemp("tuned") / "t"
    result, text = invoke(*tune_words(files, "raised", out), "--kernel-background", "auto")
    assert result.exit_code == 0, text
    assert "note: the blur kernel" not in text
    return out


def tune_words(files, kernel, out):
    told = ["--problem", "deblur", "--kernel", files / f"{kernel}.npy", "--sigma", 0.05]
    return ["tune", files / "a.npy", *told, "--out", out, *QUICK, *CPU]


def restore_words(model, files, out, *more):
    return ["restore", model, files / "a.npy", "--out", out, "--no-certificate", *CPU, *more]


def test_tune_says_what_is_wrong_with_a_kernel(files, tmp_path):
    result, text = invoke(*tune_words(files, "raised", tmp_path / "t"))
    assert result.exit_code == 0, text
    assert text.count("the blur kernel raised.npy does not fall to 0 at its border") == 1
    assert "--kernel-background auto" in text


@pytest.mark.parametrize(
    ("verb", "kernel", "says"),
    [
        ("restore", "raised", "--kernel-background auto subtracts it"),
        ("restore", "aside", "--centre-kernel moves it"),
        ("certify", "aside", "--centre-kernel moves it"),
        ("restore", "right", ""),
    ],
)
def test_it_is_said_once_whatever_the_number_of_images(tuned, files, tmp_path, verb, kernel, says):
    words = ["--kernel", files / f"{kernel}.npy", *CPU]
    words += ["--out", tmp_path / "o", "--no-certificate"] if verb == "restore" else ["--crop", 16]
    result, text = invoke(verb, tuned, files / "a.npy", files / "b.npy", *words, lines=80)
    assert result.exit_code == 0, text
    assert text.count("note: the blur kernel") == bool(says)
    assert says in text


def test_the_options_mend_it(tuned, files, tmp_path):
    """The result is the one of the right kernel."""
    pairs = [("raised", ["--kernel-background", "auto"]), ("raised", ["--kernel-background", 100]), ("right", [])]
    images = []
    for i, (kernel, options) in enumerate(pairs):
        words = restore_words(tuned, files, tmp_path / str(i), "--kernel", files / f"{kernel}.npy", *options)
        result, text = invoke(*words)
        assert result.exit_code == 0, text
        assert "note: the blur kernel" not in text
        images.append(np.load(tmp_path / str(i) / "a.npy"))
    assert np.abs(images[0] - images[2]).max() < 2e-3
    assert np.abs(images[1] - images[2]).max() < 2e-3
    result, text = invoke(
        *restore_words(tuned, files, tmp_path / "c", "--kernel", files / "aside.npy", "--centre-kernel")
    )
    assert result.exit_code == 0, text
    assert "note: the blur kernel" not in text


def test_a_model_remembers_what_was_done_to_its_kernel(tuned, files, tmp_path):
    assert load(tuned / "config.toml").problem.kernel_background == "auto"
    model = shutil.copytree(tuned, tmp_path / "moved")
    for again in ("a.npy: restored", "a.npy: done before"):
        result, text = invoke(*restore_words(model, files, tmp_path / "o"))
        assert result.exit_code == 0, text
        assert again in text
        assert "note: the blur kernel" not in text
    first = np.load(tmp_path / "o" / "a.npy")
    assert json.loads((tmp_path / "o" / "a.npy.json").read_text())["problem"]["kernel_background"] == "auto"
    for option, says in ((["--centre-kernel"], "a.npy: restored"), (["--kernel-background", 0], "does not fall to 0")):
        result, text = invoke(*restore_words(model, files, tmp_path / "o", *option))
        assert result.exit_code == 0, text
        assert says in text
    assert np.abs(np.load(tmp_path / "o" / "a.npy") - first).max() > 1e-3


def test_what_was_done_to_one_kernel_is_not_done_to_another(tuned, files):
    """A level is in the units of its own file."""
    problem = open_model(tuned, {"kernel": str(files / "aside.npy")}).problem
    assert problem.kernel_background is None
    assert open_model(tuned).problem.kernel_background == "auto"
    assert open_model(tuned, {"centre_kernel": True}).problem.kernel_background == "auto"


def test_workers_do_the_same(tuned, files, tmp_path):
    out = [tmp_path / "one", tmp_path / "two"]
    for folder, workers in zip(out, (1, 2), strict=True):
        images = [files / "a.npy", files / "b.npy"]
        rows = restore_files(
            open_model(tuned, {"centre_kernel": True}), images, Options(folder, certificate=False), workers
        )
        assert {row.result for row in rows} == {"restored"}, rows
    for name in ("a.npy", "b.npy"):
        assert np.array_equal(np.load(out[0] / name), np.load(out[1] / name))


def test_a_run_is_continued_with_the_same_options_only(tuned, files, tmp_path):
    model = shutil.copytree(tuned, tmp_path / "t")
    result, text = invoke(*tune_words(files, "raised", model), "--kernel-background", "auto", "--resume")
    assert result.exit_code == 0, text
    result, text = invoke(*tune_words(files, "raised", model), "--kernel-background", 100, "--resume")
    assert result.exit_code == 1
    assert "problem.kernel_background was 'auto', now 100.0" in text


def test_without_the_options_everything_is_written_as_before(files, tmp_path):
    """What versions before these options wrote and compared, byte for byte."""
    config = ProblemConfig(name="deblur", kernel="k.npy", sigma=0.1)
    assert config.model_dump_json() == (
        '{"name":"deblur","sigma":0.1,"kernel":"k.npy","boundary":null,"keep":null,"mask":null,"factor":null,"options":{}}'
    )
    assert problems.deblur("gaussian:1", sigma=0.1).describe() == {
        "name": "deblur",
        "kernel": "gaussian:1",
        "boundary": "reflect",
        "sigma": 0.1,
    }
    given = problems.deblur(torch.full((1, 1, 3, 3), 1 / 9))
    assert given.identity() == "deblur(kernel='f3a6f51a1a76', boundary='reflect', sigma=0.05)"
    assert problems.superres(2).identity() == "superres(factor=2, kernel='bicubic', boundary='reflect', sigma=0.01)"
    used = problems.deblur("gaussian:1", centre_kernel=True)
    assert "centre_kernel=True" in used.identity()
    assert used.identity() != problems.deblur("gaussian:1").identity()
    result, text = invoke(*tune_words(files, "right", tmp_path / "t"))
    assert result.exit_code == 0, text
    note = json.loads(_checkpoint.read(tmp_path / "t" / "model.safetensors")[2]["problem"])
    assert list(note) == ["name", "sigma", "kernel", "boundary", "keep", "mask", "factor", "options"]
    assert "centre" not in (tmp_path / "t" / "config.toml").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-p", "deblur", "--kernel", "gaussian:1", "--kernel-background", "much"], 'kernel_background = "much"'),
        (["-p", "deblur", "--kernel", "gaussian:1", "--kernel-background", "nan"], "kernel_background"),
        (["-p", "deblur", "--kernel", "gaussian:1", "--kernel-background", "9"], "is zero everywhere"),
        (["-p", "denoise", "--centre-kernel"], "the problem denoise has no centre_kernel"),
        (["-p", "superres", "--factor", "2", "--centre-kernel"], "the filter 'bicubic' is made by a formula"),
        (["-p", "deblur", "--kernel", "uniform:99"], "--centre-kernel removes rows and columns of zeros"),
    ],
)
def test_options_that_cannot_be_used_are_refused(files, words, says):
    result, text = invoke("doctor", files / "a.npy", *words, "--sigma", 0.05)
    assert result.exit_code == 1
    assert says in text


def test_a_large_kernel_is_cropped_to_what_is_not_0(files, tmp_path):
    large = np.zeros((99, 99))
    large[45:54, 40:49] = gauss(9, 1.2)
    np.save(tmp_path / "large.npy", large / large.sum())
    problem = problem_of(from_dict({"problem": {"kernel": str(tmp_path / "large.npy"), "centre_kernel": True}}).problem)
    assert tuple(problem.kernel.shape[-2:]) == (9, 9)
    assert torch.allclose(problem.kernel[0, 0], torch.tensor(gauss(9, 1.2) / gauss(9, 1.2).sum()).float(), atol=1e-7)


def test_the_noise_level_of_the_model_may_be_said_and_no_other(tuned, files, tmp_path):
    result, text = invoke(*restore_words(tuned, files, tmp_path / "a"))
    assert result.exit_code == 0, text
    result, text = invoke(*restore_words(tuned, files, tmp_path / "a", "--sigma", 0.05))
    assert result.exit_code == 0, text
    assert "done before" in text
    for other in (0.3, "0.05,0.05", "estimate"):
        result, text = invoke(*restore_words(tuned, files, tmp_path / "b", "--sigma", other))
        assert result.exit_code == 1
        assert "cannot change a restoration" in text
    assert not (tmp_path / "b").exists()
