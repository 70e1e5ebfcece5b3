"""``retune certify`` and ``retune doctor`` through the command itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import retune
from commands import invoke, smooth


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network that says which problem it restores."""
    torch.manual_seed(0)
    prior = retune.priors.WaveletL12("db2", levels=2)
    net = retune.Restarted(retune.ForwardBackward(prior, reg=0.05), depth=2, restarts=1)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    net.save(path, problem=json.dumps({"name": "denoise", "sigma": 0.1}))
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    np.save(folder / "a.npy", smooth().astype(np.float32))
    Image.fromarray((smooth(13, 21) * 255).astype(np.uint8)).save(folder / "b.png")
    return folder


def test_certificates_of_the_command_are_those_of_the_library(model, photos, tmp_path):
    result, text = invoke("certify", model, photos, "--json", tmp_path / "c.json", "--device", "cpu", lines=60)
    assert result.exit_code == 0, text
    assert text.count("Proved: the image is within") == 2  # for odd sides, too: the measurement is continued
    assert "no rate is proved" not in text
    record = json.loads((tmp_path / "c.json").read_text())
    assert [image["name"] for image in record["images"]] == ["a.npy", "b.png"]
    assert record["problem"]["name"] == "denoise"
    net, y = retune.load(model), torch.from_numpy(np.load(photos / "a.npy"))[None, None]
    expected = retune.certify(net, y, retune.problems.denoise(0.1).operator(y))
    assert record["images"][0]["certificate"] == json.loads(json.dumps(expected.to_dict()))


def test_the_middle_of_a_large_image_is_certified(model, photos, tmp_path):
    result, text = invoke("certify", model, photos / "a.npy", "--crop", 16, "--json", tmp_path / "c.json")
    assert result.exit_code == 0, text
    assert "a.npy (the central 16×16)" in text
    assert json.loads((tmp_path / "c.json").read_text())["images"][0]["part"] == [16, 16]


def test_what_cannot_be_certified_is_named_and_the_others_are_done(model, photos, tmp_path):
    (photos / "broken.png").write_bytes(b"")
    result, text = invoke("certify", model, photos, "--json", tmp_path / "c.json", lines=60)
    assert result.exit_code == 1
    assert "empty (0 bytes)" in text
    assert "1 of 3 images failed or have no certificate: broken.png" in text
    images = json.loads((tmp_path / "c.json").read_text())["images"]
    assert ["certificate" in image for image in images] == [True, True, False]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--problem", "deblur", "--kernel", "uniform:17"], "is too large for images (13, 21)"),
        (["--problem", "inpaint"], "--mask FILE"),
        (["--problem", "debluring"], "did you mean 'deblur'"),
        (["--device", "tpu9"], "device 'tpu9' is not available"),
        (["--white", "-3"], "white must be a positive intensity"),
        (["--crop", "-3"], "crop must be a number of pixels"),
        (["--json", "."], ". is a folder: name a file"),
    ],
)
def test_certifying_with_bad_options(model, photos, options, says):
    result, text = invoke("certify", model, photos / "b.png", *options)
    assert result.exit_code == 1
    assert says in text


def test_a_model_that_is_none(photos, tmp_path):
    (tmp_path / "no.safetensors").write_bytes(b"not a model")
    result, text = invoke("certify", tmp_path / "no.safetensors", photos)
    assert result.exit_code == 1
    assert "no.safetensors" in text


def test_the_doctor_finds_nothing_wrong_with_a_sound_problem(tmp_path):
    result, text = invoke("doctor", "deblur", "--size", "24x32", "--json", tmp_path / "d.json")
    assert result.exit_code == 0, text
    assert "on images 1×3×24×32" in text
    found = json.loads((tmp_path / "d.json").read_text())["examined"]
    assert found[0]["ok"]
    assert found[0]["diagnosis"]["worst"] in ("ok", "note")


def test_the_doctor_sees_an_image_in_another_range(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", (255 * smooth()).astype(np.float32))
    result, text = invoke("doctor", tmp_path / "a.tif", "-p", "denoise", "--sigma", 0.1)
    assert result.exit_code == 1
    assert "this looks like the scale 0 to 255" in text
    assert "→" in text
    assert "problems or warnings for 1 of 1: a.tif" in text
    assert "looks like 0 to 255" not in invoke("doctor", tmp_path / "a.tif", "-p", "denoise", "--white", 255)[1]


def test_the_doctor_takes_a_run_with_changes_on_top(photos, tmp_path):
    (tmp_path / "my.toml").write_text('[problem]\nname = "deblur"\nkernel = "gaussian:1"\nsigma = 0.05\n')
    result, text = invoke("doctor", tmp_path / "my.toml", photos / "a.npy", "--boundary", "circular")
    assert "BlurFFT on images 1×1×20×24" in text, text
    assert result.exit_code in (0, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no problem was given"),
        (["PHOTO"], "no problem was given"),
        (["no.toml"], "there is no file no.toml"),
        (["deblur", "--size", "12"], "--size 12: expected height and width"),
        (["deblur", "--size", "0x12"], "at least 1×1"),
        (["PHOTO", "-p", "inpaint"], "--mask FILE"),
        (["deblur", "--kernel", "uniform:99", "--size", "20x20"], "is too large for images (20, 20)"),
        (["denoise", "--kernel", "gaussian:1"], "denoise has no kernel"),
        (["deblur", "nowhere.png"], "there is no file nowhere.png"),
    ],
)
def test_the_doctor_with_bad_input(photos, arguments, says):
    result, text = invoke("doctor", *(str(photos / "b.png") if a == "PHOTO" else a for a in arguments))
    assert result.exit_code == 1
    assert says in text
