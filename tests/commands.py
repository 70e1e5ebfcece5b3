"""The command itself, in this process and in one of its own, and small images to give it."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
from typer.testing import CliRunner

from programs import python
from retune.cli.main import app

RNG = np.random.default_rng(0)

#: of a run that is over in seconds
SMALL = {
    "problem": ["name=denoise", "sigma=0.1"],
    "prior": ["levels=2", "wavelet=db2"],
    "model": ["depth=2", "restarts=1"],
    "data": ["crop=16", "batch_size=2"],
    "optimiser": ["steps=4", "checkpoint_every=1"],
}
SETS = [word for section, fields in SMALL.items() for f in fields for word in ("--set", f"{section}.{f}")]


def invoke(*arguments, lines=30):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    assert len(result.output.splitlines()) < lines
    return result, " ".join(result.output.split())


def smooth(height=20, width=24, channels=1):
    rows, cols = np.linspace(0, 3, height)[:, None], np.linspace(0, 2, width)
    image = 0.5 + 0.3 * np.sin(rows + cols)[..., None] * np.linspace(1, 0.5, channels)
    noisy = image + 0.05 * RNG.normal(size=(height, width, channels))
    return noisy.clip(0, 1) if channels > 1 else noisy.clip(0, 1)[..., 0]


# of Linux: prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE)
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
ONE_AFTER_THE_OTHER = """
import json, sys
from typer.testing import CliRunner
from retune.cli.main import app
done = [CliRunner().invoke(app, arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps([[r.exit_code, r.output] for r in done]))
"""


def command(*arguments, limit=None):
    """Run it in a process of its own; `limit` is the longest file that it can write."""

    def prepare():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return _run([*python(), "-m", "retune", *map(str, arguments)], prepare)


def commands_without_power(*commands):
    """Exit status and output of each, in a process in which root too may only write where the permissions let it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare():
        if os.geteuid() == 0 and libc.prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "root cannot give up its right to write anywhere")

    return one_after_the_other(*commands, program=(sys.executable,), prepare=prepare)  # a copy keeps its powers


def one_after_the_other(*commands, program=None, prepare=lambda: None):
    """Exit status and output of each, in one process, which is not this one."""
    words = json.dumps([[str(a) for a in arguments] for arguments in commands])
    done = _run([*(program or python()), "-c", ONE_AFTER_THE_OTHER, words], prepare)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _run(words, prepare):
    return subprocess.run(words, capture_output=True, text=True, timeout=300, preexec_fn=prepare, check=False)
