"""A deepinv physics where a problem is expected."""

import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise

import retune
from retune.errors import DoubtfulWarning, InvalidParameterError
from retune.problems.given import as_problem


def test_a_problem_stays_itself():
    problem = retune.problems.denoise(0.1)
    assert as_problem(problem) is problem


def test_whatever_measures_is_a_problem():
    class Mine:
        def measure(self, x, seed=0):
            return x, None

    mine = Mine()
    assert as_problem(mine) is mine


def test_a_physics_measures_with_its_own_noise_and_the_seed_decides_it():
    physics = Denoising(GaussianNoise(0.1))
    problem, x, before = as_problem(physics), torch.rand(1, 1, 64, 64), torch.get_rng_state()
    y, made = problem.measure(x, 3)
    assert made is physics
    assert float((y - x).std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(problem.measure(x, 3)[0], y)
    assert not torch.equal(problem.measure(x, 4)[0], y)
    assert torch.equal(torch.get_rng_state(), before)
    assert problem.identity() == "Denoising"


def test_its_noise_level_is_looked_at_once_and_the_line_of_the_user_is_named():
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL1("haar", 1)), 1, 1)
    with pytest.warns(DoubtfulWarning, match=r"sigma=25 is more noise") as seen:
        retune.plan(net, (1, 8, 8), 1, problem=Denoising(GaussianNoise(25.0)))
    assert [w.filename for w in seen] == [__file__]


@pytest.mark.parametrize(("given", "kind"), [(3, "int"), (retune.problems.Denoise, "Denoise")])
def test_what_is_neither_is_refused(given, kind):
    with pytest.raises(InvalidParameterError, match=rf"problems or a deepinv LinearPhysics, got {kind}"):
        as_problem(given)
