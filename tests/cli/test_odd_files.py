"""Folders as they are found: pipes, several kinds of images, broken files, masks and kernels of every type."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import retune
from commands import SETS, invoke, smooth
from retune import Restarted, io, problems
from retune.data import as_images
from retune.errors import InvalidParameterError
from retune.problems.masks import read_mask

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
QUICK = ["--set", "optimiser.steps=1", "--set", "prior.levels=2", "--set", "prior.wavelet=db2", "--set", "data.crop=16"]


def folder_of(path, **arrays):
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array.astype(np.float32))
    return path


def out_of(verb, run, folder, out):
    """The words that give a folder of images to a verb."""
    denoise = ["-p", "denoise", "--sigma", 0.1]
    return {
        "train": ["train", "denoise", *SETS, "--set", f"data.train={folder}", "-o", out, "--device", "cpu"],
        "restore": ["restore", run, folder, "-o", out, "--no-certificate"],
        "tune": ["tune", folder, *denoise, "-o", out, *QUICK, "--device", "cpu"],
        "certify": ["certify", run, folder],
        "doctor": ["doctor", folder, *denoise],
    }[verb]


@needs_pipes
@pytest.mark.parametrize("verb", ["train", "restore", "tune", "certify", "doctor"])
def test_a_pipe_among_the_images_is_named_and_not_waited_for(run, tmp_path, verb):
    """Nobody writes into it: whoever opens it waits for ever."""
    folder = folder_of(tmp_path / "images", a=smooth(), c=smooth())
    os.mkfifo(folder / "b.npy")
    result, text = invoke(*out_of(verb, run, folder, tmp_path / "out"), lines=80)
    assert result.exit_code == 1
    assert "b.npy" in text
    assert "not an ordinary file" in text
    if verb == "restore":
        assert sorted(p.name for p in (tmp_path / "out").glob("*.npy")) == ["a.npy", "c.npy"]
    if verb == "tune":
        assert (tmp_path / "out" / "model.safetensors").is_file()


@needs_pipes
@pytest.mark.parametrize("where", ["record", "image"])
def test_a_pipe_among_the_results_is_not_waited_for(run, tmp_path, where):
    folder, out = folder_of(tmp_path / "images", a=smooth()), tmp_path / "out"
    out.mkdir()
    os.mkfifo(out / ("a.npy.json" if where == "record" else "a.npy"))
    result, text = invoke("restore", run, folder, "-o", out, "--no-certificate")
    assert result.exit_code == 1
    assert "already exists, and no record says that it is a result" in text


def test_every_fault_of_a_folder_is_named_at_once(tmp_path):
    """Colour among grey, too small for the crop, broken, empty and of a type that is no image: one message."""
    folder = folder_of(tmp_path / "mixed", a=smooth(), b=smooth(), colour=smooth(20, 24, 3), small=smooth(8, 9))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    (folder / "empty.tif").touch()
    np.save(folder / "nan.npy", np.full((20, 24), np.nan, np.float32))
    (folder / "notes.txt").write_text("of no image")
    result, text = invoke(*out_of("train", None, folder, tmp_path / "out"), lines=40)
    assert result.exit_code == 1
    assert not (tmp_path / "out").exists()
    assert "5 images cannot be used" in text
    for name, why in (
        ("broken.png", "cannot be read|cut off"),
        ("colour.npy", "is colour, most others are grey"),
        ("empty.tif", "is empty"),
        ("nan.npy", "NaN or Inf"),
        ("small.npy", "8×9 pixels"),
    ):
        place = text.index(name)
        assert any(w in text[place : place + 200] for w in why.split("|")), name
    assert "notes.txt" not in text
    with pytest.raises(InvalidParameterError, match="3 images cannot be used") as raised:
        as_images(folder)  # without a crop and a batch, colours and sizes may differ
    assert all(name in str(raised.value) for name in ("broken.png", "empty.tif", "nan.npy"))


def test_tuning_leaves_a_broken_file_out_and_says_so(tmp_path):
    folder = folder_of(tmp_path / "images", a=smooth(), c=smooth())
    (folder / "b.tif").write_bytes(b"II*\0 and no more")
    result, text = invoke(*out_of("tune", None, folder, tmp_path / "out"), lines=80)
    assert result.exit_code == 1  # so that a script sees that it was not all
    assert "b.tif" in text
    assert retune.load(tmp_path / "out" / "model.safetensors").map is not None
    again, _ = invoke("tune", "--resume", "-o", tmp_path / "out", lines=80)
    assert again.exit_code == 0
    alone = folder_of(tmp_path / "good", a=np.load(folder / "a.npy"), c=np.load(folder / "c.npy"))
    invoke(*out_of("tune", None, alone, tmp_path / "alone"), lines=80)
    one, two = (retune.load(tmp_path / f / "model.safetensors").state_dict() for f in ("out", "alone"))
    assert all(one[k].equal(two[k]) for k in one)


MASK = np.ones((6, 7), bool)
MASK[2:4, 3:5] = False


def rgba(colour, alpha):
    return np.concatenate([np.broadcast_to(np.uint8(colour), (*MASK.shape, 3)), np.uint8(alpha)[..., None]], -1)


MASKS = {
    "labels.npy": lambda p: np.save(p, MASK.astype(np.int32) * 7),
    "counts.tif": lambda p: tifffile.imwrite(p, MASK.astype(np.int32) * 1000),
    "large.tif": lambda p: tifffile.imwrite(p, MASK.astype(np.uint32) * 2**31),
    "truth.npy": lambda p: np.save(p, MASK),
    "float.npy": lambda p: np.save(p, MASK * 0.5),
    "axis.npy": lambda p: np.save(p, MASK.astype(np.uint8)[..., None]),
    "page.npy": lambda p: np.save(p, MASK.astype(np.uint8)[None, ..., None]),
    "bits.png": lambda p: Image.fromarray(MASK).save(p),
    "palette.png": lambda p: Image.fromarray(MASK.astype(np.uint8) * 255).convert("P").save(p),
    "grey16.png": lambda p: Image.fromarray(MASK.astype(np.uint16) * 65535).save(p),
    "colour.png": lambda p: Image.fromarray(MASK.astype(np.uint8) * 255).convert("RGB").save(p),
    "opaque.png": lambda p: Image.fromarray(rgba(MASK[..., None] * 255, MASK * 0 + 255)).save(p),
    "drawn.png": lambda p: Image.fromarray(rgba((255, 0, 0), MASK * 255)).save(p),
    "opaque grey.png": lambda p: Image.fromarray(MASK.astype(np.uint8) * 255).convert("LA").save(p),
    "drawn.tif": lambda p: tifffile.imwrite(
        p, rgba((9, 9, 9), MASK * 255), photometric="rgb", extrasamples=["unassalpha"]
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_in_whatever_type_it_was_drawn(tmp_path, name):
    MASKS[name](tmp_path / name)
    assert torch.equal(read_mask(tmp_path / name)[0, 0], torch.tensor(MASK).float())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: Image.fromarray(rgba(np.arange(42).reshape(6, 7, 1), MASK * 255)).save(p), "colours and transp"),
        (lambda p: Image.fromarray(np.arange(42, dtype=np.uint8).reshape(6, 7)).save(p), "42 different values"),
        (lambda p: Image.fromarray(np.zeros((6, 7), np.uint8)).save(p), "black everywhere"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path, make, says):
    make(tmp_path / "m.png")
    with pytest.raises(retune.errors.RetuneError, match=says):
        read_mask(tmp_path / "m.png")


POINT = np.outer([1, 2, 1], [1, 2, 1])
KERNELS = {
    "counts.npy": lambda p: np.save(p, POINT.astype(np.int32) * 1000),
    "large.tif": lambda p: tifffile.imwrite(p, POINT.astype(np.uint32) * 2**20),
    "negative.tif": lambda p: tifffile.imwrite(p, POINT.astype(np.int16)),
    "float.npy": lambda p: np.save(p, POINT / 16),
    "axis.npy": lambda p: np.save(p, (POINT / 16)[..., None]),
    "page.tif": lambda p: tifffile.imwrite(p, POINT[None].astype(np.float32), photometric="minisblack"),
    "opaque.png": lambda p: Image.fromarray(
        np.dstack([np.uint8(POINT * 50)] * 3 + [np.full((3, 3), 255, np.uint8)])
    ).save(p),
    "opaque grey.png": lambda p: Image.fromarray(np.uint8(POINT * 50)).convert("LA").save(p),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.filterwarnings("ignore::retune.errors.AdjustedWarning")
def test_a_kernel_in_whatever_type_it_was_measured(tmp_path, name):
    KERNELS[name](tmp_path / name)
    found = problems.kernel(str(tmp_path / name))
    assert found.shape == (1, 1, 3, 3)
    torch.testing.assert_close(found[0, 0], torch.tensor(POINT / 16).float(), rtol=1e-6, atol=0)


def test_a_kernel_with_holes_in_its_alpha_is_refused(tmp_path):
    alpha = np.full((3, 3), 255, np.uint8)
    alpha[0, 0] = 0
    Image.fromarray(np.dstack([np.uint8(POINT * 50)] * 3 + [alpha])).save(tmp_path / "k.png")
    with pytest.raises(retune.errors.RetuneError, match="transparent pixels"):
        problems.kernel(str(tmp_path / "k.png"))


def test_nan_under_a_mask_is_no_number_in_python(tmp_path):
    """What was not measured may hold anything: the result is that of zeros there. Elsewhere NaN is refused."""
    y = torch.tensor(smooth()).float()[None, None]
    mask = torch.ones(1, 1, *y.shape[-2:])
    mask[..., 5:9, 6:11] = 0
    problem = problems.inpaint(mask=mask, sigma=0.05)
    net = Restarted(retune.ForwardBackward(retune.priors.WaveletL12("db2", 2, channels=1), reg=0.05), 5, 3).eval()
    hole, zero = y.clone(), y * mask
    hole[..., 5:9, 6:11] = float("nan")
    hole[..., 6, 7] = float("inf")
    physics = problem.operator(zero)
    with torch.no_grad():
        expected = net.solve(zero, physics).image
        assert torch.equal(net.solve(hole, physics).image, expected)
        assert torch.equal(net(hole, physics), expected)
    assert bool(expected.isfinite().all())
    verdicts = [retune.certify(net, one, physics, iterations=2, starts=1)[0].verdict for one in (hole, zero)]
    assert verdicts[0] == verdicts[1]
    hole[..., 0, 0] = float("nan")
    with pytest.raises(retune.errors.NotFiniteError):
        net.solve(hole, physics)


def test_a_log_is_written_beside_a_link_and_not_through_it(run, tmp_path, sharp):
    """A link to somebody's file in the place of the log: the file stays, whether the run begins or goes on."""
    theirs, out = tmp_path / "theirs.csv", tmp_path / "run"
    out.mkdir()
    theirs.write_text("my own numbers\n")
    (out / "log.csv").symlink_to(theirs)
    words = ["train", "denoise", *SETS, "--set", f"data.train={sharp}", "-o", out, "--device", "cpu"]
    refused, text = invoke(*words)
    assert refused.exit_code == 1
    assert "log.csv" in text
    (out / "log.csv").unlink()
    assert invoke(*words, "--set", "optimiser.steps=2")[0].exit_code == 0
    log = (out / "log.csv").read_text()
    theirs.write_text(log)  # which begins as a log of ours does
    (out / "log.csv").unlink()
    (out / "log.csv").symlink_to(theirs)
    assert invoke("train", "--resume", "--set", "optimiser.steps=4", "-o", out, "--device", "cpu")[0].exit_code in (
        0,
        1,
    )
    assert theirs.read_text() == log
    assert invoke("train", "--resume", "-o", out, "--device", "cpu")[0].exit_code == 0
    assert theirs.read_text() == log


def test_a_stack_with_one_broken_page_is_refused_as_one(tmp_path):
    stack = np.stack([smooth(), smooth()]).astype(np.float32)
    stack[1, 3, 4] = np.nan
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack")
    with pytest.raises(retune.errors.NotFiniteError, match=r"s\.tif, image 1"):
        io.read(tmp_path / "s.tif")


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="the system allows only text in file names")
@pytest.mark.parametrize("broken", [False, True])
def test_a_file_whose_name_is_no_text_is_restored_and_reported(run, tmp_path, broken):
    np.save(tmp_path / "a.npy", smooth().astype(np.float32))
    content = b"" if broken else (tmp_path / "a.npy").read_bytes()
    name = os.fsdecode(b"b\xff.npy")
    (tmp_path / name).write_bytes(content)
    result, text = invoke("restore", run, tmp_path / "a.npy", tmp_path / name, "--out", tmp_path / "o", lines=60)
    assert result.exit_code == (1 if broken else 0)
    assert "does not show" not in text
    assert (tmp_path / "o" / name).exists() is not broken
    assert "b\\udcff.npy" in (tmp_path / "o" / "report.html").read_text("utf-8")
