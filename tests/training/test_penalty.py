"""The Jacobian penalty: the norm of a known denoiser at every noise level of a cycle, and what training makes of it."""

from __future__ import annotations

import deepinv
import pytest
import torch
from torch import nn

import retune
from retune.errors import InvalidParameterError
from retune.networks import RidgeDenoiser
from retune.priors import Denoiser, Ridge
from retune.training.penalty import JacobianPenalty
from retune.training.settings import called
from small_parts import rand


class Gain(nn.Module):
    """``D_σ(x) = w σ x``: its Jacobian has norm ``w σ``."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x, sigma):
        return self.weight * sigma.view(-1, 1, 1, 1) * x


def network(sigma, layers=1, weight=17.0):
    prior = Denoiser(Gain(weight), sigma, learn_denoiser=True, learn_sigma=False)
    return retune.Restarted(retune.ForwardBackward(prior, step_size=0.5, layers=layers), depth=2, restarts=1)


@pytest.mark.parametrize(("sigma", "layers"), [([0.1], 1), ([0.05, 0.1], 2), ([0.1, 0.05], 2), ([0.02, 0.1], 2)])
def test_the_penalty_is_that_of_every_layer(sigma, layers, float64):
    net = network(sigma if layers > 1 else sigma[0], layers)
    x = rand(2, 1, 5, 6)
    loss = JacobianPenalty(weight=2.0, margin=0.05)
    value = loss(x_net=x, x=x, model=net)
    expected = 2.0 * sum(max(17 * s, 0.95) for s in sigma) / len(sigma)  # no error: the image is the ground truth
    torch.testing.assert_close(value.detach(), torch.full((2,), expected))
    value.sum().backward()
    slope = 2 * 2.0 * sum(s for s in sigma if 17 * s > 0.95) / len(sigma)
    assert float(net.map.priors[0].denoiser.weight.grad) == pytest.approx(slope)


def test_training_with_it_ends_at_a_lower_norm(float64):
    images = rand(2, 3, 8, 8).abs().clamp(0, 1)
    problem = retune.problems.Inpaint(keep=0.5, sigma=0.05)
    norms = []
    for loss in (None, JacobianPenalty(weight=10.0)):
        net = network(0.1, weight=11.0)
        retune.fit(net, images, problem, steps=15, batch_size=2, crop=8, lr_network=0.2, loss=loss, progress=False)
        norms.append(float(net.map.priors[0].denoiser.weight.detach()) * 0.1)
    assert norms[1] < norms[0] - 0.02


def test_what_it_cannot_penalise_is_said():
    x = torch.rand(1, 1, 12, 12)
    loss = JacobianPenalty()
    plain = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL1("haar", 1)))
    with pytest.raises(InvalidParameterError, match="needs a network with a denoiser"):
        loss(x_net=x, x=x, model=plain)
    ridge = Denoiser(RidgeDenoiser(Ridge(1, (3, 4), (3, 2))), 0.1)
    with pytest.raises(InvalidParameterError, match="RidgeDenoiser does not allow"):
        loss(x_net=x, x=x, model=retune.Restarted(retune.ForwardBackward(ridge)))
    for options in ({"weight": 0.0}, {"margin": 1.0}, {"iterations": 0}):
        with pytest.raises(InvalidParameterError, match=next(iter(options))):
            JacobianPenalty(**options)


def test_a_loss_beside_it_without_gradient_is_named():
    net, x = network(0.1), rand(2, 1, 5, 6)
    loss = JacobianPenalty(loss=deepinv.loss.SupLoss(deepinv.loss.metric.PSNR(train_loss=True)))
    with pytest.raises(InvalidParameterError, match="minimise the penalty only"):
        loss(x_net=x.clone().requires_grad_(), x=x, model=net)


def test_a_run_notes_its_weight_and_the_loss_in_it():
    """By this, a run is not continued with another weight; these words are in the folders of runs."""
    assert called(JacobianPenalty(0.02)) == "JacobianPenalty(0.02 SupLoss(MSE))"
    assert called(deepinv.loss.SupLoss(metric=deepinv.loss.metric.MSE())) == "SupLoss(MSE)"
