"""Warm starts: the right pixels, for fewer layers, and the same gradient."""

from __future__ import annotations

import shutil

import pytest
import torch
from deepinv.loss import R2RLoss
from safetensors import safe_open

import retune
from retune import Anderson, Status, Stop, WarmStart
from retune.data import Crop, draw_crops, random_crops
from retune.equilibrium import Equilibrium
from retune.errors import CheckpointError, InvalidParameterError


def images(count=2, side=40):
    coarse = torch.rand(count, 3, 6, 6)
    return list(torch.nn.functional.interpolate(coarse, size=(side, side + 5), mode="bilinear"))


def network(**options):
    prior = retune.priors.WaveletL12("db2", levels=3, channels=3)
    return retune.Restarted(retune.ForwardBackward(prior, reg=0.02), depth=5, **({"restarts": 20} | options))


def found(batch, status=Status.CONVERGED):
    zero = torch.zeros(len(batch))
    return Equilibrium(batch, batch, zero, (status,) * len(batch), zero)


def fit(net, warm, **options):
    given = {"steps": 6, "batch_size": 2, "crop": 24, "progress": False, "device": "cpu", "lr": 0.1} | options
    return retune.fit(net, images(), retune.problems.inpaint(), warm_start=warm, **given)


@pytest.mark.parametrize("size", [8, None])
def test_what_is_written_is_read_under_every_flip(size):
    """The crops of the images themselves put together the images."""
    pictures, warm = images(), WarmStart()
    warm.prepare(network(), pictures)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150 if size else 4):
        crops, where = draw_crops(pictures, 3, size, generator) if size else draw_crops(pictures, 2, None, generator)
        warm.at(where)
        warm.keep(found(crops))
    crops, where = draw_crops(pictures, 8, size, generator)
    warm.at(where)
    start = warm.init(torch.full_like(crops, -1.0))
    seen = start != -1
    assert float(seen.float().mean()) > 0.9
    assert torch.equal(start[seen], crops[seen])


def test_pixels_never_visited_start_as_usual():
    warm = WarmStart()
    warm.prepare(network(), images())
    warm.at([Crop(1, 0, 0, 10, 10, (False, True))])
    warm.keep(found(torch.full((1, 3, 10, 10), 0.7)))
    warm.at([Crop(1, 5, 2, 10, 10, (True, False)), Crop(0, 0, 0, 10, 10, (False, False))])
    start = warm.init(torch.full((2, 3, 10, 10), 0.1))
    assert bool((start[1] == 0.1).all())
    assert float((start[0] == 0.7).sum()) == 3 * 5 * 8
    assert bool((start[0, :, 5:, :8] == 0.7).all())  # upside down: the top rows are below


def test_an_image_that_failed_is_not_kept():
    warm = WarmStart()
    warm.prepare(network(), images())
    warm.at([Crop(0, 0, 0, 8, 8, (False, False))])
    warm.keep(found(torch.full((1, 3, 8, 8), torch.nan), Status.NOT_FINITE))
    assert torch.equal(warm.init(torch.ones(1, 3, 8, 8)), torch.ones(1, 3, 8, 8))


def test_large_canvases_are_in_files_that_go_away(tmp_path):
    small, large, kept = WarmStart(), WarmStart(limit=1000), WarmStart(limit=1000, folder=tmp_path / "warm")
    for warm in (small, kept, large):
        warm.prepare(network(), images())
        warm.at([Crop(0, 3, 4, 8, 8, (True, False))])
        warm.keep(found(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))))
    assert [w.on_disk for w in (small, large, kept)] == [False, True, True]
    usual = torch.zeros(1, 3, 8, 8)
    assert torch.equal(small.init(usual), large.init(usual))
    assert len(list((tmp_path / "warm").iterdir())) == 4
    place = large._place
    assert place.exists()
    del large, warm
    assert not place.exists()


def test_fewer_layers_for_the_same_equilibrium_and_gradient(float64):
    """Fresh noise and a fresh mask on the same image."""
    x = torch.stack(images())[..., :40]
    net = network(solver=Anderson(), gradient=retune.Truncated(rtol=1e-6), restarts=200).train()
    problem = retune.problems.inpaint(sigma=0.02)
    before = net.solve(*problem.measure(x, 1), stop=Stop(1e-6, 1000)).image.detach()
    y, physics = problem.measure(x, 2)
    layers, gradients = [], []
    for init in (None, before, lambda usual: before):
        net.zero_grad()
        result = net.solve(y, physics, init=init, stop=Stop(1e-8, 1000))
        result.image.square().sum().backward()
        layers.append(int(net.solve(y, physics, init=init, stop=Stop(1e-3, 1000)).layers.max()))
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert layers[1] <= layers[0]
    assert layers[2] == layers[1]
    for g in gradients[1:]:
        torch.testing.assert_close(g, gradients[0], rtol=1e-3, atol=1e-4 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("warm", [False, True])
def test_the_seed_decides_everything(warm):
    pictures = images()
    options = {"steps": 5, "batch_size": 2, "crop": 24, "progress": False, "device": "cpu", "lr": 0.1}
    nets = [network(), network()]
    losses = [
        [s.loss for s in retune.fit(n, pictures, retune.problems.inpaint(), warm_start=warm, **options).steps]
        for n in nets
    ]
    assert losses[0] == losses[1]


def test_the_restarts_are_the_most_that_are_run():
    counts = []

    class Counting(WarmStart):
        def keep(self, equilibrium):
            counts.append(int(equilibrium.layers.max()))
            super().keep(equilibrium)

    fit(network(restarts=20), Counting(rtol=1e-2), steps=12)
    assert max(counts) <= 5 * 21
    assert min(counts) < 5 * 21


def test_crops_are_what_they_were():
    """The places are told without drawing anything else."""
    one, two = (torch.Generator().manual_seed(3) for _ in range(2))
    crops, where = draw_crops(images(), 4, 9, one)
    torch.manual_seed(0)
    assert crops.shape == random_crops(images(), 4, 9, two).shape
    assert torch.equal(one.get_state(), two.get_state())
    assert all(w.height == w.width == 9 for w in where)


def test_a_loss_that_changes_the_measurement_trains_too():
    physics = retune.problems.denoise(0.1).physics((3, 24, 24))
    loss = R2RLoss()
    result = retune.fit(
        network(), images(), physics, loss=loss, steps=2, crop=24, warm_start=True, progress=False, device="cpu"
    )
    assert all(s.loss == s.loss for s in result.steps)


ONES = torch.ones(3)


class Noting(WarmStart):
    """What the steps reported."""

    def keep(self, equilibrium):
        self.reports = [*getattr(self, "reports", []), equilibrium.gradient]
        super().keep(equilibrium)


@pytest.mark.parametrize("size", [8, None])
def test_adjoints_are_read_where_they_were_written_under_every_flip(size):
    pictures, warm = images(), WarmStart()
    warm.prepare(network(gradient=retune.Implicit()), pictures)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150 if size else 4):
        crops, where = draw_crops(pictures, 3, size, generator) if size else draw_crops(pictures, 2, None, generator)
        warm.at(where)
        warm.adjoints().keep(crops, ONES[: len(crops)], ONES[: len(crops)])
    crops, where = draw_crops(pictures, 8, size, generator)
    warm.at(where)
    start, _ = warm.adjoints().recall(crops)
    seen = start != 0
    assert float(seen.float().mean()) > 0.9
    assert torch.equal(start[seen], crops[seen])
    assert not warm._visited[0].any()  # the equilibria are another matter


def test_an_adjoint_belongs_to_its_own_crops():
    """The backward pass may come after the next step has begun, and what is not finite is not kept."""
    warm = WarmStart()
    warm.prepare(network(gradient=retune.Implicit()), images())
    one, other = (Crop(0, 0, c, 8, 8, (False, False)) for c in (0, 9))
    warm.at([one])
    of_one = warm.adjoints()
    warm.at([other])
    of_one.keep(torch.full((1, 3, 8, 8), 0.5), ONES[:1], ONES[:1])
    warm.adjoints().keep(torch.full((1, 3, 8, 8), torch.nan), ONES[:1], ONES[:1])
    assert bool((of_one.recall(torch.zeros(1))[0] == 0.5).all())
    assert bool((warm.adjoints().recall(torch.zeros(1))[0] == 0).all())


@pytest.mark.parametrize("rule", [retune.Implicit(1e-2), retune.Truncated(rtol=1e-2)], ids=repr)
def test_fewer_products_for_the_same_gradient(rule):
    """Measurements that come back as they were, and weights that move slowly."""
    found = {}
    for adjoint in (False, None):
        torch.manual_seed(0)
        prior = retune.priors.WaveletL1("haar", levels=2)
        net = retune.Restarted(retune.ForwardBackward(prior, reg=0.03), 4, 50, gradient=rule, solver=Anderson())
        warm = Noting(rtol=1e-4, adjoint=adjoint)
        physics = retune.problems.deblur("uniform:3", sigma=0.0).physics((3, 16, 16))
        options = {"steps": 6, "batch_size": 2, "crop": None, "progress": False, "device": "cpu", "lr": 0.002}
        pictures = [i[:, :16, :16] for i in images(side=16)]
        result = retune.fit(net, pictures, physics, warm_start=warm, flips=False, **options)
        weights = torch.cat([p.detach().flatten() for p in net.parameters()])
        found[adjoint] = [r.blocks for r in warm.reports], weights, [s.loss for s in result.steps]
        assert max(float(r.relative_error.max()) for r in warm.reports) < 2e-2
    assert found[None][0][0] == found[False][0][0]
    assert sum(found[None][0][3:]) < 0.8 * sum(found[False][0][3:])
    torch.testing.assert_close(found[None][1], found[False][1], rtol=2e-3, atol=2e-3)
    assert found[None][2] == pytest.approx(found[False][2], rel=1e-3)


def test_adjoints_that_do_not_help_are_tried_ever_more_rarely():
    warm = WarmStart()
    warm.prepare(network(gradient=retune.Implicit()), images())
    warm.at([Crop(0, 0, 0, 8, 8, (False, False))])

    def step(left):
        memory = warm.adjoints()
        start, gain = memory.recall(torch.zeros(1))
        given = bool(start.any())
        assert float(gain) == (7.0 if given else 1.0)  # a start comes with the gain that was met
        memory.keep(torch.ones(1, 3, 8, 8), torch.tensor([7.0]), torch.tensor([left]))
        return given

    assert [step(0.9) for _ in range(12)] == [False, True, False, True, False, False, True, *[False] * 4, True]
    assert [step(0.1) for _ in range(11)] == [False] * 8 + [True] * 3


def test_adjoints_cost_as_much_memory_again_and_go_to_files(tmp_path):
    pictures = images()
    need = sum(i.numel() * 4 + i[0].numel() for i in pictures)
    for rule, limit, on_disk in (
        (retune.Truncated(), need, False),
        (retune.Implicit(), need, True),
        (retune.Implicit(), 2 * need, False),
    ):
        warm = WarmStart(limit=limit, folder=tmp_path)
        warm.prepare(network(gradient=rule), pictures)
        assert warm.on_disk is on_disk
    assert len(list(tmp_path.glob("adjoint-*.bin"))) == 2


def test_adjoints_of_a_number_of_blocks_are_refused():
    """``Truncated(blocks=M)`` is a sum of M terms: from another start it would be another gradient."""
    with pytest.raises(InvalidParameterError, match="change the gradient"):
        fit(network(gradient=retune.Truncated(blocks=3)), WarmStart(adjoint=True), steps=1)
    warm = WarmStart()
    warm.prepare(network(gradient=retune.Truncated(blocks=3)), images())
    assert "adjoint" not in warm.options(network())
    with pytest.raises(InvalidParameterError, match="True, False or None"):
        WarmStart(adjoint="yes")
    memory = WarmStart().adjoints()
    y, physics = retune.problems.inpaint().measure(torch.stack(images()), 1)
    for net in (network(), network(gradient=retune.Implicit()).eval()):
        with pytest.raises(InvalidParameterError, match="solves for no adjoint"):
            net.solve(y, physics, adjoint=memory)


def test_under_fresh_noise_the_weights_are_those_of_a_cold_start(float64):
    """Fresh masks, noise, crops and flips at every step: what is remembered is a start, and nothing more."""
    pictures, found = [i.double() for i in images()], {}
    for warm in (False, True):
        net = network(solver=Anderson(), restarts=200)
        options = {"steps": 15, "batch_size": 2, "crop": 24, "progress": False, "device": "cpu", "lr": 0.05}
        start = WarmStart(rtol=1e-7) if warm else False
        stop = None if warm else Stop(1e-7, 1000)
        result = retune.fit(net, pictures, retune.problems.inpaint(), warm_start=start, stop=stop, **options)
        weights = torch.cat([p.detach().flatten() for p in net.parameters()])
        found[warm] = weights, [s.loss for s in result.steps]
    moved = (found[False][0] - torch.cat([p.detach().flatten() for p in network().parameters()])).norm()
    assert float(moved) > 0.1
    assert float((found[True][0] - found[False][0]).norm() / moved) < 1e-2  # Adam enlarges what 1e-7 leaves
    assert found[True][1] == pytest.approx(found[False][1], rel=1e-3)


@pytest.mark.parametrize("gradient", [retune.Truncated(), retune.Implicit()])
def test_a_warm_run_is_resumed_bit_for_bit(tmp_path, gradient):
    """What the images remember is in the checkpoints; without it, the losses would be others."""
    options = {"steps": 8, "checkpoint_every": 2, "seed": 3}

    def trained(where, warm, resume=False):
        torch.manual_seed(0)  # of the images
        net = network(gradient=gradient)
        result = fit(net, warm, folder=tmp_path / where, resume=resume, **options)
        return result.steps, net.state_dict()

    class Forgetful(WarmStart):
        def take(self, state):
            pass

    expected, weights = trained("whole", WarmStart())
    trained("part", WarmStart())
    (tmp_path / "part" / "checkpoint-00000008.safetensors").unlink()
    shutil.copytree(tmp_path / "part", tmp_path / "cold")
    steps, found = trained("part", WarmStart(), resume=True)
    assert steps == expected
    assert all(torch.equal(v, found[k]) for k, v in weights.items())
    steps, _ = trained("cold", Forgetful(), resume=True)
    assert steps[:6] == expected[:6]
    assert steps != expected


def test_canvases_in_files_are_in_no_checkpoint(tmp_path):
    """They are there because they would fill the memory; the run is then not resumed, rather than not exactly."""
    torch.manual_seed(0)
    fit(network(), WarmStart(limit=1000), steps=2, folder=tmp_path, checkpoint_every=1)
    with safe_open(next(tmp_path.glob("checkpoint-*")), "pt") as file:
        assert not [name for name in file.keys() if "warm/" in name]  # noqa: SIM118 - not a dict
    torch.manual_seed(0)
    with pytest.raises(InvalidParameterError, match="cannot be resumed exactly"):
        fit(network(), WarmStart(limit=1000), steps=2, folder=tmp_path, resume=True)


def test_a_warm_run_is_not_resumed_with_another_tolerance(tmp_path):
    torch.manual_seed(0)
    fit(network(), True, steps=2, folder=tmp_path, checkpoint_every=1)
    torch.manual_seed(0)
    with pytest.raises(CheckpointError, match="warm_start was"):
        fit(network(), WarmStart(rtol=0.5), steps=2, folder=tmp_path, resume=True)


def test_refused():
    with pytest.raises(InvalidParameterError, match="no restarts"):
        fit(network(gradient=retune.Unrolled()), True)
    warm = WarmStart()
    fit(network(), warm, steps=1)
    with pytest.raises(InvalidParameterError, match="other training images"):
        fit(network(), warm, steps=1)  # drawn anew, so not the same
    with pytest.raises(InvalidParameterError, match="rtol=0"):
        WarmStart(rtol=0.0)
    with pytest.raises(InvalidParameterError, match="3 images"):
        warm.init(torch.zeros(3, 3, 24, 24))
    with pytest.raises(InvalidParameterError, match="changes their shape"):
        warm.init(torch.zeros(2, 3, 12, 12))
