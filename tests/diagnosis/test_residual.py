"""Residuals of known kinds are called by their names."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d, interpolate

from retune.diagnosis.residual import EDGES, ResidualKind, judge


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kinds(make, count=20):
    return [judge(make(seed)).kind for seed in range(count)]


@pytest.mark.parametrize("shape", [(1, 24, 30), (1, 64, 64), (3, 96, 80)])
def test_white_noise_is_white(shape):
    assert kinds(lambda seed: noise(seed, *shape)) == [ResidualKind.WHITE] * 20


def test_white_noise_with_missing_pixels_is_white():
    for seed in range(10):
        seen = noise(seed + 100, 1, 96, 96) > 0.3
        values = torch.where(seen, noise(seed, 1, 96, 96), torch.nan)
        found = judge(values, seen)
        assert found.kind is ResidualKind.WHITE
        assert found.size == pytest.approx(1, abs=0.1)


def test_a_coarse_structure_below_the_noise_is_found():
    """Of 0.4 standard deviations: it changes the size of the residual by 8 %, and cannot be seen in it."""

    def make(seed):
        structure = interpolate(noise(seed + 50, 1, 1, 12, 12), scale_factor=8, mode="bicubic")[0]
        return noise(seed, 1, 96, 96) + 0.4 * structure / structure.std()

    assert kinds(make) == [ResidualKind.STRUCTURE] * 20
    assert "coarse" in judge(make(0)).sentence


def test_fine_details_are_found_as_fine():
    fine = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])[None, None]

    def make(seed):
        structure = conv2d(noise(seed + 50, 1, 1, 98, 98), fine)[0]
        return noise(seed, 1, 96, 96) + 0.6 * structure / structure.std()

    assert kinds(make) == [ResidualKind.STRUCTURE] * 20
    assert "fine" in judge(make(0)).sentence


def test_a_part_that_was_smoothed_away_is_found():
    """White everywhere, but with more power in a corner, as where texture was taken for noise."""

    def make(seed):
        power = torch.ones(1, 160, 160)
        power[..., :48, :48] = 1.5
        return noise(seed, 1, 160, 160) * power

    assert kinds(make) == [ResidualKind.PLACES] * 20


@pytest.mark.parametrize(("size", "kind"), [(1.3, ResidualKind.LARGE), (0.3, ResidualKind.SMALL)])
def test_another_noise_level_is_no_structure(size, kind):
    assert kinds(lambda seed: size * noise(seed, 1, 64, 64)) == [kind] * 20
    assert judge(size * noise(0, 1, 64, 64)).size == pytest.approx(size, rel=0.05)


def test_a_residual_whose_noise_is_unknown_is_judged_by_its_spectrum_alone():
    found = judge(7 * noise(0, 1, 64, 64), known=False)
    assert found.kind is ResidualKind.WHITE
    assert found.size is None


def test_the_histogram_and_the_spectrum_are_those_of_white_noise():
    found = judge(noise(0, 3, 256, 256))
    width = EDGES[1] - EDGES[0]
    assert sum(found.histogram) * width == pytest.approx(1)
    assert found.histogram[20] == pytest.approx(0.397, abs=0.01)
    assert found.beyond == pytest.approx(0.0027, abs=0.0006)
    assert all(power == pytest.approx(1, abs=0.1) for frequency, power in found.spectrum if frequency > 0.05)
    assert max(frequency for frequency, _ in found.spectrum) < 0.72


def test_too_few_values_and_none_at_all_are_not_judged():
    assert judge(noise(0, 1, 10, 10)).kind is ResidualKind.UNKNOWN
    assert judge(torch.zeros(1, 64, 64)).kind is ResidualKind.UNKNOWN
    assert judge(torch.full((1, 64, 64), torch.nan)).kind is ResidualKind.UNKNOWN
