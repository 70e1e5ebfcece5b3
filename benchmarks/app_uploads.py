"""A hundred files in a row on the page of ``retune app``: memory and files before and after; the first picture; a stop.

    python benchmarks/app_uploads.py [--files 100] [--side 512] [--results]

It starts the page, opens it in Chromium (playwright), and gives it mixed, broken and large files. Memory is that of the
server and of the processes that it started; files are those in the temporary folder of the page.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from retune import problems
from retune.data import photograph


def files_in(folder: Path, seed: int = 0) -> list[Path]:
    """Twelve kinds of files: good ones, large ones, and broken ones."""
    rng = np.random.default_rng(seed)
    photo = (photograph("astronaut").permute(1, 2, 0).numpy()[:256, 100:356] * 255).astype(np.uint8)
    noisy = np.clip(photo + rng.normal(0, 12, photo.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(folder / "colour.png")
    Image.fromarray(noisy).save(folder / "colour.jpg", quality=90)
    Image.fromarray(noisy[..., 0]).save(folder / "grey.bmp")
    tifffile.imwrite(folder / "deep.tif", (noisy[..., 0].astype(np.uint16) * 257))
    tifffile.imwrite(folder / "stack.tif", np.stack([noisy[..., 0]] * 4), photometric="minisblack")
    np.save(folder / "floats.npy", noisy[..., 0].astype(np.float32) / 255)
    holes = noisy[..., 0].astype(np.float32) / 255
    holes[::7, ::5] = np.nan
    np.save(folder / "holes.npy", holes)
    np.save(folder / "large.npy", rng.random((2500, 2500), np.float32))
    np.save(folder / "too_large.npy", rng.random((8000, 7000), np.float32))
    content = (folder / "colour.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.tif").write_bytes(b"no image at all")
    return sorted(folder.iterdir())


def processes(pid: int) -> list[int]:
    """A process and all that it has started, and that these have started."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            told = dict(re.findall(r"^(Pid|PPid):\s+(\d+)", status.read_text(), re.MULTILINE))
            children.setdefault(int(told["PPid"]), []).append(int(told["Pid"]))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def memory(pid: int) -> dict[int, float]:
    """Memory in MB of the server and of all its processes. Pages that several of them share are divided (PSS)."""
    found = {}
    for one in processes(pid):
        with suppress(OSError):
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
            found[one] = int(re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE)[0]) / 1024
    return found


def busy(pid: int) -> float:
    """Seconds of processor time of the server and of all its processes."""
    ticks = 0
    for one in processes(pid):
        with suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def give(page: Page, file: Path) -> str:
    """Give a file, wait for what is said of it, and return that."""
    page.evaluate("for (const n of ['facts', 'progress', 'findings']) document.getElementById(n).dataset.old = 1")
    before = page.inner_text("#facts") + page.inner_text("#progress")
    page.set_input_files("#drop-image input[type=file]", file)
    page.wait_for_function(
        """([name, before]) => {
            const text = (id) => document.getElementById(id).innerText;
            if (document.querySelector('#drop-image .drop-said').innerText.includes('larger')) return true;
            const told = text('findings').trim();
            const shown = text('facts').includes(name) && told && !told.includes('Examining');
            return shown || text('progress').includes(name);
        }""",
        arg=[file.name, before],
        timeout=300_000,
    )
    told = [page.inner_text(part).strip() for part in ("#progress p", "#facts p") if page.locator(part).count()]
    return " ".join(" ".join(told).split())


def first_pictures(page: Page, pid: int, folder: Path, side: int, results: bool) -> None:
    """Seconds from "Restore" to the first picture (and to the result), for noise, two blurs and missing pixels."""
    x = photograph("astronaut")[None, :, :side, :side]
    cases = {
        "Only noise": (problems.denoise(0.05), ""),
        "Blur and noise": (problems.deblur("gaussian:1.6", sigma=0.02), "Out of focus"),
        "Blur and noise, a line": (problems.deblur("motion:9@0", sigma=0.02), "Moved"),
        "Missing pixels": (problems.inpaint(keep=0.5, sigma=0.02), ""),
    }
    for number, (name, (problem, shape)) in enumerate(cases.items()):
        y, physics = problem.measure(x)
        file = folder / f"first-{number}.png"
        Image.fromarray((y[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()).save(file)
        give(page, file)
        page.click(f"#problem label:has-text('{name.partition(',')[0]}')")
        if shape:
            page.click("#blur-shape input")
            page.click(f"[role=option]:has-text('{shape}')")
            page.fill("#blur-size input", "9" if shape == "Moved" else "1.6")
            page.keyboard.press("Enter")
        if name == "Missing pixels":
            mask = (physics.get_buffer("mask")[0, 0] * 255).byte().numpy()
            Image.fromarray(mask).save(folder / "holes.png")
            page.set_input_files("#drop-mask input[type=file]", folder / "holes.png")
            page.wait_for_selector("#mask-said:has-text('is used')")
        page.wait_for_timeout(1000)
        page.wait_for_function("document.querySelector('#findings').innerText.search('Examining') < 0")
        begin, used = time.monotonic(), busy(pid)
        page.click("#restore")
        page.wait_for_selector("#glimpse img:not([alt='As it was measured']), #result .compare")
        first, first_used = time.monotonic() - begin, busy(pid) - used
        print(f"{name:24} first picture after {first:.1f} s ({first_used:.1f} s of processor time)", flush=True)
        if not results:
            if page.locator("#stop").is_visible():
                page.click("#stop")
            page.wait_for_selector("#restore:not([disabled])")
            continue
        page.wait_for_selector("#result .compare", timeout=600_000)
        last, last_used = time.monotonic() - begin, busy(pid) - used
        print(f"{name:24} result after {last:.1f} s ({last_used:.1f} s)", flush=True)


def stops(page: Page, pid: int, folder: Path) -> None:
    """Seconds from "Stop" to the end of the process that computes, and until the buttons are back."""
    give(page, folder / "first-1.png")
    page.click("#problem label:has-text('Blur and noise')")
    for button in ("#restore", "#tune"):
        page.wait_for_timeout(1000)
        page.wait_for_selector(f"{button}:not([disabled])")
        page.click(button)
        page.wait_for_timeout(5000)
        before, begin = set(processes(pid)), time.monotonic()
        page.click("#stop")
        while before <= {one for one in processes(pid) if alive(one)} and time.monotonic() - begin < 30:
            time.sleep(0.01)
        ended = time.monotonic() - begin
        page.wait_for_selector("#restore:not([disabled])")
        print(f"stop of {button[1:]:8} process ended after {ended:.2f} s, buttons back after "
              f"{time.monotonic() - begin:.2f} s", flush=True)  # fmt: skip


def alive(pid: int) -> bool:
    """Whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--results", action="store_true", help="wait for the results of the first pictures, too")
    options = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    command = [sys.executable, "-u", "-m", "retune", "app", "--port", "0", "--upload", "250"]
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as space,
        sync_playwright() as playwright,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": space}) as server,
    ):
        assert server.stderr is not None
        address = next(f[0] for f in (re.search(r"http://\S+/", line) for line in server.stderr) if f)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#restore")
        first_pictures(page, server.pid, Path(folder), options.side, options.results)
        stops(page, server.pid, Path(folder))
        (Path(folder) / "many").mkdir()
        files = files_in(Path(folder) / "many")
        said = {file.name: give(page, file) for file in files}
        for name, text in said.items():
            print(f"{name:15} {text[:100]}")
        start = memory(server.pid)
        for number in range(options.files):
            give(page, files[number % len(files)])
            if (number + 1) % 20 == 0:
                print(f"{number + 1} files: { ({k: round(v) for k, v in memory(server.pid).items()}) } MB", flush=True)
        end = memory(server.pid)
        left = [path for path in Path(space).rglob("*") if path.is_file()]
        print(f"memory before {sum(start.values()):.0f} MB, after {sum(end.values()):.0f} MB; files left: {len(left)}")
        browser.close()
        server.terminate()
        server.stderr.read()
        server.wait(30)
        print(f"files after the end: {len([p for p in Path(space).rglob('*') if 'retune' in p.name])}")


if __name__ == "__main__":
    main()
