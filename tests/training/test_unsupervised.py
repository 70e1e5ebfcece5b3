"""Estimates of the error without ground truth: unbiased, and deepinv's where deepinv has them."""

from __future__ import annotations

import deepinv as dinv
import pytest
import torch
from deepinv.loss import EILoss
from deepinv.physics import LinearPhysics
from deepinv.transform import Shift
from torch import nn

import retune
from retune.data import photograph
from retune.errors import InvalidParameterError, ShapeError
from retune.problems.measured import Measurements
from retune.training.unsupervised import Sure, SureEquivariant, SureSplit, recorrupted
from small_parts import rand


class Smoother(nn.Module):
    """``f(y) = s Aᵀy``: linear, so that Stein's divergence is exact for any step."""

    def __init__(self, strength=0.6):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength, dtype=torch.float64))

    def forward(self, y, physics):
        back = physics.A_adjoint(y)
        return self.strength * (back + back.roll(1, -1)) / 2


def scene(channels=3, side=64, batch=2):
    rows = torch.linspace(0, 3, side, dtype=torch.float64)
    image = 0.5 + 0.4 * torch.sin(rows[:, None] + rows)
    return image.expand(batch, channels, side, side).contiguous()


@pytest.mark.parametrize(("sigma", "levels"), [(0.1, 0.1), ((0.05, 0.1, 0.3), (0.05, 0.1, 0.3))])
@pytest.mark.parametrize("problem", ["denoise", "deblur"])
def test_steins_estimate_is_unbiased(problem, sigma, levels):
    options = {"kernel": "gaussian:1"} if problem == "deblur" else {}
    made = retune.problems.get(problem, sigma=sigma, **options)
    x, model, gaps = scene(batch=8), Smoother(), []
    torch.manual_seed(0)
    for seed in range(6):
        y, physics = made.measure(x, seed)
        found = model(y, physics)
        truth = (physics.A(found) - physics.A(x)).square().flatten(1).mean(1)
        gaps.append(Sure(levels)(x_net=found, y=y, physics=physics, model=model) - truth)
        size = truth.mean()
    gap = torch.cat(gaps)
    assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5 + 1e-6
    assert gap.std() < 0.2 * size  # otherwise the line above says nothing


def test_for_one_level_it_is_deepinvs():
    y, physics = retune.problems.denoise(0.1).measure(scene())
    model, values = Smoother(), []
    for loss in (Sure(0.1), dinv.loss.SureGaussianLoss(0.1, tau=0.01)):
        torch.manual_seed(3)
        values.append(loss(x_net=model(y, physics), y=y, physics=physics, model=model))
    torch.testing.assert_close(*values, rtol=1e-9, atol=1e-12)


def test_its_gradient_is_that_of_the_true_error():
    """Of many images, so that chance is small: the strength that both ask for is nearly the same."""
    x = scene(side=128, batch=6)
    y, physics = retune.problems.denoise(0.3).measure(x, 1)
    model = Smoother()
    torch.manual_seed(0)
    grads = []
    for error in (
        Sure(0.3)(x_net=model(y, physics), y=y, physics=physics, model=model).mean(),
        (model(y, physics) - x).square().mean(),
    ):
        grads.append(torch.autograd.grad(error, model.strength)[0])
    assert abs(grads[0] - grads[1]) < 0.03 * abs(grads[1])


def test_where_pixels_are_missing_the_whole_image_is_estimated():
    x, gaps = scene(batch=8), []
    torch.manual_seed(0)
    for seed in range(6):
        y, physics = retune.problems.inpaint(0.6, 0.1).measure(x, seed)
        loss = SureSplit(0.1)
        model = loss.adapt_model(Smoother())
        found = model(y, physics)
        estimate = loss(x_net=found, y=y, physics=physics, model=model)
        _, _, shown = model.shown(y)
        hidden = (physics.mask - shown.mask).expand_as(y)
        seen, missing = shown.mask.expand_as(y), 1 - physics.mask.expand_as(y)
        error, share = (found - x).square(), physics.mask.expand_as(y).mean((1, 2, 3))
        # what is hidden stands for what is missing: for this model both have the same error
        truth = share * (error * seen).sum((1, 2, 3)) / seen.sum((1, 2, 3))
        truth = truth + (1 - share) * (error * (hidden + missing)).sum((1, 2, 3)) / (hidden + missing).sum((1, 2, 3))
        gaps.append(estimate - truth)
        size = truth.mean()
    gap = torch.cat(gaps)
    assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5 + 1e-6
    assert gap.std() < 0.3 * size


class Scaling(nn.Module):
    """``f(y) = s y``."""

    def forward(self, y, physics):
        return 0.7 * y


def test_the_error_of_restoring_again_is_added():
    """Of ``s y`` at noise σ, a scene z has the mean squared error ``(1 − s)² z² + s² σ²``, however it is shifted."""
    y, physics = retune.problems.denoise(0.1).measure(scene(batch=4))
    model, values = Scaling(), []
    for loss in (SureEquivariant(0.1), SureEquivariant(0.1), Sure(0.1)):
        torch.manual_seed(5)
        values.append(loss(x_net=model(y, physics), y=y, physics=physics, model=model))
    again = 0.3**2 * model(y, physics).square().flatten(1).mean(1) + 0.7**2 * 0.1**2
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)
    torch.testing.assert_close(values[0] - values[2], again, rtol=0.1, atol=0)


def test_restoring_again_sees_what_was_not_measured():
    """Stein's estimate alone takes a strength for a small image that leaves its enlargement rough."""
    x = photograph("chelsea")[None, :, 60:132, 130:202]
    problem = retune.problems.superres(2, sigma=0.01)
    y, physics = problem.measure(x, 1)
    prior = retune.priors.WaveletL12("db4", 3, margin=8)
    errors = {"truth": [], "sure": [], "again": []}
    for strength in (0.001, 0.01, 0.1):
        step = retune.ForwardBackward(prior, reg=strength)
        net = retune.Restarted(step, restarts=30, solver=retune.Inertial()).eval()
        with torch.no_grad():
            found = net(y, physics)
            errors["truth"].append((found - x).square().mean())
            for name, loss in (("sure", Sure(0.01)), ("again", SureEquivariant(0.01))):
                torch.manual_seed(0)
                errors[name].append(loss(x_net=found, y=y, physics=physics, model=net).mean())
    best = {name: min(range(3), key=values.__getitem__) for name, values in errors.items()}
    assert best == {"truth": 1, "sure": 0, "again": 1}


@pytest.mark.parametrize("unit", [30.0, 0.03])
def test_restoring_again_counts_alike_in_any_unit(unit, float64):
    """Of ``c A`` with noise ``c σ``, every error is c² times that of A with noise σ."""
    x, errors = scene(batch=1, side=33), []
    for c in (1.0, unit):
        y, physics = retune.problems.superres(2, sigma=0.0).measure(x[..., :32, :32], 1)
        own = LinearPhysics(
            A=lambda x, c=c, p=physics, **_: c * p.A(x), A_adjoint=lambda y, c=c, p=physics, **_: p.A_adjoint(y) / c
        )
        model, loss = Smoother(), SureEquivariant(0.1 * c)
        torch.manual_seed(2)
        errors.append(loss(x_net=model(c * y, own), y=c * y, physics=own, model=model) / c**2)
    torch.testing.assert_close(*errors)


@pytest.mark.parametrize("factor", [2, 3])
def test_the_estimate_is_the_mean_of_its_map(factor, float64):
    """Also where the pixels of the image do not divide into those of the measurement."""
    y, physics = retune.problems.superres(factor, sigma=0.1).measure(scene(side=65, batch=1)[..., :64, :64], 1)
    model = Smoother()
    values = {}
    for loss in (Sure(0.1), SureEquivariant(0.1)):
        torch.manual_seed(3)
        values[type(loss)] = loss(x_net=model(y, physics), y=y, physics=physics, model=model)
    torch.manual_seed(3)
    again = EILoss(Shift(), apply_noise=False)
    again.T.rng.manual_seed(int(torch.randint(2**62, ())))
    found = model(y, physics)
    second = again(found, physics, lambda y, p: model(y + 0.1 * torch.randn_like(y), p))
    second = second * physics.A(found).square().sum() / found.square().sum()
    torch.manual_seed(3)
    torch.randint(2**62, ())
    torch.randn_like(y)
    first = Sure(0.1)(x_net=found, y=y, physics=physics, model=model)
    torch.testing.assert_close(values[SureEquivariant], first + second)


def test_recorruption_per_channel_needs_one_call():
    x = scene()
    y, physics = retune.problems.denoise((0.05, 0.1, 0.3)).measure(x)
    loss = recorrupted((0.05, 0.1, 0.3))
    model = loss.adapt_model(Smoother())
    torch.manual_seed(0)
    model(y, physics, update_parameters=True)
    added = (model.get_corruption() - y).std((0, 2, 3))
    torch.testing.assert_close(added, torch.tensor([0.05, 0.1, 0.3]).double() * (0.15 / 0.85) ** 0.5, rtol=0.05, atol=0)


@pytest.mark.parametrize("sigma", [0.0, (0.1, 0.0)])
def test_without_noise_there_is_nothing_to_tell(sigma):
    with pytest.raises(InvalidParameterError, match="above 0"):
        Sure(sigma)


def test_levels_for_other_channels_are_refused():
    y, physics = retune.problems.denoise(0.1).measure(scene(channels=2))
    with pytest.raises(ShapeError, match="3 channels"):
        Sure((0.1, 0.1, 0.1))(x_net=y, y=y, physics=physics, model=Smoother())


def test_a_crop_of_a_blurred_image_is_a_valid_blur():
    blur = retune.problems.deblur("motion:7@20", sigma=0.0)
    x = rand(1, 1, 40, 44)
    y, _ = blur.measure(x)
    made = Measurements(blur)
    part, physics = made.measure(made.pack(y)[None, :, 10:26, 8:28])
    rows, cols = blur.kernel.shape[-2] // 2, blur.kernel.shape[-1] // 2
    around = x[..., 10 - rows : 26 + rows, 8 - cols : 28 + cols]
    torch.testing.assert_close(physics.A(around), part, rtol=1e-5, atol=1e-5)
    assert not made.can_flip


def test_a_crop_of_a_masked_image_takes_its_mask_along():
    mask = (torch.rand(20, 24, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    made = Measurements(retune.problems.inpaint(mask=mask, sigma=0.1))
    y = rand(1, 3, 20, 24)
    crops = torch.stack([made.pack(y)[:, 2:10, 3:11], made.pack(y)[:, 5:13, 7:15].flip(-1)])
    part, physics = made.measure(crops)
    torch.testing.assert_close(part[0], (y * mask)[0, :, 2:10, 3:11])
    torch.testing.assert_close(physics.mask[1, 0], mask[5:13, 7:15].flip(-1).to(physics.mask))
    with pytest.raises(InvalidParameterError, match="--mask FILE"):
        Measurements(retune.problems.inpaint(0.5))
