"""Counts kept away from a restoration judge it: no correlation, no bias, whatever the read noise and the offset."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import retune
from retune.errors import InvalidParameterError
from retune.problems import PoissonGaussian
from retune.training.thinned import Thinned, against, thin

NOISES = [
    PoissonGaussian(0.02),
    PoissonGaussian(0.02, 0.03, 0.1),
    PoissonGaussian((0.02, 0.0, 0.005), (0.0, 0.05, 0.02)),
]


class Smoother(nn.Module):
    """The mean of neighbours: linear, with a bias at the border only."""

    def forward(self, y, physics):
        return (y + y.roll(1, -1) + y.roll(1, -2)) / 3


def scene(noise, side=256, batch=1):
    channels = 3 if isinstance(noise.gain, tuple) else 1
    rows = torch.linspace(0, 3, side)
    x = (0.5 + 0.4 * torch.sin(rows[:, None] + rows)).expand(batch, channels, side, side).contiguous()
    problem = retune.problems.denoise(noise=noise)
    y, physics = problem.measure(x, 1)
    return x, y, physics


@pytest.mark.parametrize("kept", [0.5, 0.9])
@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_the_parts_have_the_mean_of_the_whole_and_no_correlation(noise, kept):
    x, y, _ = scene(noise)
    torch.manual_seed(0)
    parts = [part - x - noise.offset for part in thin(y, noise, kept)]
    for part, share in zip(parts, (kept, 1 - kept), strict=True):
        known = noise.variance(y).mean((0, 2, 3)) / share
        assert part.mean((0, 2, 3)).abs().max() < 5 * (known.max() / x[0, 0].numel()) ** 0.5
        torch.testing.assert_close(part.var((0, 2, 3)), known, rtol=0.03, atol=0)
    product = parts[0] * parts[1]
    assert (product.mean((0, 2, 3)).abs() < 5 * product.std((0, 2, 3)) / x[0, 0].numel() ** 0.5).all()
    whole = noise.offset + kept * (parts[0] + x) + (1 - kept) * (parts[1] + x)
    torch.testing.assert_close(whole, y, rtol=0, atol=1e-4)


def test_counts_without_read_noise_stay_counts():
    noise = PoissonGaussian(0.02)
    _, y, _ = scene(noise)
    part, rest = (p / noise.gain for p in thin(y, noise, 0.5))
    assert (0.5 * part).round().sub(0.5 * part).abs().max() < 1e-3
    assert min(float(part.min()), float(rest.min())) >= -1e-3


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_the_error_is_estimated_without_bias(noise):
    gaps = []
    x, y, physics = scene(noise, 64, batch=24)
    torch.manual_seed(0)
    loss, size = Thinned(noise), 0.0
    model = loss.adapt_model(Smoother())
    for _ in range(4):
        found = model(y, physics)
        # Without the offset the smoother is wrong by it; the estimate must say so.
        truth = (found - x).square().flatten(1).mean(1)
        gaps.append(Thinned(noise)(x_net=found, y=y, physics=physics, model=model) - truth)
        size = truth.mean()
    gap = torch.stack(gaps).mean(0)
    assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5
    assert gap.std() / len(gap) ** 0.5 < 0.1 * size  # otherwise the line above says nothing
    # The size of the error is Stein's estimate, with all counts and less noise.
    truth = (Smoother()(y, physics) - x).square()
    measured, _ = loss.maps(model(y, physics), y, physics, model)
    steins = (measured - truth).flatten(1).mean(1)
    assert abs(steins.mean()) < 4 * steins.std() / len(steins) ** 0.5
    assert steins.std() < gap.std() * 2


def test_another_page_needs_no_noise_level():
    x, y, physics = scene(PoissonGaussian(0.02, 0.03), 64, batch=24)
    other, _ = retune.problems.denoise(noise=PoissonGaussian(0.02, 0.03)).measure(x, 2)
    found = Smoother()(y, physics)
    gap = (against(found, y, other) - (found - x).square()).flatten(1).mean(1)
    assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5
    assert gap.std() / len(gap) ** 0.5 < 0.1 * (found - x).square().mean()


def test_what_is_wrong_is_said():
    with pytest.raises(InvalidParameterError, match=r"share in \(0, 1\)"):
        Thinned(NOISES[0], 1.0)
    model = Thinned(NOISES[0]).adapt_model(Smoother())
    with pytest.raises(InvalidParameterError, match="call the adapted model"):
        model.split(torch.zeros(1, 1, 4, 4))
