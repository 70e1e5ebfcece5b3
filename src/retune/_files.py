"""Files are written whole or not at all; what a killed process left is removed."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path

__all__ = ["remove_leftovers", "write_atomically"]


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write `content` beside `path`, then rename: on any failure the old file stays as it was."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        # A full disk does not say what was written.
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def remove_leftovers(*paths: str | Path) -> None:
    """Remove what a process left that was killed while it wrote one of the files."""
    for path in map(Path, paths):
        # mkstemp puts eight characters behind the prefix; a longer name belongs to another file.
        own = re.compile(re.escape(f".{path.name}.") + r"[a-z0-9_]{8}")
        for left in path.parent.glob(".*"):
            if own.fullmatch(left.name):
                left.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
