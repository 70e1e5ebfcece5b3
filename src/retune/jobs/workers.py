"""Worker processes. They stop with this process; a killed worker loses only its own piece of work."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from retune._terminal import make_safe
from retune.errors import RetuneError, on_command_line, told_to_command
from retune.plugins import given as code_given
from retune.plugins import repeat

__all__ = ["WorkerDiedError", "end_with_parent", "unheard", "workers"]


class WorkerDiedError(RetuneError, RuntimeError):
    """A worker process ended during its work; the message says how."""


@contextmanager
def workers(
    count: int, start: Callable[..., object], *arguments: Any, module: str | None = None
) -> Iterator[Callable[..., Future]]:
    """Start worker processes. The result ``submit(function, *arguments)`` gives work to them.

    If a worker ends during its work, that work fails with ``WorkerDiedError``, and a new worker takes its place. Ctrl-C
    reaches this process only; otherwise every worker would print its own traceback. If an exception leaves the block,
    the workers are stopped at once.

    Args:
        count: number of workers.
        start: called with `arguments` in each worker, before any work.
        module: the module of the work; by default that of `start`. Where workers can be copies of one process, that
            process loads it once.
    """
    team = _Team(start, arguments, module or start.__module__)
    with ThreadPoolExecutor(count) as threads:  # one thread waits for each process
        try:
            yield lambda function, *given: threads.submit(team.work, function, given)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            team.stop(now=True)
            raise
        threads.shutdown()
        team.stop()


class _Team:
    """One worker process per thread with work."""

    def __init__(self, start: Callable[..., object], arguments: tuple, module: str):
        self._start, self._arguments, self._module = start, arguments, module
        self._mine = threading.local()
        self._all: list[_Worker] = []
        self._lock, self._closed = threading.Lock(), False

    def work(self, function: Callable[..., Any], given: tuple) -> Any:
        worker = getattr(self._mine, "worker", None)
        if worker is None or not worker.alive:
            with self._lock:
                if self._closed:
                    raise WorkerDiedError("the work was stopped")
                worker = _Worker(self._start, self._arguments, self._module)
                self._all.append(worker)
            self._mine.worker = worker
        return worker.work(function, given)

    def stop(self, now: bool = False) -> None:
        with self._lock:
            self._closed = True
        for worker in self._all:
            worker.stop(now)


class _Worker:
    def __init__(self, start: Callable[..., object], arguments: tuple, module: str):
        context = _context(module)
        self._pipe, theirs = context.Pipe()
        # As bytes: reading them imports torch, and the process must watch for the end of its parent before that.
        beginning = pickle.dumps((start, arguments))
        told = (theirs, beginning, code_given(), on_command_line())
        self.process = context.Process(target=_serve, args=told, daemon=True)
        self._begun, self._stopped = threading.Event(), False
        self._failed: Exception | None = None
        # The first copy waits until the original has loaded everything. Nobody must wait for it after Ctrl-C.
        threading.Thread(target=self._begin, args=(theirs,), daemon=True).start()

    def _begin(self, theirs: Connection) -> None:
        try:
            with unheard():  # the process ignores Ctrl-C from its start on
                self.process.start()
        except Exception as error:
            self._failed = error
        finally:
            theirs.close()  # so that this process notices when the other end closes
            self._begun.set()
        if self._stopped and self._failed is None:
            self.process.terminate()

    @property
    def alive(self) -> bool:
        return not self._pipe.closed and self.process.is_alive()

    def work(self, function: Callable[..., Any], given: tuple) -> Any:
        before = _killed_for_memory()
        self._begun.wait()
        if self._stopped:
            raise WorkerDiedError("the work was stopped")
        if self._failed is not None:
            raise WorkerDiedError(f"the process for this file did not start: {self._failed}") from self._failed
        try:
            self._pipe.send((function, given))
            succeeded, result = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._pipe.close()
            self.process.join()
            raise WorkerDiedError(_how_it_ended(self.process.exitcode, _killed_for_memory() - before)) from error
        if not succeeded:
            raise result
        return result

    def stop(self, now: bool) -> None:
        if now:
            self._stopped = True
            if self._begun.is_set() and self._failed is None:
                self.process.terminate()
            self._begun.set()
            return
        self._pipe.close()  # the process ends when its pipe closes
        if self._failed is None:
            self.process.join()


def _context(module: str) -> Any:
    """How worker processes start: as copies of a process that has loaded a module, or anew.

    A copy starts at once and shares the loaded memory. A copy of a process that has looked for CUDA devices cannot use
    them, and deepinv looks for them while it is imported. Outside of Linux, copies are not safe.
    """
    import torch  # a worker imports this file before it imports torch

    if sys.platform != "linux" or torch.cuda.is_available():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _serve(pipe: Connection, beginning: bytes, code: tuple, command: bool) -> None:
    """The loop of a worker, until the other end of the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    make_safe()
    ready = False
    while True:
        try:
            function, given = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if not ready:
                repeat(code)  # files may need the code of the user in this process, too
                start, arguments = pickle.loads(beginning)
                start(*arguments)
                ready = True
            with told_to_command(command):
                answer = True, function(*given)
        except Exception as error:
            answer = False, error
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:  # the answer cannot be sent as it is
            pipe.send((False, RuntimeError(f"{type(error).__name__}: {error}")))


def end_with_parent() -> None:
    """End this process when its parent has ended, for whatever reason, even during work.

    Nobody would receive the result of that work, and it may take an hour. Files are written atomically, so none breaks.
    """
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)  # sys.exit would end this thread only


def _how_it_ended(code: int | None, killed_for_memory: int) -> str:
    if code is None or code >= 0:
        return f"the process for this file stopped unexpectedly, with exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    said = f"the process for this file was ended by signal {-code} ({name})"
    if name == "SIGKILL" and killed_for_memory > 0:
        return f"{said}: the system had no free memory; run the command again with fewer --workers or a smaller --tile"
    return f"{said}; run the command again for the remaining files"


def _killed_for_memory() -> int:
    """The number of processes that the system has killed so far because memory ran out (Linux; 0 elsewhere)."""
    for file in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        try:
            lines = Path(file).read_text().splitlines()
        except OSError:
            continue
        found = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
        if found:
            return found[0]
    return 0


@contextmanager
def unheard() -> Iterator[None]:
    """Block SIGINT, on systems where this is possible."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
