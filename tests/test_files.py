"""Files that are being written, and those that were left; one training at a time in a folder."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from programs import python
from retune import _files
from retune._files import remove_leftovers, try_lock, write_atomically
from retune.errors import InvalidParameterError
from retune.training.lock import FolderLock

HOLD = """
import os, sys, time
from retune.training.lock import FolderLock
lock = FolderLock(sys.argv[1])
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_what_is_being_written_is_no_leftover(tmp_path):
    left, busy = tmp_path / ".retune-0123456789abcdef.tmp", tmp_path / ".retune-fedcba9876543210.tmp"
    left.write_text("of a process that was killed")
    (tmp_path / ".of-somebody").write_text("")
    with busy.open("wb") as file:
        assert try_lock(file.fileno())
        remove_leftovers(tmp_path / "any name")
        assert sorted(p.name for p in tmp_path.iterdir()) == [".of-somebody", busy.name]
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".of-somebody"]


def test_a_writer_whose_file_was_removed_writes_again(tmp_path, monkeypatch):
    """Between its creation and its lock, somebody may take the file for a leftover."""
    tried = []

    def lost(handle):
        tried.append(handle)
        if len(tried) < 3:
            next(tmp_path.glob(".retune-*")).unlink()
        return True

    monkeypatch.setattr(_files, "try_lock", lost)
    write_atomically(tmp_path / "a", b"content")
    assert len(tried) == 3
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"content"}


def test_a_link_is_replaced_and_what_it_points_to_is_not(tmp_path):
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "a").symlink_to(tmp_path / "theirs")
    write_atomically(tmp_path / "a", b"ours")
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert (tmp_path / "a").read_bytes() == b"ours"


def test_the_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_folder_is_for_one_training_and_a_kill_frees_it(tmp_path):
    process = subprocess.Popen([*python(), "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        holds = int(process.stdout.readline())
        with pytest.raises(InvalidParameterError, match=rf"another training \(process {holds} on"):
            FolderLock(tmp_path)
    finally:
        os.kill(holds, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with FolderLock(tmp_path), FolderLock(tmp_path):  # fit takes it again within train
        assert [p.name for p in tmp_path.iterdir()] == [".retune.lock"]
    assert not list(tmp_path.iterdir())


def test_a_file_that_only_has_the_name_of_the_lock_is_kept(tmp_path):
    mine = tmp_path / ".retune.lock"
    mine.write_text("notes of mine")
    with pytest.raises(InvalidParameterError, match="was not written by retune"):
        FolderLock(tmp_path)
    assert mine.read_text() == "notes of mine"
    mine.write_text("process 12 on a machine that went down")
    with FolderLock(tmp_path):
        assert mine.read_text().startswith(f"process {os.getpid()} on ")
    assert not mine.exists()
