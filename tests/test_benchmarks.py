"""The script that compares restorations of real measurements with classical methods."""

import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parent.parent / "benchmarks" / "real.py"


@pytest.fixture(scope="module")
def real():
    spec = importlib.util.spec_from_file_location("benchmarks_real", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks_real"] = module  # its data class looks for its module there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["benchmarks_real"]


def test_it_has_at_least_24_measurements_with_kernels_of_sum_1(real):
    made = [build() for build in real.every(32, 3).values()]
    assert len(made) >= 24
    assert len({m.name for m in made}) == len(made)
    for m in made:
        assert m.image.dtype == np.uint16
        assert m.image.shape == m.truth.shape
        assert m.kernel is None or abs(m.kernel.sum() - 1) < 1e-9


def test_the_command_is_compared_with_the_classics(real, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)  # not installed
    real.main(["--only", "coffee-noise", "--side", "48", "--out", str(tmp_path)])
    (row,) = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    assert row["name"] == "coffee-noise-0.1"
    assert float(row["difference"]) == pytest.approx(float(row["ours"]) - float(row["classic"]))
    assert float(row["ours"]) > float(row["measured"]) + 3
    assert (tmp_path / "pictures" / "coffee-noise-0.1.png").exists()
    assert "| coffee-noise-0.1 |" in capsys.readouterr().out
