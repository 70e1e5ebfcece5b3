"""Shipped weights: listed, checked, and as good as they say."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

import retune.weights
from retune import _checkpoint
from retune.data import photograph
from retune.errors import CheckpointError, InvalidParameterError, UnknownNameError
from retune.networks import RidgeDenoiser, SmallUNet
from retune.priors import Ridge
from small_parts import rand


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of weights of its own: a tiny network of each kind, untrained."""
    torch.manual_seed(0)
    nets = {"denoiser-gray": SmallUNet(1, (4, 6), 1), "ridge-convex-color": RidgeDenoiser(Ridge(3, (3, 4), (3, 2)))}
    entries = {}
    for name, net in nets.items():
        path = tmp_path / f"{name}.safetensors"
        _checkpoint.write(path, net.state_dict(), net.describe(), {"recipe": "none"})
        entries[name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    monkeypatch.setattr(retune.weights, "_FOLDER", tmp_path)
    return tmp_path


def test_names_and_loading(folder):
    assert retune.weights.names() == ["denoiser-gray", "ridge-convex-color"]
    for name in retune.weights.names():
        net = retune.weights.load(name)
        assert not net.training
        assert not any(p.requires_grad for p in net.parameters())
        x = rand(1, net.channels, 9, 8)
        assert net(x, 0.1).shape == x.shape
        assert torch.equal(net(x, 0.1), retune.weights.load(name)(x, 0.1))


def test_corrupted_missing_and_unknown(folder):
    with pytest.raises(UnknownNameError, match="unknown weights 'denoiser-grey'; did you mean 'denoiser-gray'"):
        retune.weights.load("denoiser-grey")
    with pytest.raises(InvalidParameterError, match=r"name must be a name or a file, got 3.*denoiser-gray"):
        retune.weights.load(3)
    path = folder / "denoiser-gray.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"corrupted.*the manifest says.*Install retune-imaging again"):
        retune.weights.load("denoiser-gray")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"missing.*install retune-imaging again"):
        retune.weights.load("denoiser-gray")


def test_no_manifest(folder):
    (folder / "manifest.json").unlink()
    for ask in (retune.weights.names, retune.weights.manifest, lambda: retune.weights.load("denoiser-gray")):
        with pytest.raises(CheckpointError, match="install retune-imaging again"):
            ask()
    assert retune.weights.load(folder / "denoiser-gray.safetensors").channels == 1  # a file needs none


def test_a_file_of_ones_own(folder, tmp_path):
    path = tmp_path / "denoiser-gray.safetensors"
    x = rand(1, 1, 9, 8)
    assert torch.equal(retune.weights.load(path)(x, 0.1), retune.weights.load("denoiser-gray")(x, 0.1))
    prior = Ridge(1, (3, 4), (3, 2))
    _checkpoint.write(tmp_path / "r.safetensors", prior.state_dict(), prior.describe(), {})
    with pytest.raises(CheckpointError, match="contains a Ridge, but a denoiser is needed"):
        retune.weights.load(str(tmp_path / "r.safetensors"))


def test_another_version(folder):
    """A hash that is right does not help a file that this version cannot rebuild."""
    path = folder / "denoiser-gray.safetensors"
    net = SmallUNet(1, (4, 6), 1)
    _checkpoint.write(path, net.state_dict(), net.describe() | {"dilation": 2}, {})
    entries = {"denoiser-gray": {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}}
    (folder / "manifest.json").write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match=r"does not fit this version.*dilation"):
        retune.weights.load("denoiser-gray")


SHIPPED = retune.weights.names() if (retune.weights._FOLDER / "manifest.json").is_file() else []


def test_files_are_those_of_the_manifest():
    files = list(retune.weights._FOLDER.glob("*.safetensors"))
    assert sorted(p.stem for p in files) == SHIPPED
    assert sum(p.stat().st_size for p in files) <= 18e6  # the wheel stays below 20 MB
    for name in SHIPPED:
        entry = retune.weights.manifest()[name]
        assert {"recipe", "data", "sha256", "parameters", "psnr", "licence"} <= set(entry)
        assert set(entry["psnr"]) == {"5", "15", "25", "50"}
        assert entry["parameters"] == sum(p.numel() for p in retune.weights.load(name).parameters())


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_denoise(name):
    """A photograph at σ = 25/255: at least 5 dB better than the noisy one."""
    net = retune.weights.load(name)
    x = photograph("astronaut")[None, :, 100:228, 180:308]
    x = x if net.channels == 3 else x.mean(1, keepdim=True)
    noisy = x + 25 / 255 * rand(*x.shape)
    before, after = ((z - x).square().mean().log10() * -10 for z in (noisy, net(noisy, 25 / 255)))
    assert float(after - before) >= 5


@pytest.mark.parametrize("name", [n for n in SHIPPED if n.startswith("ridge")])
@pytest.mark.parametrize("level", [0.0, 0.2])
def test_less_noise_than_trained_for_does_no_harm(name, level):
    net = retune.weights.load(name)
    x = photograph("astronaut")[None, :, 100:148, 180:228]
    x = x if net.channels == 3 else x.mean(1, keepdim=True)
    noisy = x + level / 255 * rand(*x.shape)
    assert float((net(noisy, level / 255) - x).square().mean()) <= (0.3 / 255) ** 2


def test_a_file_in_the_working_directory_does_not_stand_in_for_a_name(folder, monkeypatch):
    wanted = retune.weights.load("denoiser-gray").state_dict()
    other = folder.parent / "elsewhere"
    other.mkdir()
    (other / "denoiser-gray").write_bytes((folder / "ridge-convex-color.safetensors").read_bytes())
    monkeypatch.chdir(other)
    found = retune.weights.load("denoiser-gray").state_dict()
    assert found.keys() == wanted.keys()
