"""The process that computes is stopped at any moment, and starts again."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from retune.app.events import Request
from retune.app.worker import Limits, StoppedError, Worker

LONG = Request("wait", {"folder": ".", "seconds": 60})


@pytest.fixture
def worker(monkeypatch):
    # A job that waits, in a process of its own: that process reads this file.
    monkeypatch.setattr("retune.app.worker._serve", serve)
    made = Worker(Limits(seconds=60))
    yield made
    made.close()


def serve(pipe, memory):
    """The loop of the process, with jobs of the test."""
    import retune.app.worker as module
    from retune.app import work

    def wait(note, *, folder, seconds):
        note(say="waiting")
        time.sleep(seconds)
        return {"waited": seconds}

    def end(note, *, folder):
        os._exit(1)

    work.JOBS |= {"wait": wait, "end": end}
    ORIGINAL(module, pipe, memory)


def ORIGINAL(module, pipe, memory):
    module._serve(pipe, memory)


def test_steps_come_as_they_happen_and_a_stop_is_at_once(worker):
    took = []
    while len(took) < 3 and min(took, default=1.0) >= 1.0:  # once in three, as other tests keep the machine busy
        events = worker.run("me", LONG)
        assert next(events).values == {"say": "waiting"}
        assert not worker.stop("another")
        process = worker._process
        begin = time.monotonic()
        threading.Timer(0.1, lambda: worker.stop("me")).start()
        with pytest.raises(StoppedError, match="Stopped"):
            list(events)
        took.append(time.monotonic() - begin)
        assert not process.is_alive()
    assert min(took) < 1.0
    (*_, last) = worker.run("me", Request("wait", {"folder": ".", "seconds": 0}))
    assert last.values == {"waited": 0}


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux the process is a copy of a loaded one")
def test_after_a_stop_another_process_is_there_at_once(worker):
    list(worker.run("me", Request("wait", {"folder": ".", "seconds": 0})))  # everything is loaded
    took = []
    while len(took) < 3 and min(took, default=1.0) >= 1.0:
        events = worker.run("me", LONG)
        next(events)
        worker.stop("me")
        with pytest.raises(StoppedError):
            list(events)
        begin = time.monotonic()
        list(worker.run("me", Request("wait", {"folder": ".", "seconds": 0})))
        took.append(time.monotonic() - begin)
    assert min(took) < 1.0


def test_what_waits_for_the_start_can_be_stopped(worker):
    threading.Timer(0.2, lambda: worker.stop("me")).start()
    begin = time.monotonic()
    worker._started.clear()  # as if it were still starting
    with pytest.raises(StoppedError, match="Stopped"):
        list(worker.run("me", LONG))
    assert time.monotonic() - begin < 5
    worker._started.set()
    list(worker.run("me", Request("wait", {"folder": ".", "seconds": 0})))


def test_what_takes_too_long_is_ended(worker):
    worker._limits = Limits(seconds=0.5)  # the start of the process does not count
    list(worker.run("me", Request("wait", {"folder": ".", "seconds": 0})))
    with pytest.raises(StoppedError, match="longer than"):
        list(worker.run("me", LONG))


def test_a_process_that_dies_is_a_sentence_and_another_takes_its_place(worker):
    list(worker.run("me", Request("wait", {"folder": ".", "seconds": 0})))
    with pytest.raises(StoppedError, match="stopped unexpectedly"):
        list(worker.run("me", Request("end", {"folder": "."})))
    (*_, last) = worker.run("me", Request("wait", {"folder": ".", "seconds": 0}))
    assert last.kind == "done"


def test_a_failure_is_an_event(worker):
    (last,) = worker.run("me", Request("look", {"folder": "."}))
    assert last.kind == "failed"


def test_nobody_waits_for_a_closed_worker(worker):
    worker.close()
    with pytest.raises(StoppedError, match="closed"):
        list(worker.run("me", LONG))
