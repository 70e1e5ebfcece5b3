"""The noise of counts: its model, its simulation, and its estimate from a measurement."""

import pickle
from itertools import product

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import retune
from retune import config
from retune.build import problem_of
from retune.errors import ConfigError, InvalidParameterError, ShapeError
from retune.problems import PoissonGaussian
from retune.problems.counts import parse_noise
from retune.problems.detail import kept_detail
from retune.problems.found_noise import estimate_counts


def blobs(seed, side=200):
    """Fluorescent spots on a dark background, the brightest of intensity 1."""
    rng = np.random.default_rng(seed)
    image, (rows, columns) = np.zeros((side, side)), np.mgrid[:side, :side]
    for _ in range(side * side // 700):
        row, column = rng.integers(0, side, 2)
        distance = (rows - row) ** 2 + (columns - column) ** 2
        image += rng.uniform(0.2, 1) * np.exp(-distance / 2 / rng.uniform(2, 6) ** 2)
    return image / image.max()


def ramp(side=128):
    return np.linspace(0.05, 0.95, side)[:, None] * np.ones(side)


def counted(image, gain, read, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(gain * rng.poisson(image / gain) + read * rng.normal(size=image.shape))[None, None]


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("poisson:0.01", PoissonGaussian(0.01)),
        ("poisson:0.01,0.002", PoissonGaussian(0.01, 0.002)),
        ("poisson:0.01,0.002,-0.1", PoissonGaussian(0.01, 0.002, -0.1)),
        ("poisson:0.01/0.02/0.03,0.002", PoissonGaussian((0.01, 0.02, 0.03), 0.002)),
        ("poisson:0,0.1", PoissonGaussian(0.0, 0.1)),
        ("gaussian:0.1", PoissonGaussian(0.0, 0.1)),
        ("gaussian:0.1/0.2", PoissonGaussian(0.0, (0.1, 0.2))),
    ],
)
def test_noise_is_read_from_text_and_written_as_such(text, known):
    assert parse_noise(text) == known
    assert parse_noise(str(known)) == known


@pytest.mark.parametrize(
    "text",
    ["", "poisson", "poisson:", "poisson:x", "poisson:0.1,0.2,0.3,0.4", "poisson:1,1,1/2", "gauss:1", "gaussian:1,2"],
)
def test_other_text_is_refused_with_the_forms_there_are(text):
    with pytest.raises(InvalidParameterError, match="expected poisson:GAIN"):
        parse_noise(text)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((-1.0,), "gain must be 0 or a number"),
        ((0.1, float("nan")), "read must be 0 or a number"),
        ((0.0, 0.0), "both 0"),
        ((True,), "gain must be"),
        ((0.1, 0.1, float("inf")), "offset must be a finite number"),
        (((0.1, 0.2, 0.3), (0.1, 0.2)), "different numbers of channels"),
    ],
)
def test_what_is_no_noise_is_refused(arguments, says):
    with pytest.raises(InvalidParameterError, match=says):
        PoissonGaussian(*arguments)


def test_the_level_is_that_at_half_of_white():
    assert PoissonGaussian(0.02, 0.1).level == pytest.approx((0.5 * 0.02 + 0.01) ** 0.5)
    assert PoissonGaussian((0.02, 0.0), 0.1).level == pytest.approx((0.02**0.5, 0.1))


def test_simulated_counts_have_the_mean_and_the_variance_of_the_model():
    noise = PoissonGaussian((0.02, 0.0, 0.005), (0.01, 0.05, 0.0), offset=0.1)
    problem = retune.problems.denoise(noise=noise)
    x = torch.full((1, 3, 300, 300), 0.4)
    y, _ = problem.measure(x, seed=1)
    assert y.mean((0, 2, 3)).tolist() == pytest.approx([0.5] * 3, abs=2e-3)
    known = [0.02 * 0.4 + 1e-4, 0.05**2, 0.005 * 0.4]
    assert y.var((0, 2, 3)).tolist() == pytest.approx(known, rel=0.03)
    assert noise.variance(y).mean((0, 2, 3)).tolist() == pytest.approx(known, rel=0.03)
    again, _ = problem.measure(x, seed=1)
    assert torch.equal(y, again)


def test_a_problem_holds_the_noise_tells_it_and_travels_with_it():
    problem = retune.problems.deblur("gaussian:1", noise="poisson:0.01,0.002")
    assert problem.noise == PoissonGaussian(0.01, 0.002)
    assert problem.sigma == problem.noise.level
    assert problem.describe()["noise"] == "poisson:0.01,0.002"
    for other in (pickle.loads(pickle.dumps(problem)), problem.crop(), retune.problems.get(**problem.describe())):
        assert other.noise == problem.noise
    assert retune.problems.denoise(noise="gaussian:0.2").sigma == 0.2
    assert retune.problems.denoise(noise="gaussian:0.2").noise is None


def test_a_problem_without_this_noise_says_so():
    with pytest.raises(ConfigError, match="inpaint has no noise"):
        problem_of(config.from_dict({"problem": {"name": "inpaint", "noise": "poisson:0.1"}}).problem)
    with pytest.raises(InvalidParameterError, match="noise"):
        retune.problems.get("inpaint", noise="poisson:0.1")
    with pytest.raises(InvalidParameterError, match="the noise of photon counts"):
        retune.problems.denoise(noise=0.1)
    with pytest.raises(ConfigError, match="expected poisson:GAIN"):
        config.from_dict({"problem": {"noise": "poisson:x"}})


def test_channels_and_values_must_agree():
    noise = PoissonGaussian((0.1, 0.2, 0.3))
    with pytest.raises(InvalidParameterError, match="3 channels, but the measurement has 1"):
        noise.variance(torch.rand(1, 1, 8, 8))
    with pytest.raises(ShapeError, match="3 channels"):
        retune.problems.denoise(noise=noise).measure(torch.rand(1, 1, 8, 8))


def test_the_noise_of_a_physics_of_deepinv_is_known():
    from deepinv.physics import Denoising, PoissonGaussianNoise

    problem = retune.problems.given.as_problem(Denoising(PoissonGaussianNoise(gain=0.01, sigma=0.02)))
    assert problem.only_noise
    assert (problem.noise.gain, problem.noise.read) == pytest.approx((0.01, 0.02))


def test_gain_and_read_noise_are_found_and_so_is_their_error():
    """64 sparse images: the hard case, as most pixels are dark."""
    off_gain, off_read, covered = [], [], []
    for seed, (gain, read) in product(range(16), product((0.001, 0.01), (0.003, 0.01))):
        found = estimate_counts(counted(blobs(seed), gain, read, seed))
        assert found.grows
        off_gain.append(abs(found.gain[0] / gain - 1))
        off_read.append(abs(found.read[0] / read - 1))
        covered += [abs(found.gain[0] - gain) <= 1.645 * found.gain_error[0]]
        covered += [abs(found.read[0] - read) <= 1.645 * found.read_error[0]]
    assert np.median(off_gain) < 0.03
    assert np.mean(np.array(off_gain) < 0.05) > 0.8
    assert np.mean(np.array(off_read) < 0.1) > 0.9
    assert np.mean(covered) > 0.9


@pytest.mark.parametrize("kept", ["as it is", "cut off at black", "in 8 bits"])
def test_gaussian_noise_is_not_called_growing(kept):
    rng = np.random.default_rng(0)
    for seed, sigma in product(range(4), (0.01, 0.05, 0.1)):
        for image in (blobs(seed), ramp()):
            y = image + sigma * rng.normal(size=image.shape)
            y = y if kept == "as it is" else y.clip(0, 1)
            y = np.round(255 * y) / 255 if kept == "in 8 bits" else y
            assert not estimate_counts(torch.from_numpy(y)[None, None]).grows


def test_dim_counts_whose_dark_values_are_cut_off_still_grow():
    """Nearly every block has a value that was cut off, but the bright ones vary far more than the dark ones."""
    for seed in range(4):
        y = counted(blobs(seed, 160), 0.02, 0.03, seed).clip(0, None)
        assert estimate_counts(y).grows


def test_the_noise_of_values_that_were_cut_off_is_that_of_before():
    """Nearly half of the dark values were below black: both numbers are found, of counts and of constant noise."""
    for seed in range(4):
        y = counted(blobs(seed, 160), 0.02, 0.03, seed).clip(0, None)
        found = estimate_counts(y)
        assert found.gain[0] == pytest.approx(0.02, rel=0.15)
        assert found.read[0] == pytest.approx(0.03, rel=0.15)
        constant = torch.from_numpy(blobs(seed, 160) + 0.05 * np.random.default_rng(seed).normal(size=(160, 160)))
        found = estimate_counts(constant[None, None].clip(0, None))
        assert not found.grows
        assert found.read[0] == pytest.approx(0.05, rel=0.1)


def test_the_noise_of_the_sharpest_classes_is_no_larger_for_a_steep_image():
    """A slope of the image is no noise: the differences of a plane are 0."""
    y = torch.from_numpy(np.add.outer(np.linspace(0, 1, 96), np.linspace(0, 2, 96)))[None, None]
    found = estimate_counts(y)
    assert max(found.gain[0], found.read[0]) < 1e-6


def test_a_dark_channel_does_not_hide_the_counts_of_another():
    y = counted(ramp(), 0.01, 0.005)
    found = estimate_counts(torch.cat([y, torch.zeros_like(y)], 1))
    assert found.grows
    assert found.gain[0] == pytest.approx(0.01, rel=0.1)
    assert found.gain[1] == found.read[1] == 0


def test_a_batch_is_estimated_as_one_and_few_pixels_not_at_all():
    y = counted(ramp(), 0.01, 0.005)
    one, two = estimate_counts(y), estimate_counts(torch.cat([y, y.flip(2)]))
    assert two.gain_error[0] < one.gain_error[0] * 1.1
    assert two.gain[0] == pytest.approx(0.01, rel=0.1)
    assert estimate_counts(torch.rand(1, 1, 8, 8)) is None


def test_a_measurement_whose_noise_grows_is_found_when_the_noise_is_asked_for():
    asked = config.from_dict({"problem": {"name": "denoise", "sigma": "estimate"}}).problem
    assert problem_of(asked, counted(ramp(), 0.01, 0.005).float()).noise.gain == pytest.approx(0.01, rel=0.1)
    flat = torch.from_numpy(ramp() + 0.05 * np.random.default_rng(0).normal(size=(128, 128)))[None, None]
    found = problem_of(asked, flat.float())
    assert found.noise is None
    assert found.sigma == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("kind", ["denoise", "deblur", "superres"])
def test_the_noise_is_given_once(kind):
    kernel = {"kernel": "gaussian:1"} if kind == "deblur" else {}
    usual = retune.problems.get(kind, **kernel)
    assert usual.sigma == {"denoise": (0.1, 0.25, 0.5), "deblur": 0.05, "superres": 0.01}[kind]
    with pytest.raises(InvalidParameterError, match="say the noise twice"):
        retune.problems.get(kind, sigma=0.05, noise="poisson:0.01", **kernel)
    with pytest.raises(ConfigError, match="say the noise twice"):
        config.from_dict({"problem": {"name": kind, "sigma": 0.05, "noise": "poisson:0.01"}})
    told = config.from_dict({"problem": {"name": kind, "noise": "poisson:0.01", **kernel}})
    again = config.from_dict({"problem": told.problem.model_dump()})  # a run that is written and read
    assert problem_of(again.problem).noise == PoissonGaussian(0.01)
    asked = config.from_dict({"problem": {"name": kind, "sigma": "estimate", "noise": "poisson:0.01"}})
    assert asked.problem.model_dump()["sigma"] == "estimate"


def test_nearly_all_of_a_sparse_image_tells_its_noise_and_less_of_a_textured_one():
    """The texture of a checkerboard that bends the estimate of all blocks is left out."""
    gain, read = 0.01, 0.01
    rng = np.random.default_rng(0)
    image = ramp(200)
    image[:, 100:] += 0.15 * rng.normal(size=(200, 100)).cumsum(1) / 10
    found = estimate_counts(counted(image.clip(0.01, 1.2), gain, read))
    assert abs(found.gain[0] - gain) < 2 * found.gain_error[0]
    plain = estimate_counts(counted(ramp(200), gain, read))
    assert plain.gain[0] == pytest.approx(gain, rel=0.06)
    assert plain.gain_error[0] < found.gain_error[0]


def mosaic(seed, side=128):
    """Bright and dark squares, blurred by a Gaussian of 1.8 pixels."""
    coarse = np.random.default_rng(seed).uniform(0, 1, (side // 8, side // 8)) ** 3
    return gaussian_filter(np.kron(coarse, np.ones((8, 8))), 1.8)


def test_what_a_known_blur_has_removed_is_not_taken_for_texture():
    """Without texture, the error is smaller and still covers the truth."""
    asked = config.from_dict({"problem": {"name": "deblur", "kernel": "gaussian:1.8", "sigma": "estimate"}}).problem
    kept = kept_detail(retune.problems.deblur("gaussian:1.8", sigma=0.1), torch.zeros(1, 1, 128, 128))
    smaller, covered = [], []
    for seed in range(16):
        y = counted(mosaic(seed), 0.02, 0.03, seed)
        unknown, known = estimate_counts(y), estimate_counts(y, detail=kept)
        smaller.append(known.gain_error[0] / unknown.gain_error[0])
        covered.append(abs(known.gain[0] - 0.02) <= 1.645 * known.gain_error[0])
        assert problem_of(asked, y.float()).noise.gain == pytest.approx(known.gain[0], rel=1e-3)
    assert np.mean(smaller) < 0.85
    assert min(smaller) < 0.5
    assert np.mean(covered) >= 0.8


def test_constant_noise_of_a_blurred_image_is_not_called_growing():
    asked = config.from_dict({"problem": {"name": "deblur", "kernel": "gaussian:1.8", "sigma": "estimate"}}).problem
    for seed in range(12):
        y = torch.from_numpy(mosaic(seed) + 0.05 * np.random.default_rng(seed).normal(size=(128, 128)))[None, None]
        assert problem_of(asked, y.float()).noise is None


def test_detail_is_what_the_operator_keeps():
    """White detail would keep the mean square of the transfer function; measured scenes have less of it at Nyquist."""
    y = torch.zeros(1, 1, 96, 80)
    kept = [kept_detail(retune.problems.deblur(f"gaussian:{s}", sigma=0.1), y) for s in (0.5, 1.0, 1.6)]
    assert kept[0] > 0.1
    assert 1e-3 < kept[1] < 3e-3
    assert kept[2] < 2e-4
    assert kept_detail(retune.problems.denoise(sigma=0.1), y) == 1
    large = torch.zeros(1, 1, 1, 1).expand(1, 1, 40_000, 40_000)  # of which a part suffices
    assert kept_detail(retune.problems.deblur("gaussian:1", sigma=0.1), large) == pytest.approx(kept[1], rel=0.2)
    assert kept_detail(retune.problems.deblur("gaussian:30", sigma=0.1), y) == 1  # the kernel is larger than y
    assert kept_detail(retune.problems.superres(2, sigma=0.1), y[..., :40, :40]) > 0.01
