"""Processes that work beside another one: they end with it, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from retune._files import try_lock

WORK = '''
import os, sys, time
from pathlib import Path
from retune._files import try_lock
from retune.jobs.workers import workers

held = []

def start(folder):
    """A lock of this process, which it loses when it ends."""
    handle = os.open(Path(folder) / f"{os.getpid()}.lock", os.O_CREAT | os.O_RDWR)
    assert try_lock(handle)
    held.append(handle)

def work(folder, number, seconds):
    (Path(folder) / f"{number}.begun").touch()
    time.sleep(seconds)

if __name__ == "__main__":
    folder, seconds = sys.argv[1], float(sys.argv[2])
    with workers(2, start, folder) as submit:
        begun = [submit(work, folder, number, seconds) for number in (0, 1)]
        if seconds < 1:
            [one.result() for one in begun]
            time.sleep(600)
'''


def in_time(condition, seconds=30):
    """Whether something becomes true within so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def has_ended(lock):
    handle = os.open(lock, os.O_RDWR)
    try:
        return try_lock(handle)
    finally:
        os.close(handle)


@pytest.mark.skipif(os.name == "nt", reason="the locks of the test are those of Unix")
@pytest.mark.parametrize("seconds", [600, 0.1], ids=["at work", "idle"])
def test_workers_end_with_a_parent_that_is_killed(tmp_path, seconds):
    script = tmp_path / "script.py"
    script.write_text(WORK)
    parent = subprocess.Popen([sys.executable, script, tmp_path, str(seconds)])
    try:
        assert in_time(lambda: len(list(tmp_path.glob("*.begun"))) == 2, 60)
        time.sleep(0.5)
        locks = list(tmp_path.glob("*.lock"))
        assert len(locks) == 2
        assert not any(has_ended(lock) for lock in locks)
    finally:
        parent.kill()
        parent.wait()
    assert in_time(lambda: all(has_ended(lock) for lock in locks)), "a worker goes on, and nobody waits for it"


SLOW = '''
import os, time
from multiprocessing import parent_process
from pathlib import Path
from retune._files import try_lock

if parent_process() is not None:  # in a worker, this import takes long, as that of torch does on a busy machine
    handle = os.open(Path(__file__).with_name(f"{os.getpid()}.lock"), os.O_CREAT | os.O_RDWR)
    assert try_lock(handle)
    time.sleep(600)

def start():
    """Never reached."""
'''
BEGIN = """
from retune.jobs.workers import workers

if __name__ == "__main__":
    import slow
    with workers(1, slow.start, module="retune.errors") as submit:  # so that the worker imports it, and no original
        submit(print).result()
"""


@pytest.mark.skipif(os.name == "nt", reason="the locks of the test are those of Unix")
def test_a_worker_that_still_imports_ends_with_its_parent(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    script = tmp_path / "script.py"
    script.write_text(BEGIN)
    parent = subprocess.Popen([sys.executable, script], cwd=tmp_path)
    try:
        assert in_time(lambda: list(tmp_path.glob("*.lock")), 60)
        time.sleep(0.2)
        locks = list(tmp_path.glob("*.lock"))
        assert not any(has_ended(lock) for lock in locks)
    finally:
        parent.kill()
        parent.wait()
    assert in_time(lambda: all(has_ended(lock) for lock in locks)), "a worker goes on, and nobody waits for it"
