"""Unreleased code does not call itself by the version of a release."""

import re

import retune
from public_names import REPOSITORY

SECTIONS = re.findall(r"^## (\S+) \((.+)\)$", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_version_is_that_of_the_newest_section_of_the_changelog():
    version, date = SECTIONS[0]
    assert retune.__version__ == (f"{version}.dev0" if date == "unreleased" else version)


def test_the_citation_names_the_newest_release():
    released = next((version, date) for version, date in SECTIONS if date != "unreleased")
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert (f"version: {released[0]}\n" in citation, f'date-released: "{released[1]}"\n' in citation) == (True, True)
