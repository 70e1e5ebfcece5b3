"""Tiles: their seams cannot be seen."""

from __future__ import annotations

import pytest
import torch
from deepinv.optim.prior import Tikhonov

import retune
from retune.build import network_of
from retune.config import load
from retune.data import photograph
from retune.equilibrium import Status
from retune.errors import InvalidParameterError
from retune.jobs.restore import Options
from retune.jobs.tiles import Outcome, _alignment, _spans, restore_image
from retune.problems import deblur, denoise, inpaint, superres


def network(reg=0.02):
    prior = retune.priors.WaveletL12("db2", 2)
    return retune.Restarted(retune.ForwardBackward(prior, reg=reg), stop=retune.Stop(1e-6, 400)).eval()


def picture(height=72, width=84):
    coarse = torch.rand(1, 1, 9, 11, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")


MASK = (torch.rand(72, 84, generator=torch.Generator().manual_seed(2)) > 0.4).float()


@pytest.mark.parametrize(
    ("problem", "frame"),
    [
        (denoise(0.05), 8),
        (inpaint(mask=MASK, sigma=0.02), 12),
        (deblur("gaussian:1.0", "circular", sigma=0.01), 0),
        (deblur("gaussian:1.0", "reflect", sigma=0.01), 12),
        (deblur("gaussian:1.0", "valid", sigma=0.01), 12),
        (superres(2, sigma=0.01), 16),
        (superres(2, boundary="circular", sigma=0.01), 16),
    ],
    ids=lambda v: f"{v.name}-{getattr(v, 'boundary', '')}" if hasattr(v, "name") else "",
)
def test_tiles_give_the_image_restored_at_once(problem, frame):
    """To half a grey level of 255, but for the outer border, which the whole image's wavelets join to its opposite."""
    y, _ = problem.measure(picture())
    net = network()
    whole, one = restore_image(net, problem, y)
    tiled, many = restore_image(net, problem, y, tile=24 if y.shape[-1] > 50 else 16, overlap=24)
    assert one.tiles == 1
    assert many.tiles >= 4
    assert tiled.shape == whole.shape
    inside = (slice(frame, -frame or None),) * 2
    assert (tiled - whole)[(..., *inside)].abs().max() < 0.5 / 255


def test_the_shipped_run_in_tiles_of_a_photograph():
    """Five levels, colour, the tolerance and the overlap that the command has: two grey levels of 255 at most, which
    nobody sees, and mostly far less.
    """
    net = network_of(load("denoise"), 3).eval()
    problem = denoise(0.1)
    y, _ = problem.measure(photograph("chelsea")[None, :, :257, :321])
    whole, _ = restore_image(net, problem, y)
    tiled, many = restore_image(net, problem, y, tile=160, overlap=Options.overlap)
    assert many.tiles == 4
    apart = 255 * (tiled - whole)[..., 32:-32, 32:-32]
    assert apart.abs().max() < 2
    assert apart.square().mean().sqrt() < 0.3


def test_without_a_margin_the_seams_would_be_seen():
    """The comparison above can fail: cut into pieces restored by themselves, it does."""
    problem = deblur("gaussian:1.0", "reflect", sigma=0.01)
    y, _ = problem.measure(picture())
    net = network()
    whole, _ = restore_image(net, problem, y)
    left, right = (restore_image(net, problem, part)[0] for part in (y[..., :40], y[..., 40:]))
    assert (torch.cat([left, right], -1) - whole)[..., 12:-12, 12:-12].abs().max() > 2 / 255


@pytest.mark.parametrize("length", [17, 64, 65, 100, 131])
@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize("factor", [1, 3])
def test_the_weights_of_all_tiles_add_up_to_one(length, wraps, factor):
    total = torch.zeros(length * factor)
    for span in _spans(length, 32, 24, 8, wraps):
        total[span.kept(factor)] += span.ramp(factor)
        here = torch.arange(length * factor)
        kept = span.seen.repeat_interleave(factor)[span.within(factor)]
        assert torch.equal(kept, here[span.kept(factor)] // factor)
        assert wraps or span.first % 8 == 0
    assert torch.allclose(total, torch.ones_like(total))


def test_the_worst_tile_speaks_for_the_image():
    good, bad = Outcome(Status.CONVERGED, 1e-5, 50), Outcome(Status.MAX_LAYERS, 1e-3, 40)
    assert good.worse(bad) == bad.worse(good) == Outcome(Status.MAX_LAYERS, 1e-3, 50, 2)


def test_every_tile_is_certified():
    problem = deblur("gaussian:1.0", "circular", sigma=0.01)
    y, _ = problem.measure(picture(40, 48))
    _, outcome = restore_image(network(), problem, y, tile=16, overlap=8, certify=True)
    assert len(outcome.certificates) == outcome.tiles >= 4
    assert all(0 < c.rmse.estimated.value < 1e-3 for c in outcome.certificates)
    assert restore_image(network(), problem, y, tile=16, overlap=8)[1].certificates == ()


def test_a_tile_without_a_measured_pixel_says_so():
    mask = torch.ones(72, 84)
    mask[:, 40:] = 0
    with pytest.raises(InvalidParameterError, match="contains no measured pixel"):
        restore_image(network(), inpaint(mask=mask), torch.ones(1, 1, 72, 84), tile=16, overlap=8)


@pytest.mark.parametrize("options", [{"tile": -1}, {"tile": 16, "overlap": 0}])
def test_bad_options(options):
    with pytest.raises(InvalidParameterError, match="at least 1"):
        restore_image(network(), denoise(0.1), torch.rand(1, 1, 40, 40), **options)


def test_tiles_begin_where_every_prior_wants_them_to():
    class Threes(Tikhonov):
        alignment = 3

    class Sixteens(Tikhonov):
        alignment = 16

    assert _alignment(retune.Restarted(retune.ForwardBackward(Sixteens()))) == 16
    assert _alignment(retune.Restarted(retune.ForwardBackward([Sixteens(), Threes()], layers=2))) == 48
