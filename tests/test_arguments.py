"""Arguments of a wrong type: one clear error at construction that says what to write; and readable reprs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from deepinv.optim import L2
from deepinv.physics import LinearPhysics

import retune
from retune import Anderson, DataTerm, ForwardBackward, Implicit, Picard, Restarted, Stop, Truncated, Unrolled, problems
from retune.errors import InvalidParameterError, PhysicsError, ShapeError, unknown_name
from retune.parameters import Bounded, Positive
from retune.priors import WaveletL1, WaveletL12
from small_parts import Rounded


def a_map(**options) -> ForwardBackward:
    return ForwardBackward(WaveletL1("haar", 2), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Restarted(WaveletL1()), r"map must be .*WaveletL1.*retune\.ForwardBackward\(prior\)"),
        (lambda: Restarted(ForwardBackward), r"map must be a map, got the class ForwardBackward itself"),
        (lambda: Restarted(a_map(), depth="a"), r"depth must be a whole number, got 'a' \(str\)"),
        (lambda: Restarted(a_map(), depth=True), r"depth must be a whole number, got True \(bool\)"),
        (lambda: Restarted(a_map(), restarts=2.5), r"restarts must be a whole number, got 2.5 \(float\)"),
        (lambda: Restarted(a_map(), gradient=Truncated), r"the class Truncated itself; .*retune\.Truncated\(\)"),
        (lambda: Restarted(a_map(), gradient="implicit"), r"gradient must be .*'implicit'.*retune\.Truncated\(\)"),
        (lambda: Restarted(a_map(), solver="anderson"), r"solver must be .*'anderson'.*retune\.Picard\(\)"),
        (lambda: Restarted(a_map(), stop=1e-4), r"stop must be .*0.0001 \(float\).*retune\.Stop\(rtol=1e-4\)"),
        (lambda: Truncated(blocks=1.5), r"blocks must be a whole number, got 1.5 \(float\)"),
        (lambda: Truncated(max_blocks=None), r"max_blocks must be a whole number, got None"),
        (lambda: Truncated(rtol="a"), r"rtol must be a number, got 'a' \(str\)"),
        (lambda: Stop(rtol="a"), r"rtol must be a number, got 'a' \(str\)"),
        (lambda: Stop(max_layers=2.5), r"max_layers must be a whole number, got 2.5"),
        (lambda: Stop(max_layers=True), r"max_layers must be a whole number, got True"),
        (lambda: Stop(rtol=float("nan")), r"Stop needs 0 ≤ rtol < 1"),
        (lambda: Anderson(memory="a"), r"memory must be a whole number, got 'a' \(str\)"),
        (lambda: Anderson(pause=1.5), r"pause must be a whole number, got 1.5"),
        (lambda: Anderson(regularisation=None), r"regularisation must be a number, got None"),
        (lambda: Anderson(growth=float("nan")), r"Anderson needs .*growth > 1"),
        (lambda: Implicit(max_blocks=1.5), r"max_blocks must be a whole number, got 1.5"),
        (lambda: Implicit(rtol=None), r"rtol must be a number, got None"),
        (lambda: a_map(data_fidelity=0.9), r"data_fidelity must be .*0.9 \(float\); write step_size=0.9"),
        (lambda: a_map(data_fidelity=L2), r"data_fidelity must be .*the class L2 itself"),
        (lambda: ForwardBackward("wavelet"), r"prior must be .*'wavelet' \(str\).*retune\.priors\.WaveletL12"),
        (lambda: ForwardBackward(WaveletL1), r"prior must be .*the class WaveletL1 itself"),
        (lambda: a_map(layers=2.0), r"layers must be a whole number, got 2.0"),
        (lambda: a_map(reg="a"), r"reg must be a number or a table of numbers, got 'a' \(str\)"),
        (lambda: a_map(reg=None), r"reg must be a number or a table of numbers, got None"),
        (lambda: a_map(step_size="a"), r"step_size must be a number or a table of numbers, got 'a'"),
        (lambda: a_map(reg=True), r"reg must be a number .*True \(bool\)"),
        (lambda: WaveletL12(over=3), r"over must be a name or a sequence of names, got 3"),
        (lambda: problems.inpaint(keep="a"), r"keep must be a number, got 'a'"),
    ],
)
def test_wrong_types(make, message):
    with pytest.raises(InvalidParameterError, match=message):
        make()


@pytest.mark.parametrize("cls", [WaveletL1, WaveletL12])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 2.5}, r"levels must be a whole number, got 2.5 \(float\)"),
        ({"levels": "3"}, r"levels must be a whole number, got '3' \(str\)"),
        ({"levels": True}, r"levels must be a whole number, got True \(bool\)"),
        ({"wavelet": 4}, r"wavelet must be a name or a sequence of names, got 4 \(int\); for example \"db4\""),
        ({"channels": 1.0}, r"channels must be a whole number, got 1.0"),
        ({"weights": "a"}, r"weights must be a number or a table of numbers, got 'a'"),
    ],
)
def test_wrong_types_in_wavelet_priors(cls, options, message):
    with pytest.raises(InvalidParameterError, match=message):
        cls(**options)


def test_the_value_shown_is_short():
    with pytest.raises(InvalidParameterError, match=r"\.\.\. \(Tensor\)") as caught:
        Truncated(blocks=torch.zeros(100, 100))
    assert len(str(caught.value)) < 150


def test_numpy_numbers_are_numbers():
    n = np.int64
    prior = WaveletL12("haar", n(2), channels=n(3))
    layers = ForwardBackward(prior, layers=n(2), reg=np.float32(0.5), step_size=np.array([0.5, 0.7]))
    net = Restarted(layers, depth=n(4), restarts=n(3), gradient=Truncated(n(2), np.float32(0.5), n(9)))
    assert json.loads(json.dumps(net.describe())) == net.describe()
    json.dumps(Implicit(np.float32(1e-3), n(5)).describe())
    json.dumps(Anderson(n(4), np.float32(1e-6), np.float32(2), n(3)).describe())
    stop = Stop(np.float32(1e-3), n(50))
    assert (type(stop.rtol), type(stop.max_layers)) == (float, int)
    assert stop.max_layers == 50
    assert problems.inpaint(keep=np.float32(0.5)).keep == 0.5


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [
        (1, 1.0),
        (np.float32(0.5), 0.5),
        (np.int64(1), 1.0),
        (np.array(0.5), 0.5),
        (torch.tensor(0.5), 0.5),
        ([0.5, 1, 0.25], (0.5, 1.0, 0.25)),
        (np.array([0.5, 1, 0.25]), (0.5, 1.0, 0.25)),
        (torch.tensor([0.5, 1, 0.25]), (0.5, 1.0, 0.25)),
        ([torch.tensor(0.5), np.float32(1), 0], (0.5, 1.0, 0.0)),
    ],
)
@pytest.mark.parametrize("name", problems.names())
def test_noise_levels_of_any_kind(name, sigma, expected):
    problem = problems.get(name, sigma=sigma)
    assert problem.sigma == expected
    json.dumps(problem.describe())
    size = {"kernel": "uniform:3"} if name == "deblur" else {}
    side = 4 if name == "superres" else 8
    assert problems.get(name, sigma=sigma, **size).measure(torch.rand(1, 3, 8, 8))[0].shape == (1, 3, side, side)


@pytest.mark.parametrize("sigma", ["a", True, ["a"], [[0.1, 0.2]], torch.ones(2, 2), {0.1}])
def test_noise_levels_that_are_none(sigma):
    with pytest.raises(InvalidParameterError, match=r"sigma must be one standard deviation"):
        problems.denoise(sigma=sigma)


def test_a_kernel_may_be_an_array():
    taps = np.arange(6.0).reshape(2, 3)[:, ::-1]
    assert torch.equal(problems.kernel(taps), torch.tensor(taps.copy(), dtype=torch.float32)[None, None])
    y, _ = problems.deblur(np.ones((3, 3), np.uint8), sigma=0.0).measure(torch.ones(1, 1, 8, 8))
    assert torch.allclose(y, torch.full_like(y, 9.0))
    for wrong in (np.array([["a"]]), 3, [[1.0]]):
        with pytest.raises(InvalidParameterError, match="kernel must be"):
            problems.deblur(wrong)
    with pytest.raises(ShapeError, match="kernel has shape"):
        problems.deblur(np.ones(3))


def test_measuring_what_is_no_image():
    with pytest.raises(InvalidParameterError, match=r"torch.uint8; scale them to floats in \[0, 1\]"):
        problems.denoise().measure(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(InvalidParameterError, match=r"x must be a tensor .*as_images"):
        problems.denoise().measure(np.zeros((1, 3, 8, 8)))


def test_three_levels_on_a_grey_image():
    x = torch.rand(1, 1, 8, 8)
    with pytest.raises(ShapeError, match=r"give one level, e\.g\. denoise\(sigma=0\.1\)"):
        problems.denoise().measure(x)
    with pytest.raises(ShapeError, match=r"give one level for all channels, e\.g\. sigma=0\.1"):
        problems.denoise().physics((3, 8, 8))(x)


def test_physics_without_an_adjoint():
    def forward(x, **_):
        return 2 * x

    y = torch.rand(1, 1, 8, 8)
    with pytest.raises(PhysicsError, match=r"no adjoint: give A_adjoint=\.\.\., or img_size=\(C, H, W\)"):
        DataTerm(y, LinearPhysics(A=forward))
    assert torch.allclose(DataTerm(y, LinearPhysics(A=forward, img_size=(1, 8, 8))).adjoint_y, 2 * y)


def test_an_unknown_lipschitz_constant_names_the_map():
    with pytest.raises(InvalidParameterError, match=r"ForwardBackward\(\.\.\., lipschitz=\.\.\.\)"):
        DataTerm(torch.rand(1, 1, 8, 8), problems.denoise(0.1).physics((1, 8, 8)), Rounded())


@pytest.mark.parametrize(
    ("name", "known", "says"),
    [
        ("bogus", ["deblur", "inpaint"], "unknown problem 'bogus'. Known: deblur, inpaint."),
        ("deblurr", ["deblur", "x"], "unknown problem 'deblurr'; did you mean 'deblur'? Known: deblur, x."),
        ("DB4", ["db4", "db44"], "unknown problem 'DB4'; did you mean 'db4'? Known: db4, db44."),
        (
            "truncatd",
            ["Truncated", "L2"],
            "unknown problem 'truncatd'; did you mean 'Truncated'? Known: L2, Truncated.",
        ),
        (3, ["db4"], "unknown problem 3. Known: db4."),
    ],
)
def test_unknown_names(name, known, says):
    assert str(unknown_name("problem", name, known)) == says


def test_submodules_are_loaded_on_first_use():
    assert retune.data.as_images is not None
    assert retune.errors.RetuneError is not None
    assert {"data", "errors"} <= set(retune.__all__)


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (Truncated(), "Truncated(blocks=1, rtol=None, max_blocks=200, memory=0)"),
        (Implicit(1e-3), "Implicit(rtol=0.001, max_blocks=1000, memory=3)"),
        (Unrolled(), "Unrolled()"),
        (Picard(), "Picard()"),
        (problems.denoise(0.1), "denoise(sigma=0.1)"),
        (problems.inpaint(), "inpaint(keep=0.5, sigma=0.05)"),
        (Positive(0.5), "Positive(0.5)"),
        (Positive([0.1, 2.0], (2,), learn=False), "Positive([0.1, 2], learn=False)"),
        (Positive(0.5, (3, 1, 3)), "Positive(0.5 to 0.5, shape=(3, 1, 3))"),
        (Bounded(0.9, (1,)), "Bounded(0.9)"),
    ],
)
def test_reprs(thing, expected):
    assert repr(thing) == expected


def test_the_repr_of_a_network():
    net = Restarted(a_map(), depth=5, restarts=7, stop=Stop(1e-3, 99))
    first = (
        "depth=5, restarts=7, gradient=Truncated(blocks=1, rtol=None, max_blocks=200, memory=0), "
        "solver=Inertial(relaxation=0.6, growth=2.0, pause=1, patience=16) (chosen; Picard() in training), "
        "stop=Stop(rtol=0.001, max_layers=99)"
    )
    assert first in repr(net)
    assert "(step_size): Bounded(0.9)" in repr(net)
