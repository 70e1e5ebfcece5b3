"""Files are written whole or not at all, and never by way of a file that belongs to somebody else.

A file that is being written has a temporary name, and its writer holds an advisory lock on it. The system releases
the lock when the writer ends, however it ends. So a temporary file without a lock was left by a process that was
killed, and can be removed; one with a lock belongs to a job that is still at work in the same folder.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # on Windows; a file that is open cannot be removed there, which serves as the lock
    fcntl = None

__all__ = ["is_named", "remove_leftovers", "try_lock", "write_atomically"]

# Short and of one length: the longest name that a folder can hold can be written, too.
_TEMPORARY = re.compile(r"\.retune-[0-9a-f]{16}\.tmp")
#: A temporary file can be lost between its creation and its lock; so often in a row, it is not by chance.
_ATTEMPTS = 20
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write `content` beside `path`, then rename: on any failure the old file stays as it was.

    A symbolic link is replaced by the file; what it points to stays as it was.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(_ATTEMPTS):
        temporary = path.parent / f".retune-{secrets.token_hex(8)}.tmp"
        try:
            if _written(temporary, content, path):
                return
        except FileNotFoundError:  # a job that tidied up took the file for a leftover, where there are no locks
            if attempt + 1 == _ATTEMPTS or not path.parent.is_dir():
                raise
        except OSError as error:
            if error.errno is not None and error.filename in (None, str(temporary)):
                # A full disk does not say what was written, and nobody knows the temporary name.
                raise type(error)(error.errno, error.strerror, str(path)) from error
            raise
    raise OSError(errno.EAGAIN, "another process removes the temporary files as they are written", str(path))


def _written(temporary: Path, content: bytes, path: Path) -> bool:
    """Whether the file could be written; if not, another process removed it before it was locked."""
    # The permissions that the user's umask allows, as for any new file.
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            if try_lock(handle) is False or not is_named(handle, temporary):
                return False
            file.write(content)
            file.flush()
            os.fsync(handle)
            if fcntl is not None:
                os.replace(temporary, path)
        if fcntl is None:  # Windows renames no open file
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return True


def try_lock(handle: int) -> bool | None:
    """Whether this process has the lock on an open file now; None where there are no such locks.

    The lock goes with the last descriptor of the file, at the latest when the process ends, however it ends.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return None if error.errno in _NO_LOCKS else False


def is_named(handle: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return fcntl is None or os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def remove_leftovers(*paths: str | Path) -> None:
    """Remove what killed processes left in folders while they wrote; files that are being written stay.

    Args:
        paths: folders, or files in them.
    """
    for folder in {path if path.is_dir() else path.parent for path in map(Path, paths)}:
        try:
            names = [name for name in os.listdir(folder) if _TEMPORARY.fullmatch(name)]
        except OSError:  # there is no such folder yet, or none that may be read
            continue
        for name in names:
            _remove_if_left(folder / name)


def _remove_if_left(path: Path) -> None:
    try:
        if fcntl is None:
            path.unlink(missing_ok=True)
            return
        handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:  # gone already, in use (Windows), or of another user
        return
    try:
        if try_lock(handle):  # held while the file is removed, so that nobody begins to write it
            path.unlink(missing_ok=True)
    except OSError:
        return
    finally:
        os.close(handle)
