"""A lock that allows one training at a time in a folder."""

from __future__ import annotations

import os
import re
import socket
import threading
import warnings
from pathlib import Path
from types import TracebackType

from retune._files import is_named, is_ordinary, make_folder, try_lock
from retune.errors import DoubtfulWarning, InvalidParameterError

__all__ = ["FolderLock"]

_NAME = ".retune.lock"
_ATTEMPTS = 20
#: What a lock file contains: nothing yet, or its owner, also a killed one.
_OURS = re.compile(r"(process \d+ on |$)")
_held: dict[Path, FolderLock] = {}


class FolderLock:
    """A context manager that locks a folder, so that no other process trains in it.

    The lock is advisory and belongs to the process: the system releases it whenever the process ends. The same thread
    may take it again (first ``retune train``, then ``fit``). On Windows, and on file systems without such locks,
    nothing is locked; the latter give a warning.

    Args:
        folder: the folder; it is created if missing.

    Raises:
        InvalidParameterError: another training is active in the folder.
        OSError: the folder cannot be written.

    Warns:
        DoubtfulWarning: the file system has no locks.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(os.path.realpath(folder))
        make_folder(self.folder)
        self._thread, self._times, self._handle, self._mine = threading.current_thread(), 1, -1, True
        outer = _held.get(self.folder)
        if outer is not None:
            if outer._thread is not self._thread and outer._thread.is_alive():
                raise self._in_use()
            outer._times += 1
        else:
            self._take()
            _held[self.folder] = self

    def _take(self) -> None:
        path = self.folder / _NAME
        for _ in range(_ATTEMPTS):
            handle = self._opened(path)
            locked = try_lock(handle)
            if locked is False:
                owner = os.read(handle, 200).decode(errors="replace")
                os.close(handle)
                raise self._in_use(owner)
            if locked is None and os.name != "nt":
                warnings.warn(
                    f"the file system of {self.folder} has no locks: make sure that no other training writes into it",
                    DoubtfulWarning,
                    stacklevel=4,
                )
            if is_named(handle, path):
                if not _OURS.match(os.read(handle, 200).decode(errors="replace")):
                    os.close(handle)
                    raise InvalidParameterError(
                        f"{path} was not written by retune, but trainings lock this file so that no two write into "
                        "the folder: rename it, or choose another folder (--out)"
                    )
                os.lseek(handle, 0, os.SEEK_SET)
                os.truncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                self._handle = handle
                return
            os.close(handle)  # the previous owner removed the file before it was locked here
        raise self._in_use()

    @staticmethod
    def _opened(path: Path) -> int:
        # Without O_NONBLOCK, opening a pipe may wait for ever.
        flags = os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            handle = os.open(path, flags, 0o666)
        except OSError:
            if path.is_symlink() or path.is_dir():
                raise _not_a_lock(path) from None
            raise
        if not is_ordinary(handle):
            os.close(handle)
            raise _not_a_lock(path)
        return handle

    def _in_use(self, owner: str = "") -> InvalidParameterError:
        who = f" ({owner})" if owner else ""
        return InvalidParameterError(
            f"another training{who} is active in {self.folder}: wait until it has ended, or choose another folder "
            "(--out)"
        )

    def release(self) -> None:
        """Release the folder and remove the lock file."""
        if not self._mine:
            return
        self._mine, outer = False, _held[self.folder]
        outer._times -= 1
        if outer._times > 0:
            return
        del _held[self.folder]
        path = self.folder / _NAME
        if os.name == "nt":  # Windows cannot remove an open file
            os.close(outer._handle)
        if os.name == "nt" or is_named(outer._handle, path):
            path.unlink(missing_ok=True)
        if os.name != "nt":
            os.close(outer._handle)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _not_a_lock(path: Path) -> InvalidParameterError:
    return InvalidParameterError(
        f"{path} is no ordinary file, but trainings lock this file so that no two write into the folder: remove it, or "
        "choose another folder (--out)"
    )
