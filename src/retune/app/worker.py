"""The process that computes: ready before the first image arrives, one job at a time, and it can be stopped."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from retune.app.events import Event, Request
from retune.errors import RetuneError
from retune.jobs.workers import end_with_parent, unheard

__all__ = ["Limits", "StoppedError", "Worker"]

#: Seconds between two looks at the clock while the process computes.
_TICK = 0.1
#: How the process starts. A copy of a loaded process is there at once; elsewhere, copies are not safe.
_METHOD = "forkserver" if sys.platform == "linux" else "spawn"


class StoppedError(RetuneError, RuntimeError):
    """A computation was stopped, took too long, or its process died. The message is a sentence for the page."""


@dataclass(frozen=True)
class Limits:
    """The limits of the page.

    Attributes:
        upload: largest file, in bytes.
        values: largest number of pixels times channels, of all pages.
        seconds: longest computation.
        memory: what the process may use, in bytes.
    """

    upload: int = 200_000_000
    values: int = 50_000_000
    seconds: float = 900.0
    memory: int = 12_000_000_000

    def __str__(self) -> str:
        return (
            f"Files up to {self.upload / 1e6:.0f} MB and {self.values / 1e6:.0f} million values; "
            f"{self.seconds / 60:.3g} minutes a computation; one at a time."
        )


class Worker:
    """A process that computes, and starts again after it was stopped.

    On Linux it is a copy of a process that has already loaded everything (`retune.app.loaded`), so a replacement starts
    at once. The copies share the loaded memory.

    Args:
        limits: of time and memory.
    """

    def __init__(self, limits: Limits):
        self._limits = limits
        self._busy = threading.Lock()
        self._change = threading.Lock()
        self._closed = False
        self._owner = ""
        self._stopped: set[str] = set()
        self._start()

    @property
    def process(self) -> int | None:
        """The number of the process; None while it starts."""
        return None if self._process is None else self._process.pid

    def run(self, owner: str, request: Request) -> Iterator[Event]:
        """Compute. The steps are yielded as they come; the last event is "done" or "failed".

        Args:
            owner: who may stop it.
            request: what to compute.

        Raises:
            StoppedError: it was stopped, took too long, or the process died.
        """
        with self._busy:
            with self._change:
                if self._closed:
                    raise StoppedError("The page is being closed.")
                if self._started.is_set() and not (self._process and self._process.is_alive()):
                    self._start()
                self._owner = owner
                self._stopped.discard(owner)
            finished = False
            try:
                pipe = self._warm_pipe(owner)
                pipe.send(request)
                begin = time.monotonic()
                while True:
                    while not pipe.poll(_TICK):
                        if time.monotonic() - begin > self._limits.seconds:
                            raise StoppedError(
                                f"This took longer than {self._limits.seconds / 60:.3g} minutes, which is the limit of "
                                "this page. Crop the image, or use the command line"
                            )
                    event = pipe.recv()
                    finished = event.kind in ("done", "failed")
                    yield event
                    if finished:
                        return
            except (EOFError, OSError) as error:
                if owner in self._stopped:
                    raise StoppedError("Stopped.") from error
                raise StoppedError(
                    "The computation stopped unexpectedly. If the image is large, a smaller one may help."
                ) from error
            finally:
                with self._change:
                    self._owner = ""
                    # The pipe may hold what nobody waits for. A process that is still starting has not begun.
                    if not finished and not self._closed and self._started.is_set():
                        self._end()
                        self._start()

    def _warm_pipe(self, owner: str) -> Connection:
        """The pipe of the process, once it has started: the time of a computation does not count before."""
        while not self._started.wait(_TICK):
            if owner in self._stopped:
                raise StoppedError("Stopped.")
        if self._process is None:
            raise StoppedError("The page is being closed." if self._closed else "The computation could not start.")
        if not self._warm:
            self._pipe.recv()
            self._warm = True
        return self._pipe

    def stop(self, owner: str) -> bool:
        """Stop the computation of somebody at once. Returns whether there was one."""
        with self._change:
            if not owner or self._owner != owner:
                return False
            self._stopped.add(owner)
            if self._process is not None:
                self._process.kill()
                self._process.join(1)  # so that the next computation sees that it is dead
            return True

    def close(self) -> None:
        """End the process."""
        with self._change:
            self._closed = True
            self._end()

    def _start(self) -> None:
        """Start a process in the background, because the first one takes long: it loads everything."""
        self._process: Any = None
        self._warm = False
        self._started = threading.Event()
        threading.Thread(target=self._launch, args=(self._started,), daemon=True).start()

    def _launch(self, started: threading.Event) -> None:
        context: Any = get_context(_METHOD)
        if _METHOD == "forkserver":
            context.set_forkserver_preload(["retune.app.loaded"])
        pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._limits.memory), daemon=True)
        try:
            with unheard():
                process.start()
        except (EOFError, OSError):  # this program ends, or the system has no room for another process
            started.set()
            return
        theirs.close()
        with self._change:
            self._pipe, self._process = pipe, process
            if self._closed:
                self._end()
            started.set()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Connection, memory: int) -> None:
    """The loop of the process, until the other end of the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    from retune._torch.allocator import return_freed_memory
    from retune.app import loaded, work

    loaded.use_all_cores()
    _limit(memory)
    try:
        pipe.send(Event("ready"))
    except (BrokenPipeError, ConnectionResetError):
        return
    while True:
        try:
            request = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            found = work.run(request.kind, lambda **values: pipe.send(Event("step", values)), request.options)
            event = Event("done", found)
        except (BrokenPipeError, ConnectionResetError):
            return
        except RetuneError as error:
            event = Event("failed", {"why": str(error)})
        try:
            pipe.send(event)
        except (BrokenPipeError, ConnectionResetError):
            return
        return_freed_memory()  # the next file may be small, and the page stays open for days


def _limit(memory: int) -> None:
    """Limit the memory: a file that expands without end then causes an error here, and takes no memory from others."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
