"""Processes that work beside this one, and stop with it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any

from retune.registry import load_plugin, loaded_plugins

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
    with ProcessPoolExecutor(count, get_context("spawn"), _begin, (loaded_plugins(), start, arguments)) as pool:

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


def _begin(plugins: Sequence[str], start: Callable[..., object], arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for plugin in plugins:  # what the user loaded in the first process
        load_plugin(plugin)
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
