"""Atomic writing of files: a file is written completely or not at all, and other jobs' files are never touched.

While a file is written, it has a temporary name, and its writer holds an advisory lock on it. The system always
releases the lock when the writer ends. So a temporary file without a lock was left by a killed process and can be
removed. A temporary file with a lock belongs to a job that is still active in the folder.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any

from retune.errors import InvalidParameterError

fcntl: Any
try:
    import fcntl
except ImportError:  # on Windows, where an open file cannot be removed; this serves as the lock
    fcntl = None

__all__ = [
    "is_named",
    "is_ordinary",
    "is_stream",
    "make_folder",
    "remove_leftovers",
    "require_file",
    "try_lock",
    "write_atomically",
]

# Short and of fixed length, so that a file with the longest possible name can be written, too.
_TEMPORARY = re.compile(r"\.retune-[0-9a-f]{16}\.tmp")
#: A temporary file can be lost between its creation and its lock. More losses in a row than this are an error.
_ATTEMPTS = 20
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


def require_file(path: Path, expected: str) -> None:
    """Raise unless there is an ordinary file: reading a pipe or a device may never end.

    Args:
        path: the file, or a link to it.
        expected: the expected kind of file, such as "an image".

    Raises:
        InvalidParameterError: nothing is there, or a folder, a pipe, a socket or a device.
    """
    if path.is_dir():
        raise InvalidParameterError(f"{path} is a folder, not {expected}")
    if not path.exists():
        raise InvalidParameterError(f"there is no file {path}")
    if not path.is_file():
        raise InvalidParameterError(f"{path} is a pipe, a socket or a device, not an ordinary file")


def is_ordinary(handle: int) -> bool:
    """Whether an open file is an ordinary one: no pipe, socket or device."""
    return stat.S_ISREG(os.fstat(handle).st_mode)


def make_folder(path: Path) -> None:
    """Make a folder for results, and those above it.

    Raises:
        InvalidParameterError: a file has that name.
        OSError: the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidParameterError(
            f"{path} cannot be a folder, because {error.filename} is not one: choose another folder with --out"
        ) from error


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write `content` beside `path`, then rename. After any failure the old file is unchanged.

    A symbolic link is replaced by the file; its target stays unchanged. A pipe or a device, such as ``/dev/stdout``, is
    written to and never replaced.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if is_stream(path):
        with path.open("ab") as stream:
            stream.write(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(_ATTEMPTS):
        temporary = path.parent / f".retune-{secrets.token_hex(8)}.tmp"
        try:
            if _written(temporary, content, path):
                return
        except FileNotFoundError:  # without locks, a cleaning job may remove the file as a leftover
            if attempt + 1 == _ATTEMPTS or not path.parent.is_dir():
                raise
        except OSError as error:
            if error.errno is not None and error.filename in (None, str(temporary)):
                # The error of a full disk names only the temporary file, which the user does not know.
                raise type(error)(error.errno, error.strerror, str(path)) from error
            raise
    raise OSError(errno.EAGAIN, "another process removes the temporary files as they are written", str(path))


def is_stream(path: Path) -> bool:
    """Whether a path leads to a pipe, a socket or a device, or is a name of an open file, such as ``/dev/stdout``."""
    if path.is_symlink() and str(path.parent) in ("/dev", "/dev/fd", "/proc/self/fd"):
        return True  # an open file may be an ordinary one, but its name in /dev is no place for another file
    return path.exists() and not path.is_file()


def _written(temporary: Path, content: bytes, path: Path) -> bool:
    """Whether the file was written; if not, another process removed it before it was locked."""
    # The usual permissions of a new file, by the user's umask.
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
        if fcntl is None:  # Windows cannot rename an open file
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return True


def try_lock(handle: int) -> bool | None:
    """Try to lock an open file. Returns whether this process has the lock; None if the system has no such locks.

    The lock ends with the last descriptor of the file, at the latest when the process ends for any reason.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return None if error.errno in _NO_LOCKS else False


def is_named(handle: int, path: Path) -> bool:
    """Whether a path still refers to an open file."""
    try:
        return fcntl is None or os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def remove_leftovers(*paths: str | Path) -> None:
    """Remove the temporary files of killed processes in folders. Files that are being written stay.

    Args:
        paths: folders, or files in them.
    """
    for folder in {path if path.is_dir() else path.parent for path in map(Path, paths)}:
        try:
            names = [name for name in os.listdir(folder) if _TEMPORARY.fullmatch(name)]
        except OSError:  # the folder does not exist yet, or is not readable
            continue
        for name in names:
            _remove_if_left(folder / name)


def _remove_if_left(path: Path) -> None:
    try:
        if fcntl is None:
            path.unlink(missing_ok=True)
            return
        handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:  # already removed, in use (Windows), or owned by another user
        return
    try:
        if try_lock(handle):  # held during the removal, so that no process begins to write the file
            path.unlink(missing_ok=True)
    except OSError:
        return
    finally:
        os.close(handle)
