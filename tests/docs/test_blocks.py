"""The code blocks of README.md, docs/ and the docstrings run as they are written.

Python blocks are independent of each other; the shell blocks of a page run one after the other in one folder.
"""

import ast
import io
import os
import re
import shlex
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import public_names
from programs import python
from retune._registry import entries

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What a block has in it, and why it is not run here.
NOT_RUN = {
    "retune app": "serves a page until somebody ends it; tests/app opens it in a browser",
    "pip install": "run by .ci/run, in an environment of its own",
    "FOLDER": "needs BSDS500, and hours",
    "$DATA": "needs BSDS500, and hours",
    "photos/": "needs your photographs; docs/cli.md has the same commands with files that it makes",
    "a/ --set data.validation=b/": "needs your photographs, in three folders",
    "tune denoise.tif": "measures time on two idle cores; docs/cli.md has the same command on small images",
    "python benchmarks/": "needs a clone, and minutes",
    "big.tif": "an image of 24 megapixels: two minutes and 3 GB",
    "pytest tests/": "is itself a part of the tests",
}


def why_not(block: str) -> str | None:
    return next((reason for mark, reason in NOT_RUN.items() if mark in block), None)


def blocks(language: str):
    for page in PAGES:
        for found in _FENCE.finditer(page.read_text(encoding="utf-8")):
            if found[1] == language:
                yield page.name, found[2]


def docstrings(mark: str = ""):
    """(name, docstring) of every module, class and function in files that contain the mark."""
    for path in sorted(public_names.ROOT.rglob("*.py")):
        if mark not in (content := path.read_text(encoding="utf-8")):
            continue
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield f"{path.relative_to(public_names.ROOT)} {getattr(node, 'name', '')}".strip(), text


PYTHON = [
    *blocks("python"),
    *((name, code) for name, text in docstrings("```python") for _, code in _FENCE.findall(text)),
]
SHELL = {page: [b for p, b in blocks("sh") if p == page and not why_not(b)] for page, _ in blocks("sh")}


def name_of(block: str) -> str:
    """The first line of it that does something."""
    lines = [line.strip() for line in block.splitlines()]
    return next(line for line in lines if line and not line.startswith(("import", "from", "#")))


@pytest.fixture
def _no_names_but_ours():
    """A block registers classes of its own, as a user's script does; other tests use the same names."""
    tables = (entries._BY_NAME, entries._BY_CLASS)
    others = [{key: entry for key, entry in table.items() if not entry.ours} for table in tables]
    for table, taken in zip(tables, others, strict=True):
        for key in taken:
            del table[key]
    yield
    for table, taken in zip(tables, others, strict=True):
        for key in [key for key, entry in table.items() if not entry.ours]:
            del table[key]
        table.update(taken)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_names_but_ours")
@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[f"{page}: {name_of(block)}" for page, block in PYTHON])
def test_python(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, page, "exec"), {"__name__": "__main__"})


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, commands in SHELL.items() if commands])
def test_shell(page, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, command in {"python": "", "retune": "-m retune"}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(python())} {command} "$@"\n')
        (programs / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    for block in SHELL[page]:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_every_block_has_a_language_and_every_exception_a_block():
    all_blocks = [(page.name, *found.groups()) for page in PAGES for found in _FENCE.finditer(page.read_text("utf-8"))]
    assert {language for _, language, _ in all_blocks} <= {"python", "sh", "text"}
    assert [mark for mark in NOT_RUN if not any(mark in block for _, _, block in all_blocks)] == []
    assert [name_of(block) for _, block in PYTHON if why_not(block)] == []


@pytest.mark.slow
def test_no_docstring_shows_code_that_is_not_run():
    """Code after ``::`` or ``>>>`` would be rendered, too."""
    assert [name for name, text in docstrings() if re.search(r"^ *>>> |::$", text, re.MULTILINE)] == []
    assert len(PYTHON) - len(list(blocks("python"))) > 6


def checks(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^  (problem|warning|note|ok) +(\w+(?: \w+)?)  ", text, re.MULTILINE)


@pytest.mark.slow
def test_the_doctor_prints_what_its_page_says():
    page = (REPOSITORY / "docs" / "doctor.md").read_text(encoding="utf-8")
    (_, code), (_, shown) = (found.groups() for found in list(_FENCE.finditer(page))[:2])
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code, "doctor.md", "exec"), {"__name__": "__main__"})
    assert len(checks(shown)) == 13
    assert checks(printed.getvalue()) == checks(shown)
