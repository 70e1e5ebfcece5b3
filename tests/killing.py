"""Training and restoring in processes that can be killed; they import this file, which a test file cannot be."""

from __future__ import annotations

import functools
from multiprocessing import forkserver, get_context

from retune.config import from_dict
from retune.jobs.opened import open_model
from retune.jobs.restore import Options, restore
from retune.jobs.train import train

RUN = {
    "problem": {"name": "denoise", "sigma": 0.1},
    "prior": {"levels": 2, "wavelet": "db2"},
    "model": {"depth": 2, "restarts": 1},
    "data": {"crop": 16, "batch_size": 2},
    "optimiser": {"steps": 60, "checkpoint_every": 1},
}
PROCESSES = get_context("forkserver")
_LOADED = [
    "retune.jobs.train",
    "retune.jobs.restore",
    "retune.training.fit",
    "retune.cli.main",
    "retune.jobs.tune",
    "retune.comparison.run",
]


@functools.cache
def _load():
    """A clean process imports what is needed, and forks quickly. It takes the place of one for other tests."""
    forkserver._forkserver._stop()
    PROCESSES.set_forkserver_preload(_LOADED)


def run_train(images, out):
    run = {**RUN, "data": {**RUN["data"], "train": str(images)}}
    train(from_dict(run), out, resume=True, device="cpu", progress=False)


def run_restore(images, model, out):
    restore(open_model(model), sorted(images.glob("*.npy")), Options(out))


def run_command(*arguments):
    """The command itself."""
    from retune.cli.main import app

    app([str(a) for a in arguments], standalone_mode=False)


def start(job, *arguments):
    _load()
    process = PROCESSES.Process(target=job, args=arguments)
    process.start()
    return process


def finish(process):
    process.join(300)
    assert process.exitcode == 0
