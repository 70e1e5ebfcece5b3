"""Kernels that are fine are not doubted; of broken ones the fault is named, with what mends it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from point_spreads import BROKEN, FINE, airy, disc, gauss, moffat, motion, noisy, over
from retune import doctor, problems
from retune.diagnosis import Severity
from retune.diagnosis.psf import faults, kernel_doubts


def as_kernel(array):
    taps = torch.tensor(np.asarray(array, np.float64), dtype=torch.float32)
    return (taps / taps.sum())[None, None]


def kinds(taps):
    return [fault.kind for fault in faults(taps)]


@pytest.mark.parametrize("name", FINE)
def test_a_kernel_that_is_fine_is_not_doubted(name):
    assert not kinds(as_kernel(FINE[name])), name


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_kernel_is_named(name):
    array, fault = BROKEN[name]
    assert kinds(as_kernel(array)) == [fault]


def test_both_lists_are_long_enough_to_mean_something():
    assert len(FINE) >= 60
    assert len(BROKEN) >= 25


@pytest.mark.parametrize(
    "name", [n for n, (_, fault) in BROKEN.items() if fault in ("background", "off-centre", "even")]
)
def test_what_mends_it_does(name):
    array, fault = BROKEN[name]
    options = {"background": "auto"} if fault == "background" else {"centre": True}
    mended = problems.kernel(np.asarray(array) / array.sum(), **options)
    assert not kinds(mended)
    assert float(mended.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("true", "pedestal", "noise"),
    [
        (gauss(21, 2), 0.025, 0),
        (gauss(31, 2), 0.03, 0.005),
        (moffat(31, 2, 2.5), 0.1, 0),
        (motion(25, 15, 30), 0.05, 0),
    ],
    ids=["Gaussian", "noise", "wings", "motion"],
)
def test_what_is_left_is_near_the_true_kernel(true, pedestal, noise):
    true = true / true.max()
    measured = over(noisy(true, noise), pedestal)
    true = true / true.sum()
    before = np.abs(measured / measured.sum() - true).sum()
    after = np.abs(problems.kernel(measured, background="auto")[0, 0].numpy() - true).sum()
    assert after < 0.15 * before


def test_each_colour_has_its_own_background_and_all_one_place():
    colours = torch.tensor(np.stack([over(gauss(21, s), p) for s, p in ((1.5, 0.0), (2, 0.02), (2.5, 0.1))]))
    mended = problems.kernel(colours, background="auto")[0]
    for channel, sigma in zip(mended, (1.5, 2, 2.5), strict=True):
        assert torch.allclose(channel, torch.tensor(gauss(21, sigma) / gauss(21, sigma).sum()), atol=2e-4)
    fringed = torch.tensor(np.stack([gauss(31, 2, right=r) for r in (3.0, 4.0, 5.0)]))
    centred = problems.kernel(fringed, centre=True)[0]
    places = [int(c.sum(0).argmax()) - (centred.shape[-1] - 1) // 2 for c in centred]
    assert places == [-1, 0, 1]  # what is between the colours stays
    assert torch.allclose(centred.sum((-2, -1)), fringed.sum((-2, -1)))


def test_a_kernel_is_moved_whole():
    k = torch.zeros(1, 1, 8, 12)
    k[0, 0, 0, 9], k[0, 0, 2, 11], k[0, 0, 1, 10] = 0.25, 0.25, 0.5
    moved = problems.kernel(k, centre=True)
    assert moved.shape[-2:] == (3, 3)
    assert torch.equal(moved[0, 0], torch.tensor([[0.25, 0, 0], [0, 0.5, 0], [0, 0, 0.25]]))


def test_the_image_is_where_it_was_measured():
    """Moving the kernel moves the image back by as much; its other pixels are as before."""
    k = as_kernel(gauss(21, 1.5, down=4, right=-3))
    x = torch.rand(1, 1, 64, 64)
    given = problems.deblur(k, "circular").operator(x).A(x)
    mended = problems.deblur(k, "circular", centre_kernel=True).operator(x).A(x)
    assert torch.allclose(given.roll((-4, 3), (-2, -1)), mended, atol=1e-5)


def test_a_background_may_be_given():
    counts = np.round(4000 * gauss(21, 2) + 100)
    given = problems.kernel(counts, background=100)
    assert torch.allclose(given[0, 0], torch.tensor(gauss(21, 2) / gauss(21, 2).sum()).float(), atol=1e-4)
    assert float(given.min()) == 0
    unchanged = problems.kernel(counts, background=0)
    assert torch.equal(unchanged[0, 0], torch.tensor(counts).float())
    assert torch.equal(problems.kernel(counts)[0, 0], unchanged[0, 0])


def test_the_sentence_of_each_fault_names_its_remedy(tmp_path):
    said = {}
    for name, (array, fault) in BROKEN.items():
        np.save(tmp_path / "psf.npy", array / array.sum())
        said[fault] = [*kernel_doubts(problems.deblur(str(tmp_path / "psf.npy")))]
        assert len(said[fault]) == 1, name
        assert said[fault][0].startswith("the blur kernel psf.npy ")
        assert len(said[fault][0]) <= 210
    for fault, words in {
        "background": "--kernel-background auto",
        "off-centre": "--centre-kernel",
        "even": "--centre-kernel",
        "inverted": "invert it",
        "saturated": "shorter exposure",
    }.items():
        assert words in said[fault][0]


def test_kernels_by_name_are_as_they_are_meant():
    for spec in ("gaussian:0.7", "gaussian:4", "uniform:9", "motion:15@30", "three-motions"):
        assert not [*kernel_doubts(problems.deblur(spec))]
    assert "uniform:8 is 8×8" in next(kernel_doubts(problems.deblur("uniform:8")))
    assert not [*kernel_doubts(problems.superres(2))]
    assert not [*kernel_doubts(problems.denoise(0.1))]
    assert len([*kernel_doubts(problems.superres(2, over(gauss(21, 2), 0.05)))]) == 1


def test_doctor_says_the_same():
    array = over(disc(31, 6.5), 0.05)
    (found,) = doctor(problems.deblur(as_kernel(array)).operator(torch.zeros(1, 1, 64, 64))).of("kernel")
    assert found.severity is Severity.WARNING
    assert "pedestal" in found.found
    assert 'retune.problems.kernel(kernel, background="auto")' in found.advice
    lopsided = as_kernel(gauss(21, 2, down=0.8))
    (found,) = doctor(problems.deblur(lopsided).operator(torch.zeros(1, 1, 64, 64))).of("kernel")
    assert found.severity is Severity.NOTE


def test_kernels_of_a_batch_are_all_examined():
    both = torch.cat([as_kernel(airy(21, 4)), as_kernel(np.roll(gauss(21, 2), 4, 0))])
    assert kinds(both) == ["off-centre"]
    assert not kinds(both[:1])
