"""The sentences and titles of a study say what its numbers show, and nothing more."""

from __future__ import annotations

import pytest

from retune.records import Raced, Study, StudyCell, StudyImage
from retune.report.study_page import _certified, _cosine
from retune.report.study_words import above, angle, race_title, separates, share, summary, title_of

DEPTHS, RESTARTS = [1, 5], [0, 10, 50]


def study_of(error, distance, races=(), **facts) -> Study:
    """A study whose errors are given as functions of K and R."""
    cells = [
        StudyCell(depth=k, restarts=r, gradient_error=error(k, r), reported=error(k, r), distance=distance(k, r))
        for k in DEPTHS
        for r in RESTARTS
    ]
    image = StudyImage(name="mean", cells=cells, rate_estimated=0.5, rate_distance=0.5, **facts)
    return Study(retune="0", depths=DEPTHS, restarts=RESTARTS, images=[image], mean=image, races=list(races))


def raced(key: str, *psnr: float) -> list[Raced]:
    return [
        Raced(key=key, label=key.upper(), depth=5, restarts=1, seed=i, seconds=[0, 4], psnr=[10, p])
        for i, p in enumerate(psnr)
    ]


def decays(k: int, r: int) -> float:
    return 0.5 ** (k * r)


@pytest.mark.parametrize(
    ("error", "distance", "holds"),
    [
        (lambda k, r: 0.5**k, decays, True),
        (lambda k, r: 0.5, decays, False),  # depth changes nothing
        (lambda k, r: 0.5**k / (1 + r), decays, False),  # restarts still change the gradient
        (lambda k, r: 0.5**k, lambda k, r: 0.5, False),  # restarts do not move the state
        (lambda k, r: None, decays, False),
    ],
)
def test_the_title_is_a_finding_only_if_it_is_found(error, distance, holds):
    found = study_of(error, distance)
    assert separates(found) is holds
    assert ("controls" in title_of(found)) is holds


def test_a_lead_needs_ranges_that_do_not_overlap():
    assert race_title(raced("a", 22.0, 22.5) + raced("b", 21.0, 21.9)) == "Highest PSNR after 4.0 s: A"
    assert "no clear lead" in race_title(raced("a", 22.0, 22.5) + raced("b", 21.0, 22.1))
    assert "a single seed" in race_title(raced("a", 22.0) + raced("b", 21.0))


def test_the_summary_says_who_wins_and_what_retune_has():
    told = summary(study_of(decays, decays, raced("unrolled", 23.0, 23.2) + raced("retune", 21.0, 21.2)))
    assert told[-1] == (
        "After 4.0 s of training, “UNROLLED” has the highest mean PSNR, 23.10 dB at its own K layers; “RETUNE” has "
        "21.10 dB."
    )
    overlapping = summary(study_of(decays, decays, raced("retune", 21.0, 21.2) + raced("jfb", 21.1, 21.0)))
    assert "the ranges over the seeds overlap" in overlapping[-1]


@pytest.mark.parametrize(
    ("facts", "end"),
    [
        ({}, "proves no rate."),
        ({"rate_proved": 0.6, "rate_kind": "proved"}, "proves 0.6."),
        (
            {"rate_proved": 0.6, "rate_kind": "proved if its unchecked assumptions hold"},
            "proves 0.6 (proved if its unchecked assumptions hold).",
        ),
    ],
)
def test_a_conditional_proof_is_called_so(facts, end):
    assert any(sentence.endswith(end) for sentence in summary(study_of(decays, decays, **facts)))


def test_numbers_of_a_study():
    assert [share(v) for v in (None, 0.8, 0.04, 0.0012, 1.46e-5)] == ["–", "80 %", "4.0 %", "0.12 %", "1.5·10⁻⁵"]
    assert above(3e-14, 6e-14) == "< 10⁻¹³"
    assert above(3e-12, 6e-14) == "3.0·10⁻¹²"
    assert [_cosine(v) for v in (None, 0.8612, 0.99997, 1.0)] == ["–", "0.8612", "1 − 3.0·10⁻⁵", "1"]
    assert angle(0.5) == pytest.approx(60)
    cell = StudyCell(depth=1, restarts=1, certified=0.02, certified_kind="estimated")
    assert _certified(cell) == "≈ 2.0 %"
    assert _certified(cell.model_copy(update={"certified_kind": "proved"})) == "≤ 2.0 %"
