"""Paired differences of scores."""

import math

import numpy as np
import pytest
from scipy import stats

from retune.comparison.paired import paired
from retune.errors import InvalidParameterError


def test_the_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    b = rng.normal(28, 3, size=12)
    a = b + rng.normal(0.3, 0.2, size=12)
    found, known = paired([a], [b]), stats.ttest_rel(a, b).confidence_interval(0.95)
    assert found.mean == pytest.approx((a - b).mean())
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert found.seeds == pytest.approx(((a - b).mean(),))


def test_the_seeds_of_an_image_are_no_further_images():
    """Each image three times: the interval is that of one seed, not a narrower one."""
    a, b = [30.0, 31.0, 35.0], [29.5, 30.8, 34.1]
    one, three = paired([a], [b]), paired([a] * 3, [b] * 3)
    assert (three.low, three.high) == pytest.approx((one.low, one.high))
    assert len(three.seeds) == 3


def test_ahead_needs_the_interval_and_every_seed():
    b = [[28.0, 30.0, 26.0]] * 2
    ahead = [[28.5, 30.4, 26.6]] * 2
    mixed = [[29.5, 31.4, 27.6], [27.9, 29.9, 25.9]]
    assert paired(ahead, b).ahead
    assert paired(b, ahead).behind
    assert paired(mixed, b).low > 0
    assert not paired(mixed, b).ahead
    assert not paired(b, mixed).behind
    assert not paired(b, b).ahead


def test_one_image_has_no_interval():
    found = paired([[30.0], [31.0]], [[29.0], [29.5]])
    assert found.mean == pytest.approx(1.25)
    assert math.isinf(found.high)
    assert not found.ahead


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        ([[1.0, 2.0]], [[1.0]], "same seeds and images"),
        ([1.0, 2.0], [1.0, 2.0], "seed by seed"),
        ([], [], "same seeds"),
        ([[1.0, math.nan]], [[1.0, 2.0]], "not finite"),
    ],
)
def test_what_cannot_be_paired(a, b, says):
    with pytest.raises(InvalidParameterError, match=says):
        paired(a, b)
