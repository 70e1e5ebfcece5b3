"""Undecimated wavelets: their operator, the exact norm, the value, the dual prox, learned weights, run and file."""

import gc

import numpy as np
import pytest
import pywt
import torch
from deepinv.physics import Blur, Denoising

import retune
from averaged import least_slack
from retune import DataTerm, ForwardBackward, Implicit, PrimalDual, Restarted, Status, Stop, Truncated
from retune.data import photograph
from retune.errors import InvalidParameterError, ShapeError, TooManyLevelsError, UnknownNameError
from retune.priors import UndecimatedWavelet, WaveletL1, adapt
from retune.priors.shrinkage import group_shrink
from retune.priors.undecimated import _Transform
from small_parts import as_matrix, rand, soft

SIZES = [(2, 2), (5, 7), (8, 6), (4, 9)]
GROUPS = [(), ("channel",), ("band",), ("channel", "band")]


def scene(side, channels=1):
    return photograph("chelsea")[None, :channels, 100 : 100 + side, 100 : 100 + side].to(torch.get_default_dtype())


def analysis_of(prior, shape, gamma=1.0):
    found = prior.bind(shape, 0, torch.as_tensor(gamma, dtype=torch.get_default_dtype())).analysis
    assert found is not None
    return found


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("wavelet", ["haar", "db3"])
def test_it_is_a_tight_frame_for_every_size(wavelet, size, float64):
    """Filters that are longer than the image, too: db3 at the second scale has 16 pixels."""
    for levels in (1, 2)[: 1 + (min(size) > 3)]:
        found = analysis_of(UndecimatedWavelet(wavelet, levels, coarse=True), (1, 1, *size))
        x, z = rand(2, 3, *size), rand(2, 3, 3 * levels + 1, *size, seed=1)
        torch.testing.assert_close((found.forward(x) * z).sum(), (x * found.adjoint(z)).sum())
        torch.testing.assert_close(found.adjoint(found.forward(x)), x)
        assert float(found.sqnorm) == 1


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
def test_the_norm_is_exact_and_the_adjoint_is_one(size, coarse, float64):
    for wavelet, levels in (("haar", 1), ("db4", 1 + (min(size) > 3))):
        found = analysis_of(UndecimatedWavelet(wavelet, levels, coarse=coarse), (1, 1, *size))
        matrix = as_matrix(found.forward, (1, *size))
        norm = float(torch.linalg.matrix_norm(matrix, 2)) ** 2
        assert float(found.sqnorm) == pytest.approx(norm, rel=1e-12)
        bands = 3 * levels + coarse
        torch.testing.assert_close(as_matrix(found.adjoint, (1, bands, *size)), matrix.T)


def test_odd_sides_have_a_norm_below_one(float64):
    """The highest frequency of three pixels is not that of the filter, so the coarse approximation keeps some of it."""
    assert float(analysis_of(UndecimatedWavelet("haar", 1), (1, 1, 3, 3)).sqnorm) == pytest.approx(1 - 1 / 16)


def test_images_of_many_sizes_do_not_fill_the_memory():
    """`restore` opens one after the other, and the symbols of an image are larger than it."""
    before = {id(t) for t in gc.get_objects() if type(t) is _Transform}
    for side in range(20, 32):
        UndecimatedWavelet("haar", 1).fn(torch.zeros(1, 1, side, side))
    assert 1 <= sum(type(t) is _Transform and id(t) not in before for t in gc.get_objects()) <= 4


@pytest.mark.parametrize("wavelet", ["haar", "db2", "sym4"])
def test_its_coefficients_are_those_of_pywavelets(wavelet, float64):
    """In each band and scale the same values, in a fixed order of shifts."""
    x = rand(1, 1, 8, 16)
    found = analysis_of(UndecimatedWavelet(wavelet, 3), x.shape).forward(x)[0, 0].unflatten(0, (3, 3))
    theirs = pywt.swt2(x[0, 0].numpy(), wavelet, 3, norm=True, trim_approx=True)[:0:-1]
    for j, bands in enumerate(theirs):  # (cH, cV, cD): high along rows, along columns, along both
        for ours, band in zip((1, 0, 2), bands, strict=True):
            sizes = found[ours, j].abs().flatten().sort().values
            np.testing.assert_allclose(sizes, np.sort(np.abs(band).ravel()), atol=1e-9)


def test_its_value_is_the_mean_of_all_shifts_of_orthonormal_wavelets(float64):
    x, weights, scales = rand(2, 3, 8, 16), [[0.5, 1.0, 2.0]], [0.7, 1.3]
    decimated = WaveletL1("db2", 2, weights=[weights], scale_weights=[scales])
    shifts = [decimated.fn(x.roll((a, b), (-2, -1))) for a in range(4) for b in range(4)]
    prior = UndecimatedWavelet("db2", 2, weights=weights, scale_weights=scales)
    torch.testing.assert_close(prior.fn(x), torch.stack(shifts).mean(0))
    torch.testing.assert_close(prior.fn(x.roll((3, 5), (-2, -1))), prior.fn(x))
    gamma = torch.tensor([0.5, 2.0]).reshape(2, 1, 1, 1)
    bound = prior.bind(x.shape, 0, gamma)
    assert bound.fn is not None
    torch.testing.assert_close(bound.fn(x), gamma.flatten() * prior.fn(x))


@pytest.mark.parametrize("over", GROUPS, ids="-".join)
@pytest.mark.parametrize("coarse", [False, True])
def test_the_dual_prox_obeys_moreau(coarse, over, float64):
    """``p = prox_{(γg)*}(p) + prox_{γg}(p)``; the norm by its definition is the value."""
    gamma, weights = torch.tensor([0.3, 0.9]).reshape(2, 1, 1, 1), [[0.5, 1.0, 1.5], [0.8, 2.0, 0.6]]
    prior = UndecimatedWavelet("db2", 2, over, channels=2, weights=weights, scale_weights=[1.2, 0.9], coarse=coarse)
    prior.requires_grad_(False)
    bound = prior.bind((2, 2, 4, 5), 0, gamma)
    assert bound.fn is not None
    assert bound.analysis is not None
    z = rand(2, 2, 6 + coarse, 4, 5)
    table = torch.tensor(weights)[:, :, None] * torch.tensor([0.6, 0.225])  # (channels, bands, levels)
    details = z[:, :, :6].unflatten(2, (3, 2))
    if over:
        position = torch.tensor([0.6, 0.225])[:, None, None].expand(2, 4, 5).flatten()
        packed = details.flatten(3).unsqueeze(2).flatten(3)
        shrunk = group_shrink(
            packed, gamma[..., None] * position, torch.tensor(weights)[None, :, None, :, None] ** 2, 40,
            tuple({"channel": 1, "band": 3}[a] for a in over), 20,
        ).reshape(details.shape)  # fmt: skip
    else:
        shrunk = soft(details, gamma[..., None, None] * table[..., None, None])
    shrunk = shrunk.flatten(2, 3)
    if coarse:
        shrunk = torch.cat([shrunk, soft(z[:, :, 6:], 0.25 * gamma[..., None])], 2)
    torch.testing.assert_close(bound.analysis.dual_prox(z, torch.tensor([0.3])) + shrunk, z)
    x = rand(2, 2, 4, 5, seed=1)
    z = bound.analysis.forward(x)
    torch.testing.assert_close(bound.fn(x), gamma.flatten() * _by_definition(z, table, over, coarse))


def _by_definition(z, table, over, coarse):
    """The norm of coefficients, one by one."""
    total = torch.zeros(len(z))
    for image in range(len(z)):
        for j in range(2):
            squares = (table[:, :, j, None, None] * z[image, :, :6].unflatten(1, (3, 2))[:, :, j]).square()
            dims = tuple({"channel": 0, "band": 1}[a] for a in over)
            total[image] += (squares.sum(dims) if dims else squares).sqrt().sum()
        total[image] += 0.25 * z[image, :, 6].abs().sum() if coarse else 0
    return total


@pytest.mark.parametrize("over", [(), ("channel", "band")], ids="-".join)
def test_weights_are_learned_with_the_gradient_of_finite_differences(over, float64):
    """Of each band, scale, and of the coarse approximation, through the equilibrium."""
    y, weights = scene(6, 2) + 0.1 * rand(1, 2, 6, 6), rand(1, 2, 6, 6, seed=9)
    prior = UndecimatedWavelet("haar", 2, over, weights=[[0.8, 1.0, 1.3]], scale_weights=[0.9, 1.2], coarse=True)
    map_ = PrimalDual(prior, reg=0.1, balance=0.5, learn_step_size=False, learn_balance=False)
    assert prior.coarse_weights is not None
    tables = {"weights": prior.weights.raw, "scales": prior.scale_weights.raw, "coarse": prior.coarse_weights.raw}

    def loss():
        net = Restarted(map_, depth=10, stop=Stop(1e-12, 8000)).eval()
        return float((weights * net.solve(y, Denoising()).image).sum().detach())

    truth, h = {}, 1e-5
    for name, raw in tables.items():
        truth[name] = torch.zeros_like(raw)
        for i in np.ndindex(*raw.shape):
            ends = []
            for sign in (1, -2):
                with torch.no_grad():
                    raw[i] += sign * h
                ends.append(loss())
            with torch.no_grad():
                raw[i] += h
            truth[name][i] = (ends[0] - ends[1]) / (2 * h)
    scale = max(float(t.abs().max()) for t in truth.values())
    assert scale > 0.05
    for rule in (Truncated(rtol=1e-7, max_blocks=400), Implicit(rtol=1e-7, max_blocks=4000)):
        net = Restarted(map_, depth=20, restarts=100, gradient=rule).train()
        net.zero_grad()
        (weights * net(y, Denoising())).sum().backward()
        for name, raw in tables.items():
            torch.testing.assert_close(raw.grad, truth[name], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("over", GROUPS, ids="-".join)
def test_with_it_the_map_is_averaged_and_certified(over, float64):
    y = scene(6, 2) + 0.1 * rand(1, 2, 6, 6)
    map_ = PrimalDual(UndecimatedWavelet("db2", 2, over), reg=0.1, step_size=0.999).requires_grad_(False)
    term = DataTerm(y, Denoising())
    bound, facts = map_.bind(term), map_.guarantee(term)
    assert facts.statement == "converge to a minimiser"
    assert all(a.checked for a in facts.assumptions)
    assert facts.averaged is not None
    assert -1e-12 <= least_slack(bound, facts.averaged, pairs=100) < 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_of_a_batch_are_restored_each_for_itself(dtype):
    """Some settle early and leave the batch."""
    y = torch.cat([0.2 * scene(13, 3), scene(13, 3), scene(13, 3).flip(-1) ** 3]).to(dtype)
    y = y + 0.05 * rand(*y.shape).to(dtype)
    prior = UndecimatedWavelet("db2", 3, "channel")
    net = Restarted(PrimalDual(prior, reg=0.05, box=(0.0, 1.0)), depth=5, stop=Stop(1e-5, 5000)).eval()
    together = net.solve(y, Denoising())
    assert together.image.dtype == dtype
    assert together.status == (Status.CONVERGED,) * 3
    assert len(set(together.layers.tolist())) > 1
    for i in range(3):
        alone = net.solve(y[i : i + 1], Denoising())
        torch.testing.assert_close(together.image[i], alone.image[0], rtol=0, atol=1e-5)


def test_it_restores_better_than_one_grid_of_wavelets():
    x = scene(64)
    physics = Blur(torch.ones(1, 1, 3, 3) / 9, padding="circular")
    y = physics.A(x) + 0.03 * rand(*x.shape)

    def error(map_):
        image = Restarted(map_, depth=10, stop=Stop(1e-4, 500)).eval().solve(y, physics).image
        return float((image - x).square().mean().detach())

    strengths = (0.003, 0.006, 0.012, 0.024)
    ours = min(error(PrimalDual(UndecimatedWavelet("db4", 3), reg=r)) for r in strengths)
    theirs = min(error(ForwardBackward(WaveletL1("db4", 3), reg=r)) for r in strengths)
    assert ours < 0.9 * theirs


def test_a_run_names_it_and_a_file_keeps_it(tmp_path):
    options = {"wavelet": "db2", "levels": 2, "over": "channel", "coarse": True}
    run = retune.config.from_dict(
        {"prior": {"type": "undecimated_wavelet", "options": options}, "model": {"reg": 0.1, "depth": 4}}
    )
    net = retune.build.network_of(run, 3).eval()
    assert type(net.map) is PrimalDual
    with torch.no_grad():
        net.map.prior.weights.raw.add_(rand(3, 3))
        net.map.prior.coarse_weights.raw.add_(0.5)
    net.save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors").eval()
    assert again.map.prior.describe() == net.map.prior.describe()
    y = rand(1, 3, 9, 6)
    torch.testing.assert_close(again.solve(y, Denoising()).image, net.solve(y, Denoising()).image)
    learned = net.map.learned()
    assert np.shape(learned["weights"]) == (3, 3)
    assert np.shape(learned["scale_weights"]) == (2,)
    net.map.prior.hold_scales()
    assert not any(p.requires_grad for p in net.map.prior.parameters())


def test_what_it_declares_and_does_not_take():
    able = adapt(UndecimatedWavelet())
    assert (able.has_analysis, able.has_value, able.has_prox, able.has_grad) == (True, True, False, False)
    with pytest.raises(InvalidParameterError, match=r"retune\.PrimalDual\(prior\)"):
        ForwardBackward(UndecimatedWavelet())
    with pytest.raises(UnknownNameError, match="wavelet"):
        UndecimatedWavelet("db4x")
    with pytest.raises(InvalidParameterError, match="not orthogonal"):
        UndecimatedWavelet("bior2.2")
    with pytest.raises(UnknownNameError, match="group axis"):
        UndecimatedWavelet(over="bands")
    with pytest.raises(InvalidParameterError, match="once at most"):
        UndecimatedWavelet(over=("band", "band"))
    with pytest.raises(InvalidParameterError, match="levels must be at least 1"):
        UndecimatedWavelet(levels=0)
    with pytest.raises(InvalidParameterError, match="weights must be positive"):
        UndecimatedWavelet(weights=0.0)
    with pytest.raises(TooManyLevelsError, match="at most 2 do"):
        UndecimatedWavelet(levels=3).fn(torch.zeros(1, 1, 7, 9))
    with pytest.raises(ShapeError, match="weights for 3 channels"):
        UndecimatedWavelet(levels=1, channels=3).fn(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ShapeError, match=r"\(B, C, H, W\)"):
        UndecimatedWavelet(levels=1).fn(torch.zeros(3, 4, 4))
    with pytest.raises(ShapeError, match="expected images"):
        analysis_of(UndecimatedWavelet(levels=1), (1, 1, 4, 4)).forward(torch.zeros(1, 1, 4, 5))
