"""The computations of the page, without a browser."""

from __future__ import annotations

import base64
import re
import shlex
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from commands import invoke
from retune import io, problems
from retune.app import prepare, work
from retune.app.settings import EXAMPLE_NAMES, Settings
from retune.config import Config
from retune.data import photograph
from retune.errors import InvalidParameterError
from retune.instant import instant_network

MOST = 10**7


def scene(side=64):
    return photograph("astronaut")[None, :, 20 : 20 + side, 180 : 180 + side]


def save(path, y):
    Image.fromarray((y[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()).save(path)
    return path.name


@pytest.fixture
def noisy(tmp_path):
    return save(tmp_path / "noisy.png", problems.denoise(0.1).measure(scene())[0])


def run(kind, folder, **options):
    steps = []
    found = work.run(kind, lambda **values: steps.append(values), {"folder": str(folder), **options})
    return found, steps


def look(folder, image, settings, page=0, most=MOST):
    return run("look", folder, image=image, page=page, settings=settings, most=most)


def restore(folder, image, settings, page=0):
    return run("restore", folder, image=image, page=page, settings=settings)


def test_a_look_tells_the_file_the_noise_and_the_findings(tmp_path, noisy):
    found, steps = look(tmp_path, noisy, Settings())
    assert "64 × 64 pixels" in found["facts"]
    assert "8 bits" in found["facts"]
    levels = [float(v) for v in found["said"].split(",")]
    assert len(levels) == 3
    assert all(abs(v - 0.1) < 0.03 for v in levels)
    assert found["picture"].startswith("data:image/png;base64,")
    assert "finding" in found["findings"]
    assert "findings" not in steps[0]  # the picture and the noise come first
    assert steps[0]["facts"] == found["facts"]


def test_noise_that_grows_is_drawn_against_the_brightness(tmp_path):
    y = problems.denoise(noise="poisson:0.01,0.01").measure(photograph("camera")[None, :, :200, :200])[0]
    np.save(tmp_path / "counts.npy", y[0, 0].numpy())
    found, _ = look(tmp_path, "counts.npy", Settings())
    gain = float(found["said"].removeprefix("poisson:").split(",")[0])
    assert abs(gain - 0.01) < 0.004
    assert found["noise"].count("<polyline") > 10  # the line, and a dot for each class of brightness


def test_a_blur_with_a_pedestal_off_its_centre_can_be_mended(tmp_path, noisy):
    rows, cols = np.mgrid[:21, :21]
    psf = 40 + 200 * np.exp(-((rows - 6) ** 2 + (cols - 10) ** 2) / 8)
    Image.fromarray(psf.astype(np.uint8)).save(tmp_path / "psf.png")
    found, _ = look(tmp_path, noisy, Settings("deblur", kernel="psf.png"))
    assert {m["key"] for m in found["mends"]} >= {"background", "centre"}
    mended, _ = look(tmp_path, noisy, Settings("deblur", kernel="psf.png", background=True, centre=True))
    assert {m["key"] for m in mended["mends"]} & {"background", "centre"} == set()
    assert "its centre of mass is at its centre" in mended["blur"]


def test_pixels_that_are_no_numbers_become_missing_pixels(tmp_path):
    y = problems.denoise(0.05).measure(scene())[0][0].permute(1, 2, 0).numpy()
    y[10:14, 20:24] = np.nan
    np.save(tmp_path / "holes.npy", y)
    found, _ = look(tmp_path, "holes.npy", Settings())
    assert [m["key"] for m in found["mends"]] == ["gaps"]
    options = {"image": "holes.npy", "page": 0, "settings": Settings(), "most": MOST, "mask": "mask.png"}
    run("gaps", tmp_path, **options)
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert (mask == 0).sum() == 16
    settings = Settings("inpaint", mask="mask.png")
    found, _ = look(tmp_path, "holes.npy", settings)
    levels = [float(v) for v in found["said"].split(",")]
    assert all(abs(v - 0.05) < 0.02 for v in levels)
    restore(tmp_path, "holes.npy", Settings("inpaint", mask="mask.png", noise=found["said"]))
    assert np.isfinite(np.load(tmp_path / "restored" / "holes.npy")).all()


def test_what_was_painted_is_missing():
    mask = prepare.painted([{"radius": 0.05, "points": [[0.2, 0.1], [0.6, 0.1]]}], [50, 100])
    assert mask.shape == (50, 100)
    assert mask[10, 40] == 0  # on the line
    assert mask[40, 40] == 255
    assert 0.07 < (mask == 0).mean() < 0.15


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\nbroken", b"GIF89a"])
def test_a_broken_file_is_a_sentence_without_a_path(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(InvalidParameterError) as caught:
        look(tmp_path, "broken.png", Settings())
    assert str(caught.value).startswith("broken.png")
    assert str(tmp_path) not in str(caught.value)


def test_an_image_above_the_limit_is_refused(tmp_path, noisy):
    with pytest.raises(InvalidParameterError, match="this page takes"):
        look(tmp_path, noisy, Settings(), most=1000)


def test_the_change_and_the_objective_are_told_as_they_fall(tmp_path):
    image = save(tmp_path / "blurred.png", problems.deblur("gaussian:1", sigma=0.02).measure(scene(48))[0])
    found, steps = restore(tmp_path, image, Settings("deblur", kernel="gaussian:1", noise="0.02"))
    curves = found["curves"]
    assert len(curves["layers"]) > 3
    assert curves["layers"] == sorted(curves["layers"])
    assert curves["objective"][-1] < curves["objective"][0]
    assert curves["change"][-1] < 0.1 * curves["change"][0]
    assert any("picture" in step for step in steps)
    assert 'id="at-rest"' in found["result"]
    assert "<svg" in found["result"]
    assert 'class="compare"' in found["result"]
    assert "Certificate" in found["result"]


@pytest.mark.parametrize("problem", ["blur", "motion", "mask"])
def test_a_rough_picture_comes_first_and_is_nearer_to_the_scene(tmp_path, problem):
    x = scene(96)
    if problem == "mask":
        made, settings = problems.inpaint(keep=0.5, sigma=0.05), Settings("inpaint", mask="mask.png", noise="0.05")
    else:
        kernel = {"blur": "gaussian:1.6", "motion": "motion:7@30"}[problem]
        made, settings = problems.deblur(kernel, sigma=0.02), Settings("deblur", kernel=kernel, noise="0.02")
    y, physics = made.measure(x)
    image = save(tmp_path / "y.png", y)
    start = y
    if problem == "mask":
        save(tmp_path / "mask.png", physics.mask[:, :1].expand(1, 3, -1, -1))
        net, _ = instant_network(Config(), made, y)
        start = net.bind(y, physics).map.init()  # the gaps are filled

    class Seen(Exception):
        pass

    def first(**values):
        told.append(values)
        raise Seen

    told = []
    with pytest.raises(InvalidParameterError):
        work.run("restore", first, {"folder": str(tmp_path), "image": image, "page": 0, "settings": settings})
    assert told[0]["caption"].startswith("A first rough picture")
    content = told[0]["picture"].partition(",")[2]
    shown = torch.from_numpy(np.array(Image.open(BytesIO(base64.b64decode(content))))).permute(2, 0, 1)[None] / 255
    assert (shown - x).square().mean() < 0.7 * (start - x).square().mean()


def test_the_last_moment_says_that_the_image_is_at_rest(tmp_path):
    image = save(tmp_path / "blurred.png", problems.deblur("gaussian:1", sigma=0.05).measure(scene(32))[0])
    _, steps = restore(tmp_path, image, Settings("deblur", kernel="gaussian:1", noise="0.05"))
    said = [step["say"] for step in steps]
    assert said[-1].startswith("At rest after")
    assert "picture" in steps[-1]
    assert not any(text.startswith("At rest") for text in said[:-1])


def test_sixteen_bits_and_all_pages_come_back(tmp_path):
    y = problems.denoise(0.05).measure(torch.cat([scene(), scene().flip(-1)]).mean(1, keepdim=True))[0]
    stack = (y[:, 0].clamp(0, 1) * 65535).round().numpy().astype(np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, resolution=(300, 300), photometric="minisblack")
    found, _ = look(tmp_path, "stack.tif", Settings(), page=1)
    assert found["pages"] == 2
    assert "16 bits" in found["facts"]
    assert "page 2 of 2" in found["facts"]
    made, _ = restore(tmp_path, "stack.tif", Settings(noise="0.05"), page=1)
    assert "image 2 of 2" in made["result"]
    options = {"image": "stack.tif", "settings": Settings(noise="0.05"), "tuned": False, "solves": made["solves"]}
    assert "image 1 of 2" in run("turn", tmp_path, page=0, **options)[0]["result"]
    assert run("turn", tmp_path, page=1, **options)[0]["result"] == made["result"]
    back = tifffile.imread(tmp_path / "restored" / "stack.tif")
    assert back.dtype == np.uint16
    assert back.shape == stack.shape
    assert len(np.unique(back)) > 256


@pytest.mark.parametrize("name", EXAMPLE_NAMES)
def test_the_photographs_that_ship_fit_their_settings(tmp_path, name, monkeypatch):
    monkeypatch.setattr(prepare, "photograph", lambda name: photograph(name)[..., 100:164, 180:244])
    made, _ = run("example", tmp_path, name=name)
    found, _ = look(tmp_path, made["file"], made["settings"])
    assert 'class="problem"' not in found["findings"]
    assert set(EXAMPLE_NAMES) == set(prepare.EXAMPLES)


CASES = {
    "noise": ("denoise", {}, Settings(noise="0.0957,0.101,0.0988")),
    "counts": ("denoise", {"noise": "poisson:0.01,0.01"}, Settings(noise="poisson:0.0101,0.0098")),
    "blur": ("deblur", {"kernel": "gaussian:1"}, Settings("deblur", kernel="gaussian:1", noise="0.02")),
    "mask": ("inpaint", {"keep": 0.5}, Settings("inpaint", mask="mask.png", noise="0.05")),
    "small": ("superres", {"factor": 2}, Settings("superres", factor=2, noise="0.02")),
    "levels": ("denoise", {}, Settings(noise="0.1", white="240", black="10")),
}


@pytest.mark.parametrize("case", CASES)
def test_the_command_and_the_lines_of_python_give_the_same_image(tmp_path, case, monkeypatch):
    name, options, settings = CASES[case]
    noise = {} if "noise" in options else {"sigma": 0.05}
    y, physics = problems.get(name, **noise, **options).measure(scene(48))
    image = save(tmp_path / "my image.png", y)
    if settings.mask:
        mask = (physics.mask[0, 0] * 255).byte().numpy()
        Image.fromarray(mask).save(tmp_path / settings.mask)
    restore(tmp_path, image, settings)
    on_page = (tmp_path / "restored" / image).read_bytes()

    (tmp_path / "restored").rename(tmp_path / "of the page")
    monkeypatch.chdir(tmp_path)
    called, _ = invoke(*shlex.split(settings.commands(image))[1:])
    assert called.exit_code == 0, called.output
    assert (tmp_path / "restored" / image).read_bytes() == on_page

    exec(settings.python(image), {})  # the lines are ours
    again = io.read(tmp_path / f"restored-{image}")[0]
    assert torch.equal(again, io.read(tmp_path / "restored" / image)[0])


@pytest.mark.parametrize("tuned", [False, True])
def test_the_lines_of_python_for_networks_and_stacks_are_python(tuned):
    for settings in (Settings(noise="0.1"), Settings(network="model.safetensors"), BLACK):
        for plain in (False, True):
            compile(settings.python("a.tif", plain=plain, pages=3, tuned=tuned), "lines", "exec")


BLACK = Settings("deblur", kernel="gaussian:1", black="auto", white="auto")


def test_no_part_of_the_page_names_the_folder(tmp_path, noisy):
    looked, steps = look(tmp_path, noisy, Settings())
    made, more = restore(tmp_path, noisy, Settings(noise="0.1"))
    for told in (looked, made, *steps, *more):
        for text in told.values():
            assert str(tmp_path) not in str(text)
            assert not re.search(r"/(home|root|tmp|work)/", str(text))
    assert Path(tmp_path / "restored" / "report.html").is_file()
