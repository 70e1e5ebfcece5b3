"""A restoration at once: what goes in and comes out, and that it is better than what a scientist has."""

import deepinv
import numpy as np
import pytest
import torch
from scipy.ndimage import convolve
from skimage.restoration import richardson_lucy

import retune
from retune.certificate import certify
from retune.config import Config, from_dict
from retune.data import grey, photograph
from retune.errors import DoubtfulWarning, InvalidParameterError, NotFiniteError, RetuneError, ShapeError
from retune.instant import calibrated, instant_network

P = retune.problems
COUNTS = P.PoissonGaussian(0.002, 0.003)


def photo(name="camera", side=40, colour=False):
    return photograph("coffee" if colour else name)[None, :, 100 : 100 + side, 200 : 200 + side]


def psnr(a, b):
    return float(-10 * np.log10(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)))


def microscope(seed=3, side=96, photons=750.0, read=0.003, width=2.0):
    """Fluorescent spots under a Gaussian point spread; counts and read noise. Image, kernel and measurement."""
    rng = np.random.default_rng(seed)
    image, (rows, columns) = np.zeros((side, side)), np.mgrid[:side, :side]
    for _ in range(side * side // 700):
        (row, column), reach = rng.integers(0, side, 2), rng.uniform(1, 6)
        distance = (rows - row) ** 2 + (columns - column) ** 2
        image += rng.uniform(0.2, 1) * np.exp(-distance / 2 / reach**2)
    image /= image.max()
    kernel = np.exp(-(np.mgrid[-8:9, -8:9] ** 2).sum(0) / 2 / width**2)
    kernel /= kernel.sum()
    light = convolve(image, kernel, mode="reflect")
    return image, kernel, rng.poisson(light * photons) / photons + read * rng.normal(size=image.shape)


def test_counts_are_restored_better_than_by_richardson_and_lucy():
    """Those stop at their best number of iterations, which only the truth tells."""
    truth, kernel, y = microscope()
    problem = P.deblur(torch.from_numpy(kernel).float()[None, None], noise=P.PoissonGaussian(1 / 750, 0.003))
    restored = retune.restore(y, problem)
    counts = (2, 4, 6, 8, 10, 15, 20)
    best = max(psnr(richardson_lucy(y.clip(1e-6), kernel, num_iter=n, clip=False), truth) for n in counts)
    assert psnr(restored, truth) > best + 1 > psnr(y, truth)
    assert restored.min() >= 0


def test_a_blurred_photograph_is_restored_better_than_it_was():
    x, problem = photo(side=64), P.deblur("gaussian:1.6", sigma=0.02)
    y, _ = problem.measure(x)
    assert psnr(retune.restore(y, problem), x) > psnr(y, x) + 2


def test_stripes_that_a_motion_cannot_see_are_not_invented():
    """The minimum of the energy alone has them, far below the blurred image."""
    down, right = np.mgrid[-6:7, -6:7].astype(float)
    angle = np.deg2rad(35)
    along, across = right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)
    line = np.clip(5 - np.abs(along), 0, 1) * np.clip(1 - np.abs(across), 0, 1)
    problem = P.deblur(torch.from_numpy(line / line.sum()).float(), sigma=0.01)
    x = grey(photograph("chelsea"))[None, :, :64, 236:300]
    y, _ = problem.measure(x)
    assert psnr(retune.restore(y, problem), x) > psnr(y, x) + 1
    free = problem.borderless()
    alone, run = instant_network(from_dict({"map": {"options": {"strong_convexity": 0.0}}}), free, y)
    assert run.map.options["box"] == [0.0, 1e4]
    with torch.no_grad():
        striped = free.frame(alone.solve(y, free.operator(y)).image)
    assert psnr(striped, x) < psnr(y, x) - 5
    sky = grey(photograph("camera"))[None, :, :64, :64]
    y, _ = problem.measure(sky)
    assert psnr(retune.restore(y, problem), sky) > psnr(y, sky)  # a pull towards 0 would darken it


def test_a_blur_has_a_pull_towards_the_start_and_what_is_said_of_it_stays(tmp_path):
    y = photo(side=24)
    blur = P.deblur("gaussian:1", sigma=0.02)
    options = calibrated(Config(), blur, y).map.options
    assert options == {"strong_convexity": 0.001, "towards_start": True, "box": [0.0, 1e4]}
    mine = calibrated(from_dict({"map": {"options": {"box": [0, 1]}}}), blur, y).map.options
    assert mine == {**options, "box": [0, 1]}
    mine = calibrated(from_dict({"map": {"options": {"strong_convexity": 0.1}}}), blur, y).map.options
    assert mine == {"strong_convexity": 0.1, "box": [0.0, 1e4]}
    # The data term over the variances is stronger, and so is the pull.
    weighted = calibrated(Config(), P.deblur("gaussian:1", noise=P.PoissonGaussian(0.0, 0.02, offset=0.1)), y)
    assert weighted.map.options["strong_convexity"] == pytest.approx(0.001 / 0.02**2)
    # No blur is undone, or its norm is another one.
    for problem in (P.denoise(sigma=0.02), P.superres(2, sigma=0.02), P.inpaint(sigma=0.02), P.deblur(noise=COUNTS)):
        assert "strong_convexity" not in calibrated(Config(), problem, y).map.options


@pytest.mark.parametrize("boundary", ["reflect", "circular"])
def test_a_network_with_a_pull_is_saved_and_restores_a_batch_as_its_images(boundary, tmp_path):
    problem = P.deblur("gaussian:1", boundary, sigma=0.02).borderless()
    y, physics = problem.measure(torch.cat([photo(side=24, colour=True), photo(side=24, colour=True).flip(-1)]))
    net, _ = instant_network(Config(), problem, y)
    net.save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors")
    restored = again.solve(y, physics).image
    torch.testing.assert_close(restored, net.solve(y, physics).image, atol=1e-5, rtol=0)
    second = again.solve(y[1:], problem.operator(y[1:])).image
    torch.testing.assert_close(restored[1:], second, atol=2e-3, rtol=0)
    bound = again.map.bind(retune.DataTerm(y, physics))
    part = bound.select(torch.tensor([1]))
    assert part is not None
    torch.testing.assert_close(part.layer(restored[1:]), bound.at(restored).layer(restored)[1:], atol=1e-2, rtol=0)
    torch.testing.assert_close(part._pull, bound._pull[1:])


def test_noise_is_removed():
    x, problem = photo(side=64), P.denoise(sigma=0.1)
    y, _ = problem.measure(x)
    assert psnr(retune.restore(y, problem), x) > psnr(y, x) + 5


@pytest.mark.parametrize("layout", ["hw", "hw float64", "hwc", "chw", "bchw", "bchw float64", "integers"])
def test_it_comes_out_as_it_went_in(layout):
    x = photo(colour=layout == "hwc", side=24)
    y, _ = P.denoise(sigma=0.05).measure(x)
    image = {
        "hw": y[0, 0].numpy(),
        "hw float64": y[0, 0].double().numpy(),
        "hwc": y[0].permute(1, 2, 0).numpy(),
        "chw": y[0],
        "bchw": torch.cat([y, y.flip(-1)]),
        "bchw float64": y.double(),
        "integers": (y[0, 0].clamp(0, 1) * 255).byte().numpy(),
    }[layout]
    restored = retune.restore(image, P.denoise(sigma=0.05))
    assert type(restored) is type(image)
    assert restored.shape == image.shape
    assert restored.dtype == (image.dtype if layout != "integers" else np.float32)
    flat = np.asarray(restored).reshape(-1)
    assert np.isfinite(flat).all()
    scale = 255 if layout == "integers" else 1
    assert 0 < np.abs(flat - np.asarray(image, float).reshape(-1) / scale).mean() < 0.1


def test_a_batch_of_one_level_is_restored_as_its_images_are():
    problem = P.denoise(sigma=0.05)
    y, _ = problem.measure(torch.cat([photo(side=24), photo("chelsea", side=24)[:, :1]]))
    apart = torch.cat([retune.restore(y[i : i + 1], problem) for i in range(2)])
    torch.testing.assert_close(retune.restore(y, problem), apart, atol=2e-3, rtol=0)


def test_a_magnified_image_is_larger():
    y = photo(side=16)
    assert retune.restore(y, P.superres(2, noise=COUNTS)).shape == (1, 1, 32, 32)


def test_a_physics_of_deepinv_is_a_problem():
    x = photo(side=24)
    noise = deepinv.physics.GaussianNoise(0.05)
    same = retune.restore(x, P.denoise(sigma=0.05))
    torch.testing.assert_close(retune.restore(x, deepinv.physics.Denoising(noise)), same)
    kernel = P.deblur("gaussian:1").kernel
    # Nothing is assumed beyond the border of a named blur. A physics is what it is: only a periodic one is the same.
    noise = deepinv.physics.PoissonGaussianNoise(0.002, 0.003)
    counts = deepinv.physics.BlurFFT(x.shape[1:], filter=kernel, noise_model=noise)
    torch.testing.assert_close(
        retune.restore(x, counts),
        retune.restore(x, P.deblur("gaussian:1", "circular", noise=COUNTS)),
        atol=2e-3,
        rtol=0,
    )


@pytest.mark.parametrize(
    ("image", "error", "says"),
    [
        (torch.rand(8, 8), ShapeError, r"tensor \(8, 8\)"),
        (np.zeros(8), ShapeError, "array"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), InvalidParameterError, "must be of floats"),
        ([1, 2], InvalidParameterError, "image must be an array"),
        (torch.full((1, 8, 8), float("nan")), NotFiniteError, "NaN"),
    ],
)
def test_what_is_no_image_is_refused(image, error, says):
    with pytest.raises(error, match=says):
        retune.restore(image, P.denoise(sigma=0.1))


def test_what_is_no_problem_is_refused():
    with pytest.raises(InvalidParameterError, match="problem must be"):
        retune.restore(photo(), "denoise")
    with pytest.raises(InvalidParameterError, match="the mask is unknown"):
        retune.restore(photo(), P.inpaint(sigma=0.1))
    with pytest.raises(RetuneError, match="3 channels"):
        retune.restore(photo(), P.denoise(noise="poisson:0.1/0.1/0.1"))


@pytest.mark.parametrize("image", [torch.zeros(1, 1, 12, 12), torch.full((1, 1, 12, 12), 0.5)])
@pytest.mark.parametrize("noise", [COUNTS, P.PoissonGaussian(0.01), None], ids=str)
def test_constant_images_stay_what_they_are(image, noise):
    problem = P.denoise(sigma=0.01) if noise is None else P.denoise(noise=noise)
    torch.testing.assert_close(retune.restore(image, problem), image, atol=0.02, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (1, 20)])
def test_tiny_images_are_restored(size):
    restored = retune.restore(torch.full((1, 1, *size), 0.5), P.denoise(noise=COUNTS))
    assert restored.shape == (1, 1, *size)
    assert 0 <= float(restored.min()) <= float(restored.max()) <= 1


def test_an_image_below_black_is_not_made_positive():
    y = photo(side=24) - 2
    assert float(retune.restore(y, P.denoise(sigma=0.05)).max()) < 0


def test_the_offset_of_the_camera_is_subtracted():
    y, problem = photo(side=24), P.denoise(noise=COUNTS)
    moved = P.denoise(noise=P.PoissonGaussian(0.002, 0.003, offset=0.1))
    torch.testing.assert_close(retune.restore(y + 0.1, moved), retune.restore(y, problem), atol=1e-3, rtol=0)


def test_an_image_in_counts_is_doubted():
    with pytest.warns(DoubtfulWarning, match="where 1 is white"):
        retune.restore(750 * photo(side=12), P.denoise(noise="poisson:1"))


def test_the_strength_follows_the_noise_and_what_is_said_of_it_stays():
    y = photo(side=24)
    level = [calibrated(Config(), P.denoise(sigma=s), y).prior.sigma for s in (0.02, 0.1)]
    assert level == pytest.approx([0.01, 0.05])
    weak, strong = (calibrated(Config(), P.deblur("gaussian:1", sigma=s), y).model.reg for s in (0.01, 0.1))
    assert weak < strong
    mine = calibrated(
        from_dict({"prior": {"type": "energy", "sigma": 0.07}, "model": {"reg": 0.3}}), P.denoise(sigma=0.02), y
    )
    assert (mine.prior.sigma, mine.model.reg) == (0.07, 0.3)


def test_what_comes_out_is_an_equilibrium_and_the_network_is_saved_with_the_noise(tmp_path):
    problem = P.deblur("gaussian:1", noise=COUNTS)
    y, physics = problem.measure(photo(side=24))
    net, _ = instant_network(Config(), problem, y)
    net.save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors")
    restored = again.solve(y, physics)
    assert restored.status[0].value == "converged"
    free = problem.borderless()
    wide = again.solve(y, free.operator(y)).image
    assert wide.shape[-1] > y.shape[-1]
    inner = free.frame(wide)
    assert inner.shape == y.shape
    torch.testing.assert_close(inner, retune.restore(y, problem), atol=1e-5, rtol=0)
    image = certify(again, y, physics, result=restored, learning=False)[0]
    assert image.residual.best.value < 3e-3
    assert not image.refuted
