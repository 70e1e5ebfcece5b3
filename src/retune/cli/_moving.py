"""A moving line that shows that the command works: importing PyTorch takes seconds, a large image minutes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Moving", "moving", "pause"]

_FRAMES = "|/-\\"
#: Seconds before it appears, and between its frames.
_AFTER, _EVERY = 0.5, 0.2
_shown: list[Moving] = []


class Moving:
    """A status line on the standard error output; ``text`` may be changed at any time."""

    def __init__(self, text: str):
        self.text = text
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._visible = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to move."""
        self._thread.start()

    def stop(self) -> None:
        """Remove the line."""
        self._ended.set()
        self._thread.join()
        self.clear()

    def clear(self) -> None:
        """Remove the line for other text; it comes back below."""
        with self._lock:
            if self._visible:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
                self._visible = False

    def _run(self) -> None:
        begin, frame = time.monotonic(), 0
        wait = _AFTER
        while not self._ended.wait(wait):
            wait, frame = _EVERY, frame + 1
            seconds = int(time.monotonic() - begin)
            line = f"{_FRAMES[frame % len(_FRAMES)]} {self.text}"[:68] + (f"  {seconds} s" if seconds else "")
            with self._lock:
                if self._ended.is_set():
                    return
                sys.stderr.write(f"\r\x1b[K{line}")
                sys.stderr.flush()
                self._visible = True


@contextmanager
def moving(text: str) -> Iterator[Moving]:
    """A line that moves while the block runs; nothing if the output is no terminal."""
    line = Moving(text)
    if not sys.stderr.isatty():
        yield line
        return
    line.start()
    _shown.append(line)
    try:
        yield line
    finally:
        _shown.remove(line)
        line.stop()


def pause() -> None:
    """Remove the line for other text. Everything that a verb prints calls this first."""
    for line in _shown:
        line.clear()
