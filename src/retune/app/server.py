"""The server of the page: it receives and sends files, and refuses strangers."""

from __future__ import annotations

import base64
import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from retune.app.desk import Desks
from retune.app.worker import Limits
from retune.errors import InvalidParameterError

__all__ = ["LOOPBACK", "Guard", "made"]

#: Names of this machine as it calls itself.
LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: Nothing is fetched from another machine, whatever a library may want.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)


#: Ways of gradio that this page does not use: files come and go by `made` only.
_UNUSED = ("upload", "file", "proxy", "component_server", "stream", "deep_link", "heic")


class Guard:
    """Refuse requests that may not see the page.

    It refuses requests from other sites, and requests that address this machine by a foreign name. Otherwise any web
    page in the same browser could reach this one. If there is a password, every request needs it.

    Args:
        app: the application to guard.
        names: names of this machine, without the port; None allows any.
        password: None for none.
    """

    def __init__(self, app: ASGIApp, names: tuple[str, ...] | None, password: str | None):
        self._app, self._names, self._password = app, names, password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {k.decode("latin1").lower(): v.decode("latin1") for k, v in scope["headers"]}
        refusal = self._refused(headers) or _unused(scope["path"])
        if refusal is not None:
            await refusal(scope, receive, send)
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *((k, v) for k, v in message["headers"] if k.lower() != b"access-control-allow-origin"),
                    (b"content-security-policy", _POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self._app(scope, receive, guarded)

    def _refused(self, headers: dict[str, str]) -> Response | None:
        host = headers.get("host", "")
        if self._names is not None and urlsplit(f"//{host}").hostname not in self._names:
            return Response("This page answers under the names of its own machine only.", 403)
        if _foreign(headers, host):
            return Response("Requests of other pages are refused.", 403)
        if self._password is None:
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        try:
            said = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:
            said = ""
        if kind.lower() == "basic" and secrets.compare_digest(said.encode(), self._password.encode()):
            return None
        asks = {"WWW-Authenticate": 'Basic realm="ReTune: any name, and the password", charset="UTF-8"'}
        return Response("The password is needed.", 401, asks)


def _foreign(headers: dict[str, str], host: str) -> bool:
    """Whether another site sent the request.

    A form of this page sends ``Origin: null``, because Referrer-Policy hides its address. A sandboxed frame of any
    other site sends the same. ``Sec-Fetch-Site`` tells them apart.
    """
    origin = headers.get("origin")
    if origin == "null":
        return headers.get("sec-fetch-site") != "same-origin"
    return origin is not None and urlsplit(origin).netloc != host


def _unused(path: str) -> Response | None:
    """Refuse the routes of gradio that this page does not use."""
    way = path.partition("gradio_api/")[2]
    return Response("There is no such thing here.", 404) if way.startswith(_UNUSED) else None


def made(desks: Desks, limits: Limits) -> FastAPI:
    """The routes of the files: ``POST /files`` and ``GET /take/DESK/NAME``."""

    @contextlib.asynccontextmanager
    async def lives(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            desks.remove()

    app = FastAPI(lifespan=lives, docs_url=None, redoc_url=None, openapi_url=None)
    too_large = f"The file is larger than {limits.upload / 1e6:.0f} MB, the limit of this page."

    @app.post("/files")
    async def receive(request: Request, name: str = "file") -> JSONResponse:
        token, path = desks.keep(name)
        try:
            length = request.headers.get("content-length", "")
            if length.isdecimal() and int(length) > limits.upload:
                raise InvalidParameterError(too_large)
            await _written(request, path, limits.upload, too_large)
        except InvalidParameterError as error:
            desks.drop(token)
            return JSONResponse({"why": str(error)}, 413)
        except Exception:  # the page has gone, or the disk is full
            desks.drop(token)
            return JSONResponse({"why": "The file did not arrive. Send it again."}, 400)
        return JSONResponse({"token": token})

    @app.get("/take/{key}/{name}")
    async def take(key: str, name: str) -> Response:
        try:
            desk = desks.get(key)
        except InvalidParameterError as error:
            return Response(str(error), 404)
        if name == "tuned.zip" and "model.safetensors" in desk.results():
            saves = {"Content-Disposition": 'attachment; filename="tuned.zip"'}
            return Response(desk.bundle(), media_type="application/zip", headers=saves)
        path = desk.results().get(name)
        if path is None:
            return Response("There is no such file.", 404)
        return FileResponse(path, filename=name, media_type="application/octet-stream")

    return app


async def _written(request: Request, path: Path, most: int, too_large: str) -> None:
    size = 0
    with path.open("wb") as file:
        async for piece in request.stream():
            size += len(piece)
            if size > most:
                raise InvalidParameterError(too_large)
            file.write(piece)
