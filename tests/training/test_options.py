"""``fit(net, data, options)``, and the keywords that make both; a run is built, read and fingerprinted once."""

from __future__ import annotations

import dataclasses
import inspect
import typing

import numpy as np
import pytest
import torch

import retune
from retune import FitOptions, _building, build, config
from retune.errors import CheckpointError, InvalidParameterError
from retune.jobs.train import train
from retune.training import TrainingData
from retune.training import data as training_data
from retune.training.options import FitKeywords

QUICK = {"steps": 3, "batch_size": 2, "crop": 8, "device": "cpu", "progress": False, "lr": 0.1}
DENOISE = retune.problems.denoise(0.1)


def images(count=2):
    return torch.rand(count, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL1("haar", 1), reg=0.05), 2, 1)


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


CALLS = {
    "keywords": lambda net, x, held: retune.fit(net, x, DENOISE, validation=held, **QUICK),
    "data, options": lambda net, x, held: retune.fit(net, TrainingData(x, DENOISE, held), FitOptions(**QUICK)),
    "options by name": lambda net, x, held: retune.fit(
        net, TrainingData(x, DENOISE, held), options=FitOptions(**QUICK)
    ),
    "images, problem, options": lambda net, x, held: retune.fit(net, x, DENOISE, FitOptions(**QUICK), validation=held),
    "all by name": lambda net, x, held: retune.fit(net=net, images=x, problem=DENOISE, validation=held, **QUICK),
    "keywords over options": lambda net, x, held: retune.fit(
        net, TrainingData(x, DENOISE, held), FitOptions(**QUICK | {"steps": 7, "lr": 0.3}), steps=3, lr=0.1
    ),
}  # fmt: skip


def test_every_way_to_call_it_trains_the_same():
    trained = {}
    for name, call in CALLS.items():
        net = network()
        result = call(net, images(), images(1))
        trained[name] = (net, [s.loss for s in result.steps], [v.psnr for v in result.validation])
    first, losses, scores = trained.pop("keywords")
    assert len(losses) == 3
    assert not same(first, network())
    for name, (net, *figures) in trained.items():
        assert figures == [losses, scores], name
        assert same(net, first), name


def test_options_are_frozen_and_others_are_made_of_them():
    options = FitOptions(steps=50)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.steps = 60
    assert dataclasses.replace(options, lr=0.2) == FitOptions(steps=50, lr=0.2)
    assert (options.validation_interval, FitOptions(steps=3).validation_interval) == (10, 1)
    assert FitOptions(validate_every=7).validation_interval == 7


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"steps": 0}, "must be at least 1, got 0, 4, 1 and 20"),
        ({"steps": 8, "batch_size": 0}, "must be at least 1, got 8, 0, 1 and 20"),
        ({"validate_every": 0}, "must be at least 1, got 200, 4, 0 and 20"),
        ({"checkpoint_every": -1}, "must be at least 1, got 200, 4, 40 and -1"),
        ({"steps": "200"}, r"steps must be a whole number, got '200' \(str\)"),
        ({"crop": 8.5}, r"crop must be a whole number, got 8\.5 \(float\); or None"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"lr": 0}, r"learning rates must be positive, got lr=0 and lr_network=0\.0001"),
        ({"lr_network": float("inf")}, "learning rates must be positive, got lr=0.05 and lr_network=inf"),
        ({"lr": None}, "lr must be a number, got None"),
        ({"resume": True}, r"resume=True needs the folder of the run: folder=\.\.\."),
    ],
)
def test_options_out_of_range_are_refused_when_they_are_made(given, says):
    with pytest.raises(InvalidParameterError, match=says):
        FitOptions(**given)
    with pytest.raises(InvalidParameterError, match=says):
        retune.fit(network(), images(), DENOISE, **given)


def test_numbers_of_numpy_are_numbers():
    assert (
        FitOptions(steps=np.int64(8), crop=np.int32(8), lr=np.float32(0.5), seed=np.int64(1)).validation_interval == 1
    )


def test_a_misspelt_keyword_is_named():
    with pytest.raises(
        TypeError, match=r"fit\(\) got an unexpected keyword argument 'batchsize'; did you mean 'batch_size'"
    ):
        retune.fit(network(), images(), DENOISE, batchsize=3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda net, x: retune.fit(net, x), "problem must be one of retune.problems .* got NoneType"),
        (
            lambda net, x: retune.fit(net, TrainingData(x, DENOISE), DENOISE),
            "options must be a .*FitOptions, got denoise",
        ),
        (
            lambda net, x: retune.fit(net, x, DENOISE, {"steps": 3}),
            r"options must be a .*FitOptions, got \{'steps': 3\}",
        ),
        (lambda net, x: retune.fit(net, TrainingData(x, DENOISE), validation=x), "validation .* beside a TrainingData"),
    ],
)
def test_what_is_in_the_wrong_place_is_named(call, says):
    with pytest.raises(InvalidParameterError, match=says):
        call(network(), images())


def test_the_keywords_for_type_checkers_are_the_options():
    """And each option has a sentence."""
    assert typing.get_type_hints(FitKeywords) == typing.get_type_hints(FitOptions)
    lines = [line.strip() for line in inspect.getsource(FitOptions).splitlines()]
    for name in (f.name for f in dataclasses.fields(FitOptions)):
        (place,) = [i for i, line in enumerate(lines) if line.startswith(f"{name}: ")]
        assert lines[place + 1].startswith('"""'), name
        assert name in retune.fit.__doc__


RUN = {
    "problem": {"name": "denoise", "sigma": 0.1},
    "prior": {"levels": 2, "wavelet": "db2"},
    "model": {"depth": 2, "restarts": 1},
    "optimiser": {"steps": 2, "checkpoint_every": 1},
}


def a_run(folder):
    (folder / "held-out").mkdir(parents=True)
    for name in ("0.npy", "1.npy", "held-out/2.npy"):
        np.save(folder / name, np.random.default_rng(0).random((20, 20)).astype(np.float32))
    data = {"crop": 16, "batch_size": 2, "train": str(folder), "validation": str(folder / "held-out")}
    return config.from_dict({**RUN, "data": data})


def test_a_run_is_built_once_and_its_images_are_fingerprinted_once(tmp_path, monkeypatch):
    made = []

    def count(owner, name, label=lambda name, given: name):
        before = getattr(owner, name)

        def counting(*args, **kwargs):
            made.append(label(name, args))
            return before(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    parts = ("problem_of", "training_images", "network_of", "prior_of", "map_of", "fidelity_of", "rule_of", "solver_of")
    for name in (*parts, "options_of", "loss_of"):
        for owner in (build, _building.network, _building.problem, _building.training):  # wherever it is called from
            if hasattr(owner, name):
                count(owner, name)
    count(training_data, "fingerprint", lambda name, given: f"fingerprint of {len(given[0])}")
    run = a_run(tmp_path / "images")
    result = train(run, tmp_path / "out", device="cpu", progress=False)
    assert len(result.steps) == 2
    once = [*parts, "options_of", "loss_of", "fingerprint of 2", "fingerprint of 1"]
    assert sorted(made) == sorted(once)


def test_a_run_is_what_it_was_built_from(tmp_path):
    """What train writes down of the images is what a continuation is compared with."""
    run = a_run(tmp_path / "images")
    train(run, tmp_path / "out", device="cpu", progress=False)
    np.save(tmp_path / "images" / "1.npy", np.zeros((20, 20), np.float32))
    with pytest.raises(CheckpointError, match=r"images was .* now"):
        train(run, tmp_path / "out", resume=True, device="cpu", progress=False)
