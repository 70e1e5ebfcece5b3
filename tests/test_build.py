"""Runs become objects: every shipped one, with the options that its problem has and no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retune import build, config
from retune.config import Config, DataConfig, ProblemConfig
from retune.data import photograph
from retune.errors import ConfigError, UnknownNameError


@pytest.mark.parametrize("name", sorted(config.shipped()))
def test_every_shipped_run_is_a_network_and_a_problem_that_fit(name):
    run = config.load(name, ["model.depth=2", "model.restarts=1", "prior.levels=2"])
    problem, net = build.problem_of(run.problem), build.network_of(run, 3)
    y, physics = problem.measure(torch.rand(1, 3, 48, 48))
    assert net.train()(y, physics).shape == (1, 3, 48, 48)
    assert problem.name == run.problem.name


def test_the_network_is_what_the_run_says():
    run = config.from_dict(
        {
            "prior": {
                "norm": "l1",
                "wavelet": ["db2", "haar"],
                "levels": 2,
                "weights_per_channel": False,
                "coarse": True,
            },
            "model": {
                "depth": 4,
                "restarts": 3,
                "layers": 2,
                "step_size": 0.3,
                "reg": 0.7,
                "learn_reg": False,
                "solver": "anderson",
                "rtol": 1e-3,
                "max_layers": 77,
            },
            "gradient": {"rule": "truncated", "rtol": 0.2},
        }
    )
    net = build.network_of(run, 3)
    told = net.describe()
    assert told["map"]["prior"] | {"learn": True} == {
        "type": "WaveletL1",
        "wavelet": ["db2", "haar"],
        "levels": 2,
        "channels": None,
        "coarse": True,
        "learn": True,
    }
    assert told["map"]["layers"] == 2
    assert not told["map"]["learn_reg"]
    assert (told["depth"], told["restarts"]) == (4, 3)
    assert told["gradient"]["rtol"] == 0.2
    assert told["solver"]["type"] == "Anderson"
    assert told["stop"] == {"rtol": 1e-3, "max_layers": 77}
    assert net.map.reg.value.tolist() == pytest.approx([0.7, 0.7])
    assert net.map.step_size.value.tolist() == pytest.approx([0.3, 0.3], abs=1e-3)


@pytest.mark.parametrize(("rule", "kind"), [("unrolled", "Unrolled"), ("implicit", "Implicit")])
def test_gradient_rules(rule, kind):
    net = build.network_of(config.from_dict({"gradient": {"rule": rule, "rtol": 0.1}}), 1)
    assert net.describe()["gradient"]["type"] == kind
    if rule == "implicit":
        assert net.describe()["gradient"]["rtol"] == 0.1
    else:
        assert net.stop.max_layers == net.depth


@pytest.mark.parametrize(
    ("section", "error", "says"),
    [
        ({"name": "debluring"}, UnknownNameError, "did you mean 'deblur'"),
        ({"name": "denoise", "kernel": "gaussian:1"}, ConfigError, "denoise has no kernel .*deblur has one"),
        ({"name": "deblur", "options": {"a": 1}}, ConfigError, "module:function has one"),
        ({"name": "deblur", "sigma": "estimate"}, ConfigError, "retune tune estimates"),
        ({"name": "inpaint", "sigma": "estimate"}, ConfigError, "missing pixels"),
    ],
)
def test_problems_that_are_none(section, error, says):
    with pytest.raises(error, match=says):
        build.problem_of(ProblemConfig.model_validate(section))


def test_the_noise_level_is_estimated_from_the_measurement():
    y = 0.5 + 0.1 * torch.randn(1, 1, 64, 64)
    assert build.problem_of(ProblemConfig(name="denoise", sigma="estimate"), y).sigma == pytest.approx(0.1, rel=0.1)


def test_training_images(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((9, 8, 3)).astype(np.float32))
    train, validation = build.training_images(DataConfig(train=str(tmp_path)))
    assert validation is None
    assert [tuple(x.shape) for x in train] == [(3, 9, 8)]
    grey, held_out = build.training_images(DataConfig(train=str(tmp_path), validation=str(tmp_path), grey=True))
    assert held_out is not None
    assert torch.allclose(grey[0][0], 0.299 * train[0][0] + 0.587 * train[0][1] + 0.114 * train[0][2])
    assert torch.equal(held_out[0], grey[0])
    photographs, _ = build.training_images(Config().data)
    assert torch.equal(photographs[0], photograph("chelsea"))
