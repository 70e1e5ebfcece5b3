"""What the sections [prior] and [optimiser] say of the training of a denoiser."""

from __future__ import annotations

import torch
from deepinv.loss.metric import SNR

from retune import build, config
from retune.jobs.train import loss_of
from retune.training.penalty import JacobianPenalty


def test_decibels_and_the_penalty_on_them():
    x, found = torch.full((2, 1, 4, 4), 0.5), torch.full((2, 1, 4, 4), 0.4)
    found[1] = 0.49
    assert loss_of(config.from_dict({}).optimiser) is None
    loss = loss_of(config.from_dict({"optimiser": {"loss": "snr"}}).optimiser)
    torch.testing.assert_close(loss(x=x, x_net=found), -SNR()(found, x))
    both = config.from_dict({"prior": {"type": "denoiser"}, "optimiser": {"loss": "snr", "penalty": 0.1}})
    penalty = loss_of(both.optimiser)
    assert isinstance(penalty, JacobianPenalty)
    torch.testing.assert_close(penalty.loss(x=x, x_net=found), loss(x=x, x_net=found))


def test_bfloat16_of_a_denoiser():
    run = config.from_dict({"prior": {"type": "denoiser", "bfloat16": True, "learn_weights": True}})
    assert build.network_of(run, 1).map.priors[0].trains_in_bfloat16 is True
    red = config.from_dict({"prior": {"type": "red", "bfloat16": True}})
    assert build.network_of(red, 1).map.prior.trains_in_bfloat16 is True
