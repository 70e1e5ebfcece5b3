"""Restoration at once: noise alone."""

import numpy as np
import pytest

import retune
from retune.data import grey, photograph


def psnr(x, truth):
    return -10 * np.log10(((x - truth) ** 2).mean())


@pytest.fixture(scope="module")
def sharp():
    return grey(photograph("camera"))[0, 100:164, 180:244].numpy()


def test_noise_is_removed_and_the_unit_of_the_file_does_not_matter(sharp):
    noise = np.random.default_rng(0).normal(size=sharp.shape)
    y = (sharp + 0.1 * noise).astype(np.float32)
    x = retune.restore(y, retune.problems.denoise(sigma=0.1))
    assert psnr(x, sharp) > psnr(y, sharp) + 5
    dim = retune.restore(y / 20, retune.problems.denoise(sigma=0.1 / 20))
    assert np.allclose(20 * dim, x, atol=1e-3)


def test_noise_of_counts_is_removed_in_dark_and_bright_parts(sharp):
    counts = np.random.default_rng(1).poisson(sharp * 40) / 40
    noise = retune.problems.PoissonGaussian(1 / 40)
    x = retune.restore(counts.astype(np.float32), retune.problems.denoise(noise=noise))
    for part in (sharp < 0.3, sharp > 0.5):
        assert psnr(x[part], sharp[part]) > psnr(counts[part], sharp[part]) + 3
    assert abs(x.mean() - sharp.mean()) < 0.01


def test_one_layer_is_the_equilibrium(sharp):
    import torch

    from retune.config import Config
    from retune.instant import instant_network

    y = torch.from_numpy(sharp)[None, None]
    problem = retune.problems.denoise(sigma=0.05)
    net, _ = instant_network(Config(), problem, y)
    found = net.solve(y, problem.operator(y))
    assert found.status[0].value == "converged"
    assert found.residual.max() < 1e-6
