"""``report.html``: the page of ``restore`` and ``tune``."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import tifffile
from PIL import Image

from commands import SETS, invoke, smooth
from retune.jobs import pictures
from retune.jobs import restore as restoring
from retune.jobs.opened import open_model
from retune.records import Pictured
from retune.report import page as pages

_VOID = {"meta", "img", "input", "br", "link"}


class _Page(HTMLParser):
    """The parts of a page; raises where a tag is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def images(self, kind):
        """The pixels of the pictures of a class."""
        found = [a["src"] for tag, a in self.tags if tag == "img" and a.get("class") == kind]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))) for uri in found]


def page_of(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    return _Page(text), text


def restore(run, images, out, *more):
    result, text = invoke("restore", run, *images, "-o", out, "--device", "cpu", "--no-certificate", *more)
    return result.exit_code, text


def test_the_page_shows_each_file_and_needs_nothing_else(run, photos, tmp_path):
    code, text = restore(run, [photos], tmp_path / "out")
    assert code == 0
    assert f"{tmp_path / 'out' / 'report.html'} shows the results" in text
    page, source = page_of(tmp_path / "out")
    assert "2 files were restored" in page.text
    assert [a["href"] for tag, a in page.tags if tag == "a"] == ["#s0", "#s1"]
    assert {a["id"] for tag, a in page.tags if tag == "section"} == {"index", "s0", "s1"}
    outside = [
        a for _, a in page.tags for k, v in a.items() if k in ("src", "href") and not v.startswith(("data:", "#"))
    ]
    assert outside == []
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in source
    for said in ("denoise", "σ = 0.1", "25.5 in the file", "WaveletL12", "converged after", "There is no certificate"):
        assert said in page.text
    # Without the script both pictures are there, side by side.
    assert source.count("<noscript>") == 1
    assert len([1 for tag, a in page.tags if tag == "input" and a["type"] == "range" and a["aria-label"]]) == 2


def test_the_pictures_are_the_measured_and_the_restored_image_in_one_window(run, photos, tmp_path):
    restore(run, [photos], tmp_path / "out")
    page, _ = page_of(tmp_path / "out")
    measured, restored = (np.asarray(Image.open(f / "b.png")) for f in (photos, tmp_path / "out"))
    assert (page.images("before")[1] == measured).all()
    assert np.abs(page.images("after")[1].astype(int) - restored).max() <= 1
    assert "Intensities are shown as they are, from 0 to 255" in page.text
    result = tifffile.imread(tmp_path / "out" / "a.tif").astype(float)
    low, high = map(float, re.search(r"In both pictures, (\S+) is black and (\S+) is white", page.text).groups())
    assert low == pytest.approx(np.percentile(result, 0.1), abs=2)
    assert high == pytest.approx(np.percentile(result, 99.9), abs=2)
    for kind, of in (("before", tifffile.imread(photos / "a.tif")), ("after", result)):
        expected = ((of - low) / (high - low) * 255).clip(0, 255)
        assert np.abs(page.images(kind)[0] - expected).max() <= 1


def test_names_are_text_and_never_markup(run, tmp_path):
    names = ["<script>alert(1)<&quot;'.npy", "<img src=x onerror=alert(1)>.npy"]
    for name in names:
        np.save(tmp_path / name, smooth(24, 24).astype(np.float32))
    (tmp_path / "<b>broken<.npy").write_bytes(b"<script>")
    code, _ = restore(run, [tmp_path / n for n in (*names, "<b>broken<.npy")], tmp_path / "out")
    assert code == 1
    page, source = page_of(tmp_path / "out")
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "<b>broken" not in source
    assert not [a for _, a in page.tags if "onerror" in a]
    for name in names:
        assert name in page.text
    assert "2 files were restored, 1 failed" in page.text
    assert "<b>broken<.npy" in page.text
    assert "cannot be read as an image" in page.text


def test_a_section_that_was_tampered_with_is_not_shown(run, photos, tmp_path):
    out = tmp_path / "out"
    restore(run, [photos], out)
    part = out / "report" / "a.tif.json"
    told = json.loads(part.read_text())
    told["images"][0]["before"]["data"] = '"><script>alert(1)</script>'
    part.write_text(json.dumps(told))
    assert Pictured.of(part.read_bytes(), "a.tif") is None
    pages.write_page(out)
    page, _ = page_of(out)
    assert "1 file was restored" in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1


def test_what_was_done_before_stays_on_the_page_and_the_page_as_it_is(run, photos, tmp_path):
    out = tmp_path / "out"
    restore(run, [photos], out)
    before = (out / "report.html").stat().st_mtime_ns
    restore(run, [photos / "a.tif"], out)
    assert (out / "report.html").stat().st_mtime_ns == before
    # Restored without a page, or by a version that had none: measurement and result are read again.
    (out / "report" / "b.png.json").unlink()
    (out / "report.html").unlink()
    _, text = restore(run, [photos], out)
    assert text.count("done before") >= 2
    page, _ = page_of(out)
    assert "2 files were restored" in page.text
    assert "The restored image was read from its file" in page.text
    assert (page.images("before")[1] == np.asarray(Image.open(photos / "b.png"))).all()


def test_two_jobs_into_one_folder_share_the_page(run, photos, tmp_path):
    restore(run, [photos / "a.tif"], tmp_path / "out")
    restore(run, [photos / "b.png"], tmp_path / "out")
    page, _ = page_of(tmp_path / "out")
    assert "2 files were restored" in page.text


def test_a_section_that_another_job_adds_meanwhile_is_not_lost(run, photos, tmp_path, monkeypatch):
    """The other job wrote its section after this one had looked, and its page before this one wrote its own."""
    out = tmp_path / "out"
    restore(run, [photos], out)
    late = (out / "report" / "b.png.json").read_bytes()
    (out / "report" / "b.png.json").unlink()
    rendered = pages._rendered

    def and_then(*arguments):
        (out / "report" / "b.png.json").write_bytes(late)
        return rendered(*arguments)

    monkeypatch.setattr(pages, "_rendered", and_then)
    pages.write_page(out)
    assert "2 files were restored" in page_of(out)[0].text


def test_a_result_that_is_gone_or_another_one_leaves_the_page(run, photos, tmp_path):
    out = tmp_path / "out"
    restore(run, [photos], out)
    (out / "a.tif").unlink()
    Image.fromarray((smooth(13, 21) * 200).astype(np.uint8)).save(photos / "b.png")
    restore(run, [photos / "b.png"], out, "--no-report")
    pages.write_page(out)
    assert "0 files were restored" in page_of(out)[0].text


def test_no_page_if_none_is_wanted_or_nothing_was_restored(run, photos, tmp_path):
    restore(run, [photos], tmp_path / "without", "--no-report")
    assert not list((tmp_path / "without").glob("report*"))
    (photos / "bad.png").write_text("hello")
    code, text = restore(run, [photos / "bad.png"], tmp_path / "failed")
    assert code == 1
    assert not list((tmp_path / "failed").iterdir())
    assert "report" not in text


@pytest.mark.parametrize("theirs", ["report.html", "report"])
def test_a_file_of_somebody_is_kept_and_said(run, photos, tmp_path, theirs):
    out = tmp_path / "out"
    out.mkdir()
    (out / theirs).write_text("mine")
    code, text = restore(run, [photos], out)
    assert code == 0
    assert (out / theirs).read_text() == "mine"
    assert "note:" in text
    assert "the report" in text
    assert (out / "b.png").is_file()


def test_a_broken_page_loses_no_restoration(run, photos, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise MemoryError("no room for pictures")

    monkeypatch.setattr("retune.jobs.sections.picture_image", broken)
    code, text = restore(run, [photos], tmp_path / "out")
    assert code == 0
    assert "the report does not show a.tif (and 1 more): no room for pictures" in text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.tif", "a.tif.json", "b.png", "b.png.json"]
    monkeypatch.undo()
    monkeypatch.setattr(pages, "_rendered", broken)
    code, text = restore(run, [photos], tmp_path / "out")
    assert code == 0
    assert "the report was not written: no room for pictures" in text


def test_many_files_make_a_table_and_no_gigabytes(run, tmp_path, monkeypatch):
    monkeypatch.setattr(restoring, "DETAILED", 2)
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(1, 12):
        np.save(folder / f"{i}.npy", smooth(40, 40).astype(np.float32))
    assert restore(run, [folder], tmp_path / "out")[0] == 0
    page, source = page_of(tmp_path / "out")
    assert "11 files were restored" in page.text
    assert "2 of 11 are shown with all pictures, the others in the table" in page.text
    assert len(page.images("before")) == 2
    assert len([1 for tag, _ in page.tags if tag == "th"]) == 6 + 11
    names = re.findall(r"(\d+\.npy)(?:</a>)?</th>", source)
    assert names == [f"{i}.npy" for i in range(1, 12)]  # 10 after 9


def test_pages_with_heavy_pictures_stay_light(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_BYTES", 1)
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", smooth(40, 40).astype(np.float32))
    restore(run, [tmp_path / f"{i}.npy" for i in range(3)], tmp_path / "out")
    assert "1 of 3 are shown with all pictures" in page_of(tmp_path / "out")[0].text


def test_a_large_image_is_reduced_and_its_middle_is_not(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "SIDE", 32)
    monkeypatch.setattr(pictures, "MIDDLE", 20)
    Image.fromarray((smooth(70, 90) * 255).astype(np.uint8)).save(tmp_path / "b.png")
    restore(run, [tmp_path / "b.png"], tmp_path / "out")
    page, _ = page_of(tmp_path / "out")
    whole, middle = page.images("before")
    measured = np.asarray(Image.open(tmp_path / "b.png"))
    assert whole.shape == (24, 30)
    assert np.abs(whole[0, 0] - measured[:3, :3].mean()) < 1
    assert (middle == measured[25:45, 35:55]).all()
    assert "The image has 70×90 pixels and is shown reduced" in page.text


def test_a_stack_has_one_section_and_a_line_on_the_others(run, tmp_path):
    tifffile.imwrite(
        tmp_path / "s.tif", np.stack([(smooth(24, 24) * 255).astype(np.uint8)] * 3), photometric="minisblack"
    )
    restore(run, [tmp_path / "s.tif"], tmp_path / "out")
    page, _ = page_of(tmp_path / "out")
    assert "image 1 of 3" in page.text
    assert "The other 2 images of the file were restored in the same way" in page.text
    assert len(page.images("after")) == 1


@pytest.mark.filterwarnings("default::retune.errors.DoubtfulWarning")  # of the kernel off its centre
def test_kernel_mask_and_factor_are_shown(run, tmp_path):
    measured = (smooth(24, 30) * 255).astype(np.uint8)
    Image.fromarray(measured).save(tmp_path / "b.png")
    mask = np.full((24, 30), 255, np.uint8)
    mask[:12] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    kernel = np.zeros((5, 5), np.float32)
    kernel[2, 3] = kernel[2, 4] = 0.5
    np.save(tmp_path / "kernel.npy", kernel)
    for options, says in (
        (["-p", "deblur", "--kernel", tmp_path / "kernel.npy"], "5×5 pixels, largest value 0.5, sum 1"),
        (["-p", "deblur", "--kernel", tmp_path / "kernel.npy"], "1.5 pixels right of its centre"),
        (["-p", "deblur", "--kernel", "gaussian:1", "--boundary", "valid"], "boundary valid"),
        (["-p", "inpaint", "--mask", tmp_path / "mask.png"], "White: measured, 50.0% of all values."),
        (["-p", "superres", "--factor", "2"], "The measurement has 24×30 pixels, the restored image 48×60."),
    ):
        code, text = restore(run, [tmp_path / "b.png"], tmp_path / "out", *options)
        assert code == 0, text
        page, source = page_of(tmp_path / "out")
        assert says in page.text
        assert str(tmp_path) not in source  # pages are given to others
        assert "could not be computed" not in page.text


def test_the_residual_is_that_of_the_measurement(run, tmp_path):
    """A constant image with its noise, restored: what is left is the noise, of the level that was said."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "y.npy", (0.5 + 0.1 * rng.normal(size=(96, 96))).astype(np.float32))
    restore(run, [tmp_path / "y.npy"], tmp_path / "out")
    part = Pictured.of((tmp_path / "out" / "report" / "y.npy.json").read_bytes(), "y.npy")
    found = part.images[0].residual
    result, y = np.load(tmp_path / "out" / "y.npy"), np.load(tmp_path / "y.npy")
    assert found.size == pytest.approx(np.sqrt(np.mean((y - result) ** 2)) / 0.1, rel=1e-3)
    assert found.kind in ("white", "smaller than the noise")
    # A tenth of the noise that the network was made for is doubted.
    np.save(tmp_path / "z.npy", (0.5 + 0.01 * rng.normal(size=(96, 96))).astype(np.float32))
    restore(run, [tmp_path / "z.npy"], tmp_path / "out")
    assert "Doubt: σ = 0.1 was given, but z.npy shows about" in page_of(tmp_path / "out")[0].text


def test_clipped_values_are_no_structure(run, tmp_path):
    """Black, with noise of which only one half was stored: what is left is that half, and nothing of an image."""
    rng = np.random.default_rng(0)
    image = np.full((96, 96), 0.5)
    image[:40] = 0.02
    noisy = (image + 0.1 * rng.normal(size=image.shape)).clip(0, 1)
    Image.fromarray((noisy * 255).round().astype(np.uint8)).save(tmp_path / "b.png")
    restore(run, [tmp_path / "b.png"], tmp_path / "out")
    part = Pictured.of((tmp_path / "out" / "report" / "b.png.json").read_bytes(), "b.png")
    found = part.images[0].residual
    assert found.kind in ("white", "smaller than the noise")
    assert "of the values are at the ends of the range of the file" in " ".join(found.notes)


def test_the_residual_with_a_valid_boundary_leaves_out_what_nobody_restored(run, tmp_path):
    """Of an image larger than the measurement only the shown part is kept, and the border is not judged."""
    problem = {"name": "deblur", "kernel": "gaussian:1", "boundary": "valid"}
    np.save(tmp_path / "y.npy", smooth(64, 72).astype(np.float32))
    opened = open_model(run, problem)
    rows = restoring.restore(opened, [tmp_path / "y.npy"], restoring.Options(tmp_path / "out", certificate=False))
    assert rows[0].unpictured == ""
    assert rows[0].residual not in ("", "not judged")


def test_tune_writes_a_page_that_restore_adds_to(sharp, tmp_path):
    out = tmp_path / "tuned"
    told = ["-p", "denoise", "--sigma", "0.05", *SETS[4:], "--device", "cpu"]
    result, text = invoke("tune", sharp, *told, "-o", out)
    assert result.exit_code == 0, text
    assert "report.html shows the results" in text
    page, _ = page_of(out)
    assert "A restoration was tuned" in page.text
    assert len(page.images("before")) == 2
    gain = json.loads((out / "tune.json").read_text())["comparison"]
    assert ("The defaults are kept" in page.text) != gain["better"]
    assert f"{gain['before']:.2f} dB estimated PSNR" in page.text
    result, text = invoke("restore", out, sharp / "0.npy", "-o", out, "--device", "cpu")
    assert result.exit_code == 0, text
    assert "A restoration was tuned, 1 file was restored" in page_of(out)[0].text


def test_tune_without_a_page(sharp, tmp_path):
    told = ["-p", "denoise", "--sigma", "0.05", *SETS[4:], "--device", "cpu", "--no-report"]
    assert invoke("tune", sharp, *told, "-o", tmp_path / "out")[0].exit_code == 0
    assert not list((tmp_path / "out").glob("report*"))
