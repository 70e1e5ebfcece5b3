"""Processes that work beside this one, and stop with it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any

from retune._terminal import make_safe
from retune.plugins import given, repeat

__all__ = ["workers"]


@contextmanager
def workers(count: int, start: Callable[..., object], *arguments: Any) -> Iterator[Callable[..., Future]]:
    """What submits work, ``submit(function, *arguments)``, to so many new processes.

    Ctrl-C reaches this process only, from the first moment of the others on: each of them would show a traceback of its
    own. When the block is left by an exception, they are stopped where they are.

    Args:
        count: how many processes.
        start: called with `arguments` in each of them, before any work.
    """
    before = set(active_children())
    with ProcessPoolExecutor(count, get_context("spawn"), _begin, (start, arguments, given())) as pool:

        def submit(function: Callable[..., Any], *given: Any) -> Future:
            with _unheard():  # processes are started as work arrives, and inherit what is not heard
                return pool.submit(function, *given)

        try:
            yield submit
        except BaseException:
            for process in set(active_children()) - before:
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(start: Callable[..., object], arguments: tuple, code: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make_safe()
    repeat(code)  # the code that the user named, which files may use here too
    start(*arguments)


@contextmanager
def _unheard() -> Iterator[None]:
    """Without SIGINT, where it can be held back."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
