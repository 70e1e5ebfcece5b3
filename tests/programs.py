"""Python programs that tests start: in a copy of a process that has loaded torch, where the system lets it."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import loaded

__all__ = ["python"]


def python() -> list[str]:
    """The words of a command that runs Python with everything loaded; a new Python where processes are not copied."""
    # A copy cannot use CUDA: deepinv asks for devices while it is imported.
    if sys.platform != "linux" or torch.cuda.is_available():
        return [sys.executable]
    return [sys.executable, "-S", "-E", loaded.__file__, _server()]


@functools.cache
def _server() -> str:
    """The socket of the server. It starts once, and ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="loaded"))
    path = folder / "socket"
    server = subprocess.Popen([sys.executable, loaded.__file__, "serve", path], stdin=subprocess.PIPE)

    def stop():
        server.communicate()  # closes its input
        shutil.rmtree(folder)

    atexit.register(stop)
    end = time.monotonic() + 300
    while not path.exists():
        assert server.poll() is None, "the server ended"
        assert time.monotonic() < end, "the server did not start"
        time.sleep(0.02)
    return str(path)
