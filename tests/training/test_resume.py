"""A run that is interrupted, killed or spread over processes ends as one that was not."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import deepinv
import pytest
import torch

import retune
from retune._torch.streams import stream
from retune.data import random_crops
from retune.errors import CheckpointError, InvalidParameterError
from retune.training.devices import first_process

DENOISE = retune.problems.denoise(0.1)


def images(count=3):
    coarse = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, size=(24, 24), mode="bilinear")


def network():
    prior = retune.priors.WaveletL1("db2", levels=2)
    return retune.Restarted(retune.ForwardBackward(prior, reg=0.02), depth=2, restarts=2)


def train(net, folder=None, data=None, **options):
    given = {"steps": 9, "batch_size": 2, "crop": 12, "progress": False, "device": "cpu", "checkpoint_every": 2}
    problem = options.pop("problem", DENOISE)
    return retune.fit(net, images() if data is None else data, problem, folder=folder, **(given | options))


def weights(net):
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Stopping(deepinv.loss.SupLoss):
    """A mean squared error that does something at its n-th call."""

    def __init__(self, at, what):
        super().__init__(metric=deepinv.loss.metric.MSE())
        self.at, self.what, self.calls = at, what, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.at:
            self.what()
        return super().forward(*args, **kwargs)


class Killed(Exception):
    """As sudden as a power cut, as far as fit can tell."""


def killed():
    raise Killed


SUPERVISED = deepinv.loss.SupLoss(metric=deepinv.loss.metric.MSE())
Stopping.__name__ = "SupLoss"  # the same loss, as far as the settings go


@pytest.mark.parametrize("at", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("validated", [False, True])
def test_a_killed_run_is_continued_bit_for_bit(tmp_path, at, validated):
    options = {"validation": images(1) if validated else None, "validate_every": 3}
    whole, part, again = network(), network(), network()
    expected = train(whole, tmp_path / "whole", loss=SUPERVISED, **options)
    with pytest.raises(Killed):
        train(part, tmp_path / "part", loss=Stopping(at, killed), **options)
    assert not same(weights(part), weights(whole))
    result = train(again, tmp_path / "part", loss=Stopping(99, killed), resume=True, **options)
    assert same(weights(again), weights(whole))
    assert result.steps == expected.steps
    assert [(v.step, v.psnr) for v in result.validation] == [(v.step, v.psnr) for v in expected.validation]
    assert result.best_step == expected.best_step
    log = (tmp_path / "part/log.csv").read_text()
    assert log == (tmp_path / "whole/log.csv").read_text()
    rows = list(csv.DictReader(log.splitlines()))
    assert [int(r["step"]) for r in rows] == list(range(1, 10))
    assert float(rows[3]["loss"]) == pytest.approx(expected.steps[3].loss, rel=1e-6)
    assert bool(rows[2]["psnr_val"]) == validated


def test_checkpoints_do_not_change_the_course_and_the_last_two_are_kept(tmp_path):
    plain, saved = network(), network()
    train(plain)
    train(saved, tmp_path)
    assert same(weights(plain), weights(saved))
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == [
        "checkpoint-00000008.safetensors",
        "checkpoint-00000009.safetensors",
    ]


def test_a_finished_run_is_not_run_again(tmp_path):
    net, again = network(), network()
    result = train(net, tmp_path)
    calls = Stopping(1, killed)
    assert train(again, tmp_path, resume=True, loss=calls).steps == result.steps
    assert same(weights(net), weights(again))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_the_step_saves_and_leaves(tmp_path, number):
    whole, part = network(), network()
    train(whole, tmp_path / "whole", loss=SUPERVISED)
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        train(part, tmp_path / "part", loss=Stopping(5, lambda: os.kill(os.getpid(), number)))
    assert signal.getsignal(number) is handler
    assert (tmp_path / "part/checkpoint-00000005.safetensors").is_file()
    assert not part.training
    train(part, tmp_path / "part", loss=Stopping(99, killed), resume=True)
    assert same(weights(part), weights(whole))


def test_a_second_interrupt_does_not_wait():
    from retune.training.checkpoints import stop_requests

    with stop_requests(True) as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    whole, again = network(), network()
    train(whole, tmp_path)
    last = tmp_path / "checkpoint-00000009.safetensors"
    last.write_bytes(last.read_bytes()[:-30])
    (tmp_path / ".retune-0123456789abcdef.tmp").write_bytes(b"half")
    train(again, tmp_path, resume=True)
    assert same(weights(whole), weights(again))
    assert not list(tmp_path.glob(".*"))
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="run cannot continue from"):
        train(network(), tmp_path, resume=True)


def test_a_run_is_not_overwritten_nor_continued_with_other_settings(tmp_path):
    train(network(), tmp_path)
    with pytest.raises(InvalidParameterError, match="already contains a run"):
        train(network(), tmp_path)
    with pytest.raises(CheckpointError, match=r"lr was 0\.05, now 0\.1"):
        train(network(), tmp_path, lr=0.1, resume=True)
    with pytest.raises(CheckpointError, match=r"loss was 'SupLoss\(MSE\)', now 'SupLoss\(SNR\)'"):
        train(network(), tmp_path, loss=deepinv.loss.SupLoss(deepinv.loss.metric.SNR(train_loss=True)), resume=True)
    with pytest.raises(CheckpointError, match="problem was"):
        train(network(), tmp_path, problem=retune.problems.denoise(0.2), resume=True)
    with pytest.raises(CheckpointError, match="images was"):
        train(network(), tmp_path, images() / 2, resume=True)
    with pytest.raises(InvalidParameterError, match="needs the folder"):
        train(network(), resume=True)
    with pytest.raises(InvalidParameterError, match="checkpoint_every"):
        train(network(), tmp_path / "x", checkpoint_every=0)


def test_what_a_loss_draws_follows_from_the_step_too(tmp_path):
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    whole, part = network(), network()

    def run(net, folder, **options):
        loss = deepinv.loss.R2RLoss(alpha=0.2)
        return retune.fit(
            net,
            images(),
            physics,
            loss=loss,
            folder=folder,
            steps=5,
            batch_size=2,
            crop=12,
            progress=False,
            device="cpu",
            checkpoint_every=1,
            **options,
        )

    run(whole, tmp_path / "a")
    run(part, tmp_path / "b")
    for late in sorted((tmp_path / "b").glob("*.safetensors"))[1:]:
        late.unlink()
    torch.manual_seed(77)  # another process has another global generator
    again = network()
    run(again, tmp_path / "b", resume=True)
    assert same(weights(whole), weights(again))


def test_tensorboard_gets_the_figures_if_it_is_there(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder, purge_step=None):
            written.append(("folder", folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            pass

        def close(self):
            written.append(("closed", 0, 0))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    result = train(network(), tmp_path, validation=images(1), validate_every=9)
    losses = [(v, s) for n, v, s in written if n == "loss"]
    assert losses == [(r.loss, r.step) for r in result.steps]
    assert [s for n, _, s in written if n == "psnr_val"] == [9]
    assert written[-1][0] == "closed"
    # Continued, all of it is said again, and what was said before is to be forgotten.
    (tmp_path / "checkpoint-00000009.safetensors").unlink()
    written.clear()
    train(network(), tmp_path, validation=images(1), validate_every=9, resume=True)
    assert written[0][2] == 0
    assert [s for n, _, s in written if n == "loss"] == list(range(1, 10))


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
import test_resume_helpers as t
seen = []
original = torch.optim.Adam.step
def step(self, *a, **k):
    seen.append([p.grad.clone() for g in self.param_groups for p in g["params"]])
    return original(self, *a, **k)
torch.optim.Adam.step = step
import os
import signal
net = t.network()
t.train(net, sys.argv[1] + "/run", steps=3, seed=4)
torch.save({"grads": seen, "weights": net.state_dict()}, f"{sys.argv[1]}/rank{os.environ['RANK']}.pt")
"""


_STRATEGY = "ddp_find_unused_parameters_true"


@pytest.mark.parametrize(
    "launcher",
    [
        ("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        ("lightning_fabric.cli", "--accelerator", "cpu", "--devices", "2", "--strategy", _STRATEGY),
    ],
    ids=["torchrun", "fabric run"],
)
def test_two_processes_have_the_gradient_of_the_joint_batch(tmp_path, launcher):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "test_resume_helpers.py").write_text(Path(__file__).read_text())
    done = subprocess.run(
        [
            *(sys.executable, "-m", *launcher),
            *(str(tmp_path / "script.py"), str(tmp_path), str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    net = network().train()
    parts = []
    for rank in (0, 1):
        generator = torch.Generator().manual_seed(stream(4, 1, rank))
        x = random_crops(list(images()), 2, 12, generator)
        parts.append((x, *DENOISE.measure(x, int(torch.randint(2**31, (), generator=generator)))))
    assert not torch.equal(parts[0][0], parts[1][0])
    x, y = (torch.cat([p[i] for p in parts]) for i in (0, 1))
    (net(y, parts[0][2]) - x).square().mean().backward()
    expected = [p.grad for p in net.parameters() if p.requires_grad]
    for rank in ranks:
        assert len(rank["grads"]) == 3
        for got, wanted in zip(rank["grads"][0], expected, strict=True):
            assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-9)
    assert same(ranks[0]["weights"], ranks[1]["weights"])
    assert (tmp_path / "run/checkpoint-00000003.safetensors").is_file()  # written by one of them only


def test_a_killed_process_loses_at_most_the_last_interval(tmp_path):
    """kill -9 at a random moment, again and again, until the run is done."""
    from programs import python  # here, because the script imports a copy of this file

    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, torch\ntorch.set_num_threads(1)\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\nimport test_resume_helpers as t\n"
        "net = t.network()\nprint(os.getpid(), flush=True)\n"
        f"t.train(net, {str(tmp_path / 'run')!r}, steps=240, checkpoint_every=3, resume=True)\n"
        f"net.save({str(tmp_path / 'done.safetensors')!r})\n"
    )
    (tmp_path / "test_resume_helpers.py").write_text(Path(__file__).read_text())
    delays = [0.05, 0.3, 0.6]
    steps_seen = [0]
    for delay in delays:
        process = subprocess.Popen([*python(), str(script)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        begun = int(process.stdout.readline())
        time.sleep(delay)
        os.kill(begun, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        saved = sorted((tmp_path / "run").glob("checkpoint-*.safetensors"))
        steps_seen.append(int(saved[-1].stem.split("-")[1]) if saved else 0)
    assert steps_seen == sorted(steps_seen)
    assert subprocess.run([*python(), str(script)], check=False).returncode == 0
    whole = network()
    train(whole, steps=240)
    assert same(weights(retune.load(tmp_path / "done.safetensors")), weights(whole))
    assert not list((tmp_path / "run").glob(".*"))


def test_the_network_of_an_interrupted_run_is_still_the_same(tmp_path):
    """A noise level that is part of the description has been learned meanwhile, in this very object."""
    prior = retune.priors.Denoiser(retune.networks.SmallUNet(1, (4, 4)), sigma=0.05, strength=0.5)
    net = retune.Restarted(retune.ForwardBackward(prior), 2, 1)
    options = {"steps": 4, "batch_size": 1, "crop": 16, "progress": False, "device": "cpu", "lr": 0.5}
    images = [torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(0))]
    options |= {"folder": tmp_path, "checkpoint_every": 1, "resume": True}
    retune.fit(net, images, retune.problems.denoise(0.1), **options)
    assert abs(net.map.priors[0].sigma.value.item() - 0.05) > 1e-3
    sorted(tmp_path.glob("checkpoint-*"))[-1].unlink()
    retune.fit(net, images, retune.problems.denoise(0.1), **options)
    other = retune.Restarted(retune.ForwardBackward(prior), 3, 1)
    with pytest.raises(CheckpointError, match="network was"):
        retune.fit(other, images, retune.problems.denoise(0.1), **options)


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),  # the first of a second node
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
    ],
)
def test_one_process_writes(variables, first, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert first_process() is first
