"""A gradient that is cut in part is found out before anything is learned from it; a right one never."""

import pytest
import torch
from deepinv.optim.prior import Prior
from deepinv.physics import Denoising
from torch import nn

import retune
from known_answers import CASES
from retune import ForwardBackward, GradientStep, Implicit, Restarted, Truncated, Unrolled
from retune.errors import CutGradientError
from retune.gradients.verify import is_foreign
from retune.priors import RED, Denoiser
from small_parts import rand


class Residual(nn.Module):
    """``x − c N(x)``, with what is named detached."""

    def __init__(self, cut=""):
        super().__init__()
        self.cut, self.net = cut, nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.gain = nn.Parameter(torch.tensor(0.9))
        with torch.no_grad():
            self.net.weight.copy_(torch.eye(3).flip(0))

    def forward(self, x, sigma=None):
        inside = x.detach() if self.cut == "state" else x
        gain = self.gain.detach() if self.cut == "gain" else self.gain
        weight = self.net.weight.detach() if self.cut == "weights" else self.net.weight
        scale = (sigma.detach() if self.cut == "sigma" else sigma).reshape(-1, 1, 1, 1)
        noise = torch.tanh(nn.functional.conv2d(inside, weight, padding=1)) + 4 * scale
        return x - gain * noise


class Repeated(Residual):
    """More than one number of weights that the check looks at together."""

    def __init__(self, cut=""):
        super().__init__(cut)
        self.wide = nn.Conv2d(1, 20, 3, padding=1)

    def forward(self, x, sigma=None):
        weight = self.wide.weight.detach() if self.cut == "large" else self.wide.weight
        wide = nn.functional.conv2d(x, weight, self.wide.bias, padding=1)
        return super().forward(x, sigma) + 0.1 * wide.mean(1, keepdim=True)


class Smooth(Prior):
    """``½‖x‖²`` whose gradient forgets its graph in part."""

    def __init__(self, cut):
        super().__init__()
        self.cut = cut

    def fn(self, x, *args, **kwargs):
        return 0.5 * x.square().flatten(1).sum(1)

    def grad(self, x, *args, **kwargs):
        return 0.1 * x + 0.9 * (x.detach() if self.cut else x)


def denoiser_net(denoiser, rule=None, kind="denoiser"):
    plugged = (Denoiser if kind == "denoiser" else RED)(denoiser, 0.1, learn_denoiser=True)
    map_ = ForwardBackward(plugged, step_size=0.3) if kind == "denoiser" else GradientStep(plugged)
    return Restarted(map_, 2, 2, rule).train()


@pytest.mark.parametrize("kind", ["denoiser", "red"])
@pytest.mark.parametrize("rule", [Truncated(), Truncated(rtol=1e-2), Implicit(), Unrolled()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_right_gradient_is_never_refused(rule, kind, dtype):
    net = denoiser_net(Repeated(), rule, kind).to(dtype)
    assert is_foreign(net.map)
    before = [p.detach().clone() for p in net.parameters()]
    net(rand(2, 1, 9, 8, dtype=dtype), Denoising()).square().mean().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        ("state", "random change of the state"),
        ("gain", "no gradient flows to .*gain"),
        ("weights", "no gradient flows to .*net.weight"),
        ("sigma", "no gradient flows to .*sigma"),
        ("large", "no gradient flows to the large parameters"),
    ],
)
def test_a_part_that_is_cut_is_named(cut, words):
    with pytest.raises(CutGradientError, match=words):
        denoiser_net(Repeated(cut))(rand(2, 1, 9, 8), Denoising())


def test_a_frozen_part_may_be_cut():
    denoiser = Residual("gain")
    net = denoiser_net(denoiser)
    denoiser.gain.requires_grad_(False)
    net(1 + rand(1, 1, 9, 8), Denoising()).square().mean().backward()


def test_what_is_trained_later_is_looked_at_then():
    denoiser = Residual("gain")
    net, y = denoiser_net(denoiser), rand(1, 1, 9, 8)
    denoiser.gain.requires_grad_(False)
    net(y, Denoising())
    denoiser.gain.requires_grad_(True)
    with pytest.raises(CutGradientError, match="gain"):
        net(y, Denoising())


def test_complex_parameters_and_reduced_precision():
    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.full((8, 5), 0.5 + 0.1j))

        def forward(self, x, sigma=None):
            return torch.fft.irfft2(self.gain * torch.fft.rfft2(x), s=x.shape[-2:])

    denoiser_net(Fourier())(rand(2, 1, 8, 8), Denoising()).square().mean().backward()
    with torch.autocast("cpu", torch.bfloat16):
        denoiser_net(Repeated())(rand(2, 1, 9, 8), Denoising())


def test_a_prior_whose_gradient_detaches_in_part():
    y = 1 + rand(1, 1, 6, 6)
    for cut in (False, True):
        net = Restarted(GradientStep(Smooth(cut), prior_lipschitz=1.0), 2, 2).train()
        if cut:
            with pytest.raises(CutGradientError, match="detaches"):
                net(y, Denoising())
        else:
            net(y, Denoising()).square().mean().backward()


def test_what_gives_another_answer_each_time_is_refused():
    """A map that is not a function of its state has no fixed point."""

    class Random(Residual):
        def forward(self, x, sigma=None):
            return super().forward(x, sigma) + 0.01 * torch.randn_like(x)

    with pytest.raises(retune.errors.InvalidParameterError, match="a different result for the same image"):
        denoiser_net(Random())(rand(1, 1, 9, 8), Denoising())


def test_it_is_looked_at_once_and_only_where_code_is_foreign():
    denoiser, calls = Residual(), []
    denoiser.register_forward_hook(lambda *_: calls.append(1))
    net, y = denoiser_net(denoiser), rand(1, 1, 9, 8)
    counts = []
    for _ in range(3):
        net(y, Denoising())
        counts.append(len(calls))
        calls.clear()
    assert counts[0] > counts[1] == counts[2]
    ours = ForwardBackward(Denoiser(retune.networks.SmallUNet(1, (8, 16)), 0.1))
    assert not is_foreign(ours)
    assert not is_foreign(ForwardBackward(retune.priors.WaveletL12("haar", 1)))


@pytest.mark.parametrize("case", CASES)
def test_no_closed_form_is_refused(case):
    made = CASES[case]()
    Restarted(made.map, 2 * made.map.layers, 2).train()(made.y, made.physics)
