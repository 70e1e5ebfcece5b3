"""``retune restore`` through the command itself, with good input and with bad."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import retune
from commands import SETS, command, commands_without_power, invoke, smooth
from programs import python
from retune.jobs import restore as restoring
from retune.jobs.opened import open_model

#: what a page adds to a folder: itself, and the folder of its sections
PAGE = ["report", "report.html"]


def test_another_kernel_under_the_same_name_is_another_problem(run, photos, tmp_path):
    """What was restored with the old one is not called done."""
    for taps in (np.eye(3) / 3, np.ones((3, 3)) / 9):
        np.save(tmp_path / "k.npy", taps.astype(np.float32))
        told = ["--problem", "deblur", "--kernel", tmp_path / "k.npy", "--device", "cpu", "--no-certificate"]
        result, text = invoke("restore", run, photos, *told, "-o", tmp_path / "out")
        assert result.exit_code == 0, text
        assert "done before" not in text
    result, text = invoke("restore", run, photos, *told, "-o", tmp_path / "out")
    assert text.count("done before") >= 2


def test_a_killed_worker_is_a_failed_file_not_a_traceback(run, photos, tmp_path, monkeypatch):
    """Each file fails by itself, with what ended its process; the next command goes on."""
    monkeypatch.setattr(restoring, "_run", _killed)
    result, text = invoke("restore", run, photos, "--workers", "2", "-o", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 1
    assert "2 of 2 files failed" in text
    assert text.count("ended by signal 9 (SIGKILL); run the command again") == 2
    assert "memory" not in text
    monkeypatch.undo()
    assert invoke("restore", run, photos, "-o", tmp_path / "out", "--device", "cpu")[0].exit_code == 0


def _killed(file):
    os.kill(os.getpid(), signal.SIGKILL)


def test_ctrl_c_stops_the_workers_without_a_word_of_theirs(run, tmp_path):
    (tmp_path / "many").mkdir()
    for i in range(200):
        np.save(tmp_path / "many" / f"{i:03}.npy", smooth(64, 64).astype(np.float32))
    process = subprocess.Popen(
        [
            *(*python(), "-m", "retune", "restore", str(run), str(tmp_path / "many"), "--workers", "2"),
            *("-o", str(tmp_path / "out"), "--device", "cpu"),
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background has it ignored
    )
    while process.poll() is None and not list((tmp_path / "out").glob("*.json")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped" in said
    assert "Traceback" not in out + said
    assert 0 < len(list((tmp_path / "out").glob("*.json"))) < 200


def test_a_result_without_its_record_is_not_vouched_for(run, photos, tmp_path, monkeypatch):
    """The record of another image would be, had the process ended between the two."""
    arguments = ["restore", run, photos / "b.png", "-o", tmp_path / "out", "--device", "cpu"]
    assert invoke(*arguments)[0].exit_code == 0
    monkeypatch.setattr("retune.jobs.restored_file._told", _killed_before_the_record)
    with pytest.raises(KeyboardInterrupt):
        restoring.restore(
            open_model(run),
            [photos / "b.png"],
            restoring.Options(tmp_path / "out", white=200, certificate=False),
        )
    monkeypatch.undo()
    result, text = invoke(*arguments)
    assert result.exit_code == 0
    assert "restored" in text
    assert "done before" not in text


def _killed_before_the_record(*_):
    raise KeyboardInterrupt


def test_a_file_that_is_named_twice_is_restored_once(run, photos, tmp_path):
    (photos / "folder.png").mkdir()
    result, text = invoke("restore", run, photos, photos / "b.png", "-o", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 0, text
    assert text.count("b.png: restored") == 1


def test_restoring_asks_for_no_noise(run, tmp_path):
    """The level is the one that the network was made for; another one, which would change nothing, is refused."""
    np.save(tmp_path / "flat.npy", np.full((16, 16), 0.5, np.float32))
    arguments = ["restore", run, tmp_path / "flat.npy", "-o", tmp_path / "out", "--device", "cpu"]
    result, text = invoke(*arguments, "--sigma", "estimate")
    assert result.exit_code == 1
    assert "--sigma estimate cannot change a restoration" in text
    result, text = invoke(*arguments)
    assert result.exit_code == 0, text
    assert np.isfinite(np.load(tmp_path / "out" / "flat.npy")).all()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (["--tile", "-3"], "tile must be at least 1"),
        (["--overlap", "0"], "overlap must be at least 1"),
        (["--white", "0"], "white must be a positive intensity"),
        (["--problem", "inpaint", "--mask", "nowhere.png"], "nowhere.png"),
        (["--device", "gpu"], "device 'gpu' is not available here; use cpu, cuda or cuda:1 (no such kind of device)"),
    ],
)
def test_what_is_wrong_for_all_files_is_said_once(run, photos, tmp_path, option, says):
    result, text = invoke("restore", run, photos, *option, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert text.count(says) == 1
    assert "a.tif" not in text


OWN = """
from deepinv.physics import Downsampling
def half(img_size, device="cpu"):
    return Downsampling(img_size, factor=2, filter=None, device=device)
def quarter(img_size, device="cpu"):
    return half(img_size, device)
half.image_size = lambda c, h, w: (c, 2 * h, 2 * w)
def broken(img_size, device="cpu"):
    return {}["nothing"]
"""


def test_a_physics_of_ones_own_may_change_the_size(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_sizes.py").write_text(OWN)
    (tmp_path / "own_syntax.py").write_text("def f(:")
    np.save(tmp_path / "y.npy", smooth(10, 12).astype(np.float32))
    restore = ["restore", run, "y.npy", "-o", "out", "--device", "cpu", "--no-certificate", "--problem"]
    result, text = invoke(*restore, "own_sizes:half")
    assert result.exit_code == 0, text
    assert np.load("out/y.npy").shape == (20, 24)
    for name, says in (
        ("own_sizes:quarter", "function.image_size = lambda"),
        ("own_sizes:broken", "failed: KeyError: 'nothing'"),
        ("own_syntax:f", "SyntaxError"),
    ):
        result, text = invoke(*restore, name)
        assert result.exit_code == 1
        assert says in text


def test_restore_writes_images_as_they_were_with_a_record_each(run, photos, tmp_path):
    out = tmp_path / "out"
    result, text = invoke("restore", run, photos, "--out", out, "--device", "cpu")
    assert result.exit_code == 0, text
    assert sorted(p.name for p in out.iterdir()) == ["a.tif", "a.tif.json", "b.png", "b.png.json", *PAGE]
    assert sorted(p.name for p in (out / "report").iterdir()) == ["a.tif.json", "b.png.json"]
    with tifffile.TiffFile(out / "a.tif") as file:
        restored = file.asarray()
        assert file.pages[0].resolution == (300, 300)
    assert restored.dtype == np.uint16
    measured = tifffile.imread(photos / "a.tif")
    net = retune.load(run / "model.safetensors")
    y = torch.from_numpy(measured.astype(np.float32) / 65535)[None, None]
    expected = net(y, retune.problems.denoise(0.1).operator(y))[0, 0]
    assert np.abs(restored / 65535 - expected.clamp(0, 1).numpy()).max() < 1e-4
    record = json.loads((out / "a.tif.json").read_text())
    assert record["status"] == "converged"
    assert record["kind"] == "measured"
    assert 0 <= record["residual"] <= 1e-4
    assert record["problem"]["name"] == "denoise"
    certificate = record["certificate"]
    assert certificate["claims"]["rmse"][0]["kind"] in ("proved", "estimated")
    assert certificate["claims"]["residual"][0]["kind"] == "measured"
    assert certificate["parts"] == 1
    assert certificate["verdict"].startswith("Proved")
    assert text.count("RMSE from its equilibrium (") == 2


def test_what_is_done_is_not_done_again_unless_something_changed(run, photos, tmp_path):
    out = tmp_path / "out"
    invoke("restore", run, photos, "--out", out, "--device", "cpu")
    times = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    _, text = invoke("restore", run, photos, "--out", out, "--device", "cpu")
    assert text.count("b.png done before") == 1
    assert times == {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    Image.fromarray((smooth(13, 21) * 200).astype(np.uint8)).save(photos / "b.png")
    (out / "a.tif.json").write_text((out / "a.tif.json").read_text().replace("sha256", "sha512"))
    _, text = invoke("restore", run, photos, "--out", out, "--device", "cpu")
    assert text.count("done before") == 0
    invoke("restore", run, photos, "--out", out, "--device", "cpu", "--again")
    assert (out / "b.png").stat().st_mtime_ns > times["b.png"]


def test_without_certificates_and_with_them_after_all(run, photos, tmp_path):
    """The images are the same; what was restored without is certified when asked for."""
    out, record = tmp_path / "out", tmp_path / "out/b.png.json"
    result, text = invoke("restore", run, photos, "--out", out, "--no-certificate", "--device", "cpu")
    assert result.exit_code == 0, text
    assert "certificate" not in json.loads(record.read_text())
    assert "RMSE" not in text
    before = (out / "b.png").read_bytes()
    _, text = invoke("restore", run, photos, "--out", out, "--device", "cpu")
    assert "certificate" in json.loads(record.read_text())
    assert (out / "b.png").read_bytes() == before
    _, text = invoke("restore", run, photos, "--out", out, "--no-certificate", "--device", "cpu")
    assert text.count("b.png done before") == 1


def test_two_workers_do_what_one_does(run, photos, tmp_path):
    for workers in (1, 2):
        result, text = invoke("restore", run, photos, "-o", tmp_path / str(workers), "--workers", workers)
        assert result.exit_code == 0, text
    for name in ("a.tif", "b.png"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_white_sets_the_scale(run, photos, tmp_path):
    """Twelve bits in files of sixteen are restored as the same picture in all sixteen."""
    twelve = (smooth() * 4095).astype(np.uint16)
    tifffile.imwrite(photos / "c.tif", twelve)
    np.save(photos / "d.npy", (twelve / 4095).astype(np.float32))
    np.save(photos / "e.npy", twelve.astype(np.float32))
    invoke("restore", run, photos / "c.tif", photos / "e.npy", "--white", 4095, "-o", tmp_path / "out")
    invoke("restore", run, photos / "d.npy", "-o", tmp_path / "out")
    wanted = np.load(tmp_path / "out/d.npy")
    assert np.abs(tifffile.imread(tmp_path / "out/c.tif") / 4095 - wanted).max() < 5e-4
    assert np.abs(np.load(tmp_path / "out/e.npy") / 4095 - wanted).max() < 1e-5
    result, text = invoke("restore", run, photos / "e.npy", "-o", tmp_path / "no")
    assert result.exit_code == 1
    assert "--white 4095" in text


def nan_tiff(path):
    array = smooth().astype(np.float32)
    array[3, 4] = np.nan
    tifffile.imwrite(path, array)


def truncated(path):
    Image.fromarray((smooth() * 255).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("bad.png", lambda p: p.write_text("hello"), "cannot be read as an image"),
        ("bad.png", truncated, "truncated or damaged"),
        ("bad.tif", lambda p: p.write_bytes(b""), "empty (0 bytes)"),
        ("bad.png", lambda p: Image.new("RGBA", (20, 20)).save(p), "alpha channel"),
        ("bad.tif", nan_tiff, "contains NaN or Inf (1 of 480 values)"),
        ("bad.png", lambda p: Image.new("RGB", (20, 20)).save(p), "weights for 1 channels, but the image has 3"),
        ("bad.npy", lambda p: np.save(p, np.array([{}]), allow_pickle=True), "bad.npy"),
    ],
)
def test_a_broken_file_does_not_stop_the_others(run, photos, tmp_path, name, make, says):
    make(photos / name)
    result, text = invoke("restore", run, photos, "-o", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 1
    assert says in text
    assert "1 of 3 files failed" in text
    assert sorted(p.name for p in (tmp_path / "out").glob("*.json")) == ["a.tif.json", "b.png.json"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--problem", "deblur", "--kernel", "uniform:17"], "is too large for images (13, 21)"),
        (["--problem", "inpaint", "--mask", "MASK"], "the mask has shape (1, 9, 9), the image (1, 13, 21)"),
        (["--problem", "inpaint"], "--mask FILE"),
        (["--problem", "debluring"], "did you mean 'deblur'"),
        (["--kernel", "gaussian:1"], "denoise has no kernel"),
        (["--device", "tpu9"], "device 'tpu9' is not available"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--workers", "0"], "workers must be at least 1"),
        (["--sigma", "x"], "--sigma x cannot change a restoration"),
        (["--white", "-3"], "white must be a positive intensity"),
    ],
)
def test_restoring_with_bad_options(run, photos, tmp_path, options, says):
    Image.fromarray(np.full((9, 9), 255, np.uint8)).save(tmp_path / "m.png")
    options = [str(tmp_path / "m.png") if o == "MASK" else o for o in options]
    result, text = invoke("restore", run, photos / "b.png", "-o", tmp_path / "out", *options)
    assert result.exit_code == 1
    assert says in text


def test_a_kernel_that_does_not_sum_to_one_is_said_and_used(run, photos, tmp_path):
    np.save(tmp_path / "k.npy", np.full((3, 3), 2.0, np.float32))
    done = command(
        "restore", run, photos / "b.png", "-o", tmp_path / "out", "-p", "deblur", "--kernel", tmp_path / "k.npy"
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())  # in lines of 80 columns
    assert said.count("sums to 18 (") + said.count("sums to 18, not to 1: it was divided by its sum") == 1
    assert "UserWarning" not in done.stderr


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_a_checkpoint_from_a_stranger_runs_nothing(run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "evil_code.py").write_text("import os\nos.mkdir('executed')\ndef f(img_size, device): pass\n")
    net = retune.load(run / "model.safetensors")
    for notes in ("not json", "5", '{"name": 5}', '{"name": "deblur", "kernel": 5}'):
        net.save(tmp_path / "odd.safetensors", problem=notes, white="much")
        result, text = invoke("restore", tmp_path / "odd.safetensors", photos, "-o", tmp_path / "out")
        assert result.exit_code == 1
        assert "does not say which problem" in text or "the problem has 1 fault(s)" in text
    net.save(tmp_path / "evil.safetensors", problem=json.dumps({"name": "evil_code:f"}))
    for model, says in (("evil.pt", "cannot be read as a checkpoint"), ("evil.safetensors", "If you trust it")):
        result, text = invoke("restore", tmp_path / model, photos, "-o", tmp_path / "out")
        assert result.exit_code == 1
        assert says in text
    assert not (tmp_path / "executed").exists()


def test_results_never_replace_the_images(run, photos, tmp_path):
    before = (photos / "b.png").read_bytes()
    result, text = invoke("restore", run, photos, "-o", photos)
    assert result.exit_code == 1
    assert "would replace the file itself" in text
    assert (photos / "b.png").read_bytes() == before
    (tmp_path / "more").mkdir()
    (tmp_path / "more/b.png").write_bytes(before)
    result, text = invoke("restore", run, photos, tmp_path / "more/b.png", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "the same name" in text


def test_a_folder_that_cannot_be_written(run, photos, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments in (["restore", run, photos, "-o"], ["train", "denoise", *SETS, "-o"]):
        result, text = invoke(*arguments, tmp_path / "file" / "out")
        assert result.exit_code == 1
        assert "file" in text


def test_a_folder_without_permission(run, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.png").write_bytes(b"before")
    out.chmod(0o555)
    tune = ["tune", photos / "b.png", "-p", "denoise", "--sigma", "0.1", *SETS[4:]]
    verbs = (["restore", run, photos], ["train", "denoise", *SETS], tune)
    for status, said in commands_without_power(*([*v, "--out", out, "--device", "cpu"] for v in verbs)):
        assert status == 1
        assert "Permission denied" in said
        assert "Traceback" not in said
        assert len(said.splitlines()) < 30
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {"b.png": b"before"}


def test_a_disk_that_is_full_loses_nothing_that_was_there(run, photos, tmp_path):
    """No file may be longer than 100 bytes: the same error from write as on a full disk."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.png").write_bytes(b"before")
    done = command("restore", run, photos, "--out", out, "--device", "cpu", limit=100)
    assert done.returncode == 1
    assert "2 of 2 files failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {"b.png": b"before"}
    done = command("train", "denoise", *SETS, "-o", tmp_path / "run", "--device", "cpu", limit=100)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr


def test_only_the_file_whose_process_was_killed_fails(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(restoring, "_run", _killed_at_b)
    result, text = invoke("restore", run, photos, "--workers", "2", "-o", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 1
    assert "1 of 2 files failed" in text
    assert (tmp_path / "out" / "a.tif").is_file()


def _killed_at_b(file):
    if file.name == "b.png":
        os.kill(os.getpid(), signal.SIGSEGV)
    return restoring.Row(file, "restored") if (restoring._worker[0].run(file)).result == "restored" else None


def test_a_file_without_a_record_is_never_replaced(run, photos, tmp_path):
    """Not the image of somebody, and not a JSON file of somebody beside it."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.tif").write_bytes(b"mine")
    (out / "b.png.json").write_text('{"mine": true}')
    for more in ([], ["--again"]):
        result, text = invoke("restore", run, photos, "-o", out, "--device", "cpu", *more)
        assert result.exit_code == 1
        assert text.count("already exists, and no record says") == 2
    assert (out / "a.tif").read_bytes() == b"mine"
    assert (out / "b.png.json").read_text() == '{"mine": true}'
    assert sorted(p.name for p in out.iterdir()) == ["a.tif", "b.png.json"]


def test_a_result_that_cannot_be_written_stays_with_its_file(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("retune.io.tiff.encode", _cannot)
    result, text = invoke("restore", run, photos, "-o", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 1
    assert "cannot be written with the metadata of the measured file" in text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["b.png", "b.png.json", *PAGE]


def _cannot(*_):
    raise UnicodeEncodeError("ascii", "µ", 0, 1, "ordinal not in range")


@pytest.mark.parametrize("verb", ["restore", "tune", "train", "compare", "demo"])
def test_an_empty_name_for_the_folder_is_refused(run, photos, verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"restore": [run, photos], "tune": [photos], "train": ["denoise"], "compare": ["denoise"], "demo": []}
    result, text = invoke(verb, *given[verb], "--out", "")
    assert result.exit_code == 2
    assert "name of the folder is empty" in text


def test_names_of_248_bytes(run, tmp_path):
    name = "n" * 244 + ".npy"
    np.save(tmp_path / name, smooth().astype(np.float32))
    result, text = invoke("restore", run, tmp_path / name, "-o", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 0, text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [name, f"{name}.json", *PAGE]


def test_counts_with_a_white_level(run, tmp_path):
    """Whatever type of integer they are in."""
    counts = smooth() * 3000
    for dtype in ("i2", "u4", "i8", "f4"):
        np.save(tmp_path / f"{dtype}.npy", counts.astype(dtype))
    files = [tmp_path / f"{d}.npy" for d in ("i2", "u4", "i8", "f4")]
    result, text = invoke("restore", run, *files, "--white", 3100, "-o", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 0, text
    wanted = np.load(tmp_path / "out" / "f4.npy")
    for dtype in ("i2", "u4", "i8"):
        found = np.load(tmp_path / "out" / f"{dtype}.npy")
        assert found.dtype == np.dtype(dtype)
        assert np.abs(found - wanted).max() <= 2
    result, text = invoke("restore", run, files[0], "-o", tmp_path / "no", "--device", "cpu")
    assert result.exit_code == 1
    assert "--white 4095" in text
