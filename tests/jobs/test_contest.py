"""Candidates of a tuning: what competes, what wins, and what is said of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import retune
from retune.jobs.assess import Errors, Scene, estimated_gain, gain_of_errors
from retune.jobs.contest import DEFAULT, EQUAL, MEASURED, TUNED, compete
from retune.jobs.sections import gain_in_words, tuning_in_words
from retune.records import CertifiedImage, TuneResult
from retune.training.unsupervised import Sure

SIGMA = 0.1


def scene(problem, pages=1, side=96):
    rows = torch.linspace(0.2, 0.8, side)
    x = (rows[:, None] * torch.ones(side))[None, None]
    return x, [problem.measure(x, seed)[0] for seed in range(pages)]


def network(reg, weights=1.0):
    prior = retune.priors.WaveletL1("db2", 2)
    with torch.no_grad():
        prior.weights.raw += math.log(weights) * torch.tensor([1.0, -1.0, 0.0])
    return retune.Restarted(retune.ForwardBackward(prior, reg=reg), depth=4, restarts=5).eval()


def contest(problem, measured, tuned, default, **options):
    net, start = tuned, {k: v.clone() for k, v in default.state_dict().items()}
    return compete(net, start, Scene(problem, measured), problem, Sure(problem.sigma), 0, **options)


@pytest.mark.parametrize(("strengths", "winner"), [((0.3, 0.01), TUNED), ((0.01, 0.3), DEFAULT)])
def test_the_better_strength_wins_and_is_left_in_the_network(strengths, winner):
    problem = retune.problems.denoise(SIGMA)
    x, measured = scene(problem)
    nets = [network(reg) for reg in strengths]
    physics = problem.operator(measured[0])
    errors = [float((net(measured[0], physics) - x).square().mean()) for net in nets]
    found = contest(problem, measured, *nets)
    assert found.winner == winner
    assert found.comparison.better == (winner == TUNED)
    kept = strengths[0] if winner == TUNED else strengths[1]
    assert float(found.net.map.reg.value) == pytest.approx(kept)
    names = [rival.name for rival in found.rivals]
    assert names == [DEFAULT, TUNED, EQUAL, MEASURED]
    # The figures are of the restored image, and right within their error.
    true = 10 * math.log10(errors[1] / errors[0])
    told = next(rival for rival in found.rivals if rival.name == TUNED)
    assert abs(told.gain - true) < 3 * told.spread
    assert found.comparison.of == "the restored image"


def test_equal_weights_win_where_the_learned_ones_are_wrong():
    problem = retune.problems.denoise(SIGMA)
    _, measured = scene(problem)
    found = contest(problem, measured, network(0.2, weights=40.0), network(0.01))
    assert found.winner == EQUAL
    weights = found.net.map.priors[0].weights.value
    torch.testing.assert_close(weights, torch.full_like(weights, float(weights.flatten()[0])))
    assert "equal weights is better than the defaults" in gain_in_words(found.comparison, found.winner)


def test_a_restoration_that_harms_loses_to_the_measured_image():
    """A blur that there was not: what is restored is worse than what was measured."""
    x, measured = scene(retune.problems.denoise(0.02))
    fine = 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    problem = retune.problems.deblur("gaussian:1", sigma=0.02)
    found = contest(problem, [measured[0] + fine], network(30.0), network(40.0))
    assert found.measured.better
    assert found.winner == MEASURED
    told = TuneResult(
        loss="SURE",
        sigma=0.02,
        comparison=found.comparison,
        parameters={},
        seconds=1.0,
        certificate=CertifiedImage(),
        winner=found.winner,
        measured=found.measured,
    )
    assert tuning_in_words(told).startswith("The measured image is better than every restoration: +")


def test_pages_of_one_scene_judge_each_other_even_with_a_wrong_noise_level():
    """Stein's estimate with a noise level that is far too small prefers what keeps the noise."""
    problem = retune.problems.denoise(SIGMA)
    x, measured = scene(problem, pages=2)
    wrong = retune.problems.denoise(SIGMA / 4)
    assert contest(wrong, measured[:1], network(0.3), network(0.01)).winner != TUNED
    pages = Scene(wrong, measured)
    assert pages.paged
    found = contest(wrong, measured, network(0.3), network(0.01))
    assert found.winner == TUNED
    assert found.how == "from other pages of the scene"
    net = network(0.3)
    error = float(np.mean([float((net(y, problem.operator(y)) - x).square().mean()) for y in measured]))
    assert abs(found.comparison.after + 10 * math.log10(error)) < 3 * found.comparison.uncertainty


def test_pages_of_other_scenes_and_copies_judge_nothing():
    problem = retune.problems.denoise(SIGMA)
    x, measured = scene(problem, pages=2)
    other = problem.measure(x.flip(-2), 5)[0]
    assert not Scene(problem, [measured[0], other]).paged
    assert not Scene(problem, [measured[0], measured[0].clone()]).paged
    noise = [problem.measure(torch.zeros_like(x), seed)[0] for seed in (1, 2)]
    assert not Scene(problem, noise).paged


def test_better_is_never_said_without_a_figure():
    found = gain_of_errors(torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -4.0]))
    assert (found.gain, found.better) == (None, False)
    before, after = (
        Errors(torch.tensor(m), torch.tensor(r), True)
        for m, r in (([-1.0, 0.0], [4.0, 5.0]), ([-1.0, 0.0], [1.0, 1.0]))
    )
    assert not estimated_gain(before, after, 2.0, "the small image").better
    before, after = (
        Errors(torch.tensor(m), torch.tensor(r), True) for m, r in (([1.0, 1.1], [4.0, 4.1]), ([0.9, 1.0], [1.0, 1.1]))
    )
    found = estimated_gain(before, after, 2.0, "the small image")
    assert found.better
    assert found.again > found.gain > 0
    words = gain_in_words(found, TUNED)
    assert "by restoring the restored image again" in words
    assert "of the small image" in words
    assert "noise-free" not in words
