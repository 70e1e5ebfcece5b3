"""Saving and loading: bit for bit, and nothing foreign is believed or executed."""

import json
import pickle

import pytest
import torch
from deepinv.optim import L2
from deepinv.optim.prior import L1Prior
from deepinv.physics import Inpainting
from safetensors import safe_open
from safetensors.torch import save_file

import retune
from retune import ForwardBackward, Implicit, Picard, Restarted, Stop, Truncated, Unrolled
from retune.errors import CheckpointError, InvalidParameterError, UnknownNameError
from retune.priors import WaveletL1, WaveletL12
from retune.registry import build
from small_parts import rand

MAPS = {
    "l1": lambda: ForwardBackward(WaveletL1("db2", 2), reg=0.3),
    "union": lambda: ForwardBackward(WaveletL1(["db2", "haar"], 1, channels=2, coarse=True), L2(sigma=0.3)),
    "l12": lambda: ForwardBackward(WaveletL12("sym4", 2, "band", channels=2), learn_step_size=False),
    "margin": lambda: ForwardBackward(WaveletL1("db2", 1, margin=3), reg=0.2),
    "untied": lambda: ForwardBackward(WaveletL12("db2", 1, learn=False), reg=[0.1, 0.2], layers=2, learn_reg=False),
}
RULES = {
    "truncated": lambda: Truncated(),
    "blocks": lambda: Truncated(blocks=3, max_blocks=7),
    "rtol": lambda: Truncated(rtol=0.01),
    "implicit": lambda: Implicit(rtol=1e-3, max_blocks=50),
    "unrolled": lambda: Unrolled(),
}


def randomise(net, seed=0):
    for i, p in enumerate(net.parameters()):
        p.data.add_(0.3 * rand(*p.shape, seed=seed + i, dtype=p.dtype))
    return net


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "net.safetensors"
    net = randomise(Restarted(MAPS["l12"](), depth=4))
    net.save(path, data="none", licence="MIT")
    return path


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("map_", MAPS)
def test_bit_for_bit(map_, rule, tmp_path):
    net = Restarted(MAPS[map_](), 4, 3, gradient=RULES[rule](), solver=Picard(), stop=Stop(1e-3, 40))
    randomise(net).save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors")
    assert again.describe() == net.describe()
    assert not again.training
    assert net.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())
    learned = {n for n, p in net.named_parameters() if p.requires_grad}
    assert learned == {n for n, p in again.named_parameters() if p.requires_grad}
    y = rand(1, 2, 11, 12)
    physics = Inpainting((2, 11, 12), mask=0.5)
    images = [n.eval().solve(y, physics).image for n in (net, again)]
    assert torch.equal(*images)
    images = [n.train()(y, physics) for n in (net, again)]
    assert torch.equal(*images)


def test_double_precision_is_kept(tmp_path):
    net = randomise(Restarted(MAPS["l12"](), 2).double())
    net.save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors")
    for k, v in net.state_dict().items():
        assert again.state_dict()[k].dtype == torch.float64
        assert torch.equal(v, again.state_dict()[k])


def test_description_is_readable_without_retune(saved):
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    description = json.loads(metadata["description"])
    assert description["map"]["prior"]["wavelet"] == "sym4"
    assert description["map"]["prior"]["over"] == ["band"]
    assert json.loads(metadata["notes"]) == {"data": "none", "licence": "MIT"}
    assert metadata["retune_version"] == retune.__version__


def test_saving_is_atomic(saved, monkeypatch):
    """A failure on the way leaves the old file, and no other."""
    before = saved.read_bytes()
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        randomise(Restarted(MAPS["l1"]())).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_what_cannot_be_described_is_not_saved(tmp_path):
    with pytest.raises(InvalidParameterError, match=r"cannot describe the prior L1Prior.*state_dict"):
        Restarted(ForwardBackward(L1Prior())).save(tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"net\.safetensors cannot be read.*bytes.*truncated.*save it again"):
        retune.load(saved)


def test_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*nothing\.safetensors; .*net\.save"):
        retune.load(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError):
        retune.load(tmp_path)


def test_foreign_safetensors(tmp_path):
    save_file({"weight": torch.ones(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match=r"not a ReTune checkpoint.*expected a file written by net\.save"):
        retune.load(tmp_path / "foreign.safetensors")


def rewrite(path, **changes):
    """The same tensors with other metadata; None removes an entry."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    metadata = {k: v for k, v in {**metadata, **changes}.items() if v is not None}
    save_file(tensors, path, metadata)


def test_other_format(saved):
    rewrite(saved, retune_format="99", retune_version="7.1.0")
    with pytest.raises(CheckpointError, match=r"format 99 \(written by ReTune 7\.1\.0\).*install the version"):
        retune.load(saved)


class Bomb:
    def __reduce__(self):
        return (open, (self.path, "w"))

    def __init__(self, path):
        self.path = str(path)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_renamed_pickle_is_refused_and_not_executed(tmp_path, writer):
    path, fuse = tmp_path / "net.safetensors", tmp_path / "exploded"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Bomb(fuse)))
    else:
        torch.save(Bomb(fuse), path)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        retune.load(path)
    assert not fuse.exists()
    with path.open("rb") as file:  # the bomb does work
        (pickle.load if writer == "pickle" else lambda f: torch.load(f, weights_only=False))(file).close()
    assert fuse.exists()


@pytest.mark.parametrize(
    "description",
    [
        "not json {",
        "[]",
        "null",
        "{}",
        '{"type": "os.system"}',
        '{"type": "Restarted"}',
        '{"type": "Picard"}',
        '{"type": "Restarted", "map": {"type": "Picard"}, "depth": 1, "restarts": 1, "gradient": {"type": "Truncated"},'
        ' "solver": {"type": "Picard"}, "stop": {}}',
        '{"type": "WaveletL1", "wavelet": "nonsense"}',
    ],
)
def test_a_description_that_cannot_be_rebuilt(saved, description):
    rewrite(saved, description=description)
    with pytest.raises(CheckpointError, match=r"net\.safetensors"):
        retune.load(saved)


def test_no_description(saved):
    rewrite(saved, description=None)
    with pytest.raises(CheckpointError):
        retune.load(saved)


def test_tensors_that_do_not_fit_the_description(saved):
    with safe_open(saved, framework="pt") as file:
        description = json.loads(file.metadata()["description"])
    description["map"]["prior"]["levels"] = 3
    rewrite(saved, description=json.dumps(description))
    with pytest.raises(CheckpointError, match=r"(?s)does not describe a network.*scale_weights"):
        retune.load(saved)


def test_build_knows_its_names():
    with pytest.raises(UnknownNameError, match=r"unknown type 'Truncatd'.*did you mean 'Truncated'"):
        build({"type": "Truncatd"})
    assert build(Truncated(blocks=5).describe()).blocks == 5


def test_weights_that_are_not_finite_are_refused(tmp_path):
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL1("haar", 1)))
    with torch.no_grad():
        net.map.reg.raw.fill_(torch.nan)
    net.save(tmp_path / "nan.safetensors")
    with pytest.raises(retune.errors.CheckpointError, match=r"map\.reg\.raw"):
        retune.load(tmp_path / "nan.safetensors")
