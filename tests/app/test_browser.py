"""The page in a real browser: Chromium without a window. Skipped by name where something is missing."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from retune import problems
from retune.data import photograph

if importlib.util.find_spec("gradio") is None:  # to import it takes seconds, which only the process of the page needs
    pytest.skip("needs gradio: pip install 'retune-imaging[app]'", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium: apt-get install chromium"),
    pytest.mark.xdist_group("browser"),
]
#: Milliseconds that a busy machine may take.
PATIENCE = 120_000
SHOTS = os.environ.get("RETUNE_APP_SHOTS")


@pytest.fixture(scope="module")
def address():
    """The page, served by the command."""
    code = [sys.executable, "-u", "-m", "retune", "app", "--port", "0", "--upload", "2"]
    with subprocess.Popen(code, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as server:
        assert server.stderr is not None
        for line in server.stderr:
            found = re.search(r"http://127\.0\.0\.1:\d+/", line)
            if found:
                break
        else:
            pytest.fail("the page did not start")
        yield found[0]
        server.terminate()
        server.stderr.read()
        assert server.wait(30) == 128 + 15


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


class Visit:
    """A page that is open, and everything that it complained of or asked of others."""

    def __init__(self, browser, address, **options):
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(PATIENCE)
        self.faults, self.elsewhere = [], []
        self.page.on("console", lambda m: self.faults.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.faults.append(str(e)))
        self.page.on("request", self._asked)
        self._own = (address, "data:", "blob:")
        self.page.goto(address)
        self.page.wait_for_selector("#restore")

    def _asked(self, request):
        if not request.url.startswith(self._own):
            self.elsewhere.append(request.url)

    def give(self, path, place="#drop-image"):
        self.page.set_input_files(f"{place} input[type=file]", path)

    def looked(self):
        self.page.wait_for_selector("#findings .findings, #findings .verdict, #findings .remark")

    def shot(self, name):
        if SHOTS:
            self.page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


@pytest.fixture
def visit(browser, address):
    made = Visit(browser, address, viewport={"width": 1360, "height": 900}, accept_downloads=True)
    yield made
    made.page.close()
    assert made.faults == []
    assert made.elsewhere == []


@pytest.fixture
def noisy(tmp_path):
    y = problems.denoise(0.1).measure(photograph("astronaut")[None, :, 20:116, 180:276])[0]
    Image.fromarray((y[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()).save(tmp_path / "noisy.png")
    return tmp_path / "noisy.png"


def test_from_the_start_to_a_restored_photograph_in_three_clicks(visit, noisy):
    """Choose, open, restore."""
    visit.shot("start")
    visit.give(noisy)  # the first two clicks
    visit.looked()
    visit.shot("looked")
    visit.page.click("#restore")  # the third
    visit.page.wait_for_selector("#result .compare[data-ready]")
    assert "At rest" in visit.page.inner_text("#result")
    visit.shot("restored")
    slider = visit.page.locator("#result .compare input")
    slider.focus()
    visit.page.keyboard.press("Home")
    assert slider.input_value() == "0"
    zoom = visit.page.locator("#result .compare button").first
    zoom.focus()
    visit.page.keyboard.press("Enter")
    assert "1:1" in zoom.inner_text()
    visit.page.click("#certificate summary")
    assert visit.page.locator("#certificate table").is_visible()
    assert "--sigma" in visit.page.inner_text("#take")
    with visit.page.expect_download() as waits:
        visit.page.click("#take a:has-text('Restored image')")
    assert waits.value.suggested_filename == "noisy.png"
    back = np.asarray(Image.open(waits.value.path()))
    assert back.shape == (96, 96, 3)
    assert back.std() < np.asarray(Image.open(noisy)).std()
    with visit.page.expect_download() as waits:
        visit.page.click("#take a:has-text('Report')")
    assert "noisy.png" in Path(waits.value.path()).read_text(encoding="utf-8")
    names = re.findall(r"/(?:home|root|tmp|work|usr)/[\w./-]+", visit.page.content())
    assert [name for name in names if "noisy" in name or "retune" in name] == []


def test_sixteen_bits_come_back_with_sixteen_bits(visit, tmp_path):
    y = problems.denoise(0.05).measure(photograph("camera")[None, :, 100:164, 200:264])[0]
    tifffile.imwrite(tmp_path / "deep.tif", (y[0, 0].clamp(0, 1) * 65535).numpy().astype(np.uint16))
    visit.give(tmp_path / "deep.tif")
    visit.looked()
    assert "16 bits" in visit.page.inner_text("#facts")
    visit.page.click("#restore")
    visit.page.wait_for_selector("#take a")
    with visit.page.expect_download() as waits:
        visit.page.click("#take a:has-text('Restored image')")
    back = tifffile.imread(io.BytesIO(Path(waits.value.path()).read_bytes()))
    assert back.dtype == np.uint16
    assert len(np.unique(back)) > 256


def test_a_broken_file_and_a_large_one_are_sentences(visit, tmp_path, noisy):
    (tmp_path / "broken.png").write_bytes(noisy.read_bytes()[:2000])
    visit.give(tmp_path / "broken.png")
    visit.page.wait_for_selector("#progress .remark")
    assert visit.page.inner_text("#progress").startswith("broken.png cannot be read")
    visit.shot("broken")
    (tmp_path / "large.npy").write_bytes(bytes(3_000_000))
    visit.give(tmp_path / "large.npy")
    visit.page.wait_for_selector("#drop-image .drop-said:has-text('larger than 2 MB')")
    assert visit.faults.pop().startswith("Failed to load resource")  # the browser's own note of the refusal
    visit.give(noisy)  # and nothing is broken
    visit.looked()


def test_the_change_is_seen_as_it_runs_and_stop_ends_it(visit):
    visit.page.click("#example input")
    visit.page.click("text=Cameraman, blurred")
    visit.looked()
    assert visit.page.locator("#blur img").is_visible()
    visit.page.click("#restore")
    visit.page.wait_for_selector("#glimpse img[alt='So far']")
    visit.page.wait_for_selector("#curves svg")
    visit.shot("running")
    begin = time.monotonic()
    visit.page.click("#stop")
    visit.page.wait_for_selector("#progress .remark:has-text('Stopped')")
    assert time.monotonic() - begin < 10  # of the whole page on a busy machine; see test_worker.py for the process
    visit.page.wait_for_selector("#restore:not([disabled])")
    visit.shot("stopped")


def test_tune_shows_its_steps_and_can_be_stopped(visit, noisy):
    visit.give(noisy)
    visit.looked()
    visit.page.click("#tune")
    visit.page.wait_for_selector("#progress:has-text('step')")
    visit.shot("tuning")
    visit.page.click("#stop")
    visit.page.wait_for_selector("#progress .remark:has-text('Stopped')")


def test_missing_pixels_are_painted(visit, noisy):
    visit.give(noisy)
    visit.looked()
    visit.page.click("#problem label:has-text('Missing pixels')")
    stage = visit.page.locator("#canvas .paint-stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    visit.page.mouse.move(box["x"] + 40, box["y"] + 40)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 140, box["y"] + 90, steps=8)
    visit.page.mouse.up()
    visit.page.click("#canvas .paint-use")
    visit.page.wait_for_selector("#mask-said:has-text('missing')")
    visit.looked()
    visit.shot("painted")


def test_a_phone_shows_everything_in_its_width(browser, address, noisy):
    visit = Visit(browser, address, viewport={"width": 360, "height": 740}, color_scheme="dark")
    visit.give(noisy)
    visit.looked()
    visit.page.click("#restore")
    visit.page.wait_for_selector("#result .compare[data-ready]")
    visit.shot("phone-dark")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 360
    paper = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(20, 25, 31)"
    visit.page.close()
    assert visit.faults == []
    assert visit.elsewhere == []


def test_every_control_has_a_name(visit, noisy):
    visit.give(noisy)
    visit.looked()
    nameless = visit.page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, select, [role=slider]')]
            .filter(e => e.offsetParent !== null)
            .filter(e => !(e.innerText || '').trim() && !e.labels?.length && !e.getAttribute('aria-label')
                      && !e.getAttribute('aria-labelledby') && !e.closest('label'))
            .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
