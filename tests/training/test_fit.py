"""The training loop, and training inside deepinv's own."""

from __future__ import annotations

import math
import warnings

import deepinv
import numpy as np
import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise
from torch.utils.data import DataLoader

import retune
from retune.errors import DivergedError, DoubtfulWarning, InvalidParameterError, ShapeError
from retune.training.fit import parameter_groups


def images(count=3, channels=3, side=40):
    """Smooth random images: restoring them can be learned."""
    coarse = torch.rand(count, channels, 6, 6)
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").clamp(0, 1)


def network(reg=0.02, **options):
    prior = retune.priors.WaveletL12("db2", levels=3, channels=3)
    return retune.Restarted(retune.ForwardBackward(prior, reg=reg), depth=5, restarts=5, **options)


def quick(net, **options):
    given = {"steps": 8, "batch_size": 2, "crop": 24, "progress": False, "device": "cpu"} | options
    return retune.fit(net, images(), retune.problems.inpaint(), **given)


def test_it_learns_and_keeps_the_best_weights():
    net = network()
    result = quick(net, validation=images(1), steps=20, lr=0.1)
    assert not net.training
    assert [v.step for v in result.validation] == [0, 4, 8, 12, 16, 20]
    assert result.best_psnr > result.validation[0].psnr + 1
    assert result.best_psnr == max(v.psnr for v in result.validation)
    assert all(math.isfinite(s.loss) and s.residual >= 0 and s.gradient_error >= 0 for s in result.steps)


def test_the_kept_weights_are_those_of_the_best_step():
    x = images(1)
    net = network()
    result = quick(net, validation=x, steps=10, lr=2.0)  # far too large: it gets worse at some point
    y, physics = retune.problems.inpaint().measure(x, 500_009)
    assert retune.training.evaluate(net, x, y, physics) == pytest.approx(result.best_psnr, abs=1e-4)


def test_the_seed_decides_everything():
    nets = [network(), network(), network()]
    x = images()
    before = torch.get_rng_state()
    options = {"steps": 6, "batch_size": 2, "crop": 24, "progress": False, "device": "cpu"}
    losses = [
        [s.loss for s in retune.fit(n, x, retune.problems.inpaint(), seed=seed, **options).steps]
        for n, seed in zip(nets, (1, 1, 2), strict=True)
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


@pytest.mark.parametrize("rule", [retune.Unrolled(), retune.Truncated(rtol=0.1), retune.Implicit(rtol=0.1)])
def test_every_rule_trains(rule):
    result = quick(network(gradient=rule), steps=12, lr=0.1)
    assert result.steps[-1].loss < result.steps[0].loss


def test_a_plain_deepinv_physics_is_enough():
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.2))
    x = images()
    first = retune.fit(network(), x, physics, steps=2, crop=24, progress=False, device="cpu", seed=3)
    again = retune.fit(network(), x, physics, steps=2, crop=24, progress=False, device="cpu", seed=3)
    assert [s.loss for s in first.steps] == [s.loss for s in again.steps]


def test_a_self_supervised_loss():
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.2))
    loss = deepinv.loss.SureGaussianLoss(sigma=0.2)
    result = retune.fit(
        network(), images(), physics, steps=15, lr=0.2, crop=24, loss=loss, progress=False, device="cpu"
    )
    assert sum(s.loss for s in result.steps[-3:]) < sum(s.loss for s in result.steps[:3])


def test_scalars_and_networks_have_their_own_learning_rates():
    net = network()
    net.map.extra = torch.nn.Linear(2, 2)
    scalars, others = parameter_groups(net, lr=0.1, lr_network=0.001)
    assert scalars["lr"] == 0.1
    assert len(scalars["params"]) == 4  # weights, scale weights, step size, strength
    assert others["lr"] == 0.001
    assert len(others["params"]) == 2


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"crop": 41}, InvalidParameterError, "smallest image side is 40"),
        ({"steps": 0}, InvalidParameterError, "steps"),
        ({"device": "tpu9"}, InvalidParameterError, "tpu9"),
        ({"crop": 7}, retune.errors.TooManyLevelsError, "at most 2"),
    ],
)
def test_bad_input(options, error, says):
    with pytest.raises(error) as caught:
        quick(network(), **options)
    assert says in str(caught.value)


def test_grey_and_colour_are_not_mixed():
    with pytest.raises(ShapeError, match="channels"):
        retune.fit(network(), [torch.rand(3, 30, 30), torch.rand(1, 30, 30)], retune.problems.inpaint(), crop=16)


def test_nothing_to_train():
    net = network()
    net.requires_grad_(False)
    with pytest.raises(InvalidParameterError, match="nothing to train"):
        quick(net)


def test_it_trains_inside_deepinv(tmp_path):
    x = images(4, side=32)
    physics = retune.problems.deblur("gaussian:1", sigma=0.1).physics((3, 32, 32))
    net = network(reg=0.002)
    before = net.map.reg.value.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, about metrics and devices
        trainer = deepinv.Trainer(
            model=net,
            physics=physics,
            train_dataloader=DataLoader(list(x), batch_size=2),
            eval_dataloader=DataLoader(list(x), batch_size=2),
            optimizer=torch.optim.Adam(net.parameters(), lr=0.1),
            losses=deepinv.loss.SupLoss(metric=deepinv.loss.metric.MSE()),
            epochs=4,
            online_measurements=True,
            device="cpu",
            save_path=tmp_path,
            show_progress_bar=False,
            verbose=False,
        )
        trainer.train()
        scores = trainer.test(DataLoader(list(x), batch_size=2))
    losses = [float(v) for v in trainer.train_loss_history] if hasattr(trainer, "train_loss_history") else []
    assert not torch.equal(before, net.map.reg.value)
    assert not losses or losses[-1] < losses[0]
    assert any("PSNR" in k and math.isfinite(float(v)) for k, v in scores.items() if isinstance(v, float | int))


def test_both_learning_rates_fall_by_the_same_factor(monkeypatch):
    net = network()
    net.map.extra = torch.nn.Linear(2, 2)
    seen = []
    original = torch.optim.Adam.step

    def step(self, *args, **kwargs):
        seen.append([g["lr"] for g in self.param_groups])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    quick(net, lr=0.1, lr_network=1e-4)
    assert seen[0] == [0.1, 1e-4]
    assert seen[-1][0] < 0.2 * seen[0][0]
    assert seen[-1][0] / seen[0][0] == pytest.approx(seen[-1][1] / seen[0][1])


def test_nan_is_caught_with_advice_and_what_was_learned_is_kept():
    class Late(deepinv.loss.Loss):
        calls = 0

        def forward(self, x, x_net, **kwargs):
            Late.calls += 1
            return (x_net - x).square().mean((1, 2, 3)) * (torch.nan if Late.calls == 9 else 1.0)

    net = network()
    before = net.map.reg.value.clone()
    with pytest.raises(DivergedError, match=r"step 9.*weights of step 8.*Lower lr"):
        quick(net, steps=10, loss=Late())
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert not torch.equal(before, net.map.reg.value)
    assert not net.training


@pytest.mark.parametrize(
    "loss",
    [
        deepinv.loss.R2RLoss(),
        deepinv.loss.SplittingLoss(),
        deepinv.loss.EILoss(deepinv.transform.Shift()),
    ],
    ids=["R2R", "splitting", "EI"],
)
def test_losses_that_adapt_or_call_the_model(loss):
    physics = deepinv.physics.Inpainting((3, 24, 24), mask=0.6, noise_model=deepinv.physics.GaussianNoise(0.1))
    net = network()
    before = net.map.reg.value.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deepinv's own
        result = retune.fit(net, images(), physics, steps=2, crop=24, loss=loss, progress=False, device="cpu")
    assert all(math.isfinite(s.loss) for s in result.steps)
    assert not torch.equal(before, net.map.reg.value)


@pytest.mark.parametrize("options", [{"validate_every": 0}, {"lr": -1.0}, {"lr_network": float("nan")}])
def test_bad_training_options(options):
    with pytest.raises(InvalidParameterError, match=next(iter(options))):
        quick(network(), **options)


def test_a_torch_device_is_a_device():
    assert quick(network(), steps=1, device=torch.device("cpu")).steps


def test_an_unrolled_network_reports_no_residual_of_an_equilibrium():
    result = quick(network(gradient=retune.Unrolled()), steps=1)
    assert math.isinf(result.steps[0].residual)


def test_a_loss_in_decibels_trains_and_one_without_gradient_is_named():
    metric = deepinv.loss.metric
    net = network()
    result = quick(net, validation=images(1), steps=20, lr=0.1, loss=deepinv.loss.SupLoss(metric.SNR(train_loss=True)))
    assert result.best_psnr > result.validation[0].psnr + 1
    with pytest.raises(InvalidParameterError, match=r"SupLoss\(PSNR\) has no gradient.*use SNR"):
        quick(net, loss=deepinv.loss.SupLoss(metric.PSNR(train_loss=True)))


def denoising_network(gradient=None, **options):
    prior = retune.priors.Denoiser(retune.networks.SmallUNet(3, (4, 6), 1), 0.1, learn_denoiser=True, bfloat16=True)
    return retune.Restarted(retune.ForwardBackward(prior), gradient=gradient, **{"depth": 2, "restarts": 1} | options)


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (denoising_network, {"warm_start": True}, "warm_start requires a relative change of 0.001"),
        (denoising_network, {"stop": retune.Stop(1e-3, 10)}, "stop requires a relative change of 0.001"),
        (lambda: denoising_network(retune.Implicit()), {}, "solves for the gradient to a tolerance"),
        (lambda: denoising_network(retune.Truncated(rtol=0.1)), {}, "solves for the gradient to a tolerance"),
        (lambda: denoising_network(depth="auto"), {}, 'depth="auto"'),
    ],
)
def test_what_bfloat16_cannot_reach_is_refused_at_once(make, options, says):
    with pytest.raises(InvalidParameterError, match=says):
        quick(make(), **options)


def test_bfloat16_trains_without_such_a_tolerance():
    net = denoising_network()
    before = net.map.priors[0].denoiser.tail.weight.clone()
    assert math.isfinite(quick(net, steps=2, stop=retune.Stop(4e-3, 4)).steps[-1].loss)
    assert not torch.equal(before, net.map.priors[0].denoiser.tail.weight)


def test_training_without_autograd_is_named():
    with torch.no_grad(), pytest.raises(InvalidParameterError, match=r"outside torch.no_grad\(\)"):
        quick(network())


UNIT = {"steps": 1, "batch_size": 1, "crop": 8, "progress": False, "device": "cpu"}


@pytest.mark.parametrize(
    ("largest", "doubted"), [(1.0, False), (1.3, False), (3.9, False), (255.0, True), (65535.0, True)]
)
def test_images_on_another_scale_are_doubted(largest, doubted):
    images = torch.rand(2, 1, 16, 16)
    images *= largest / images.max()
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL1("haar", 1)), 2, 1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        retune.fit(net, images, retune.problems.denoise(0.1), **UNIT)
    said = [str(w.message) for w in seen if issubclass(w.category, DoubtfulWarning)]
    assert len(said) == doubted
    if doubted:
        assert "divide images of 0…255 by 255" in said[0]
        assert f"{largest:.4g}" in said[0]


def test_integers_of_0_to_255_are_scaled_without_a_word():
    images = [np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)]
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL1("haar", 1)), 2, 1)
    retune.fit(net, images, retune.problems.denoise(0.1), **UNIT)


@pytest.mark.parametrize("sigma", [25, 25.0, (0.1, 25.0), torch.tensor(25.0)])
def test_a_noise_level_of_0_to_255_is_doubted(sigma):
    with pytest.warns(DoubtfulWarning, match=r"sigma=25 is more noise than .*sigma=25/255 = 0\.0980"):
        retune.problems.denoise(sigma)


def test_a_physics_with_a_noise_level_of_0_to_255_is_doubted():
    physics = Denoising(GaussianNoise(25.0))
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL1("haar", 1)), 2, 1)
    with pytest.warns(DoubtfulWarning, match="sigma=25/255"):
        retune.fit(net, torch.rand(1, 1, 16, 16), physics, **UNIT)
