"""The recipes of the shipped weights: seeded, resumable bit for bit, and their files can be loaded."""

from __future__ import annotations

import csv
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import typer
from recipes._data import luminance, noisy_crops, split
from recipes._loop import Budget, train

from recipes import _loop, denoiser, energy, ridge, ship
from retune import _checkpoint, weights
from retune.errors import CheckpointError, DivergedError, InvalidParameterError, UnknownNameError
from retune.networks import SmallUNet
from retune.registry import build

TINY = {"batch": 1, "crop": 12, "lr": 1e-3, "seed": 3, "device": "cpu"}


@pytest.fixture
def data(tmp_path):
    generator = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        (tmp_path / part).mkdir()
        for k in range(2):
            iio.imwrite(tmp_path / part / f"{k}.png", generator.integers(0, 255, (20, 22, 3), dtype=np.uint8))
    return tmp_path


class Interrupted(Exception):
    pass


def table(work):
    with (work / "log.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    return rows[0], [r[:3] for r in rows[1:]]  # without the seconds


def loop(work, steps=7, interrupt=None, poison=None):
    torch.manual_seed(0)
    net = SmallUNet(1, (4, 6), 1)

    def loss(step):
        if step == interrupt:
            raise Interrupted
        x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        return (net(x, 0.1) - x.mean()).square().mean() * (torch.nan if step == poison else 1)

    budget = Budget(steps, 1e-2, warmup=2, report_every=3, save_seconds=-1.0)  # a state after every step
    train(net, loss, lambda: 20.0 + float(next(net.parameters()).detach().mean()), budget, work)
    return net


@pytest.mark.parametrize("interrupt", [1, 2, 5, 7])
def test_an_interrupted_run_ends_as_the_uninterrupted_one(interrupt, tmp_path):
    whole = loop(tmp_path / "whole")
    with pytest.raises(Interrupted):
        loop(tmp_path / "broken", interrupt=interrupt)
    resumed = loop(tmp_path / "broken")
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())
    header, rows = table(tmp_path / "whole")
    assert header == ["step", "loss", "psnr_val", "seconds"]
    assert [r[0] for r in rows] == ["3", "6", "7"]
    assert table(tmp_path / "broken") == (header, rows)
    assert not whole.training
    assert not resumed.training


def test_lines_after_the_last_saved_state_are_written_once(tmp_path, monkeypatch):
    """Killed after a line of the log, before the next state was saved."""
    expected = table_of(tmp_path / "whole")
    monkeypatch.setattr(_loop, "save_state", skip_after(_loop.save_state, 2))
    with pytest.raises(Interrupted):
        loop(tmp_path / "broken", interrupt=5)
    assert [r[0] for r in table(tmp_path / "broken")[1]] == ["3"]
    monkeypatch.undo()
    loop(tmp_path / "broken")
    assert table(tmp_path / "broken") == expected


def table_of(work):
    loop(work)
    return table(work)


def skip_after(save, last):
    def saving(path, net, optimiser, facts, *more):
        if facts["step"] <= last:
            save(path, net, optimiser, facts, *more)

    return saving


def test_a_finished_run_is_not_run_again(tmp_path):
    first = loop(tmp_path)
    again = loop(tmp_path, interrupt=1)  # would raise in any step
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())


def test_a_loss_that_is_not_finite(tmp_path):
    with pytest.raises(DivergedError, match="step 4: the loss is nan"):
        loop(tmp_path, poison=4)


def test_a_broken_state_is_not_overwritten(tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match="delete it to start again"):
        loop(tmp_path)
    assert (tmp_path / "state.safetensors").read_bytes() == b"x" * 100


@pytest.mark.parametrize(
    ("recipe", "name", "options"),
    [
        (denoiser, "denoiser-color", {}),
        (energy, "energy-gray", {}),
        (energy, "energy-color", {}),
        (ridge, "ridge-weakly-convex-gray", {"pool": 3}),
        (ridge, "ridge-convex-color", {"pool": 2, "tolerance": 1e-4}),
    ],
)
def test_a_recipe_writes_weights_that_denoise(recipe, name, options, data, monkeypatch):
    monkeypatch.setattr(denoiser, "SmallUNet", lambda channels, _: SmallUNet(channels, (4, 6), 1))
    out = data / f"{name}.safetensors"
    recipe.main(name, data, out, data / "work", steps=2, **TINY, **options)
    tensors, description, notes = _checkpoint.read(out)
    assert f"--name {name} --data FOLDER --steps 2" in notes["recipe"]
    assert "--seed 3" in notes["recipe"]
    for option, value in ({"batch": 1, "crop": 12, "lr": 1e-3} | options).items():
        assert f"--{option} {value:g}" in notes["recipe"]
    net = build(description)
    net.load_state_dict(tensors)
    channels = 3 if "color" in name else 1
    with torch.no_grad():
        assert net.eval()(torch.rand(1, channels, 9, 9), 0.1).shape == (1, channels, 9, 9)
    assert [r[0] for r in table(data / "work")[1]] == ["2"]


def test_an_energy_continues_from_given_weights(data):
    """With a learning rate of 0 the weights stay what they were."""
    out = data / "second.safetensors"
    options = TINY | {"lr": 0.0, "bfloat16": False}
    energy.main("energy-gray", data, out, data / "work", steps=1, start="energy-gray", **options)
    tensors, _, notes = _checkpoint.read(out)
    assert notes["recipe"].endswith("--float32 --start energy-gray")
    for name, value in weights.load("energy-gray").state_dict().items():
        torch.testing.assert_close(tensors[name], value)
    with pytest.raises(InvalidParameterError, match=r"--start must be weights of the network of energy-gray"):
        energy.main("energy-gray", data, out, data / "other", steps=1, start="energy-color", **options)


def test_a_ridge_recipe_continues_a_law_of_fewer_powers(data):
    """With a learning rate of 0 the second stage is the first, whatever the degree."""
    first, second = data / "first.safetensors", data / "second.safetensors"
    options = TINY | {"steps": 1, "pool": 1}
    ridge.main("ridge-convex-gray", data, first, data / "a", powers=2, **options)
    ridge.main("ridge-convex-gray", data, second, data / "b", powers=4, start=first, **(options | {"lr": 0.0}))
    nets = []
    for file in (first, second):
        tensors, description, notes = _checkpoint.read(file)
        net = build(description)
        net.load_state_dict(tensors)
        nets.append(net.eval())
    assert nets[1].prior.profile.powers == 4
    x = torch.rand(1, 1, 20, 20)
    with torch.no_grad():
        assert torch.equal(nets[0](x, 0.03), nets[1](x, 0.03))
    assert "--powers 2" in notes["recipe"].split("&&")[0]
    assert f"--out {first.name} &&" in notes["recipe"]
    with pytest.raises(RuntimeError, match="size mismatch"):
        ridge.main("ridge-convex-gray", data, second, data / "c", powers=1, start=first, **options)


def test_the_stages_of_a_recipe_run_as_they_are_written_down(data, monkeypatch):
    """Each stage has a folder of its own, so that one does not go on with the state of the other."""
    monkeypatch.chdir(data)
    options = TINY | {"steps": 1, "pool": 1}
    first = Path("first.safetensors")
    ridge.main("ridge-convex-gray", data, first, powers=2, **options)
    ridge.main("ridge-convex-gray", data, powers=3, start=first, **options)
    assert Path("ridge-convex-gray.safetensors").is_file()
    commands = _checkpoint.read(Path("ridge-convex-gray.safetensors"))[2]["recipe"].split(" && ")
    again = data / "again"
    again.mkdir()
    monkeypatch.chdir(again)
    for command in commands:
        words = command.replace("FOLDER", str(data)).split()
        assert words[:3] == ["python", "-m", "recipes.ridge"]
        app = typer.Typer()
        app.command()(ridge.main)
        app(words[3:], standalone_mode=False)
    name = "ridge-convex-gray.safetensors"
    assert (again / name).read_bytes() == (data / name).read_bytes()


@pytest.mark.parametrize("changed", [{"batch": 2}, {"crop": 10}, {"seed": 4}])
def test_a_denoiser_is_not_continued_with_other_settings(changed, data, monkeypatch):
    monkeypatch.setattr(denoiser, "SmallUNet", lambda channels, _: SmallUNet(channels, (4, 6), 1))
    out = data / "a.safetensors"
    denoiser.main("denoiser-gray", data, out, data / "work", steps=1, **TINY)
    with pytest.raises(CheckpointError, match=f"{next(iter(changed))} was .*, now .*another --work"):
        denoiser.main("denoiser-gray", data, out, data / "work", steps=1, **(TINY | changed))


@pytest.mark.parametrize("half", [False, True])
def test_shipping_measures_and_enters_the_manifest(half, data, monkeypatch):
    monkeypatch.setattr(denoiser, "SmallUNet", lambda channels, _: SmallUNet(channels, (4, 6), 1))
    out, folder = data / "denoiser-gray.safetensors", data / "weights"
    folder.mkdir()
    denoiser.main("denoiser-gray", data, out, data / "work", steps=1, **TINY)
    ship.main(out, data, folder, half=half)
    stored = _checkpoint.read(folder / out.name)[0]
    assert {t.dtype for t in stored.values()} == {torch.float16 if half else torch.float32}
    monkeypatch.setattr("retune.weights._FOLDER", folder)
    import retune.weights

    entry = retune.weights.manifest()["denoiser-gray"]
    assert set(entry) == {"recipe", "data", "sha256", "parameters", "psnr", "licence"}
    assert set(entry["psnr"]) == {"5", "15", "25", "50"}
    net = retune.weights.load("denoiser-gray")
    assert {t.dtype for t in net.state_dict().values()} == {torch.float32}
    assert entry["parameters"] == sum(p.numel() for p in net.parameters())
    x = split(data, "test", 1)
    noise = [torch.randn(i.shape, generator=torch.Generator().manual_seed(25_000 + k)) for k, i in enumerate(x)]
    with torch.no_grad():
        errors = [(net((i + 25 / 255 * n)[None], 25 / 255) - i).square().mean() for i, n in zip(x, noise, strict=True)]
    assert entry["psnr"]["25"] == pytest.approx(float(-10 * torch.stack(errors).log10().mean()), abs=2e-3)


def test_unknown_names_and_folders(tmp_path):
    for recipe in (denoiser, ridge):
        with pytest.raises(UnknownNameError, match="unknown recipe"):
            recipe.main("denoiser-grey-x", tmp_path)
    with pytest.raises(InvalidParameterError, match=r"subfolders train, val and test.*does not exist"):
        split(tmp_path, "train", 1)


def test_crops_follow_from_seed_and_step():
    images = [torch.rand(3, 14, 15), torch.rand(3, 16, 12)]
    first, again, other = (noisy_crops(images, 3, 10, (0.02, 0.2), 1, step) for step in (5, 5, 6))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[0], other[0])
    clean, noisy, sigma = first
    assert clean.shape == noisy.shape == (3, 3, 10, 10)
    assert sigma.shape == (3, 1, 1, 1)
    assert bool(((sigma >= 0.02) & (sigma <= 0.2)).all())
    spread = ((noisy - clean) / sigma).std()
    assert float(spread) == pytest.approx(1.0, abs=0.1)


def test_luminance():
    x = torch.zeros(3, 1, 3)
    x[:, 0] = torch.eye(3)
    torch.testing.assert_close(luminance(x)[0, 0] * 255, torch.tensor([76.0, 150.0, 29.0]))
    grey = (torch.rand(1, 4, 4) * 255).round() / 255
    torch.testing.assert_close(luminance(grey.expand(3, 4, 4)), grey)
