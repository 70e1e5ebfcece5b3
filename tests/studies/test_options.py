"""The options of a study, and the cells of equal cost."""

from __future__ import annotations

import pytest

from retune.errors import InvalidParameterError
from retune.records import StepCost
from retune.studies import StudyOptions
from retune.studies.race import equal_cost


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"depths": (0, 1)}, "depths must be whole numbers ≥ 1"),
        ({"restarts": (-1,)}, "restarts must be whole numbers ≥ 0"),
        ({"restarts": ()}, "at least one"),
        ({"crop": 0}, "crop must be at least 1"),
        ({"train_seconds": -1}, "train_seconds must be finite and ≥ 0"),
    ],
)
def test_bad_options_are_named(given, says):
    with pytest.raises(InvalidParameterError, match=says):
        StudyOptions(**given)


def test_depths_are_multiples_of_the_cycle():
    assert StudyOptions().depths_for(1) == (1, 2, 5, 10, 20, 50)
    assert StudyOptions().depths_for(4) == (4, 20)
    assert StudyOptions(depths=(4, 2)).depths_for(2) == (2, 4)
    with pytest.raises(InvalidParameterError, match="multiples of the map's cycle of 2 layers, got 5"):
        StudyOptions(depths=(2, 5)).depths_for(2)


def test_cells_of_equal_cost():
    """A differentiated layer takes 3 units, one without graph 1 unit: K = 10, R = 9 takes 120."""
    costs = [
        StepCost(depth=k, restarts=r, seconds=3.0 * k + k * r, memory=k) for k in (1, 5, 10, 20, 50) for r in (0, 25)
    ]
    assert equal_cost(costs, 10, 9) == [(5, 21), (20, 3)]
    assert equal_cost(costs, 20, 0) == [(10, 3)]  # 50 layers are too dear
    assert equal_cost([], 10, 10) == []
