"""``retune tune`` through the command itself: no ground truth, on images of the user's."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors import safe_open

import retune
import retune.build
import retune.config
from commands import invoke, smooth
from programs import python
from retune.cli.tune import _tell
from retune.jobs.assess import gain_of_errors
from retune.jobs.contest import TUNED
from retune.jobs.tune import starting_run
from retune.records import CertifiedImage, TuneResult
from retune.training.unsupervised import Estimate

FIELDS = (
    "prior.levels=2",
    "prior.wavelet=db2",
    "model.depth=4",
    "model.restarts=2",
    "data.crop=16",
    "optimiser.lr=0.2",
)
SETS = [word for f in FIELDS for word in ("--set", f)]
STEPS = ["--set", "optimiser.steps=3", "--set", "optimiser.checkpoint_every=1"]


@pytest.fixture
def noisy(tmp_path):
    """A smooth image with much noise: far more than the default strength expects."""
    return _noisy(tmp_path, 32)


def _noisy(folder, side):
    truth = np.linspace(0.2, 0.8, side)[:, None] * np.ones(side)
    np.save(folder / "truth.npy", truth.astype(np.float32))
    noise = np.random.default_rng(0).normal(size=truth.shape)
    np.save(folder / "y.npy", (truth + 0.2 * noise).astype(np.float32))
    return folder / "y.npy"


def test_it_finds_better_parameters_without_seeing_the_truth(tmp_path):
    """36 blocks of pixels, so that the run can say how sure it is, and is held to what it says."""
    out, noisy = tmp_path / "run", _noisy(tmp_path, 192)
    arguments = ["tune", noisy, "-p", "denoise", "--sigma", 0.2, "-o", out, "--device", "cpu", *SETS]
    result, text = invoke(*arguments, "--set", "optimiser.steps=20", "--set", "model.reg=0.02")
    assert result.exit_code == 0, text
    assert "σ = 0.2" in text
    found = json.loads((out / "tune.json").read_text())
    assert found["certificate"]["claims"]["rmse"][0]["kind"].startswith(("proved", "estimated"))
    assert "RMSE from its equilibrium" in text
    y, x = (torch.from_numpy(np.load(f))[None, None] for f in (noisy, tmp_path / "truth.npy"))
    net, physics = retune.load(out / "model.safetensors"), retune.problems.denoise(0.2).operator(y)
    error = float((net(y, physics) - x).square().mean())
    assert error < 0.2**2 / 4
    told = found["comparison"]
    assert told["better"]
    assert told["gain"] > 2 * told["spread"]
    assert told["uncertainty"] < 1
    assert abs(told["after"] + 10 * np.log10(error)) < 3 * told["uncertainty"]
    assert found["parameters"]["reg"][0] > 0.02
    assert json.loads((out / "run.json").read_text())["tuned"]["images"] == [str(noisy)]
    for verb in (["restore", out, noisy, "-o", tmp_path / "restored"], ["certify", out, noisy]):
        result, text = invoke(*verb, "--device", "cpu")
        assert result.exit_code == 0, text


@pytest.mark.parametrize("loss", ["sure", "r2r", "auto"])
def test_an_unknown_noise_level_is_estimated(noisy, tmp_path, loss):
    result, text = invoke(
        *("tune", noisy, "-p", "deblur", "--kernel", "gaussian:0.6", "--sigma", "estimate", "--loss", loss),
        *("-o", tmp_path / "run", "--device", "cpu", *SETS, *STEPS),
    )
    assert result.exit_code == 0, text
    found = json.loads((tmp_path / "run/tune.json").read_text())
    assert abs(found["sigma"] - 0.2) < 0.03
    assert ("R2R" in found["loss"]) == (loss != "sure")


def test_one_block_of_pixels_does_not_say_how_sure_it_is(noisy, tmp_path):
    out = tmp_path / "run"
    arguments = ["tune", noisy, "-p", "denoise", "--sigma", 0.2, "-o", out, "--device", "cpu", *SETS, *STEPS]
    result, text = invoke(*arguments)
    assert result.exit_code == 0, text
    assert "its error is unknown" in text
    found = json.loads((out / "tune.json").read_text(), parse_constant=pytest.fail)  # Infinity is no JSON
    assert found["comparison"]["spread"] is None
    assert found["comparison"]["uncertainty"] is None


@pytest.mark.filterwarnings("default::retune.errors.DoubtfulWarning")
def test_what_is_probably_not_meant_is_said(noisy, tmp_path):
    """A noise level in another unit, and noise that was clipped; nothing is said of measurements in order."""
    arguments = ["tune", "-p", "denoise", "--device", "cpu", *SETS, *STEPS]
    result, text = invoke(*arguments, noisy, "--sigma", 0.2, "-o", tmp_path / "a")
    assert "note:" not in text
    result, text = invoke(*arguments, noisy, "--sigma", 50.0, "-o", tmp_path / "b")
    assert "σ = 50 was given, but y.npy shows about 0.2" in text
    np.save(tmp_path / "clipped.npy", np.load(noisy).clip(0, 0.6))
    result, text = invoke(*arguments, tmp_path / "clipped.npy", "--sigma", 0.2, "-o", tmp_path / "c")
    assert "of the values of clipped.npy are 0.6 exactly: the image is clipped, or has a border" in text
    assert result.exit_code == 0, text


def tuned(comparison, factors):
    return TuneResult(
        loss=str(Estimate.STEIN), sigma=0.1, comparison=comparison, factors=factors, parameters={"reg": [0.1]},
        seconds=1.0, certificate=CertifiedImage(), winner=TUNED,
    )  # fmt: skip


def test_an_estimate_below_zero_is_no_matter_of_blocks(capsys, monkeypatch):
    monkeypatch.setattr("retune.certificate.quick.in_a_line", str)
    told = gain_of_errors(torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, 1.0]))
    assert told.gain is None
    _tell(tuned(told, None))
    said = " ".join(capsys.readouterr().out.split())
    assert "the noise level is not σ, or the values were clipped" in said
    assert "one block" not in said
    sure = gain_of_errors(torch.tensor([4.0, 4.1]), torch.tensor([2.0, 2.1]))
    for factors, says in (
        ((1.0, 1.0), "×0.5 ×0.71 ×1.41 ×2 are all worse"),
        ((1.0, 2.0), "strengths ×1 to ×2 are statistically indistinguishable"),
    ):
        _tell(tuned(sure, factors))
        assert says in capsys.readouterr().out


def test_the_unit_of_the_measurements_is_remembered(noisy, tmp_path):
    """Restoring says nothing of white again, and does the same."""
    np.save(tmp_path / "twelve.npy", np.load(noisy) * 4095)
    out = tmp_path / "run"
    arguments = ["tune", tmp_path / "twelve.npy", "-p", "denoise", "--sigma", 0.2, "--white", 4095, "-o", out]
    assert invoke(*arguments, "--device", "cpu", *SETS, *STEPS)[0].exit_code == 0
    again = [*arguments[:-4], "--set", "data.white=4095", "-o", tmp_path / "again"]  # the same, said in the run
    assert invoke(*again, "--device", "cpu", *SETS, *STEPS)[0].exit_code == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    for name, more in (("a", []), ("b", ["--white", 4095])):
        restore = ["restore", out, tmp_path / "twelve.npy", "-o", tmp_path / name, "--device", "cpu"]
        result, text = invoke(*restore, *more)
        assert result.exit_code == 0, text
    one, two = (np.load(tmp_path / name / "twelve.npy") for name in "ab")
    assert np.array_equal(one, two)
    assert one.max() > 1000
    result, text = invoke("certify", out, tmp_path / "twelve.npy", "--device", "cpu")
    assert result.exit_code == 0, text


def test_crops_of_small_images_are_as_much_smaller():
    assert starting_run({"name": "superres", "sigma": 0.1}).data.crop == 48
    assert starting_run({"name": "superres", "sigma": 0.1, "factor": 4}).data.crop == 24
    assert starting_run({"name": "superres", "sigma": 0.1}, ["problem.factor=4", "data.crop=50"]).data.crop == 50
    assert starting_run({"name": "denoise", "sigma": 0.1}).data.crop == 128
    wavelets = starting_run({"name": "superres", "sigma": 0.1}, ["prior.levels=3"])
    assert wavelets.prior.type == "wavelet"
    assert wavelets.data.crop == 64


def test_missing_pixels_need_the_mask_and_nothing_else(noisy, tmp_path):
    mask = (np.random.default_rng(1).random((32, 32)) < 0.6).astype(np.uint8) * 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    arguments = ["tune", noisy, "-p", "inpaint", "--sigma", 0.2, "-o", tmp_path / "run", "--device", "cpu"]
    result, text = invoke(*arguments, "--mask", tmp_path / "mask.png", *SETS, *STEPS)
    assert result.exit_code == 0, text
    assert "splitting" in text


def test_equivariant_imaging_is_for_what_is_not_measured_at_all(noisy, tmp_path):
    arguments = [
        "tune",
        noisy,
        "--sigma",
        0.2,
        "-o",
        tmp_path / "run",
        "--device",
        "cpu",
        "--loss",
        "ei",
        *SETS,
        *STEPS,
    ]
    result, text = invoke(*arguments, "-p", "deblur", "--kernel", "gaussian:0.6")
    assert result.exit_code == 0, text
    said = " ".join(text.split())
    # Learned with the second restoration; judged by the error of the blurred image alone, with fresh draws.
    assert "equivariant imaging (EI)" in said
    assert "dB estimated PSNR of the blurred image" in said
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(tmp_path / "mask.png")
    result, text = invoke(*arguments, "-p", "inpaint", "--mask", tmp_path / "mask.png")
    assert result.exit_code != 0
    assert "--loss ei does not work with missing pixels" in " ".join(text.split())


def test_resume_needs_only_the_folder_and_ends_the_same(noisy, tmp_path):
    out = tmp_path / "run"
    arguments = ["tune", noisy, "-p", "denoise", "--sigma", 0.2, "-o", out, "--device", "cpu", *SETS, *STEPS]
    assert invoke(*arguments)[0].exit_code == 0
    before = {name: (out / name).read_bytes() for name in ("model.safetensors", "log.csv")}
    (out / "model.safetensors").unlink()
    sorted(out.glob("checkpoint-*"))[-1].unlink()
    result, text = invoke("tune", "--resume", "-o", out, "--device", "cpu")
    assert result.exit_code == 0, text
    assert {name: (out / name).read_bytes() for name in before} == before


OWN = """
from deepinv.physics import Downsampling
def half(img_size, device="cpu", kept=2):
    return Downsampling(img_size, factor=kept, filter=None, device=device)
half.image_size = lambda c, h, w: (c, 2 * h, 2 * w)
"""


@pytest.mark.parametrize(
    "problem",
    [
        ["superres", "--factor", "2", "--kernel", "gaussian:0.8", "--boundary", "circular"],
        ["deblur", "--kernel", "uniform:3", "--boundary", "valid"],
        ["own_half:half"],
    ],
    ids=lambda words: words[0],
)
def test_measurements_that_are_smaller_or_larger_than_the_image(noisy, tmp_path, monkeypatch, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_half.py").write_text(OWN)
    out = tmp_path / "run"
    result, text = invoke("tune", noisy, "-p", *problem, "--sigma", 0.2, "-o", out, "--device", "cpu", *SETS, *STEPS)
    assert result.exit_code == 0, text
    unseen = problem[0] != "deblur"  # then only the strength is learned
    assert ("equivariant imaging (EI)" in " ".join(text.split())) == unseen
    told = json.loads((out / "tune.json").read_text())
    learned, of = told["parameters"], told["comparison"]["of"]
    expected = {"superres": "the small image", "deblur": "the blurred image"}
    assert of == expected.get(problem[0], "the noise-free measurement")
    assert (told["comparison"]["again"] is not None) == unseen  # the unmeasured part is judged, too
    assert any("reg" in name for name in learned)
    assert any("weights" in name for name in learned) != unseen
    own = ["-p", *problem] if ":" in problem[0] else []
    result, text = invoke("restore", out, noisy, *own, "-o", tmp_path / "restored", "--device", "cpu")
    assert result.exit_code == 0, text
    side = 32 if problem[0] == "deblur" else 64
    assert np.load(tmp_path / "restored" / "y.npy").shape == (side, side)


def test_the_noise_level_of_a_denoiser_is_learned(noisy, tmp_path):
    out = tmp_path / "run"
    arguments = ["tune", noisy, "--run", "deblur-denoiser", "-p", "denoise", "--sigma", 0.2, "-o", out]
    small = ["--set", "model.depth=2", "--set", "model.restarts=2", "--set", "model.max_layers=20"]
    result, text = invoke(*arguments, "--device", "cpu", *small, "--set", "data.crop=16", *STEPS)
    assert result.exit_code == 0, text
    found = json.loads((out / "tune.json").read_text())
    (name,) = [n for n in found["parameters"] if n.endswith("sigma")]
    assert len(found["parameters"][name]) == 1
    with safe_open(sorted(out.glob("checkpoint-*"))[-1], framework="pt") as file:
        learned = {k: float(file.get_tensor(k).sum()) for k in file.keys() if k.endswith("sigma.raw")}  # noqa: SIM118
    assert learned
    start = retune.build.network_of(retune.config.load("deblur-denoiser"), 1).state_dict()
    assert all(abs(v - float(start[k.split("/")[-1]].sum())) > 1e-6 for k, v in learned.items() if "best" not in k)


def test_every_verb_on_16_bit_files(tmp_path):
    """As the README has it: looked at, tuned, restored and certified, 16 bits and resolution kept."""
    photos, out = tmp_path / "Fotos mit Größe", tmp_path / "my-tune"
    photos.mkdir()
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    np.save(tmp_path / "psf.npy", kernel.astype(np.float32))
    for i in range(2):
        y = (smooth(33, 40, 3) * 60000).astype(np.uint16)
        tifffile.imwrite(photos / f"{i}.tif", y, resolution=(300, 300), photometric="rgb")
    told = ["--problem", "deblur", "--kernel", tmp_path / "psf.npy", "--sigma", "estimate"]
    result, text = invoke("doctor", photos, *told, lines=60)
    assert "σ ≈" in text
    result, text = invoke("tune", photos, *told, "-o", out, "--device", "cpu", *SETS, *STEPS)
    assert result.exit_code == 0, text
    result, text = invoke("restore", out, photos, "-o", tmp_path / "restored", "--device", "cpu")
    assert result.exit_code == 0, text
    for i in range(2):
        with tifffile.TiffFile(tmp_path / "restored" / f"{i}.tif") as file:
            image = file.asarray()
            assert (image.dtype, image.shape) == (np.uint16, (33, 40, 3))
            assert file.pages[0].tags["XResolution"].value == (300, 1)
        assert 20000 < image.mean() < 40000
    result, text = invoke("certify", out, photos, "--device", "cpu", lines=80)
    assert result.exit_code == 0, text


def test_defaults_that_are_better_are_kept(noisy, tmp_path):
    """A learning rate that throws the strength away: what it ends with must not be what is used."""
    out = tmp_path / "run"
    arguments = ["tune", noisy, "-p", "denoise", "--sigma", 0.2, "-o", out, "--device", "cpu", *SETS]
    result, text = invoke(
        *arguments, "--set", "optimiser.lr=8.0", "--set", "optimiser.steps=1", "--set", "model.reg=0.4"
    )
    assert result.exit_code == 0, text
    found = json.loads((out / "tune.json").read_text())
    assert found["comparison"]["better"] == ("are kept" not in text)
    if not found["comparison"]["better"]:
        assert found["parameters"]["reg"] == pytest.approx([0.4])


@pytest.mark.filterwarnings("default::retune.errors.DoubtfulWarning")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "no problem was given"),
        (["-p", "denoisee", "--sigma", "0.1"], "did you mean 'denoise'"),
        (["-p", "deblur", "--sigma", "0.1"], "the blur kernel is unknown"),
        (["-p", "inpaint", "--sigma", "0.1"], "--mask FILE"),
        (["-p", "inpaint"], "give the noise level"),
        (["-p", "denoise", "--sigma", "0"], "nothing to tune"),
        (["-p", "denoise", "--sigma", "0.1", "--loss", "sur"], "did you mean 'sure'"),
        (["-p", "denoise", "--sigma", "0.1,0.2,0.3"], "3 channels"),
        (["-p", "denoise", "--sigma", "0.1", "--set", "model.dpeth=3"], "did you mean 'depth'"),
        (["-p", "denoise", "--sigma", "0.1", "--device", "tpu9"], "tpu9"),
        (["-p", "deblur", "--kernel", "uniform:99", "--sigma", "0.1", "--set", "data.crop=16"], "kernel"),
        (["--run", "no.toml"], "there is no file no.toml"),
    ],
)
def test_tuning_with_bad_options(noisy, tmp_path, options, says):
    result, text = invoke("tune", noisy, "-o", tmp_path / "run", *SETS[:4], *options)
    assert result.exit_code == 1
    assert says in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-p", "denoise", "--sigma", "0.1"], "no images were given"),
        (["--resume"], "contains no run of retune tune"),
        (["nowhere.png", "-p", "denoise", "--sigma", "0.1"], "there is no file nowhere.png"),
    ],
)
def test_tuning_on_nothing(tmp_path, arguments, says):
    result, text = invoke("tune", *arguments, "-o", tmp_path / "run")
    assert result.exit_code == 1
    assert says in text


@pytest.mark.filterwarnings("default::retune.errors.DoubtfulWarning")
def test_grey_and_colour_together_are_refused(noisy, tmp_path):
    np.save(tmp_path / "c.npy", smooth(32, 32, 3).astype(np.float32))
    result, text = invoke("tune", noisy, tmp_path / "c.npy", "-p", "denoise", "--sigma", 0.2, "-o", tmp_path / "run")
    assert result.exit_code == 1
    assert "grey and colour separately" in text


def test_ctrl_c_saves_and_leaves(noisy, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(*python(), "-m", "retune", "tune", str(noisy), "-p", "denoise", "--sigma", "0.2", "-o", str(out)),
            *(*SETS, "--set", "optimiser.steps=100000", "--set", "optimiser.checkpoint_every=1", "--device", "cpu"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(out.glob("checkpoint-*.safetensors")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "stopped" in said
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("told", [["--sigma", "0.1"], ["--noise", "poisson:0.02,0.02"]], ids=["one level", "counts"])
def test_the_denoiser_that_ships_competes_and_is_kept_if_it_is_better(tmp_path, told):
    """On a part of a photograph it is far ahead of wavelets; nobody has chosen a prior."""
    x = retune.data.photograph("chelsea")[None, 1:2, 60:124, 100:164]
    noise = {"sigma": 0.1} if told[0] == "--sigma" else {"noise": told[1]}
    y, physics = retune.problems.denoise(**noise).measure(x, 1)
    np.save(tmp_path / "y.npy", y[0, 0].numpy())
    out = tmp_path / "run"
    few = [w for f in ("optimiser.steps=1", "model.restarts=2", "data.crop=32") for w in ("--set", f)]
    result, text = invoke("tune", tmp_path / "y.npy", "-p", "denoise", *told, *few, "-o", out, "--device", "cpu")
    assert result.exit_code == 0, text
    found = json.loads((out / "tune.json").read_text())
    assert found["winner"] == "denoiser that ships"
    assert {c["name"] for c in found["candidates"]} >= {"defaults", "tuned strengths", "measured image"}
    assert "The denoiser that ships is better than the defaults: +" in " ".join(text.split())
    assert found["comparison"]["of"] == "the restored image"
    error = float((retune.load(out / "model.safetensors")(y, physics) - x).square().mean())
    assert error < 0.3 * float((y - x).square().mean())
    assert abs(found["comparison"]["after"] + 10 * np.log10(error)) < 4 * found["comparison"]["uncertainty"]
    result, text = invoke("restore", out, tmp_path / "y.npy", "-o", tmp_path / "restored", "--device", "cpu")
    assert result.exit_code == 0, text
    restored = torch.from_numpy(np.load(tmp_path / "restored" / "y.npy"))
    assert float((restored - x[0, 0]).square().mean()) == pytest.approx(error, rel=0.05)
    before = (out / "model.safetensors").read_bytes()
    result, text = invoke("tune", "--resume", "-o", out, "--device", "cpu")
    assert result.exit_code == 0, text
    assert (out / "model.safetensors").read_bytes() == before
