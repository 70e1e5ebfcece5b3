"""The script that compares restorations of real measurements with classical methods."""

import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


def loaded(name):
    """A script as a module, which its data class looks for."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def real():
    yield from loaded("real")


@pytest.fixture(scope="module")
def whole():
    yield from loaded("whole")


@pytest.fixture(scope="module")
def photographs():
    yield from loaded("photographs")


def test_the_table_of_whole_commands_has_means_and_the_best_first(whole):
    rows = [
        whole.Row("noise", "a", "slow", 4.0, 100.0, 30.0),
        whole.Row("noise", "b", "slow", 8.0, 300.0, 31.0),
        whole.Row("noise", "a", "good", 1.0, 50.0, 33.0),
        whole.Row("noise", "a", "the measurement", 0.0, 0.0, 20.0),
    ]
    lines = whole.table(rows).splitlines()[3:]
    assert lines == ["| good | 33.00 | 1.0 | 50 |", "| slow | 30.50 | 6.0 | 200 |", "| the measurement | 20.00 | | |"]


@pytest.mark.parametrize("colour", [False, True])
def test_the_programs_of_the_others_restore(whole, tmp_path, colour):
    """Those that need scikit-image only, run here: the result is nearer to the truth than the measurement."""
    rng = np.random.default_rng(0)
    truth = np.clip(np.linspace(0.2, 0.8, 48)[:, None] * np.ones((48, 48)), 0, 1)
    truth = np.stack([truth] * 3, 2) if colour else truth
    np.save(tmp_path / "y.npy", truth + 0.1 * rng.normal(size=truth.shape))
    names = ["scikit-image, wavelets (BayesShrink)", "scikit-image, TV (Chambolle)"]
    for name in names:
        program = whole.BEGIN + whole.DENOISERS[name] + whole.END
        program = program.replace("sys.argv[1]", "Y").replace("sys.argv[2]", "X")
        exec(program, {"Y": tmp_path / "y.npy", "X": tmp_path / "x.npy"})
        assert whole.psnr(np.load(tmp_path / "x.npy"), truth) > whole.psnr(np.load(tmp_path / "y.npy"), truth) + 3
    for name, program in {**whole.DENOISERS, **whole.DEBLURRERS}.items():
        compile(whole.BEGIN + program + whole.END, name, "exec")


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


@pytest.fixture(scope="module")
def medical():
    pytest.importorskip("pydicom")
    yield from loaded("medical")


def test_the_operators_of_the_scans_are_linear_with_their_adjoint(medical):
    x = {"drawn": medical.ellipses(3)[..., :48, :40].contiguous()}
    scan = medical.resonance(x, seed=0)
    assert scan.physics.adjointness_test(scan.truth).abs() < 1e-5
    mask = medical.lines(48, 40, seed=0)
    assert int(mask[0, 0, 0].sum()) == int(medical.LINES * 40)
    assert float(scan.physics.compute_sqnorm(scan.truth, verbose=False)) <= 1 + 1e-5


def test_a_strength_is_chosen_by_steps_to_better_neighbours(medical, monkeypatch):
    seen = []

    def restore(map_, scan, layers):
        seen.append(map_)
        return map_, 0

    monkeypatch.setattr(medical, "restore", restore)
    monkeypatch.setattr(medical, "score", lambda image, truth: -((image[0] - 1) ** 2) - (image[1] - 30) ** 2)
    axes = ((1, 2, 3, 4, 5), (0, 10, 20, 30, 40, 50, 60))
    monkeypatch.setitem(medical.METHODS, "toy", (lambda a, b: (a, b), axes))
    scan = medical.Scan((), None, None, None, None)
    assert medical.choose("toy", scan, 1) == (1, 30)
    assert len(seen) == len(set(seen)) < 35


def test_the_parts_of_a_command_are_counted_once(photographs):
    """Nested functions count for the outermost part; shares are of all processor seconds."""

    class Work:
        def inner(self):
            return sum(range(200_000))

        def outer(self):
            return self.inner()

    clock = photographs.Clock()
    clock.time(Work, "inner", "files")
    clock.time(Work, "outer", "solve")
    Work().outer()
    assert clock.seconds["solve"] > 0 == clock.seconds["files"]
    assert clock.seconds["start-up"] > 0
    parts = dict.fromkeys(photographs.PARTS, 1.0)
    line = photographs.table([photographs.Row("noise", "a", 4, 9.0, 10.0, 100.0, 30.0, 8.0, parts)]).splitlines()[2]
    shares = "10 % | 10 % | 10 % | 10 % | 10 % | 50 %"
    assert line == f"| noise: a | 4 | 30.00 | 8 | 10.0 | 2.25 | 100 | {shares} |"


@pytest.fixture(scope="module")
def claims():
    yield from loaded("claims")


def test_each_claim_has_a_table_in_which_what_leads_is_bold_and_what_is_behind_is_slanted(claims, capsys, monkeypatch):
    def scores(offset):
        return [[offset + 20.0, offset + 25.0 + 0.1], [offset + 20.1, offset + 25.0]]

    def row(offset, settled):
        after = {1: scores(offset - 3), 50: scores(offset)}
        return claims.Row(scores(offset), scores(offset), scores(offset), after, [1e-5, 3e-5], settled, 4, [], [], [])

    rows = {"pnp": row(-1, 1), "unrolled": row(2, 0), "jfb": row(0, 4), "retune": row(0, 4)}
    monkeypatch.setattr(claims, "finished", lambda *_: [("norm-deblur", claims.SETTINGS["norm-deblur"], rows)])
    claims.claims((), None)
    lines = capsys.readouterr().out.splitlines()
    first, second, *third = [text for text in lines if text.startswith("| norm-deblur")]
    ahead, behind = "**+1.00 (+1.00 to +1.00)**", "*-2.00 (-2.00 to -2.00)*"
    assert first == f"| norm-deblur | 2 | 22.55 |  | {ahead} | {behind} | +0.00 (+0.00 to +0.00) |  | {behind} |"
    assert second == f"| norm-deblur | 2 | 21.55 | 1 of 4 | 22.55 | 4 of 4 | {ahead} | +1.00 / +1.00 |"
    assert third[-1] == "| norm-deblur | ReTune | 4 of 4 | 19.55 | 22.55 | 2e-05 |"
    assert len(third) == 3
    assert claims.nearest([5, 10, 245, 300], 250) == 245


@pytest.fixture(scope="module")
def gradient_error():
    yield from loaded("gradient_error")


def test_gradients_are_compared_with_the_exact_one(gradient_error, capsys):
    cells = {
        name: [gradient_error.Cell([20.0 + i, 24.0 + i], 2, 1e-3)]
        for i, name in enumerate((gradient_error.START, *gradient_error.RULES))
    }
    gradient_error.table(cells, {"K = 5": [[0.5, 0.9], [0.3, 0.8], [0.4, 0.7]]})
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| the start |  |  |  | 22.00 | 2 of 2 | -4.00 (-4.00 to -4.00) |"
    assert lines[4] == "| K = 5 | 0.4 | 0.800 | 0.00100 | 24.00 | 2 of 2 | -2.00 (-2.00 to -2.00) |"
    assert lines[6].endswith("| 26.00 | 2 of 2 |  |")
