"""Files that ReTune wrote are read by the definition that writes them, whichever version wrote them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from retune import records
from retune.comparison.ledger import FORMAT, Ledger
from retune.errors import CheckpointError, InvalidParameterError
from retune.jobs.folder import facts_of
from retune.jobs.results import Result
from retune.records.settings import changes

OLD = Path(__file__).parent / "fixtures" / "0.1.0" / "run"

CLAIM = {"value": 3, "kind": "proved", "how": "by hand"}
SCORED = {"psnr": 20.5, "psnr_2x": 21, "layers_trained": 8}
GAIN = {"before": 1.5, "after": None, "gain": None, "spread": None, "better": True}
#: What has no defaults: the entries that a file must have.
EXAMPLES = {
    "Pictured": {"retune": "1", "verb": "restore", "file": "a.png", "made": "0", "title": "a.png"},
    "PicturedImage": {"name": "a.png"},
    "PicturedResidual": {"kind": "white", "sentence": "White."},
    "Certificates": {"images": [{"name": "a", "part": [4, 5], "failure": "no"}]},
    "CertifiedFile": {"name": "a", "certificate": {"depth": 2, "images": [{"claims": {"rmse": [CLAIM]}}]}},
    "CheckpointFacts": {"step": 1, "seconds": 2.5, "settings": {"a": 1}, "best": "-inf", "best_step": 0},
    "Claim": CLAIM,
    "Competitor": {"name": "measured image", "psnr": 21.5, "gain": None, "spread": None},
    "EstimatedGain": GAIN,
    "Examinations": {"examined": []},
    "ExaminedFile": {"name": "a", "ok": False, "failure": "no"},
    "FindingRecord": {"check": "a", "severity": "ok", "found": "b", "numbers": {"c": [1, 0.5]}},
    "Findings": {"subject": "a", "ok": True, "worst": "ok", "findings": []},
    "ImageScores": SCORED | {"image": "images/a.png"},
    "MethodResult": SCORED,
    "ProblemResult": {"methods": {"a": SCORED}},
    "Progress": {"settings": {"run": "x"}, "entries": {"memory/a": 5}},
    "Raced": {"key": "jfb", "label": "JFB", "depth": 1, "restarts": 9, "seed": 0, "psnr": [20.5]},
    "RestoredImage": {"retune": "1", "file": "a.png", "tile": 64, "residual": 1e-5},
    "Scores": SCORED,
    "Searched": {"best": {"reg": 0.5, "sigma": [0.1, 0.2]}, "tried": [{"reg": 0.5, "psnr": 20.0}], "seconds": 1.5},
    "StepCost": {"depth": 2, "restarts": 0, "seconds": 0.5, "memory": 100},
    "Study": {
        "retune": "1",
        "depths": [1],
        "restarts": [0],
        "images": [{"name": "image 1", "cells": [{"depth": 1, "restarts": 0, "distance": 0.5}]}],
        "mean": {"name": "mean"},
    },
    "StudyCell": {"depth": 1, "restarts": 0, "distance": 1e-5},
    "StudyDepth": {"depth": 1, "bound": None},
    "StudyImage": {"name": "image 1", "rate_proved": 0.5},
    "Trained": {"lr": 0.1, "failure": None, "psnr_validation": 20.5, "seconds": 1.5, "training": {"loss": [0.5]}},
    "TrainingCertificate": {"image": "first", "pixels": [4, 4], "certificate": {"failure": "no"}},
    "TuneFacts": {"images": ["a.png"], "white": 255, "loss": "sure"},
    "TuneResult": {
        "loss": "SURE",
        "sigma": [0.1, 0.2],
        "comparison": GAIN,
        "factors": [0.5, 2],
        "parameters": {"reg": [0.25]},
        "seconds": 1.5,
        "certificate": {"failure": "no"},
    },
    "Verdict": {"claim": "a", "holds": True},
}


@pytest.mark.parametrize(
    ("kind", "name"), [(records.RunFacts, "run.json"), (records.TrainingCertificate, "certificate.json")]
)
def test_what_is_read_is_written_again_as_it_was(kind, name, tmp_path):
    before = (OLD / name).read_text(encoding="utf-8")
    kind.parsed(before, name).write(tmp_path / name)
    after = (tmp_path / name).read_text(encoding="utf-8")
    assert json.loads(after) == json.loads(before)
    assert "2.0," not in after.replace("0.2.0", "")  # whole numbers stay whole


@pytest.mark.parametrize("kind", [getattr(records, name) for name in records.__all__ if name != "Results"])
def test_entries_of_another_version_are_kept(kind):
    example = EXAMPLES.get(kind.__name__, {})
    assert kind.checked(example | {"later": [1, {"x": None}]}, "file").plain() == example | {"later": [1, {"x": None}]}


def test_a_record_with_entries_of_another_kind_is_still_ours(tmp_path):
    """What another version wrote may be replaced; what is somebody's may not."""
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.png.json").write_text(json.dumps({"retune": "9", "file": "a.png", "status": ["later"]}))
    ours = Result(tmp_path, "a.png")
    assert not ours.is_of(records.RestoredImage(retune="9", file="a.png", tile=64), certified=False)
    (tmp_path / "a.png.json").write_text(json.dumps({"file": "a.png", "status": "converged"}))
    with pytest.raises(InvalidParameterError, match="no record says"):
        Result(tmp_path, "a.png")


def test_a_failed_write_leaves_the_record_of_before_to_the_byte(tmp_path):
    content = b'{"later": 1,  "file": "a.png", "retune": "9"}'
    (tmp_path / "a.png.json").write_bytes(content)

    def fail(result: Result) -> None:
        with result.being_written():
            assert json.loads((tmp_path / "a.png.json").read_text())["status"] == "being written"
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail(Result(tmp_path, "a.png"))
    assert (tmp_path / "a.png.json").read_bytes() == content


def test_a_hostile_entry_is_named(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"versions": ["retune"]}))
    with pytest.raises(CheckpointError, match=r"versions is \['retune'\], expected a table"):
        facts_of(tmp_path)
    path = tmp_path / "progress.json"
    path.write_text(json.dumps({"format": FORMAT, "settings": {}, "entries": {"grid/a": {"best": 3}}}))
    with pytest.raises(CheckpointError, match="'grid/a' cannot be read"):
        Ledger(path, {}, True).once("grid/a", records.Searched, lambda: pytest.fail("it is there"))
    path.write_text("[1]")
    with pytest.raises(CheckpointError, match=r"is \[1\], expected a table"):
        Ledger(path, {}, True)


def test_what_was_computed_is_read_as_it_was_returned(tmp_path):
    path, scores = tmp_path / "progress.json", records.ImageScores(psnr=20, layers_trained=8)
    assert Ledger(path, {"a": 1}, False).once("image/a", records.ImageScores, lambda: scores) == scores
    again = Ledger(path, {"a": 1}, True)
    assert again.once("image/a", records.ImageScores, lambda: pytest.fail("computed twice")) == scores
    assert again.once("memory/a", int, lambda: 5) == 5
    with pytest.raises(CheckpointError, match="a was 1, now 2"):
        Ledger(path, {"a": 2}, True)


def test_an_infinite_setting_of_a_run_is_kept():
    facts = records.CheckpointFacts(step=1, seconds=1, settings={"longest": math.inf}, best="-inf", best_step=0)
    assert json.loads(json.dumps(facts.plain()))["settings"] == {"longest": math.inf}


def test_of_long_settings_the_difference_is_shown():
    before = "x" * 300 + "depth = 2" + "y" * 300
    (text,) = changes({"run": before, "seed": 1}, {"run": before.replace("= 2", "= 3"), "seed": 1})
    assert "depth = 2" in text
    assert "depth = 3" in text
    assert len(text) < 250
    assert changes({"a": 1}, {"b": 1}) == ["a was 1, now None", "b was None, now 1"]


@pytest.mark.parametrize(
    ("basis", "kind", "proved"),
    [
        ("proved", "as sure as can be", True),
        ("estimated", "proved by nobody", False),
        (None, "proved with probability 1 − 1e-06", True),
        (None, "estimated", False),
    ],
)
def test_a_bound_is_known_by_its_basis_and_in_files_of_the_first_version_by_its_kind(basis, kind, proved):
    assert records.Claim(value=1.0, basis=basis, kind=kind, how="").proved is proved
