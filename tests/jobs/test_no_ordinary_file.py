"""The files of a run's folder, where there is a pipe, a folder or a device by their name: named, never waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from retune import _checkpoint
from retune.comparison.ledger import Ledger
from retune.config import from_dict, load
from retune.errors import RetuneError
from retune.jobs.folder import prepare
from retune.jobs.opened import open_model
from retune.jobs.results import Result
from retune.jobs.tune import earlier
from retune.records import Results
from retune.report.pictures import _read as read_picture
from retune.training.checkpoints import RunFolder
from retune.training.lock import FolderLock
from retune.training.resume import load_state

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")


def state(path):
    net = torch.nn.Linear(1, 1)
    return load_state(path, net, torch.optim.Adam(net.parameters()))


READERS = {
    "progress.json": lambda path: Ledger(path, {}, True),
    "checkpoint-00000001.safetensors": state,
    "model.safetensors": _checkpoint.opened,
    "config.toml": load,
    "run.json": lambda path: prepare(from_dict({}), path.parent, "", False),
    "results.json": Results.read,
    "log.csv": lambda path: RunFolder(path.parent, {}, False),
    ".retune.lock": lambda path: FolderLock(path.parent),
    "a.npy.json": lambda path: Result(path.parent, "a.npy"),
    "picture.png": lambda path: read_picture(path.parent, path.name),
}


@pytest.fixture
def put():
    """Puts something that is no ordinary file. Whoever waits for the pipe is released after some seconds."""
    helpers = []

    def put(kind, path):
        if kind == "folder":
            path.mkdir()
        elif kind == "device":
            path.symlink_to("/dev/null")
        else:
            os.mkfifo(path)
            # In a process of its own: some readers wait with Python's lock held.
            helpers.append(subprocess.Popen([sys.executable, "-SE", "-c", RELEASE, str(path)]))

    yield put
    for helper in helpers:
        helper.kill()
        helper.wait()


RELEASE = """
import os, sys, time
time.sleep(20)
os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)
"""


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_ordinary_file_is_named(tmp_path, put, name, kind):
    path = tmp_path / name
    put(kind, path)
    before, start = os.lstat(path).st_ino, time.perf_counter()
    with pytest.raises(RetuneError, match=name.replace(".", r"\.")):
        READERS[name](path)
    assert time.perf_counter() - start < 15
    assert os.lstat(path).st_ino == before


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_folder_without_its_facts_has_no_run_to_continue(tmp_path, put, kind):
    put(kind, tmp_path / "run.json")
    with pytest.raises(RetuneError, match="no run of retune tune to continue"):
        earlier(tmp_path)
    with pytest.raises(RetuneError, match=r"there is no checkpoint .*model\.safetensors"):
        open_model(tmp_path)
