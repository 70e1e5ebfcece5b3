"""The documentation as it is built: every link leads somewhere, every public name has its entry."""

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import public_names
import retune

pytest.importorskip("mkdocs", reason='needs `pip install "retune-imaging[docs]"`')
pytest.importorskip("mkdocstrings", reason='needs `pip install "retune-imaging[docs]"`')

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=REPOSITORY, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def entries(site):
    """The names of the inventory that mkdocstrings writes for other projects."""
    content = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return {line.split()[0] for line in zlib.decompress(content).decode().splitlines()}


def test_every_public_name_has_an_entry(site):
    wanted = set()
    for name, module in public_names.listed().items():
        if module == f"retune.{name}":
            wanted |= {f"retune.{name}.{inner}" for inner in getattr(getattr(retune, name), "__all__", ())}
        elif name != "__version__":
            wanted.add(f"retune.{name}")
    assert len(wanted) > 100
    # An abbreviation (problems.deblur for problems.Deblur) stands with what it abbreviates.
    wanted -= {f"retune.problems.{name}" for name in retune.problems.names()}
    known = entries(site)
    # A function with the name of its module (comparison.verdicts) is entered under both.
    assert sorted(name for name in wanted if not {name, f"{name}.{name.rpartition('.')[2]}"} & known) == []


def test_a_function_with_the_name_of_its_file_is_shown_itself(site):
    """Pages name functions and classes; only the fault of showing the file instead makes a heading of a module."""
    for page in (site / "reference").rglob("*.html"):
        assert "doc-symbol-heading doc-symbol-module" not in page.read_text(encoding="utf-8"), page.relative_to(site)


def test_no_markup_of_another_tool_is_left(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for mark in (":class:", ":func:", ":meth:", ":mod:", ":attr:", ":data:", ":exc:"):
            assert mark not in text, f"{page.relative_to(site)} shows {mark}"


def test_every_cross_reference_of_a_docstring_leads_somewhere(site):
    """Also of docstrings that no page shows."""
    known = entries(site)
    for path in public_names.ROOT.rglob("*.py"):
        for target in re.findall(r"\[`[^`]+`\]\s*\[(retune[\w.]*)\]", path.read_text(encoding="utf-8")):
            assert target in known, f"{path.name}: {target}"


def test_every_page_is_in_the_navigation(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    for page in site.rglob("index.html"):
        address = page.parent.relative_to(site).as_posix()
        assert address == "." or f'href="{address}/"' in home, address


def test_formulas_are_rendered(site):
    assert (site / "theory" / "index.html").read_text(encoding="utf-8").count("<math") > 30


def test_nothing_is_loaded_from_another_site(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert '<script src="http' not in text
        assert "fonts.googleapis" not in text
