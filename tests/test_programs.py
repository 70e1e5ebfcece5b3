"""The loaded Python of the tests runs a program as a new Python does."""

import os
import signal
import subprocess
import sys
import time

import pytest

from programs import python

pytestmark = pytest.mark.slow
TELL = "import json, os, sys; print(json.dumps([sys.argv, os.getcwd(), os.environ.get('MARK'), __name__]))"
WAIT = """
import os, time
try:
    print(os.getpid(), flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("interrupted")
    raise SystemExit(7)
"""


def begun(*words):
    process = subprocess.Popen([*python(), *words], stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("as_file", [False, True])
def test_it_says_the_same_as_a_new_python(tmp_path, as_file):
    (tmp_path / "script.py").write_text(TELL)
    words = [tmp_path / "script.py", "one", "two words"] if as_file else ["-c", TELL, "one", "two words"]
    options = {"cwd": tmp_path, "env": os.environ | {"MARK": "é"}, "capture_output": True, "check": True}
    one, two = (subprocess.run([*start, *map(str, words)], **options) for start in (python(), [sys.executable]))
    assert one.stdout == two.stdout


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('a reason')", 1, "a reason\n"),
        ("1/0", 1, "ZeroDivisionError: division by zero\n"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("import atexit, sys; atexit.register(print, 'the end', file=sys.stderr)", 0, "the end\n"),
    ],
)
def test_its_end_is_told(code, status, said):
    done = subprocess.run([*python(), "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stderr.endswith(said)


def test_a_signal_reaches_it():
    process, _ = begun("-c", WAIT)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "interrupted\n"
    assert process.returncode == 7


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_ends_with_its_client():
    process, program = begun("-c", WAIT)
    process.kill()
    process.communicate()
    end = time.monotonic() + 60
    while is_alive(program) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_alive(program)
