"""Small images get a single thread where idle threads sleep."""

import pytest
import torch

from retune._torch.threads import SMALL, suited_threads


@pytest.fixture
def two():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


SLEEPS = {"OMP_WAIT_POLICY": "passive"}


@pytest.mark.parametrize(
    ("values", "environment", "threads"),
    [
        (SMALL - 1, SLEEPS, 1),
        (SMALL, SLEEPS, 2),
        (10, {}, 2),
        (10, {"OMP_WAIT_POLICY": "ACTIVE"}, 2),
        (10, SLEEPS | {"OMP_NUM_THREADS": "2"}, 2),
    ],
)
def test_threads_for_a_size(values, environment, threads, two):
    with suited_threads(values, environment):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


def test_an_error_gives_the_threads_back(two):
    with pytest.raises(ZeroDivisionError), suited_threads(10, SLEEPS):
        _ = 1 / 0
    assert torch.get_num_threads() == 2
