"""Where an iteration with a denoiser starts: the holes of a mask filled in from around them."""

import pytest
import torch
from deepinv.optim.prior import L1Prior
from deepinv.physics import Blur, Demosaicing, Denoising, Inpainting

import retune
from retune import DataTerm, ForwardBackward, GradientStep, Restarted, Stop
from retune.operators.holes import fill, holes_of
from retune.priors import RED, Denoiser, Ridge
from small_parts import rand

SHAPES = [(2, 3, 37, 50), (1, 1, 1, 9), (1, 2, 8, 8), (1, 1, 1, 1)]


def mask(shape, share=0.5, seed=3):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_known_stays_and_a_constant_is_found(shape, dtype):
    holes = mask(shape)
    holes[..., 0, 0] = False
    x = rand(*shape, dtype=dtype)
    filled = fill(torch.where(holes, torch.nan_to_num(x * torch.inf), x), holes)  # what is in a hole does not matter
    assert filled.dtype == dtype
    assert torch.equal(filled[~holes], x[~holes])
    assert bool((filled >= x.amin() - 1e-5).all() & (filled <= x.amax() + 1e-5).all())
    torch.testing.assert_close(fill(torch.where(holes, 0.0, torch.full_like(x, 0.7)), holes), torch.full_like(x, 0.7))


def test_a_large_hole_is_filled_smoothly(float64):
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij")
    x = (0.3 * rows + 0.7 * columns)[None, None]
    holes = torch.zeros_like(x, dtype=torch.bool)
    holes[..., 20:44, 30:60] = True
    error = (fill(torch.where(holes, 0.0, x), holes) - x).abs()
    assert float(error.max()) < 0.1  # the ramp is 0.33 from one side of the hole to the other


def test_nothing_known_is_black():
    assert not fill(rand(1, 2, 9, 7), torch.ones(1, 1, 9, 7, dtype=torch.bool)).any()


def test_only_masks_have_holes():
    assert holes_of(Denoising()) is None
    assert holes_of(Blur(torch.ones(1, 1, 3, 3) / 9, padding="valid")) is None
    weights = torch.tensor([[[[0.0, 0.5, 1.0]]]])
    assert holes_of(Inpainting((1, 1, 3), mask=weights[0])).flatten().tolist() == [True, False, False]
    assert holes_of(Demosaicing((3, 4, 4))).sum() == 2 * 16


@pytest.mark.parametrize(
    "make",
    [
        lambda: ForwardBackward(Denoiser(torch.nn.Identity(), None)),
        lambda: GradientStep(RED(torch.nn.Identity(), None)),
        lambda: GradientStep(Ridge(3, (3, 4), (3, 3))),
    ],
    ids=["denoiser", "red", "ridge"],
)
def test_the_start_has_no_holes_and_each_image_its_own(make):
    holes = mask((2, 1, 12, 10)).expand(2, 3, 12, 10)
    physics = Inpainting((3, 12, 10), mask=(~holes).float())
    y = physics.A(1 + rand(2, 3, 12, 10).abs())
    bound = make().bind(DataTerm(y, physics))
    torch.testing.assert_close(bound.init(), fill(y, holes))
    assert float(bound.init().detach().min()) >= 1 - 1e-5
    chosen = bound.select(torch.tensor([1]))
    torch.testing.assert_close(chosen.init(), bound.init()[1:])


def test_a_convex_problem_starts_from_its_back_projection():
    physics = Inpainting((1, 6, 6), mask=0.5)
    y = physics.A(1 + rand(1, 1, 6, 6).abs())
    torch.testing.assert_close(ForwardBackward(L1Prior()).bind(DataTerm(y, physics)).init(), y)


def test_a_denoiser_of_low_sigma_restores_what_it_would_never_fill():
    x = retune.data.photograph("astronaut")[None, :, 100:148, 180:228]
    y, physics = retune.problems.Inpaint(keep=0.5, sigma=0.05).measure(x, 3)
    prior = Denoiser(retune.weights.load("denoiser-color"), 0.05)
    net = Restarted(ForwardBackward(prior), 5, stop=Stop(1e-3, 100)).eval()
    errors = [
        float((net.solve(y, physics, init=init).image - x).square().mean().log10() * -10)
        for init in (None, physics.A_adjoint(y))
    ]
    assert errors[0] > 27
    assert errors[0] > errors[1] + 3


def test_the_start_is_the_same_under_autocast():
    x, holes = rand(1, 3, 9, 11), mask((1, 1, 9, 11))
    expected = fill(x, holes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fill(x, holes), expected)
