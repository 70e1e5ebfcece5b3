"""Messages name no folder of the machine, and the controls of the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from retune.app.words import in_page_words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/tmp/retune-app-x/ab12/photo.png is empty (0 bytes)", "photo.png is empty (0 bytes)"),
        ("in /usr/lib/python3/site-packages/retune/io.py: no", "in io.py: no"),
        ("C:\\Users\\me\\cat.tif is empty", "cat.tif is empty"),
        ("values in [0, 1]/2 and a/b stay", "values in [0, 1]/2 and a/b stay"),
        ("--kernel-background auto subtracts it", "“Subtract the pedestal” subtracts it"),
        ("--centre-kernel moves it", "“Centre the blur” moves it"),
        ("1.3% at 0 exactly: y was clipped", "1.3% at 0 exactly: the image was clipped"),
        ("y contradicts A at the borders", "the image contradicts what you say happened to it at the borders"),
        ("y lies in [0, 1]", "its values lie in [0, 1]"),
        ("the kernel has a pedestal", "the picture of the blur has a pedestal"),
        ("⟨Ax, y⟩ = ⟨x, Aᵀy⟩ and by = 2", "⟨Ax, y⟩ = ⟨x, Aᵀy⟩ and by = 2"),
    ],
)
def test_a_message(text, shown):
    assert in_page_words(text, Path("/tmp/retune-app-x/ab12")) == shown
