"""The transform that makes the noise of counts even, and its inverse."""

import pytest
import torch
from torch import nn

from retune.networks.stabilised import Stabilised


class Same(nn.Module):
    def forward(self, x, sigma):
        return x


class Mean(nn.Module):
    """The mean of an image: a denoiser that is right for constant images."""

    def forward(self, x, sigma):
        self.deviation, self.sigma = x.std(), sigma
        return x.mean((-2, -1), keepdim=True).expand(x.shape)


LEVELS = (1e-4, 1.0)


@pytest.mark.parametrize(("gain", "read", "level"), [(0.01, 0.0, 0.05), (0.01, 0.02, 0.2), (1e-3, 0.02, 0.0)])
def test_constant_images_keep_their_mean_and_the_noise_is_even(gain, read, level):
    g = torch.Generator().manual_seed(0)
    y = gain * torch.poisson(torch.full((1, 1, 400, 400), level / gain), generator=g)
    y = y + read * torch.randn(y.shape, generator=g)
    mean = Mean()
    x = Stabilised(mean, (gain,), (read,), levels=LEVELS)(y)
    error = (gain * level + read**2) ** 0.5 / 400
    assert abs(x.mean().item() - level) < 5 * error + 0.02 * gain
    assert mean.deviation / mean.sigma == pytest.approx(1, abs=0.05)


def test_one_level_of_noise_is_a_change_of_unit():
    y = torch.rand(2, 3, 8, 8) - 0.1
    assert torch.allclose(Stabilised(Same(), (0.0,), (0.1, 0.2, 0.3), levels=LEVELS)(y), y, atol=1e-6)


def test_each_channel_alone_and_the_offset_of_the_camera():
    seen = []

    class Kept(nn.Module):
        def forward(self, x, sigma):
            seen.append(x)
            return x

    y = torch.rand(2, 3, 8, 8) + 0.5
    made = Stabilised(Kept(), (0.0,), (0.1,), offset=0.5, white=1.0, levels=LEVELS, each_channel=True)
    assert torch.allclose(made(y), y - 0.5, atol=1e-6)
    assert seen[0].shape == (6, 1, 8, 8)
    assert torch.allclose(seen[0].reshape(y.shape), y - 0.5, atol=1e-6)
