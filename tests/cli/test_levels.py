"""``--black`` and ``--white auto``: an offset is subtracted, and results keep the scale of their file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import torch

from commands import invoke
from retune.errors import InvalidParameterError
from retune.io import read
from retune.io.intensity import Unit, intensity_unit, read_level

OFFSET, WHITE = 100, 1100


def image(side=48):
    rng = np.random.default_rng(0)
    return np.linspace(0.1, 0.9, side)[:, None] * np.ones(side) + 0.05 * rng.normal(size=(side, side))


@pytest.fixture
def files(tmp_path):
    """The same image as floats in [0, 1], and as a camera stores it."""
    np.save(tmp_path / "plain.npy", image().astype(np.float32))
    stored = np.round(OFFSET + (WHITE - OFFSET) * image()).astype(np.uint16)
    tifffile.imwrite(tmp_path / "camera.tif", stored)
    return tmp_path


def restored(folder, *options):
    result, text = invoke("restore", *options, "-p", "denoise", "--sigma", 0.05, "--device", "cpu", "--no-certificate",
                          "-o", folder)  # fmt: skip
    assert result.exit_code == 0, text
    return text


def test_black_is_subtracted_and_the_result_has_it_again(files):
    out = files / "out"
    restored(out, files / "plain.npy")
    levels = ("--black", OFFSET, "--white", WHITE)
    restored(out, files / "camera.tif", *levels)
    plain, camera = np.load(out / "plain.npy"), tifffile.imread(out / "camera.tif").astype(float)
    assert np.abs((camera - OFFSET) / (WHITE - OFFSET) - plain).max() < 2e-3
    told = json.loads((out / "camera.tif.json").read_text())
    assert (told["black"], told["white"]) == (OFFSET, WHITE)
    assert f"{WHITE}, given; black is {OFFSET}" in (out / "report.html").read_text(encoding="utf-8")
    assert "done before" in restored(out, files / "camera.tif", *levels)
    for other in (("--white", WHITE), ("--black", OFFSET + 1, "--white", WHITE)):  # another image would come out
        assert "1 restored" in restored(out, files / "camera.tif", *other)


def test_levels_that_are_found_are_said_and_recorded(files):
    out = files / "out"
    text = restored(out, files / "camera.tif", "--black", "auto", "--white", "auto", "--details")
    told = json.loads((out / "camera.tif.json").read_text())
    assert (told["black"], told["white"]) == ("auto", "auto")
    black, white = told["black_found"], told["white_found"]
    assert 150 < black < 260  # the darkest of the image itself, without its noise
    assert 950 < white < 1200
    assert f"black {black:g}, white {white:g}" in " ".join(text.split())
    assert "found in the image" in (out / "report.html").read_text(encoding="utf-8")
    assert np.abs(tifffile.imread(out / "camera.tif").astype(float) - OFFSET - 1000 * image()).max() < 250
    found = ("--black", "auto", "--white", "auto")
    _, text = invoke("doctor", files / "camera.tif", "-p", "denoise", "--sigma", 0.05, *found, lines=40)
    assert f"black {black:g}, white {white:g}, found in the file" in text


def test_a_network_remembers_the_levels_that_it_was_tuned_with(files):
    few = [w for f in ("optimiser.steps=1", "prior.levels=2", "model.depth=2", "data.crop=16") for w in ("--set", f)]
    out = files / "run"
    result, text = invoke("tune", files / "camera.tif", "-p", "denoise", "--sigma", 0.05, *few, "--black", "auto",
                          "--white", WHITE, "-o", out, "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, text
    told = json.loads((out / "tune.json").read_text())
    assert told["white"] == WHITE
    assert f"black {told['black']:g}, white {WHITE}" in text
    assert json.loads((out / "run.json").read_text())["tuned"]["black"] == told["black"]
    result, text = invoke("restore", out, files / "camera.tif", "-o", files / "a", "--device", "cpu")
    assert result.exit_code == 0, text
    assert f"{told['black']:g} counts as black" in " ".join(text.split())
    assert 500 < tifffile.imread(files / "a" / "camera.tif").mean() < 700
    result, text = invoke("certify", out, files / "camera.tif", "--black", "auto", "--device", "cpu")
    assert result.exit_code == 0, text
    assert "found in the file" in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--black", "dark"), "--black dark: expected an intensity in the units of the file, or auto"),
        (("--white", "bright"), "--white bright"),
        (("--black", "1200", "--white", "1100"), "must be below white"),
        (("--black", "nan"), "black must be a finite intensity"),
    ],
)
def test_what_is_no_level_is_refused(files, options, says):
    result, text = invoke("restore", files / "camera.tif", "-p", "denoise", *options, "-o", files / "out")
    assert result.exit_code == 1
    assert says in " ".join(text.split())


def test_missing_pixels_have_no_levels(files):
    tifffile.imwrite(files / "mask.tif", np.full((48, 48), 255, np.uint8))
    arguments = ("-p", "inpaint", "--mask", files / "mask.tif", "--sigma", 0.05, "--white", "auto")
    result, text = invoke("restore", files / "camera.tif", *arguments, "-o", files / "out")
    assert result.exit_code == 1
    assert "missing pixels" in text


def test_a_unit_is_undone_exactly(files):
    images, layout = read(files / "camera.tif", any_integers=True)
    unit = intensity_unit(files / "camera.tif", images, layout, WHITE, OFFSET)
    assert unit.levels == (OFFSET, WHITE)
    torch.testing.assert_close(unit.stored(unit.scaled(images)), images)
    torch.testing.assert_close(unit.scaled(images), (images * 65535 - OFFSET) / (WHITE - OFFSET), rtol=0, atol=1e-4)
    assert str(Unit()) == "black 0, white 1"
    assert read_level("4095", "--white") == 4095
    flat = torch.full((1, 1, 8, 8), 0.5)
    with pytest.raises(InvalidParameterError, match="must be below white"):
        intensity_unit(files / "camera.tif", flat, layout, "auto", "auto")
