"""The strength of total variation that ReTune learns is that of a grid search."""

import pytest
import torch

import retune
from retune import PrimalDual, Restarted, Stop
from retune.data import grey, photograph
from retune.priors import TV
from retune.problems import deblur, denoise
from retune.training import FitOptions, TrainingData

PROBLEMS = {"noise": denoise(0.1), "blur": deblur(kernel="gaussian:1.0", sigma=0.02)}
#: A start far from the best λ.
STARTS = {"noise": 0.7, "blur": 0.05}
GRID = [10 ** (-k / 3) for k in range(1, 11)]  # from 0.5 down to 5e-4


def mean_psnr(reg, x, y, physics):
    net = Restarted(PrimalDual(TV(), reg=reg), depth=10, stop=Stop(1e-3, 300)).eval()
    errors = (net.solve(y, physics).image - x).square().flatten(1).mean(1)
    return float(-10 * errors.log10().mean())


@pytest.mark.parametrize("name", PROBLEMS)
def test_its_psnr_is_within_a_hundredth_of_the_best_of_a_grid(name):
    whole = grey(photograph("chelsea"))
    x = torch.stack([whole[:, r : r + 16, c : c + 16] for r, c in ((80, 100), (120, 200))])
    map_ = PrimalDual(TV(), reg=STARTS[name], learn_step_size=False, learn_balance=False)
    net = Restarted(map_, depth=10, restarts=8)
    options = FitOptions(steps=20, batch_size=4, crop=16, lr=0.3, progress=False)
    retune.fit(net, TrainingData(x, PROBLEMS[name]), options)
    x = x.repeat(3, 1, 1, 1)
    pair = (x, *PROBLEMS[name].measure(x, 50))
    grid = {reg: mean_psnr(reg, *pair) for reg in GRID}
    best = max(grid, key=grid.__getitem__)
    assert min(GRID) < best < max(GRID)
    assert mean_psnr(float(map_.reg.value), *pair) >= 0.99 * grid[best]
    assert mean_psnr(STARTS[name], *pair) < 0.98 * grid[best]  # so that the line above can fail
