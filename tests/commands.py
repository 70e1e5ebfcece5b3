"""The command itself, in this process and in one of its own, and small images to give it."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys

import numpy as np
from typer.testing import CliRunner

from retune.cli.main import app

RNG = np.random.default_rng(0)


def invoke(*arguments, lines=30):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert "Traceback" not in result.output
    assert len(result.output.splitlines()) < lines
    return result, " ".join(result.output.split())


def smooth(height=20, width=24, channels=1):
    rows, cols = np.linspace(0, 3, height)[:, None], np.linspace(0, 2, width)
    image = 0.5 + 0.3 * np.sin(rows + cols)[..., None] * np.linspace(1, 0.5, channels)
    noisy = image + 0.05 * RNG.normal(size=(height, width, channels))
    return noisy.clip(0, 1) if channels > 1 else noisy.clip(0, 1)[..., 0]


def command(*arguments, limit=None):
    def prepare():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "retune", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=prepare,
        check=False,
    )
