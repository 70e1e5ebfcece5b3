"""``retune demo`` through the command itself."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from typer.testing import CliRunner

import retune
from programs import python
from retune import config
from retune.cli.main import app
from retune.comparison.verdicts import verdicts
from retune.demo import PROBLEMS, run_of
from retune.records import MethodResult

runner = CliRunner()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    # A process of its own, as a user would; warnings of other packages are theirs.
    done = subprocess.run(
        [
            *(*python(), "-m", "retune", "demo", "--quick"),
            *("--problem", "denoise", "--out", str(out), "--device", "cpu"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return out, done


def test_it_writes_results_figures_and_one_report(finished):
    out, done = finished
    results = json.loads((out / "results.json").read_text())
    assert list(results["problems"]) == ["denoise"]
    rows = results["problems"]["denoise"]["methods"]
    assert list(rows) == ["variational", "unrolled", "jfb", "implicit", "retune"]
    certified = rows["retune"]["certificate"]["images"]
    assert certified
    assert all(image["claims"]["distance"] for image in certified)
    for row in rows.values():
        assert 5 < row["psnr"] < 40
        assert row["psnr_10x"] is not None
        assert all((out / path).is_file() for path in row["images"])
    assert 'src="http' not in (out / "report.html").read_text(encoding="utf-8")
    assert list(out.glob("**/*.png"))
    assert "ReTune" in done.stdout
    assert "Traceback" not in done.stderr


def test_every_method_starts_from_the_best_single_lambda(finished):
    out, _ = finished
    rows = json.loads((out / "results.json").read_text())["problems"]["denoise"]["methods"]
    best = max(rows["variational"]["grid"], key=lambda g: g["psnr"])["reg"]
    assert rows["variational"]["learned"]["reg"] == [pytest.approx(best, rel=1e-5)]
    assert rows["retune"]["learned"]["reg"] != [pytest.approx(best, rel=1e-5)]


def test_it_is_continued_with_resume_and_begun_anew_without(finished, tmp_path, monkeypatch):
    out = shutil.copytree(finished[0], tmp_path / "demo")
    rows = json.loads((out / "results.json").read_text())["problems"]["denoise"]["methods"]
    arguments = ["demo", "--quick", "--problem", "denoise", "--out", str(out), "--device", "cpu"]
    with monkeypatch.context() as patched:
        patched.setattr("retune.comparison.run.fit", None)  # nothing is trained twice
        assert runner.invoke(app, [*arguments, "--resume"]).exit_code == 0
    assert json.loads((out / "results.json").read_text())["problems"]["denoise"]["methods"] == rows
    refused = runner.invoke(app, [*arguments, "--resume", "--seed", "1"])
    assert refused.exit_code == 1
    assert "another folder with --out" in " ".join(refused.output.split())
    done = []
    with monkeypatch.context() as patched:
        patched.setattr("retune.comparison.run.fit", lambda *_, **__: done.append(1) or 1 / 0)
        assert isinstance(runner.invoke(app, arguments).exception, ZeroDivisionError)
    assert done


def test_the_networks_are_kept_for_images_of_ones_own(finished):
    out, _ = finished
    assert retune.load(out / "denoise/models/retune.safetensors").depth == 5


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_demo_is_a_shipped_comparison(problem):
    run, quick = run_of(problem), run_of(problem, quick=True, seed=3)
    assert run.problem == quick.problem
    assert run == config.load(f"demo-{problem}")
    assert run.compare.multiples == (10, 50)
    assert run.compare.run_on == ["retune"]
    assert (run.optimiser.steps, run.compare.crop) == ((20, 96) if problem == "superres" else (40, 128))
    assert (quick.seed, quick.optimiser.steps, quick.compare.crop) == (3, 5, 64)


@pytest.mark.parametrize(
    ("learned", "ours", "holds"),
    [
        ({"reg": [0.1], "weights": [[1.0, 1.0, 1.0]]}, 30.01, True),
        ({"reg": [0.1], "weights": [[1.0, 1.0, 1.0]]}, 29.99, False),
        ({"reg": [0.1]}, 29.95, True),
        ({"reg": [0.1]}, 30.2, False),
    ],
)
def test_where_lambda_is_all_there_is_to_learn_the_grid_search_is_the_answer(learned, ours, holds):
    psnr = {"variational": 30.0, "unrolled": 29.0, "implicit": ours, "retune": ours}
    rows = {
        key: MethodResult(label=key, psnr=value, layers_trained=10, learned=learned, psnr_10x=value, psnr_50x=value)
        for key, value in psnr.items()
    }
    of_lambda = verdicts("superres", rows)[1]
    assert of_lambda.holds == holds
    assert of_lambda.claim.startswith("With λ alone") == ("weights" not in learned)


def test_total_variation_of_the_demo_takes_primal_dual_steps():
    net = retune.build.network_of(run_of("superres"), 1)
    assert type(net.map) is retune.PrimalDual
    assert type(net.map.prior) is retune.priors.TV


def test_no_temporary_file_is_left(finished):
    out, _ = finished
    assert not [p for p in out.rglob("*") if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--problem", "debluring"], "did you mean 'deblur'"),
        (["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_errors_are_one_message_without_traceback(tmp_path, arguments, says):
    result = runner.invoke(app, ["demo", "--quick", "--out", str(tmp_path / "x"), *arguments])
    assert result.exit_code == 1
    text = " ".join(result.output.split())
    assert says in text
    assert "Traceback" not in text


def test_a_file_in_the_way_of_the_folder(tmp_path):
    (tmp_path / "x").write_text("")
    result = runner.invoke(app, ["demo", "--quick", "--out", str(tmp_path / "x")])
    assert result.exit_code == 1
    assert "Traceback" not in result.output


def test_version():
    assert "retune 0." in runner.invoke(app, ["--version"]).output


def test_the_name_of_the_folder_is_no_markup(tmp_path, monkeypatch, capsys):
    """Rich takes [red] in a text of markup for a colour, and [/] for its end."""
    from rich.console import Console

    from retune import demo

    place = tmp_path / "[red]x [/] \x1b[2J"

    class Found:
        """Results of a comparison without a method."""

        problems, seconds = {}, 1.0

        def model_copy(self, update):
            return self

    monkeypatch.setattr(demo, "_comparisons", lambda *_: (one for one in [("demo-denoise", Found())]))
    monkeypatch.setattr(demo, "title_of", lambda name: name)
    monkeypatch.setattr(demo, "terminal_table", lambda results, console: None)
    monkeypatch.setattr(demo, "write_results", lambda results, out: None)
    monkeypatch.setattr(demo, "write_all", lambda results, out: out / "report.html")
    demo.run(["denoise"], place, quick=True, device="cpu", console=Console(width=1000))
    said = capsys.readouterr().out
    assert f"{tmp_path}/[red]x [/] \\x1b[2J/report.html in a browser" in said
    assert "\x1b" not in said
