"""The state of a training run: what comes back is what was written, and what is not a state says so."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from retune.errors import CheckpointError
from retune.networks import SmallUNet
from retune.training.resume import load_state, save_state
from small_parts import rand


def run():
    torch.manual_seed(0)
    net = SmallUNet(1, (4, 6), 1)
    return net, torch.optim.Adam(net.parameters(), lr=1e-2)


def train(net, optimiser, steps):
    for k in range(*steps):
        optimiser.zero_grad()
        net(rand(1, 1, 8, 8, seed=k), 0.1).square().sum().backward()
        optimiser.step()


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_continues_bit_for_bit(tmp_path):
    whole, broken, resumed = run(), run(), run()
    train(*whole, (0, 6))
    train(*broken, (0, 3))
    facts = {"step": 3, "best": 30.123456789012345, "name": "é"}
    save_state(tmp_path / "state.safetensors", *broken, facts)
    assert not same(whole[0], broken[0])
    assert load_state(tmp_path / "state.safetensors", *resumed) == facts
    assert same(broken[0], resumed[0])
    train(*resumed, (3, 6))
    assert same(whole[0], resumed[0])


def test_settings_of_the_optimiser_stay(tmp_path):
    net, optimiser = run()
    train(net, optimiser, (0, 1))
    save_state(tmp_path / "s", net, optimiser, {})
    again, other = run()
    other.param_groups[0]["lr"] = 0.5
    load_state(tmp_path / "s", again, other)
    assert other.param_groups[0]["lr"] == 0.5
    assert len(other.state) == len(list(again.parameters()))


def test_before_the_first_step(tmp_path):
    net, optimiser = run()
    save_state(tmp_path / "s", net, optimiser, {"step": 0})
    assert load_state(tmp_path / "s", *run()) == {"step": 0}


def test_what_is_not_a_state(tmp_path):
    path = tmp_path / "state.safetensors"
    net, optimiser = run()
    with pytest.raises(CheckpointError, match="run cannot continue"):
        load_state(path, net, optimiser)
    path.write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="truncated"):
        load_state(path, net, optimiser)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not the state of a training run"):
        load_state(path, net, optimiser)
    save_state(path, net, optimiser, {})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load_state(path, net, optimiser)
    other = SmallUNet(3, (4, 6), 1)
    save_state(path, other, torch.optim.Adam(other.parameters()), {})
    with pytest.raises(CheckpointError, match="belongs to another network"):
        load_state(path, net, optimiser)
