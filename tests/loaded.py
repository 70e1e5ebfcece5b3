"""A Python that has loaded torch and the package: programs that it runs start at once.

To import torch and deepinv takes seconds of processor time. One process imports them once; each program runs in a copy
of it (fork). A program has its own process and session, its arguments, environment, folder, standard streams, signals
and longest file, and its exit status comes back. It differs from a new Python only in what is loaded. So a test of the
imports takes `sys.executable`, and so does a program with another search path.

As a program, this file is the client: ``python loaded.py SOCKET -m retune …`` does what ``python -m retune …`` does.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import struct
import sys

_LOADED = (
    "retune.cli.main",
    "retune.jobs.restore",
    "retune.jobs.certify",
    "retune.jobs.doctor",
    "retune.jobs.train",
    "retune.jobs.tune",
    "retune.comparison.run",
    "retune.studies.run",
    "retune.demo",
    "retune.report",
    "matplotlib.pyplot",
)
_FORWARDED = (signal.SIGINT, signal.SIGTERM)


def ask(path: str, words: list[str]) -> int:
    """Have a program run, and return its exit status; negative for the number of a signal that ended it."""
    import resource

    to_group = os.getsid(0) == os.getpid()  # signals then reach everything that the program has started
    asked = {
        "words": words,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "longest_file": resource.getrlimit(resource.RLIMIT_FSIZE),
    }
    text = json.dumps(asked).encode(errors="surrogateescape")
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        for number in _FORWARDED:
            signal.signal(number, lambda n, _: server.sendall(struct.pack("i", -n if to_group else n)))
        streams = array.array("i", [0, 1, 2])
        server.sendmsg([struct.pack("i", len(text))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        server.sendall(text)
        told = server.recv(4, socket.MSG_WAITALL)
    return struct.unpack("i", told)[0]


def serve(path: str) -> None:
    """Run a program for each connection, until the standard input of this process is closed."""
    import gc
    import importlib
    import selectors
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other packages say while they are imported
        for name in _LOADED:
            importlib.import_module(name)
    gc.freeze()
    running: dict[int, tuple[int, int, socket.socket]] = {}  # by file descriptor: the program, of it, its client
    with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as events:
        listening.bind(f"{path}.new")
        listening.listen()
        os.rename(f"{path}.new", path)
        events.register(listening, selectors.EVENT_READ)
        events.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in events.select():
                if key.fd == 0:
                    for process, _, _ in running.values():
                        _send(process, signal.SIGKILL, group=True)
                    return
                if key.fileobj is listening:
                    client, _ = listening.accept()
                    process = _begin(client)
                    ends = os.pidfd_open(process)
                    running[ends] = running[client.fileno()] = process, ends, client
                    events.register(ends, selectors.EVENT_READ)
                    events.register(client, selectors.EVENT_READ)
                    continue
                if key.fd not in running:
                    continue
                process, ends, client = running[key.fd]
                if key.fd != ends and (number := client.recv(4)):
                    number = struct.unpack("i", number)[0]
                    _send(process, abs(number), group=number < 0)
                    continue
                if key.fd != ends:  # the client was killed
                    _send(process, signal.SIGKILL, group=True)
                status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                del running[ends], running[client.fileno()]
                events.unregister(ends)
                events.unregister(client)
                os.close(ends)
                with contextlib.suppress(OSError):
                    client.sendall(struct.pack("i", status))
                client.close()


def _send(process: int, number: int, group: bool) -> None:
    """Send a signal to a program, or to its group, which it does not have in its first moment."""
    if group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, number)
            return
    os.kill(process, number)


def _begin(client: socket.socket) -> int:
    """Start the program that a client asks for. Returns the number of its process, the leader of a session."""
    size, streams, _, _ = socket.recv_fds(client, 4, 3)
    asked = json.loads(client.recv(struct.unpack("i", size)[0], socket.MSG_WAITALL))
    process = os.fork()
    if process:
        for stream in streams:
            os.close(stream)
        return process
    status = 1
    try:
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, 1024)  # of the server: its sockets, and the ends of others
        status = _program(asked)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _program(asked: dict) -> int:
    """Be the program, and return its exit status."""
    import atexit
    import resource
    import runpy
    import threading
    import types

    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_FSIZE, tuple(asked["longest_file"]))
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        lines = name == "stderr" or os.isatty(number)
        stream = open(  # noqa: SIM115 - as long as the process
            number,
            "w" if number else "r",
            buffering=1 if lines else -1,
            errors="backslashreplace" if name == "stderr" else None,
            closefd=False,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    kind, *words = asked["words"]
    status = None
    try:
        if kind == "-m":
            sys.path[0], sys.argv = os.getcwd(), words
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.path[0], sys.argv = "", ["-c", *words[1:]]
            module = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(words[0], "<string>", "exec"), vars(module))
        else:
            sys.path[0], sys.argv = os.path.dirname(os.path.abspath(kind)), asked["words"]
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as end:
        status = end.code
    threading._shutdown()
    atexit._run_exitfuncs()
    if isinstance(status, int | None):
        return status or 0
    print(status, file=sys.stderr)
    return 1


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        found = ask(sys.argv[1], sys.argv[2:])
        if found < 0:
            if -found != signal.SIGKILL:
                signal.signal(-found, signal.SIG_DFL)
            os.kill(os.getpid(), -found)
        os._exit(found)
