"""What ``tune``, ``restore`` and ``certify`` say: the verdict first, in 80 columns, and something moves."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from commands import SETS, smooth
from retune.cli._words import wrapped
from retune.cli.main import app
from retune.jobs.restored_file import FileJob


def lines_of(*arguments, status=0, out=False):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == status, result.output
    return (result.stdout if out else result.output).splitlines()


def too_long(lines):
    """Lines of more than 80 columns that are not one word, or a command to copy."""
    return [line for line in lines if len(line) > 80 and " " in line.strip() and not line.startswith("  retune ")]


@pytest.fixture
def long_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "a-rather-long-name-of-an-image-of-the-fourth-series-of-november.tif"
    tifffile.imwrite(name, (smooth(24, 24) * 255).astype(np.uint8))
    return name


def test_words_are_not_broken_and_commands_not_either():
    text = "a word-with-hyphens " * 9 + "/a/path/" + "x" * 90 + " end; go on with  retune tune --out " + "y" * 50
    lines = wrapped(text, "note: ", "  ").splitlines()
    assert " ".join(" ".join(lines).split()) == f"note: {' '.join(text.split())}"
    assert all(len(line) <= 80 for line in lines if "xxx" not in line and "retune" not in line)
    assert lines[-1].strip() == "retune tune --out " + "y" * 50
    assert all(word in text for line in lines[1:] for word in line.split())
    assert wrapped("") == ""
    assert wrapped("one\ntwo", "> ", "  ") == "> one\n  two"


def test_restore_says_the_verdict_first_and_where_the_page_is(run, long_name):
    np.save("bad.npy", smooth(24, 24) * 1000)
    lines = lines_of("restore", run, long_name, "bad.npy", "-o", "out", "--device", "cpu", status=1)
    assert too_long(lines) == []
    said = lines_of("restore", run, long_name, "bad.npy", "-o", "out", "--device", "cpu", status=1, out=True)
    assert said[0].startswith("2 files: 1 done before, 1 failed.")
    assert long_name in lines
    assert "out/report.html shows the results" in lines
    assert "--white 4095" in " ".join(lines)
    text = " ".join(lines)
    assert "residual 1" not in text  # the relative change: only for experts
    assert re.search(r"residual: \w+", text)
    detailed = " ".join(lines_of("restore", run, long_name, "-o", "out", "--again", "--details", "--device", "cpu"))
    assert re.search(r"residual \d\.\de-\d\d", detailed)


def test_restore_says_what_is_left_in_a_residual(run, long_name, monkeypatch):
    """The verdict names the file, so that nobody has to open the page to learn of it."""
    found = FileJob._picture
    monkeypatch.setattr(FileJob, "_picture", lambda *a: ("structure", found(*a)[1]))
    lines = lines_of("restore", run, long_name, "-o", "out", "--device", "cpu")
    text = " ".join(" ".join(lines).split())
    assert f"1 file: 1 restored. Something is left in the residual of {long_name}: see the report." in text
    assert too_long(lines) == []


def test_tune_says_the_verdict_first(long_name):
    told = ["-p", "denoise", "--sigma", "0.05", *SETS[4:], "--device", "cpu", "-o", "tuned"]
    lines = [line for line in lines_of("tune", long_name, *told) if line.strip()]
    assert lines[0].startswith(("The tuned strength", "The defaults are kept"))
    assert too_long(lines) == []
    assert "  retune restore tuned FILES --out FOLDER" in lines
    assert "tuned/report.html shows the results" in lines
    text = " ".join(lines)
    assert "step_size" not in text
    assert "strength " in text
    assert "step_size" in " ".join(lines_of("tune", long_name, *told, "--resume", "--details"))


def test_certify_says_the_verdict_first_and_groups_a_stack(run, long_name):
    tifffile.imwrite("s.tif", np.stack([(smooth(24, 24) * 255).astype(np.uint8)] * 4), photometric="minisblack")
    lines = lines_of("certify", run, "s.tif", long_name, "--json", "c.json", "--device", "cpu")
    text = " ".join(" ".join(lines).split())
    assert too_long(lines) == []
    assert lines[0] == "s.tif"
    assert "4 images; the weakest certificate is that of s.tif, image" in text
    assert text.count("the image is within") == 2
    assert "adjoint" not in text
    images = json.loads(Path("c.json").read_text())["images"]
    assert len(images) == 5
    worst = max(image["certificate"]["images"][0]["claims"]["rmse"][0]["value"] for image in images[:4])
    assert f"within {worst:.1e} (root mean square" in text
    assert "adjoint of the gradient" in " ".join(lines_of("certify", run, long_name, "--details", "--device", "cpu"))


def test_certify_says_once_why_the_images_of_a_stack_have_none(run, long_name):
    tifffile.imwrite("s.tif", np.stack([(smooth(12, 12) * 255).astype(np.uint8)] * 3), photometric="minisblack")
    told = ["-p", "deblur", "--kernel", "uniform:17", "--device", "cpu"]
    lines = lines_of("certify", run, "s.tif", *told, status=1)
    text = " ".join(" ".join(lines).split())
    assert text.count("is too large for images") == 1
    assert "No certificate for 3 images:" in text
    assert too_long(lines) == []


@pytest.mark.parametrize("verb", ["tune", "restore", "certify"])
def test_options_are_named_for_what_they_take(verb):
    text = CliRunner().invoke(app, [verb, "--help"], terminal_width=100).output
    assert "FILES" in text.splitlines()[0]
    for name in ("--kernel KERNEL", "--mask MASK", "--white WHITE", "--sigma SIGMA", "--details"):
        assert name in text
    assert ("--out FOLDER" in text) == (verb != "certify")
    assert ("--no-report" in text) == (verb != "certify")
    assert not {"TEXT", "PATH", "FLOAT", "INTEGER"} & set(re.findall(r"--\w+ ([A-Z]+)", text))


SLOW = """
import sys, time, types
from retune.cli._moving import moving
from retune.cli.errors import say, show
with moving("starting") as line:
    time.sleep(1.2)
    show("a line")
    line.text = "going on"
    time.sleep(0.8)
"""


def on_a_terminal(*words):
    """What a program writes on a terminal: (seconds since the start, bytes)."""
    ours, theirs = pty.openpty()
    begin, said = time.monotonic(), []
    process = subprocess.Popen(words, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        while time.monotonic() < begin + 120:
            if select.select([ours], [], [], 0.05)[0]:
                try:
                    data = os.read(ours, 4096)
                except OSError:  # Linux: the other end is closed
                    break
                if not data:
                    break
                said.append((time.monotonic() - begin, data))
    finally:
        os.close(ours)
        process.wait()
    assert process.returncode == 0, said
    return said


def test_something_moves_on_a_terminal_and_other_text_is_whole():
    said = b"".join(data for _, data in on_a_terminal(sys.executable, "-c", SLOW)).decode()
    assert said.count("starting") >= 2
    assert "going on" in said
    assert re.search(r"\r\x1b\[Ka line\r\n", said)  # the status line is taken away first
    assert said.rstrip().endswith("\x1b[K")


def test_nothing_moves_in_a_file():
    done = subprocess.run([sys.executable, "-c", SLOW], capture_output=True, text=True, check=True)
    assert done.stdout == "a line\n"
    assert done.stderr == ""


def test_the_line_moves_while_torch_is_imported(run, long_name):
    """Before anything is done: on a slow machine the imports take many seconds."""
    words = [sys.executable, "-m", "retune", "restore", run, long_name, "-o", "out", "--device", "cpu"]
    said = on_a_terminal(*map(str, words))
    text = b"".join(data for _, data in said).decode()
    assert "starting" in text[: text.index("1/1")]
