"""Mutated runs and models: each is read or refused with one of our errors, quickly, and executes nothing.

``RETUNE_MUTATIONS=1000 pytest tests/test_hostile_files.py`` tries so many of each kind.
"""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import struct
import sys
import warnings

import pytest
import torch
from safetensors.torch import save

import retune
from retune import config, weights
from retune._checkpoint import require_fit
from retune.build import problem_of
from retune.errors import CheckpointError, ConfigError, RetuneError
from retune.jobs.opened import open_model
from retune.priors import Denoiser, WaveletL12

COUNT = int(os.environ.get("RETUNE_MUTATIONS", "40"))
#: Seconds in which each file is read or refused.
LONGEST = 20
HOSTILE = [
    None, True, -1, 0, 10**9, 10**30, -(10**30), 1e308, float("nan"), float("inf"), 0.5, "", "x" * 20_000, "os.system",
    "__import__('os').system('true')", "torch.hub:load", "../../../etc/passwd", "/dev/zero", "\x1b[2J", "\udcff", "\0",
    [], [[]], [1] * 20_000, {}, {"type": "os.system"}, {"type": "Restarted"}, {"type": None}, {"type": ["a"]},
    {"type": "SmallUNet", "channels": 10**6}, {"type": "Picard", "x": {"type": "Picard"}}, "gaussian:1e9",
    "uniform:999999", "motion:1e99@3", "motion:99999999@3", "db999", ["db4"] * 500,
]  # fmt: skip
_events: list[str] = []
_watching = False


def _audit(event, arguments):
    if _watching and event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class"):
        _events.append(f"{event} {arguments}")


sys.addaudithook(_audit)


@pytest.fixture
def watched():
    """Nothing is executed, and nothing takes for ever."""
    global _watching

    def late(*_):
        raise KeyboardInterrupt(f"no answer within {LONGEST} s")  # which nobody takes for an error of a file

    before = signal.signal(signal.SIGALRM, late) if hasattr(signal, "SIGALRM") else None
    _watching = True
    _events.clear()
    yield
    _watching = False
    if before is not None:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert _events == []


def limited(function, *arguments, allowed=RetuneError):
    """The value, or the error, which is one of ours and of a length that a screen holds."""
    if hasattr(signal, "SIGALRM"):
        signal.alarm(LONGEST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*arguments)
    except allowed as error:
        found = error
    finally:
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)
    assert len(str(found)) < 20_000
    return found


def mutated_bytes(content, rng):
    out = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        place = rng.randrange(len(out) + 1)
        kind = rng.randrange(5)
        if kind == 0 and place < len(out):
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[place : place + rng.randrange(1, 40)] = b""
        elif kind == 2:
            out[place:place] = rng.randbytes(rng.randrange(1, 10))
        elif kind == 3:
            out[place:place] = rng.choice(
                [b"[" * 3000, b"{" * 500, b"\x1b[2J", b"\0" * 9, b"9" * 5000, b'"' * 3, b"\\"]
            )
        else:
            start = rng.randrange(len(out) + 1)
            out[place:place] = out[start : start + rng.randrange(1, 60)]
    return bytes(out)


def places(value, found=None):
    """Every (container, key) of plain data."""
    found = [] if found is None else found
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found.append((value, key))
        places(inner, found)
    return found


def mutated_data(value, rng):
    """Plain data of which a part was replaced, removed, renamed or nested."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 2, 3])):
        known = places(value)
        if not known:
            return value
        container, key = rng.choice(known)
        kind = rng.randrange(6)
        if kind <= 2:
            container[key] = copy.deepcopy(rng.choice(HOSTILE))
        elif kind == 3:
            del container[key]
        elif kind == 4 and isinstance(container, dict):
            container[rng.choice(["type", "depth", "layers", "__class__", "\x1b", "x"])] = container.pop(key)
        else:
            nested = container[key]
            for _ in range(rng.choice([1, 40])):
                nested = [nested]
            container[key] = nested
    return value


def made(kind):
    if kind == "denoiser":
        return retune.Restarted(retune.ForwardBackward(Denoiser(weights.load("denoiser-gray"), 0.1)), 3)
    return retune.Restarted(retune.ForwardBackward(WaveletL12("db2", 2, channels=1), layers=2), 4)


@pytest.fixture(scope="module", params=["wavelet", "denoiser"])
def parts(request, tmp_path_factory):
    """Tensors, metadata and bytes of a model."""
    path = tmp_path_factory.mktemp("model") / "net.safetensors"
    made(request.param).save(path, problem=json.dumps({"name": "deblur", "kernel": "gaussian:1.6", "sigma": 0.1}))
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    return tensors, metadata, path.read_bytes()


def read_model(path):
    """What restore does with a model before it looks at an image."""
    net = retune.load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem_of(open_model(path, {"kernel": "gaussian:1.6"}).problem)
    return net


@pytest.mark.slow
def test_mutated_bytes_of_models(parts, watched, tmp_path):
    rng, path = random.Random(1), tmp_path / "net.safetensors"
    for _ in range(COUNT):
        content = parts[2]
        header = 8 + int.from_bytes(content[:8], "little")
        path.write_bytes(mutated_bytes(content[:header], rng) + content[header:])
        limited(read_model, path)


def read_and_use(path):
    """What restore does with a model and an image; weights that are no numbers any more may not do worse than fail."""
    net = retune.load(path)
    y, physics = retune.problems.denoise(0.1).measure(torch.rand(1, 1, 16, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = net.eval().solve(y, physics, stop=retune.Stop(1e-3, 12))
    assert result.status[0].failed or bool(result.image.isfinite().all())


@pytest.mark.slow
def test_mutated_weights_of_models(parts, watched, tmp_path):
    """The tensors behind the header: bits that are flipped, parts that are missing, and numbers of every size."""
    rng, path = random.Random(6), tmp_path / "net.safetensors"
    content = parts[2]
    header = 8 + int.from_bytes(content[:8], "little")
    failed = 0
    for _ in range(COUNT):
        weights_ = bytearray(content[header:])
        for _ in range(rng.choice([1, 1, 2, 5, 20])):
            at = rng.randrange(len(weights_))
            kind = rng.randrange(5)
            if kind == 0:
                weights_[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                weights_[at : at + 16] = rng.randbytes(len(weights_[at : at + 16]))
            elif kind == 2:
                at -= at % 4  # a whole number: NaN, Inf, and the largest and smallest there are
                weights_[at : at + 4] = struct.pack("<f", rng.choice([float("nan"), float("inf"), 3e38, -3e38, 1e-45]))
            elif kind == 3:
                weights_[:] = bytes(len(weights_))
            else:
                del weights_[at : at + rng.randrange(1, 9)]  # and all that follows moves up
                if not weights_:
                    break
        path.write_bytes(content[:header] + weights_)
        failed += isinstance(limited(read_and_use, path), RetuneError)
    assert 0 < failed < COUNT


@pytest.mark.slow
def test_mutated_descriptions_of_models(parts, watched, tmp_path):
    rng, path = random.Random(2), tmp_path / "net.safetensors"
    tensors, metadata, _ = parts
    description = json.loads(metadata["description"])
    for _ in range(COUNT):
        text = json.dumps(mutated_data(description, rng))
        path.write_bytes(save(tensors, metadata | {"description": text}))
        limited(retune.load, path, allowed=CheckpointError)


@pytest.mark.slow
def test_mutated_notes_of_models(parts, watched, tmp_path):
    rng, path = random.Random(3), tmp_path / "net.safetensors"
    tensors, metadata, _ = parts
    problem = {"name": "deblur", "kernel": "k.npy", "sigma": 0.1, "options": {"a": 1}, "boundary": "reflect"}
    for _ in range(COUNT):
        notes = {"problem": json.dumps(mutated_data(problem, rng)), "white": "255"}
        if rng.random() < 0.3:
            notes = mutated_data(notes, rng)
        path.write_bytes(save(tensors, metadata | {"notes": json.dumps(notes)}))
        limited(lambda: problem_of(open_model(path).problem))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(config.shipped()))
def test_mutated_runs(name, watched, tmp_path):
    rng, path = random.Random(4), tmp_path / "my.toml"
    text = config.starting_point(name)
    for _ in range(COUNT):
        path.write_bytes(mutated_bytes(text.encode(), rng))
        limited(config.load, path, allowed=ConfigError)


@pytest.mark.slow
def test_mutated_fields_of_runs(watched):
    rng = random.Random(5)
    values = json.loads(config.load("deblur").model_dump_json(exclude_none=True))
    for _ in range(COUNT):
        run = limited(config.from_dict, mutated_data(values, rng), allowed=ConfigError)
        if not isinstance(run, ConfigError):
            limited(problem_of, run.problem)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"depth": 10**9}, "depth = 1000000000 in its description, expected at most 10000"),
        ({"restarts": 10**9}, "restarts = 1000000000"),
        ({"map": {"layers": 10**9}}, "layers = 1000000000"),
        ({"depth": 5000, "map": {"layers": 5000}}, "layers = 5000 in its description, expected at most 1000"),
        ({"map": {"prior": {"levels": 10**6}}}, "levels = 1000000"),
        ({"stop": {"max_layers": 10**6}}, "max_layers = 1000000 in its description, expected at most 100000"),
        ({"map": {"prior": {"margin": 9999}}}, "margin = 9999 in its description, expected at most 1000"),
        ({"map": {"prior": {"channels": 10**6}}}, "channels|shape|weights"),
        ({"map": {"prior": {"wavelet": "x" * 20_000}}}, "20000 entries"),
        ({"x": float("nan")}, "x = nan"),
    ],
)
def test_sizes_beyond_all_use_are_refused_at_once(watched, tmp_path, changes, says):
    path = tmp_path / "net.safetensors"
    made("wavelet").save(path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118

    def merge(old, new):
        return {**old, **{k: merge(old[k], v) if isinstance(v, dict) else v for k, v in new.items()}}

    text = json.dumps(merge(json.loads(metadata["description"]), changes))
    path.write_bytes(save(tensors, metadata | {"description": text}))
    error = limited(retune.load, path, allowed=CheckpointError)
    assert isinstance(error, CheckpointError)
    with pytest.raises(CheckpointError, match=says):
        raise error


def test_a_description_takes_no_memory_that_the_file_does_not_hold(tmp_path):
    from retune import _checkpoint

    with pytest.raises(CheckpointError, match="far larger than the content of the file"), _checkpoint.made_for({}):
        torch.nn.Conv2d(100_000, 100_000, 3)
    with _checkpoint.made_for({}):
        made("wavelet")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model.depth", 10**9), ("model.restarts", 10**9), ("model.max_layers", 10**12), ("model.layers", 10**9),
        ("prior.levels", 10**9), ("prior.margin", 10**9), ("gradient.blocks", 10**9), ("data.batch_size", 10**9),
        ("data.crop", 10**12), ("optimiser.steps", 10**12), ("optimiser.lr", "1e300"), ("seed", 2**80),
        ("compare.grid", 10**9), ("compare.far", 10**9), ("problem.sigma", "1e300"), ("prior.sigma", "[1e300]"),
    ],
)  # fmt: skip
def test_every_number_of_a_run_has_an_upper_bound(field, value):
    kind = ['prior.type="denoiser"'] if field == "prior.sigma" else []
    with pytest.raises(ConfigError, match=rf"{field} = .*(less than|not allowed)"):
        config.from_dict({}, [*kind, f"{field}={value}"])


@pytest.mark.parametrize("kernel", ["gaussian:1e9", "uniform:999999", "motion:99999999@3", "gaussian:1e400"])
def test_kernels_larger_than_any_image(kernel, watched):
    error = limited(retune.problems.kernel, kernel)
    assert isinstance(error, RetuneError)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.to(torch.float16), r"map\.reg\.raw has dtype float16, expected float32"),
        (lambda t: t.to(torch.int64), r"map\.reg\.raw has dtype int64, expected float32"),
        (lambda t: t.reshape(1, -1), r"map\.reg\.raw has shape \(1, 2\), expected \(2,\)"),
    ],
)
def test_weights_of_another_kind_are_named(tmp_path, change, says):
    net = made("wavelet")
    own = net.state_dict()
    tensors = {k: change(v) if k == "map.reg.raw" else v for k, v in own.items()}
    with pytest.raises(CheckpointError, match=says):
        require_fit(own, tensors)
    with pytest.raises(CheckpointError, match=r"reg\.raw is missing"):
        require_fit(own, {k: v for k, v in own.items() if k != "map.reg.raw"})
    with pytest.raises(CheckpointError, match="extra is unknown to the network"):
        require_fit(own, {**own, "extra": torch.zeros(1)})
    require_fit(own, {k: v.double() if v.is_floating_point() else v for k, v in own.items()})
