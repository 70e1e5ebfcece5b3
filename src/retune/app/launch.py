"""Serve the page until somebody stops it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
import uvicorn

from retune.app.desk import Desks
from retune.app.flow import Flow
from retune.app.look import css, theme
from retune.app.page import build, head
from retune.app.server import LOOPBACK, Guard, made
from retune.app.worker import Limits, Worker
from retune.errors import InvalidParameterError

__all__ = ["App", "make", "serve"]

#: Ports that are tried if none is asked for.
_PORTS = range(7860, 7880)


@dataclass(frozen=True)
class App:
    """The page, ready to be served.

    Attributes:
        asgi: for a server.
        flow: its steps.
    """

    asgi: Any
    flow: Flow

    def close(self) -> None:
        """End the process that computes, and remove all files."""
        self.flow.worker.close()
        self.flow.desks.remove()


def make(limits: Limits, host: str, password: str | None) -> App:
    """The page for a host."""
    desks = Desks()
    flow = Flow(desks, Worker(limits), limits)
    app = made(desks, limits)
    quiet = {"run_history": False, "show_error": False, "ssr_mode": False, "mcp_server": False, "pwa": False}
    looks = {"theme": theme(), "css": css(), "head": head(), "footer_links": []}
    gr.mount_gradio_app(app, build(flow), path="/", max_file_size=0, enable_monitoring=False, **quiet, **looks)
    return App(Guard(app, LOOPBACK if host in LOOPBACK else None, password), flow)


def serve(
    limits: Limits,
    host: str = "127.0.0.1",
    port: int | None = None,
    password: str | None = None,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        limits: of size and time.
        host: address to listen on. Any other than that of this machine needs a password.
        port: to listen on; the first free one from 7860 by default.
        password: which every visitor has to give.
        ready: called with the address of the page when it can be opened.

    Raises:
        InvalidParameterError: another host without a password, or no free port.
    """
    if host not in LOOPBACK and not password:
        raise InvalidParameterError(
            f"--host {host} opens the page to other machines, so it needs a password: set the variable "
            "RETUNE_APP_PASSWORD (or --password, which others on this machine can read)"
        )
    listens = _socket(host, port)
    number = listens.getsockname()[1]
    app = make(limits, host, password)
    try:
        quiet = {"log_level": logging.CRITICAL, "access_log": False, "lifespan": "on"}
        # A page that is still open keeps a connection, and must not keep the program.
        server = uvicorn.Server(uvicorn.Config(app.asgi, timeout_graceful_shutdown=1, **quiet))
        shown = f"[{host}]" if ":" in host else host
        _after_start(server, lambda: ready(f"http://{shown}:{number}/"))
        server.run(sockets=[listens])
    finally:
        app.close()
        listens.close()


def _after_start(server: uvicorn.Server, then: Callable[[], None]) -> None:
    begin = server.startup

    async def startup(sockets: list[socket.socket] | None = None) -> None:
        await begin(sockets)
        if server.started:
            then()

    server.startup = startup  # pyright: ignore[reportAttributeAccessIssue]


def _socket(host: str, port: int | None) -> socket.socket:
    """A socket that listens; port 0 takes any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in _PORTS if port is None else (port,):
        listens = socket.socket(family, socket.SOCK_STREAM)
        listens.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listens.bind((host, number))
            return listens
        except OSError as error:
            listens.close()
            if port is not None:
                raise InvalidParameterError(
                    f"the page cannot listen on {host}, port {port}: {error.strerror or error}. Give another --port"
                ) from error
    raise InvalidParameterError(f"no port from {_PORTS[0]} to {_PORTS[-1]} is free on {host}: give one with --port")
