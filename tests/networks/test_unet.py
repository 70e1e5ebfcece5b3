"""The small U-Net: any size, homogeneous, one noise level per image."""

from __future__ import annotations

import pytest
import torch

from retune.errors import InvalidParameterError, ShapeError
from retune.networks import SmallUNet
from small_parts import rand


def small(channels=1, **options):
    torch.manual_seed(0)
    return SmallUNet(channels, **({"features": (6, 8, 10), "blocks": 1} | options)).eval()


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 8), (13, 32), (2, 17)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size(channels, size):
    x = rand(2, channels, *size)
    out = small(channels)(x, 0.1)
    assert out.shape == x.shape
    assert bool(torch.isfinite(out).all())
    assert not torch.allclose(out, x)


@pytest.mark.parametrize("t", [0.2, 7.0])
def test_homogeneous(t, float64):
    net, x = small(3), rand(2, 3, 9, 11)
    torch.testing.assert_close(net(t * x, t * 0.1), t * net(x, 0.1), rtol=0, atol=1e-12)


def test_every_form_of_a_noise_level(float64):
    net, x = small(), rand(2, 1, 9, 8)
    expected = net(x, 0.1)
    same = torch.tensor([0.1, 0.1])
    for sigma in (torch.tensor(0.1), torch.tensor([0.1]), same, same.view(2, 1, 1, 1), same.float().double()):
        torch.testing.assert_close(net(x, sigma), expected, rtol=0, atol=1e-7)
    assert net(x, 0).shape == net(x, 1).shape == x.shape
    assert not torch.allclose(net(x, 0.2), expected)


def test_noise_level_per_image(float64):
    net, x = small(), rand(3, 1, 10, 7)
    sigma = torch.tensor([0.0, 0.05, 0.2])
    together = net(x, sigma)
    for k in range(3):
        torch.testing.assert_close(together[k], net(x[k : k + 1], float(sigma[k]))[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_size_and_gradients(channels):
    """At most a million parameters, no bias, and every weight is trained by the output."""
    net = SmallUNet(channels)
    assert 500_000 < sum(p.numel() for p in net.parameters()) <= 1_000_000
    assert not [name for name, _ in net.named_parameters() if "bias" in name]
    sigma = torch.tensor(0.1, requires_grad=True)
    x = rand(1, channels, 16, 16).requires_grad_()
    net(x, sigma).square().sum().backward()
    assert float(sigma.grad.abs()) > 0
    assert float(x.grad.abs().sum()) > 0
    for name, p in net.named_parameters():
        assert float(p.grad.abs().sum()) > 0, name


def test_description_rebuilds_it():
    net = small(3)
    given = {k: v for k, v in net.describe().items() if k != "type"}
    again = SmallUNet(**given)
    again.load_state_dict(net.state_dict())
    x = rand(1, 3, 9, 9)
    assert torch.equal(again(x, 0.1), net(x, 0.1))


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        (-0.1, "finite number ≥ 0.*got -0.1"),
        (float("nan"), "finite number ≥ 0.*got nan"),
        ("0.1", "sigma must be a number, got '0.1'"),
        ([0.1, 0.2], "sigma must be a number"),
        (torch.tensor([0.1, -0.2]), "finite and ≥ 0.*from -0.2"),
        (torch.tensor([0.1, torch.inf]), "finite and ≥ 0"),
        (torch.rand(3), r"one per image of the batch of 2, got shape \(3,\)"),
        (torch.rand(2, 1, 9, 8), r"got shape \(2, 1, 9, 8\)"),
        (torch.rand(1, 2), r"got shape \(1, 2\)"),
    ],
)
def test_bad_noise_levels(sigma, message):
    with pytest.raises(InvalidParameterError, match=message):
        small()(rand(2, 1, 9, 8), sigma)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 8, 8), (8, 8)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(ShapeError, match=r"1 channel\(s\).*got \("):
        small()(rand(*shape), 0.1)


@pytest.mark.parametrize(
    "options", [{"channels": 0}, {"features": ()}, {"features": 4}, {"features": (4, 0)}, {"blocks": 0}]
)
def test_bad_arguments(options):
    with pytest.raises(InvalidParameterError, match=r"at least 1|a sequence of numbers"):
        SmallUNet(**options)
