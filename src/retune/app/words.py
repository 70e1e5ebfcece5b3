"""Messages for a reader of the page, who sees no command line and no folder."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["in_page_words"]

#: Options of the command line, and what they are on the page.
_OPTIONS = (
    (r"--kernel-background auto", "“Subtract the pedestal”"),
    (r"--(no-)?centre-kernel", "“Centre the blur”"),
    (r"--sigma estimate", "“Estimate it from the image”"),
    (r"--noise (poisson|…|MODEL)\S*|--sigma \S+|--sigma|--noise", "the noise"),
    (r"--kernel (gaussian|motion)\S+|--kernel", "the blur"),
    (r"--problem (denoise|inpaint|deblur|superres)( --mask FILE)?", "“What happened to the image”"),
    (r"--mask( FILE)?", "the missing pixels"),
    (r"--white( \w+)?", "“White”"),
    (r"--black", "“Black”"),
    (r"--tile \d+|--tile", "smaller images"),
    (r"\by = ?A ?x \+ noise", "“measured image = true image, blurred or masked, + noise”"),
    (r"--set \S+|--out( FOLDER)?|--workers|--again", "the command line"),
)
#: The letters of formulas, where a sentence uses them as words.
_LETTERS = (
    (r"\by (contradicts|fits) A\b", r"the image \1 what you say happened to it"),
    (r"\by lies in\b", "its values lie in"),
    (r"\by (was|is|contains|fits|could)\b", r"the image \1"),
    (r"\b(of|Divide|but) y\b", r"\1 the image"),
    (r"σ ≈ ", "standard deviation about "),
    (r"\b([Tt])he kernel\b", r"\1he picture of the blur"),
)
#: What looks like a path of a machine: it begins with a slash or a drive, and has at least two parts.
_PATH = re.compile(r"(?<![\w/.:])(/|[A-Za-z]:\\)[^\s'\"«»:,;()]+[/\\]([^\s'\"«»:,;()/\\]+)")


def in_page_words(text: str, folder: Path | None = None) -> str:
    """A message in the words of the page: without folders of this machine, options and formulas.

    Args:
        text: the message.
        folder: the folder of the user's files.
    """
    for place in () if folder is None else (folder, folder.resolve()):
        text = text.replace(f"{place}/", "").replace(f"{place}\\", "")
    text = _PATH.sub(lambda found: found[2], text)
    for option, words in (*_OPTIONS, *_LETTERS):
        text = re.sub(option, words, text)
    return text
