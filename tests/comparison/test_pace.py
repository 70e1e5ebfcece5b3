"""The time of a training step."""

import pytest
import torch

from retune.comparison.pace import Clocked


def clocked(times):
    loss = Clocked(None, iter(times).__next__)
    for _ in times:
        value = loss(x_net=torch.ones(1), x=torch.zeros(1))
    assert value == pytest.approx(1.0)  # the mean squared error
    return loss


def test_a_pause_for_validation_does_not_count():
    loss = clocked([0.0, 2.0, 4.0, 60.0, 62.0])
    assert loss.step == 2.0
    assert loss.steps_in(9.0) == 4


def test_a_training_has_two_steps_at_least():
    assert clocked([0.0, 1.0]).steps_in(0.1) == 2
