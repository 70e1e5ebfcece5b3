"""A small network that was trained by the command, and images for it."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from commands import SETS, invoke, smooth


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharp")
    for i in range(2):
        np.save(folder / f"{i}.npy", smooth().astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, sharp):
    """The folder of a small training run."""
    out = tmp_path_factory.mktemp("run") / "a"
    result, text = invoke("train", "denoise", *SETS, "--set", f"data.train={sharp}", "-o", out, "--device", "cpu")
    assert result.exit_code == 0, text
    return out


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    tifffile.imwrite(folder / "a.tif", (smooth() * 65535).astype(np.uint16), resolution=(300, 300))
    Image.fromarray((smooth(13, 21) * 255).astype(np.uint8)).save(folder / "b.png")
    return folder
