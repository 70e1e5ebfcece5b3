"""Which images and numbers an operator may have, and in which modes of torch it is used."""

import multiprocessing

import pytest
import torch
from deepinv.physics import Blur, Denoising, Inpainting, LinearPhysics
from deepinv.physics.functional import gaussian_blur

import retune
from retune.errors import InvalidParameterError, PhysicsError, RetuneError, ShapeError
from retune.operators.data_term import DataTerm
from retune.operators.facts import facts, normal_operator


def rand(*shape, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def net(**options):
    prior = retune.priors.WaveletL1("haar", levels=1)
    return retune.Restarted(retune.ForwardBackward(prior, reg=1e-3), **options).eval()


FOURIER = LinearPhysics(
    A=lambda x, **_: torch.fft.fft2(x, norm="ortho"), A_adjoint=lambda y, **_: torch.fft.ifft2(y, norm="ortho")
)


@pytest.mark.parametrize("physics", [FOURIER, Denoising(), Inpainting((1, 16, 16), mask=0.5)])
def test_complex_images_are_refused_by_name(physics):
    y = physics.A(rand(1, 1, 16, 16).to(torch.complex64))
    with pytest.raises(PhysicsError, match=r"complex images are not supported.*two channels"):
        net().solve(y, physics)


def test_the_advice_about_complex_images_works():
    x = rand(1, 1, 16, 16)
    real = LinearPhysics(A=FOURIER.A, A_adjoint=lambda y, **_: FOURIER.A_adjoint(y).real)
    assert torch.allclose(net(stop=retune.Stop(1e-5)).solve(FOURIER.A(x), real).image, x, atol=0.02)

    def two_channels(x, **_):
        return FOURIER.A(torch.view_as_complex(x.movedim(1, -1).contiguous())[:, None])

    def back(y, **_):
        return torch.view_as_real(FOURIER.A_adjoint(y)[:, 0]).movedim(-1, 1)

    z = rand(1, 2, 16, 16)
    stacked = LinearPhysics(A=two_channels, A_adjoint=back)
    assert torch.allclose(net(stop=retune.Stop(1e-5)).solve(stacked.A(z), stacked).image, z, atol=0.02)


@pytest.mark.parametrize("physics", [Denoising(), Inpainting((1, 4, 8, 8), mask=0.5)])
def test_volumes_are_said_to_be_unsupported(physics):
    y = physics.A(rand(1, 1, 4, 8, 8))
    with pytest.raises(ShapeError, match=r"volumes and sequences.*not supported yet.*slice by slice") as caught:
        DataTerm(y, physics)
    assert "batch dimension" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int32])
@pytest.mark.parametrize("physics", [Denoising(), Blur(gaussian_blur(sigma=(1.0, 1.0)), padding="reflect")])
def test_the_precision_is_named_not_the_size(dtype, physics):
    with pytest.raises(InvalidParameterError, match=rf"y is {str(dtype)[6:]}.*float32 or float64.*y\.float\(\)"):
        DataTerm((9 * rand(1, 1, 16, 16)).to(dtype), physics)


def test_two_precisions_are_named():
    y, physics = rand(1, 1, 16, 16, dtype=torch.float64), Blur(gaussian_blur(sigma=(1.0, 1.0)), padding="reflect")
    with pytest.raises(InvalidParameterError, match=r"y is float64, but.*Blur are float32: give y\.to\(torch\.float32"):
        DataTerm(y, physics)
    DataTerm(y.to(torch.float32), physics)  # the advice


def scaled(factor):
    return LinearPhysics(A=lambda x, **_: factor * x.roll(1, -1), A_adjoint=lambda y, **_: factor * y.roll(-1, -1))


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_the_norm_is_right_at_every_scale(factor):
    like = rand(1, 1, 16, 16)
    found = facts(scaled(factor), like, scaled(factor).A(like))
    assert float(found.sqnorm) == pytest.approx(1.05 * factor**2, rel=1e-5)


@pytest.mark.parametrize("factor", [1e-10, 1e10, 1e19])
@pytest.mark.parametrize("make", [scaled, lambda s: Blur(s * gaussian_blur(sigma=(1.0, 1.0)), padding="reflect")])
def test_what_is_out_of_scale_is_refused_by_name(factor, make):
    physics, x = make(factor), rand(1, 1, 16, 16)
    with pytest.raises(RetuneError, match=r"(out of scale for float32|too large).*divide A and y by ‖A‖"):
        net().solve(physics.A(x), physics)
    assert retune.doctor(physics, img_size=(1, 16, 16)).worst.rank >= 2


def test_a_wrong_normal_operator_of_the_physics_is_not_used():
    class Careless(Blur):
        def A_adjoint_A(self, x, **kwargs):
            return 0.5 * super().A_adjoint_A(x, **kwargs)

    physics, x = Careless(gaussian_blur(sigma=(1.0, 1.0)), padding="reflect"), rand(1, 1, 16, 16)
    found = facts(physics, x, physics.A(x))
    assert torch.allclose(normal_operator(physics, found)(x), physics.A_adjoint(physics.A(x)))


@pytest.mark.parametrize(
    "problem",
    [
        lambda: retune.problems.deblur("gaussian:1.6", sigma=0.05),
        lambda: retune.problems.deblur("gaussian:1.6", "circular", sigma=0.05),
        lambda: retune.problems.superres(2, sigma=0.05),
        lambda: retune.problems.superres(2, None, sigma=0.05),
        lambda: retune.problems.inpaint(sigma=0.05),
        lambda: retune.problems.denoise(0.05),
    ],
)
def test_what_inference_mode_made_can_be_trained_with(problem):
    problem = problem()
    model = net(depth=2, restarts=1, stop=retune.Stop(0.2))
    with torch.inference_mode():
        y, physics = problem.measure(rand(1, 1, 32, 32))
        model(y, physics)
    model.train()
    model(y, physics).square().mean().backward()
    again, physics = problem.measure(rand(1, 1, 32, 32))
    loss = (physics.A(model(again, physics)) - again).square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def measured(problem):
    return problem.measure(torch.ones(1, 1, 32, 32))[0]


def test_a_used_problem_goes_to_another_process():
    used = [retune.problems.deblur("gaussian:1.6", sigma=0.05), retune.problems.superres(2, sigma=0.05)]
    here = [measured(p) for p in used]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.map(measured, used)
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("own", [False, True])
def test_operators_compute_in_full_precision_under_autocast(own):
    weight = torch.ones(1, 1, 3, 3) / 9

    def A(x, **_):
        return torch.nn.functional.conv2d(x, weight, padding=1)

    physics = LinearPhysics(A=A, A_adjoint=A) if own else Blur(weight, padding="reflect")
    x = rand(1, 1, 16, 16)
    y = physics.A(x)
    plain = DataTerm(y, physics)
    with torch.autocast("cpu", torch.bfloat16):
        cast = DataTerm(y, physics)
        found, expected = cast.grad(x), plain.grad(x)
        assert torch.equal(cast.normal(x), plain.normal(x))
    assert cast.adjoint_y.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.equal(found, plain.grad(x))
