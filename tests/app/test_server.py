"""Files come and go, and nobody else gets in."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys

import pytest

pytest.importorskip("fastapi", reason="needs gradio, which brings it: pip install 'retune-imaging[app]'")
from fastapi import FastAPI
from typer.testing import CliRunner

from retune.app.desk import Desks
from retune.app.server import LOOPBACK, Guard, made
from retune.app.worker import Limits
from retune.cli.main import app as command

LIMITS = Limits(upload=1000)


def call(app, path="/", method="GET", headers=None, body=b""):
    """Status, headers and content of an answer, without a server."""
    told: list[dict] = []
    pieces = [{"type": "http.request", "body": body, "more_body": False}]
    place, _, query = path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": place,
        "raw_path": place.encode(), "query_string": query.encode(), "root_path": "", "scheme": "http",
        "server": ("127.0.0.1", 7860), "client": ("127.0.0.1", 1),
        "headers": [(k.lower().encode(), v.encode()) for k, v in {"host": "127.0.0.1:7860", **(headers or {})}.items()],
    }  # fmt: skip

    async def receive():
        if not pieces:
            await asyncio.Event().wait()  # the browser stays
        return pieces.pop(0)

    async def send(message):
        told.append(message)

    asyncio.run(app(scope, receive, send))
    content = b"".join(m.get("body", b"") for m in told[1:])
    return told[0]["status"], {k.decode().lower(): v.decode() for k, v in told[0]["headers"]}, content


@pytest.fixture
def desks():
    found = Desks()
    yield found
    found.remove()


def hello() -> FastAPI:
    app = FastAPI()
    app.get("/")(lambda: "hello")
    return app


def basic(name, password):
    return {"authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:7860"}, 200),
        ({"host": "evil.example"}, 403),  # a name that another site lets point to this machine
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({"origin": "null"}, 403),  # a sandboxed frame of another site
        ({"origin": "null", "sec-fetch-site": "cross-site"}, 403),
        ({"origin": "null", "sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_other_sites_do_not_reach_the_page(headers, status):
    assert call(Guard(hello(), LOOPBACK, None), headers=headers)[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (basic("anybody", "secret"), 200),
        (basic("anybody", "wrong"), 401),
        ({"authorization": "Basic !!!"}, 401),
        ({"authorization": "Bearer secret"}, 401),
    ],
)
def test_a_password_is_asked_for_every_request(headers, status):
    found, told, _ = call(Guard(hello(), None, "secret"), headers={"host": "lab.example:8000", **headers})
    assert found == status
    assert ("www-authenticate" in told) == (status == 401)


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://x"])
def test_files_come_and_go_by_one_way_only(path):
    app = FastAPI()
    app.api_route("/{path:path}", methods=["GET", "POST"])(lambda path: "reached")
    assert call(Guard(app, LOOPBACK, None), "/gradio_api/queue/data")[0] == 200
    assert call(Guard(app, LOOPBACK, None), path, "POST")[0] == 404


def test_a_browser_is_told_to_fetch_nothing_from_elsewhere():
    _, headers, _ = call(Guard(hello(), LOOPBACK, None))
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]


def test_a_file_arrives_and_the_answer_names_no_path(desks):
    app = made(desks, LIMITS)
    status, _, content = call(app, "/files?name=..%2Fa.png", "POST", body=b"content")
    assert status == 200
    assert str(desks.root).encode() not in content
    desk = desks.open()
    token = content.split(b'"')[3].decode()
    assert desks.take(desk, token, "image") == "a.png"
    assert (desk.folder / "a.png").read_bytes() == b"content"


@pytest.mark.parametrize("headers", [{}, {"content-length": "2000"}])
def test_a_file_above_the_limit_is_refused_and_removed(desks, headers):
    status, _, content = call(made(desks, LIMITS), "/files?name=a.png", "POST", headers, b"x" * 2000)
    assert status == 413
    assert b"larger than" in content
    assert list(desks.root.iterdir()) == []


@pytest.mark.parametrize("name", ["psf.tif", "..%2Fsecret", "%2Fetc%2Fpasswd", "other.png"])
def test_only_results_are_given_away(desks, name):
    desk = desks.open()
    desk.image = "a.png"
    (desk.folder / "psf.tif").touch()
    (desk.folder / "restored").mkdir()
    (desk.folder / "restored" / "a.png").write_bytes(b"image")
    app = made(desks, LIMITS)
    assert call(app, f"/take/{desk.key}/a.png")[2] == b"image"
    assert call(app, f"/take/{desk.key}/{name}")[0] == 404
    assert call(app, "/take/guessed/a.png")[0] == 404


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--host", "0.0.0.0"], "needs a password"),
        (["--upload", "0"], "expected a number above 0"),
    ],
)
def test_the_command_refuses(arguments, told):
    result = CliRunner().invoke(command, ["app", *arguments], env={"RETUNE_APP_PASSWORD": ""})
    assert result.exit_code == 1
    assert told in " ".join(result.output.split())


def test_without_gradio_the_command_tells_how_to_get_it(monkeypatch):
    from importlib import util

    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "gradio" else find(name, *rest))
    result = CliRunner().invoke(command, ["app"])
    assert result.exit_code == 1
    assert "pip install 'retune-imaging[app]'" in " ".join(result.output.split())


def test_the_process_of_the_page_loads_neither_torch_nor_matplotlib():
    """They would take half a gigabyte, and the process that computes has them."""
    code = """
import sys
from retune.app.launch import make
from retune.app.settings import Settings
from retune.app.worker import Limits
import retune.app.launch as launch
launch.Worker = lambda limits: None
app = make(Limits(), "127.0.0.1", None)
settings = Settings(white="255", black="auto", noise="0.1")
settings.python("a.png"), settings.commands("a.png")
app.flow.desks.remove()
print([name for name in ("torch", "matplotlib", "deepinv") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
