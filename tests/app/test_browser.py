"""The page in a real browser: Chromium without a window. Skipped by name where something is missing."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import retune
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
#: Milliseconds that a busy machine may take for a step.
PATIENCE = 1000 * int(os.environ.get("RETUNE_APP_PATIENCE", "90"))
SHOTS = os.environ.get("RETUNE_APP_SHOTS")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def window(browser):
    """A wide window. Its pages share what the browser has fetched."""
    made = browser.new_context(viewport={"width": 1360, "height": 900}, accept_downloads=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def address(window):
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
        page = window.new_page()
        page.goto(found[0])  # a page that is still open does not keep the program
        page.wait_for_timeout(2000)  # an event of the page that is cut off would be told
        server.terminate()
        assert server.stderr.read() == "stopped by SIGTERM\n"
        assert server.wait(30) == 128 + 15


class Visit:
    """A page that is open, and everything that it complained of or asked of others."""

    def __init__(self, window, address):
        self.page = window.new_page()
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

    def choose(self, control, text):
        """An entry of a list that opens."""
        self.page.click(f"#{control} input")
        self.page.click(f"[role=option]:has-text('{text}')")

    def restored(self):
        self.page.click("#restore")
        self.page.wait_for_selector("#result .compare[data-ready]")
        return self.page.inner_text("#result")

    def take(self, label):
        """What a link gives: its name, and its content."""
        with self.page.expect_download() as waits:
            self.page.click(f"#take a:text-is('{label}')")
        return waits.value.suggested_filename, Path(waits.value.path()).read_bytes()

    def shot(self, name):
        if SHOTS:
            self.page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)

    def close(self):
        self.page.close()
        assert self.faults == []
        assert self.elsewhere == []


@pytest.fixture
def visit(window, address):
    made = Visit(window, address)
    yield made
    made.close()


def written(path, y):
    """A measurement (1, C, h, w) as a file of 8 bits."""
    Image.fromarray((y[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).squeeze(-1).numpy()).save(path)
    return path


def scene(side, grey=False):
    x = photograph("astronaut")[None, :, 20 : 20 + side, 180 : 180 + side]
    return x.mean(1, keepdim=True) if grey else x


@pytest.fixture
def noisy(tmp_path):
    return written(tmp_path / "noisy.png", problems.denoise(0.1).measure(scene(64))[0])


def test_from_the_start_to_a_restored_photograph_in_three_clicks(visit, noisy):
    """Choose, open, restore."""
    visit.shot("start")
    visit.give(noisy)  # the first two clicks
    visit.looked()
    visit.shot("looked")
    assert "At rest" in visit.restored()  # the third
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
    name, content = visit.take("Restored image")
    assert name == "noisy.png"
    back = np.asarray(Image.open(io.BytesIO(content)))
    assert back.shape == (64, 64, 3)
    assert back.std() < np.asarray(Image.open(noisy)).std()
    name, content = visit.take("Report")
    assert name == "report.html"
    assert "noisy.png" in content.decode()
    name, content = visit.take("Record")
    assert name == "record.json"
    assert json.loads(content)["status"] == "converged"
    names = re.findall(r"/(?:home|root|tmp|work|usr)/[\w./-]+", visit.page.content())
    assert [name for name in names if "noisy" in name or "retune" in name] == []


def test_a_stack_of_sixteen_bits_comes_back_and_its_pages_are_turned(visit, tmp_path):
    pages = torch.cat([scene(48, grey=True), scene(48, grey=True).flip(-1)])
    y = problems.denoise(0.05).measure(pages)[0]
    stack = (y[:, 0].clamp(0, 1) * 65535).numpy().astype(np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", stack, photometric="minisblack")
    visit.give(tmp_path / "deep.tif")
    visit.looked()
    assert "16 bits" in visit.page.inner_text("#facts")
    visit.restored()
    visit.page.wait_for_selector("#result img[alt*='image 1 of 2']")
    back = tifffile.imread(io.BytesIO(visit.take("Restored image")[1]))
    assert back.dtype == np.uint16
    assert back.shape == stack.shape
    assert len(np.unique(back)) > 256
    visit.page.locator("#page-number input[type=number]").fill("2")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector("#facts:has-text('page 2 of 2')")
    visit.page.wait_for_selector("#result img[alt*='image 2 of 2']")
    visit.shot("second-page")


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


def test_the_change_is_seen_as_it_runs_and_stop_ends_it(visit, window, address, noisy):
    other = Visit(window, address)
    visit.choose("example", "Cameraman, blurred")
    visit.looked()
    assert visit.page.locator("#blur img").is_visible()
    visit.page.click("#restore")
    visit.page.wait_for_selector("#glimpse img[alt^='A first rough picture']")
    visit.shot("first-picture")
    visit.page.wait_for_selector("#glimpse img[alt='So far']")
    visit.page.wait_for_selector("#curves svg")
    visit.shot("running")
    other.give(noisy)  # one computation at a time: it waits
    other.page.wait_for_selector("#progress:has-text('Waiting for its turn')")
    assert other.page.locator("#facts .facts").count() == 0
    begin = time.monotonic()
    visit.page.click("#stop")
    visit.page.wait_for_selector("#progress .remark:has-text('Stopped')")
    assert time.monotonic() - begin < 10  # of the whole page on a busy machine; see test_worker.py for the process
    visit.page.wait_for_selector("#restore:not([disabled])")
    visit.shot("stopped")
    other.looked()
    other.close()


def test_tune_shows_its_steps_and_can_be_stopped(visit, noisy):
    visit.give(noisy)
    visit.looked()
    visit.page.click("#tune")
    visit.page.wait_for_selector("#progress:has-text('step')")
    visit.shot("tuning")
    visit.page.click("#stop")
    visit.page.wait_for_selector("#progress .remark:has-text('Stopped')")


def test_a_network_is_tuned_on_the_image_and_taken_away(visit, tmp_path):
    visit.give(written(tmp_path / "small.png", problems.denoise(0.1).measure(scene(32, grey=True))[0]))
    visit.looked()
    visit.page.click("#tune")
    visit.page.wait_for_selector("#result .compare[data-ready]")
    assert visit.page.inner_text("#result").startswith("Tuned.")
    visit.shot("tuned")
    assert "retune tune small.png" in visit.page.inner_text("#take")
    name, content = visit.take("Model")
    (tmp_path / name).write_bytes(content)
    assert isinstance(retune.load(tmp_path / name), retune.Restarted)
    name, content = visit.take("Folder of the tuning")
    assert {"model.safetensors", "tune.json"} <= set(zipfile.ZipFile(io.BytesIO(content)).namelist())


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
    visit.restored()
    mask = np.asarray(Image.open(io.BytesIO(visit.take("Mask")[1])))
    assert mask.shape == (64, 64)
    assert 0.005 < (mask == 0).mean() < 0.2


def test_a_mask_and_a_blur_come_as_files_and_are_mended(visit, tmp_path):
    y = problems.deblur("gaussian:1", sigma=0.02).measure(scene(64, grey=True))[0]
    rows, columns = np.mgrid[:15, :15]
    spot = 40 + 200 * np.exp(-((rows - 5) ** 2 + (columns - 7) ** 2) / 2)
    Image.fromarray(spot.astype(np.uint8)).save(tmp_path / "psf.png")
    visit.give(written(tmp_path / "y.png", y))
    visit.looked()
    visit.page.click("#problem label:has-text('Blur and noise')")
    visit.choose("blur-shape", "From a file")
    visit.give(tmp_path / "psf.png", "#drop-blur")
    for button in ("#mend-background", "#mend-centre"):
        visit.page.wait_for_selector(button)
        visit.shot(button[1:])
        visit.page.click(button)
        visit.page.wait_for_selector(button, state="hidden")
    assert visit.page.is_checked("#background input")
    assert visit.page.is_checked("#centre input")
    visit.page.wait_for_selector("#blur:has-text('its centre of mass is at its centre')")
    assert "At rest" in visit.restored()
    lines = visit.page.inner_text("#take")
    assert "--kernel psf.png --kernel-background auto --centre-kernel" in lines

    mask = np.full((64, 64), 255, np.uint8)
    mask[::3, ::2] = 0
    Image.fromarray(mask).save(tmp_path / "holes.png")
    visit.page.click("#problem label:has-text('Missing pixels')")
    visit.give(tmp_path / "holes.png", "#drop-mask")
    visit.page.wait_for_selector("#mask-said:has-text('mask.png is used')")
    visit.looked()
    visit.restored()
    assert "--mask mask.png" in visit.page.inner_text("#take")
    assert (np.asarray(Image.open(io.BytesIO(visit.take("Mask")[1]))) == mask).all()


def test_a_network_of_ones_own_restores(visit, noisy, tmp_path):
    prior = retune.priors.WaveletL12("db2", levels=2)
    net = retune.Restarted(retune.ForwardBackward(prior, reg=0.05), depth=2, restarts=1)
    net.save(tmp_path / "mine.safetensors", problem=json.dumps({"name": "denoise", "sigma": 0.1}))
    (tmp_path / "broken.safetensors").write_bytes(b"no network")
    visit.give(noisy)
    visit.looked()
    visit.page.click("#own button")
    visit.give(tmp_path / "broken.safetensors", "#drop-network")
    visit.page.wait_for_selector("#network-said:has-text('broken.safetensors is used')")
    visit.page.click("#restore")
    visit.page.wait_for_selector("#progress .remark:has-text('broken.safetensors')")
    visit.give(tmp_path / "mine.safetensors", "#drop-network")
    visit.page.wait_for_selector("#network-said:has-text('mine.safetensors is used')")
    visit.page.wait_for_selector("#restore:not([disabled])")
    visit.restored()
    assert "WaveletL12" in visit.page.inner_html("#result")
    assert "retune restore mine.safetensors noisy.png" in visit.page.inner_text("#take")
    visit.shot("own-network")
    visit.page.click("#ships")
    visit.page.wait_for_selector("#ships", state="hidden")


def test_a_phone_shows_everything_in_its_width(browser, address, noisy):
    # Without motion, no colour is seen on its way to another one.
    phone = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark", reduced_motion="reduce")
    visit = Visit(phone, address)
    visit.give(noisy)
    visit.looked()
    visit.restored()
    assert -60 < visit.page.locator("#at-rest").bounding_box()["y"] < 600  # it came into view
    visit.shot("phone-dark")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 360
    paper = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(20, 25, 31)"
    assert visit.page.evaluate(FAINT) == []
    visit.close()
    phone.close()


def test_every_control_has_a_name_and_every_text_is_seen(visit, noisy):
    visit.give(noisy)
    visit.looked()
    visit.restored()
    visit.page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    for button in ("#levels button", "#own button"):
        visit.page.click(button)
    for problem in ("Blur and noise", "Missing pixels", "Too few pixels"):
        visit.page.click(f"#problem label:has-text('{problem}')")
        visit.page.wait_for_selector({"B": "#blur-size", "M": "#canvas", "T": "#factor"}[problem[0]])
        assert visit.page.evaluate(NAMELESS) == []
        assert visit.page.evaluate(FAINT) == []
    visit.looked()
    visit.shot("everything-open")
    assert visit.page.evaluate("document.documentElement.lang") == "en"


def test_the_keyboard_reaches_everything_in_the_order_of_the_page(visit, noisy):
    visit.give(noisy)
    visit.looked()
    visit.restored()
    visit.page.focus("#drop-image input")
    places, unseen = ["drop-image"], []
    for _ in range(40):
        visit.page.keyboard.press("Tab")
        place, seen, name = visit.page.evaluate(FOCUSED)
        unseen += [] if seen else [name]
        if place and place != places[-1]:
            places.append(place)
    wanted = [
        "drop-image", "example", "problem", "noise-kind", "levels", "restore", "tune", "own", "result", "take",
    ]  # fmt: skip
    assert [place for place in places if place in wanted][: len(wanted)] == wanted
    assert unseen == []


#: Controls without a name.
NAMELESS = """() => [...document.querySelectorAll('button, input, textarea, select, [role=slider]')]
    .filter(e => e.offsetParent !== null)
    .filter(e => !(e.innerText || '').trim() && !e.labels?.length && !e.getAttribute('aria-label')
              && !e.getAttribute('aria-labelledby') && !e.closest('label'))
    .map(e => e.outerHTML.slice(0, 120))"""

#: Texts that are seen and have less than 4.5 : 1 of contrast (WCAG 2.2, 1.4.3), with their contrast.
FAINT = """() => {
  const g = Object.assign(document.createElement('canvas'), {width: 1, height: 1})
    .getContext('2d', {willReadFrequently: true});
  const rgba = (text) => {
    g.clearRect(0, 0, 1, 1); g.fillStyle = text; g.fillRect(0, 0, 1, 1);
    const [r, gr, b, a] = g.getImageData(0, 0, 1, 1).data; return [r, gr, b, a / 255];
  };
  const over = (top, below) => below.map((v, i) => top[3] * top[i] + (1 - top[3]) * v);
  const behind = (e) => {
    const layers = [];
    for (let n = e; n; n = n.parentElement) layers.push(rgba(getComputedStyle(n).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = (c) => {
    const [r, gr, b] = c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * gr + 0.0722 * b;
  };
  const faint = [];
  const look = (e, text, colour) => {
    if (!text.trim() || !e.checkVisibility({opacityProperty: true, visibilityProperty: true})) return;
    const box = e.getBoundingClientRect();
    if (box.width < 2 || box.height < 2 || e.closest('[disabled], script, style, option')) return;
    let opacity = 1;
    for (let n = e; n; n = n.parentElement) opacity *= Number(getComputedStyle(n).opacity);
    const paper = behind(e), ink = rgba(colour);
    ink[3] *= opacity;
    const [low, high] = [light(over(ink, paper)), light(paper)].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) faint.push([text.trim().slice(0, 40), contrast.toFixed(2), e.className]);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement, style = getComputedStyle(e);
    look(e, texts.currentNode.data, e.closest('svg') ? style.fill : style.color);
  }
  for (const e of document.querySelectorAll('input:not([type=file], [type=range], [type=radio]), textarea')) {
    look(e, e.value, getComputedStyle(e).color);
    look(e, e.placeholder, getComputedStyle(e, '::placeholder').color);
  }
  return faint;
}"""

#: The part of the page that has the focus, whether one sees that, and its name.
FOCUSED = """() => {
  const e = document.activeElement;
  const mark = (n) => { const s = getComputedStyle(n);
    return (s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0) || s.boxShadow !== 'none'; };
  const part = e.closest('[id]:is(#drop-image, #example, #problem, #noise-kind, #levels, #restore, #tune, #own, '
                         + '#result, #take, #noise, #findings)');
  const seen = e === document.body || mark(e) || (e.parentElement && mark(e.parentElement));
  return [part ? part.id : '', seen, e.outerHTML.slice(0, 120)];
}"""
