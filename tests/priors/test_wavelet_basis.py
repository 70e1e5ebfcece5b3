"""The wavelet frame is orthonormal before cropping and tight after it, for every wavelet and image size."""

import numpy as np
import pytest
import pywt
import torch

from retune.errors import InvalidParameterError, ShapeError, TooManyLevelsError, UnknownNameError
from retune.priors import WaveletBasis, WaveletFrame, max_levels, wavelet_basis
from retune.priors.wavelet_level import filters
from small_parts import as_matrix, rand

WAVELETS = ["haar", "db2", "db4", "db8", "db20", "sym5", "sym8", "coif2", "coif5"]
SIZES = [(8, 8), (7, 13), (16, 33), (65, 64), (96, 70), (131, 5)]


def inner(a, b):
    return float((a * b).sum())


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("wavelet", [*WAVELETS, ("db4", "haar"), ("sym8", "db2", "coif1")], ids=str)
def test_tight_frame(wavelet, size, float64):
    """D Dᵀ = I, ⟨Du, x⟩ = ⟨u, Dᵀx⟩, and ‖Dᵀx‖ = ‖x‖ (so ‖D‖ = 1 and L does not grow)."""
    wavelets = (wavelet,) if isinstance(wavelet, str) else wavelet
    frame = WaveletFrame(wavelets, min(3, max_levels(*size)), size, torch.float64)
    x = rand(2, 3, *size)
    u = rand(*frame.shape(2, 3), seed=1)
    torch.testing.assert_close(frame.synthesis(frame.analysis(x)), x, rtol=0, atol=1e-9)
    assert abs(inner(frame.synthesis(u), x) - inner(u, frame.analysis(x))) < 1e-9 * float(u.norm() * x.norm())
    assert float(frame.analysis(x).norm()) == pytest.approx(float(x.norm()), rel=1e-9)
    assert float(frame.synthesis(u).norm()) <= float(u.norm()) * (1 + 1e-12)


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize("size", [(128, 96), (68, 66), (192, 64)], ids="{0[0]}x{0[1]}".format)
def test_orthonormal_where_nothing_is_cropped(wavelet, size, float64):
    basis = WaveletBasis(wavelet, 1, size, torch.float64)
    assert basis.orthonormal
    u = rand(2, basis.length)
    torch.testing.assert_close(basis.analysis(basis.synthesis(u)), u, rtol=0, atol=1e-9)


def test_dense_matrix_of_a_cropped_frame(float64):
    frame = WaveletFrame(("db3", "sym4"), 2, (5, 7), torch.float64)
    shape = frame.shape(1, 1)[1:]
    D = as_matrix(frame.synthesis, shape)
    torch.testing.assert_close(as_matrix(frame.analysis, (1, 5, 7)), D.T, rtol=0, atol=1e-11)
    torch.testing.assert_close(D @ D.T, torch.eye(35), rtol=0, atol=1e-10)
    assert float(torch.linalg.matrix_norm(D, 2)) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("margin", [1, 8, 20])
@pytest.mark.parametrize("size", [(16, 24), (5, 33)], ids="{0[0]}x{0[1]}".format)
def test_a_margin_is_cropped(size, margin, float64):
    """At least so many pixels lie between opposite borders, and D stays a tight frame."""
    frame = WaveletFrame(("db4", "haar"), 2, size, torch.float64, margin=margin)
    padded = frame.basis.padded
    assert frame.cropped
    assert all(0 <= p - n - margin < 4 and p % 4 == 0 for p, n in zip(padded, size, strict=True))
    x, u = rand(2, 3, *size), rand(*frame.shape(2, 3), seed=1)
    torch.testing.assert_close(frame.synthesis(frame.analysis(x)), x, rtol=0, atol=1e-9)
    assert abs(inner(frame.synthesis(u), x) - inner(u, frame.analysis(x))) < 1e-9 * float(u.norm() * x.norm())


@pytest.mark.parametrize("size", [(16, 16), (5, 33), (4, 4)], ids="{0[0]}x{0[1]}".format)
def test_extension_continues_an_image_by_its_mirror_images(size, float64):
    """The same image, nothing new outside of it, and no jump at the borders, over which the domain wraps around."""
    basis = WaveletBasis("db4", 2, size, torch.float64, margin=6)
    x = torch.linspace(1, 2, size[0])[:, None] + torch.linspace(0, 3, size[1])
    u = basis.extension(x)
    torch.testing.assert_close(basis.synthesis(u), x, rtol=0, atol=1e-9)
    whole = WaveletBasis("db4", 2, basis.padded, torch.float64).synthesis(u)
    assert float(whole.min()) > 1 - 1e-9
    assert float(whole.max()) < 5 + 1e-9
    for axis in (0, 1):  # from a pixel to the next it moves with the image, and from one border to the other
        steepest, between = float(x.diff(dim=axis).max()), float(x.select(axis, -1).max() - x.select(axis, 0).min())
        most = steepest + between / (basis.padded[axis] - size[axis] + 1)
        assert float((whole - whole.roll(1, axis)).abs().max()) <= most + 1e-9


def test_extension_of_a_frame_that_crops_nothing_is_its_analysis(float64):
    frame, x = WaveletFrame(("db4", "haar"), 2, (16, 24), torch.float64), rand(1, 3, 16, 24)
    assert not frame.cropped
    torch.testing.assert_close(frame.extension(x), frame.analysis(x))


def test_extension_has_the_derivative_of_a_linear_map(float64):
    basis = WaveletBasis("db2", 1, (5, 4), torch.float64, margin=3)
    assert torch.autograd.gradcheck(basis.extension, rand(2, 5, 4).requires_grad_())


@pytest.mark.parametrize(("wavelet", "size"), [("db2", (16, 32)), ("db4", (128, 160)), ("sym6", (72, 48))])
def test_same_coefficients_as_pywavelets(wavelet, size, float64):
    """Up to a circular shift: the same filters, the same bands in the same place."""
    image = rand(*size)
    phase = (len(filters(wavelet)[0]) // 2 + 1) % 2  # PyWavelets centres the filter, we start it at the sample
    basis = WaveletBasis(wavelet, 1, size, torch.float64)
    coarse, [details] = basis.unpack(basis.analysis(image))
    theirs_coarse, (h, v, d) = pywt.dwt2(np.roll(image.numpy(), (phase, phase), (0, 1)), wavelet, mode="periodization")
    # PyWavelets names bands (rows, columns): cH is low along columns, cV low along rows.
    for ours, theirs in ((coarse, theirs_coarse), (details[0], v), (details[1], h), (details[2], d)):
        shifts = [
            np.abs(np.roll(theirs, (i, j), (0, 1)) - ours.numpy()).max() for i in range(-20, 21) for j in range(-20, 21)
        ]
        assert min(shifts) < 1e-9


@pytest.mark.parametrize("name", ["haar", "db7", "sym9", "coif3"])
def test_filters_are_orthonormal(name):
    low, high = filters(name)
    for a, b, value in ((low, low, 1), (high, high, 1), (low, high, 0)):
        for shift in range(0, len(low), 2):
            assert np.dot(a[shift:], b[: len(b) - shift]) == pytest.approx(value * (shift == 0), abs=1e-10)


def test_a_constant_has_no_details(float64):
    basis = WaveletBasis("db4", 3, (32, 24), torch.float64)
    coarse, details = basis.unpack(basis.analysis(torch.ones(32, 24)))
    assert max(float(d.abs().max()) for d in details) < 1e-10
    torch.testing.assert_close(coarse, torch.full_like(coarse, 8.0))


def test_unpack_is_a_view_of_everything():
    basis = WaveletBasis("db2", 3, (20, 31))
    u = torch.zeros(2, basis.length)
    coarse, details = basis.unpack(u)
    for part in (coarse, *details):
        part += 1
    assert bool((u == 1).all())
    assert [tuple(d.shape) for d in details] == [(2, 3, *s) for s in basis.band_shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_follows_the_dtype(dtype):
    basis = WaveletBasis("db4", 4, (97, 64), dtype)
    x = rand(3, 97, 64, dtype=dtype)
    error = (basis.synthesis(basis.analysis(x)) - x).abs().max()
    assert float(error) < (2e-6 if dtype == torch.float32 else 1e-10)


def test_derivatives(float64):
    frame = WaveletFrame(("db2", "haar"), 2, (5, 6), torch.float64)
    x = rand(1, 1, 5, 6).requires_grad_()
    u = rand(*frame.shape(1, 1)).requires_grad_()
    assert torch.autograd.gradcheck(frame.analysis, (x,), check_forward_ad=True)
    assert torch.autograd.gradcheck(frame.synthesis, (u,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(frame.synthesis, (u,))
    D = torch.func.jacrev(frame.synthesis)(u.detach()).reshape(30, -1)
    torch.testing.assert_close(D @ D.T, torch.eye(30), rtol=0, atol=1e-10)


def test_views_and_strides_do_not_matter():
    basis = WaveletBasis("db4", 3, (40, 72))
    x = rand(2, 3, 72, 40).mT
    torch.testing.assert_close(basis.analysis(x), basis.analysis(x.contiguous()))
    u = rand(basis.length, 2).T
    torch.testing.assert_close(basis.synthesis(u), basis.synthesis(u.contiguous()))
    torch.testing.assert_close(basis.analysis(x[1, 2]), basis.analysis(x)[1, 2])


def test_arguments_are_left_alone():
    basis = WaveletBasis("db4", 2, (64, 96))
    x, u = rand(2, 64, 96), rand(2, basis.length)
    kept = x.clone(), u.clone()
    basis.analysis(x)
    basis.synthesis(u)
    assert torch.equal(x, kept[0])
    assert torch.equal(u, kept[1])


def test_made_under_inference_mode_and_trained_later():
    with torch.inference_mode():
        basis = WaveletBasis("sym7", 2, (36, 52))
        basis.analysis(rand(36, 52))
    x = rand(36, 52).requires_grad_()
    WaveletBasis("sym7", 2, (36, 52)).analysis(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach(), rtol=1e-4, atol=1e-4)


def test_unknown_wavelet_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown wavelet 'db44'.*'db4'"):
        WaveletBasis("db44", 1, (8, 8))


@pytest.mark.parametrize("name", ["bior2.2", "rbio3.1", "dmey", "mexh"])
def test_not_orthogonal_is_refused(name):
    with pytest.raises(InvalidParameterError, match=rf"{name}.*not orthogonal.*use one of") as error:
        WaveletBasis(name, 1, (8, 8))
    assert "dmey" not in str(error.value).split("use one of")[1].split()  # the advice must not name what is refused


@pytest.mark.parametrize(("size", "fit"), [((8, 100), 3), ((7, 7), 2), ((1, 50), 0), ((512, 256), 8)])
def test_too_many_levels_says_how_many_fit(size, fit):
    assert max_levels(*size) == fit
    with pytest.raises(TooManyLevelsError, match=rf"{fit + 1} wavelet levels .*{size[0]}×{size[1]}.*at most {fit} "):
        WaveletBasis("haar", fit + 1, size)
    if fit:
        WaveletBasis("haar", fit, size)


def test_levels_below_one():
    with pytest.raises(InvalidParameterError, match="at least 1, got 0"):
        WaveletBasis("haar", 0, (8, 8))


def test_wrong_shapes():
    basis = WaveletBasis("haar", 1, (8, 8))
    with pytest.raises(ShapeError, match=r"8, 8.*got \(2, 8, 9\)"):
        basis.analysis(torch.zeros(2, 8, 9))
    with pytest.raises(ShapeError, match=r"64.*got \(2, 63\)"):
        basis.synthesis(torch.zeros(2, 63))


@pytest.mark.parametrize("size", [(32, 32), (37, 70), (300, 20), (16, 8)])
def test_small_levels_in_one_product_are_the_same_transform(size, monkeypatch, float64):
    """From 256 pixels on, the levels that are left are one matrix product, for orthonormal and cropped bases."""
    levels = max_levels(*size)
    x = rand(2, 3, *size)
    u = (together := WaveletBasis("db4", levels, size, x.dtype)).analysis(x)
    monkeypatch.setattr(wavelet_basis, "_SMALL", 0)
    apart = WaveletBasis("db4", levels, size, x.dtype)
    assert len(together._plans) < len(apart._plans) == levels
    torch.testing.assert_close(u, apart.analysis(x))
    v = rand(2, 3, together.length, seed=1)
    torch.testing.assert_close(together.synthesis(v), apart.synthesis(v))
