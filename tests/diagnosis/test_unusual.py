"""Complex images, stacked measurements, operators of several scales: findings, and advice that works."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from deepinv.physics import (
    MRI,
    Blur,
    BlurFFT,
    Denoising,
    Inpainting,
    InpaintingMultiScaler,
    LinearPhysics,
    LinearPhysicsMultiScaler,
    Pansharpen,
    Ptychography,
    PtychographyLinearOperator,
    Tomography,
)

import retune
from examined import OK, PROBLEM, one, photo
from retune import doctor, problems
from retune.errors import PhysicsError, ShapeError
from small_parts import rand

FOURIER = LinearPhysics(
    A=lambda x, **_: torch.fft.fft2(x, norm="ortho"), A_adjoint=lambda y, **_: torch.fft.ifft2(y, norm="ortho")
)


def test_complex_images_are_a_finding():
    diagnosis = doctor(FOURIER, FOURIER.A(rand(1, 1, 16, 16)))
    assert "complex images are not supported" in one(diagnosis, "images").found
    assert diagnosis.of("noise") == ()


def test_volumes_are_refused_by_name():
    with pytest.raises(ShapeError, match=r"volumes and sequences \(B, C, D, H, W\) are not supported yet"):
        doctor(Denoising(), rand(1, 1, 4, 16, 16))


def test_what_is_no_picture_is_not_judged_as_one():
    physics = MRI(mask=(rand(1, 1, 32, 32) > 0.5).to(torch.get_default_dtype()), img_size=(32, 32))
    diagnosis = doctor(physics, physics.A(rand(1, 2, 32, 32)))
    assert diagnosis.of("range") == diagnosis.of("clipping") == ()
    assert "not a picture" in one(diagnosis, "noise").found


@pytest.mark.filterwarnings("ignore:At least one input physics is a DecomposablePhysics")
def test_a_mask_inside_a_composition_is_no_clipping():
    mask, blur = Inpainting((1, 32, 32), mask=0.5), Blur(problems.kernel("gaussian:1.0"), padding="reflect")
    physics = mask * blur
    diagnosis = doctor(physics, physics.A(rand(1, 1, 32, 32)))
    assert one(diagnosis, "clipping").severity is OK


def test_stacked_measurements_are_examined():
    assert doctor(Pansharpen((3, 32, 32)), img_size=(3, 32, 32)).ok


def test_advice_on_a_wrong_adjoint_works():
    wrong = LinearPhysics(A=lambda x, **_: x.roll(1, -1), A_adjoint=lambda y, **_: y)
    advice = one(doctor(wrong, img_size=(1, 16, 16)), "adjoint").advice
    assert "deepinv.physics.LinearPhysics(A=physics.A, img_size=(1, 16, 16))" in advice
    assert doctor(eval("LinearPhysics(A=physics.A, img_size=(1, 16, 16))", {**globals(), "physics": wrong})).ok
    sinogram = Tomography(angles=12, img_width=16, adjoint_via_backprop=False, normalize=True)
    assert "adjoint_via_backprop=True" in one(doctor(sinogram), "adjoint").advice
    outside = LinearPhysics(A=lambda x, **_: x.detach().roll(1, -1), A_adjoint=lambda y, **_: y)
    assert "Correct A_adjoint. Leaving it out" in one(doctor(outside, img_size=(1, 16, 16)), "adjoint").advice


def ptychography():
    return PtychographyLinearOperator((1, 32, 32), probe=torch.ones(1, 32, 32), shifts=torch.tensor([[0, 0], [3, 4]]))


class TwoChannels(LinearPhysics):
    """What the advice on complex images says: real and imaginary part are two channels."""

    def __init__(self, physics):
        super().__init__(img_size=(2, 32, 32))
        self.physics_of_complex = physics

    def A(self, x, **_):
        return self.physics_of_complex.A(torch.view_as_complex(x.movedim(1, -1).contiguous())[:, None])

    def A_adjoint(self, y, **_):
        return torch.view_as_real(self.physics_of_complex.A_adjoint(y)[:, 0]).movedim(-1, 1)


def test_advice_on_complex_images_works():
    """Of ptychography's linear part, whatever of size, image and measurement is given."""
    physics, x = ptychography(), photo(32)
    for given in ({}, {"y": physics.A(x + 0j)}):
        found = one(doctor(physics, given.get("y"), img_size=(1, 32, 32)), "images")
        assert found.severity is PROBLEM
        assert "torch.view_as_complex inside A" in found.advice
    both = TwoChannels(physics)
    assert doctor(both, both.A(torch.cat([x, x], 1))).ok
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL12("haar", 1, channels=2), reg=0.01), 5, 3)
    result = net.eval().solve(both.A(torch.cat([x, 0.5 * x], 1)), both, stop=retune.Stop(1e-3, 500))
    assert float((result.image - torch.cat([x, 0.5 * x], 1)).square().mean().sqrt()) < 0.05


def test_advice_on_measurements_without_a_phase_works():
    """|Bx|² is not linear. Its linear part is restored with, once the phase is known."""
    shifts = torch.tensor([[0, 0], [3, 4]])
    physics, x = Ptychography((1, 32, 32), probe=torch.ones(1, 32, 32), shifts=shifts), photo(32)
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL12("haar", 1, channels=2), reg=0.01), 5, 3)
    for y in (None, physics.A(x + 0j)):
        found = one(doctor(physics, y, img_size=(1, 32, 32)), "linearity")
        assert found.severity is PROBLEM
        assert "give the linear part physics.B" in found.advice
    with pytest.raises(PhysicsError, match=r"got Ptychography\. .* give the linear part physics\.B"):
        net.solve(physics.A(x + 0j), physics)
    whole = torch.cat([x, 0.5 * x], 1)
    both = TwoChannels(physics.B)  # the next advice: doctor calls its images complex
    y = both.A(whole)
    assert torch.allclose(y.abs().square(), physics.A(torch.complex(x, 0.5 * x)), rtol=1e-4, atol=1e-4)
    assert "torch.view_as_complex inside A" in one(doctor(physics.B, y, img_size=(1, 32, 32)), "images").advice
    assert doctor(both, y).ok
    assert float((net.eval().solve(y, both, stop=retune.Stop(1e-3, 500)).image - whole).square().mean().sqrt()) < 0.05


@pytest.mark.parametrize("scale", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:At least one input physics is a DecomposablePhysics")
def test_advice_on_a_mask_at_each_of_its_scales_works(scale):
    torch.manual_seed(0)
    x = F.avg_pool2d(photo(32) + 0.01 * torch.randn(1, 1, 32, 32), 2**scale)
    physics = InpaintingMultiScaler(Inpainting((1, 32, 32), mask=0.7), (1, 32, 32), factors=[2, 4])
    physics.set_scale(scale)
    if scale:  # the image is smaller than the physics says
        assert "Check the image size" in one(doctor(physics), "linearity").advice
    size = tuple(x.shape[1:])
    found = doctor(physics, physics.A(x), img_size=size)
    assert found.ok, found
    used, norm = physics, max(one(found, "norm").numbers["sqnorm"]) ** 0.5
    for finding in found.of("scale"):
        assert "Divide A and y by ‖A‖" in finding.advice
        used = LinearPhysics(A=lambda v, **_: physics.A(v) / norm, A_adjoint=lambda y, **_: physics.A_adjoint(y) / norm)
        assert not doctor(used, used.A(x), img_size=size).of("scale")
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL12("haar", 1, channels=1), reg=1e-3), 5, 3)
    restored = net.eval().solve(used.A(x), used, stop=retune.Stop(1e-4, 2000))
    assert not restored.status[0].failed
    assert float((used.A(restored.image) - used.A(x)).norm() / used.A(x).norm()) < 0.05


def test_advice_on_a_tomography_works():
    x = photo(32)
    wrong = Tomography(angles=20, img_width=32, adjoint_via_backprop=False, normalize=True)
    assert "adjoint_via_backprop=True" in one(doctor(wrong, wrong.A(x), img_size=(1, 32, 32)), "adjoint").advice
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL12("haar", 1, channels=1), reg=0.01), 5, 3)
    with pytest.raises(PhysicsError, match="Build Tomography with adjoint_via_backprop=True"):
        net.solve(wrong.A(x), wrong)
    right = Tomography(angles=20, img_width=32, adjoint_via_backprop=True, normalize=True)
    assert doctor(right, right.A(x), img_size=(1, 32, 32)).ok
    assert not net.eval().solve(right.A(x), right, stop=retune.Stop(1e-2, 100)).status[0].failed


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearPhysicsMultiScaler(
            BlurFFT((1, 32, 32), problems.kernel("gaussian:1")), (1, 32, 32), factors=[2, 4]
        ),
        lambda: LinearPhysicsMultiScaler(Inpainting((1, 32, 32), mask=0.5), (1, 32, 32), factors=[2, 4]),
        lambda: Pansharpen((3, 32, 32), factor=4),
    ],
    ids=["blur at scales", "mask at scales", "pansharpening"],
)
@pytest.mark.filterwarnings("ignore:At least one input physics is a DecomposablePhysics")
def test_operators_of_several_scales_are_sound_and_restored_with(make):
    physics = make()
    x = photo(32, 3 if isinstance(physics, Pansharpen) else 1)
    y = physics.A(x)
    diagnosis = doctor(physics, y, img_size=tuple(x.shape[1:]))
    assert diagnosis.ok, diagnosis
    net = retune.Restarted(
        retune.ForwardBackward(retune.priors.WaveletL12("haar", 1, channels=x.shape[1]), reg=0.01), 5, 3
    )
    result = net.eval().solve(y, physics, stop=retune.Stop(1e-2, 200))
    assert not result.status[0].failed
    assert float((result.image - x).square().mean()) < float(x.square().mean())


def test_an_operator_that_gives_nan_is_not_called_linear():
    mask = torch.full((1, 1, 8, 8), float("nan"))
    found = one(doctor(Inpainting((1, 8, 8), mask=mask), img_size=(1, 8, 8)), "linearity")
    assert found.severity is PROBLEM
    assert found.found == "A gives NaN or Inf for a finite image"
