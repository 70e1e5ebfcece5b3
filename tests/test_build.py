"""Runs become objects: every shipped one, with the options that its problem has and no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import retune
from retune import _checkpoint, build, config
from retune.config import Config, DataConfig, ProblemConfig
from retune.data import photograph
from retune.errors import CheckpointError, ConfigError, UnknownNameError
from retune.networks import SmallUNet


@pytest.mark.parametrize("name", sorted(config.shipped()))
def test_every_shipped_run_is_a_network_and_a_problem_that_fit(name):
    run = config.load(name, ["model.restarts=1"])
    small = {"levels": 2} if run.prior.type == "wavelet" else {}
    run = run.model_copy(
        update={
            "prior": run.prior.model_copy(update=small),
            "model": run.model.model_copy(update={"depth": run.model.layers, "restarts": 1}),
        }
    )
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
                "margin": 6,
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
        "margin": 6,
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


DENOISERS = {
    "denoiser": {"weights": "denoiser-gray", "sigma": [0.02, 0.03], "strength": 0.5, "learn_strength": False},
    "red": {"sigma": 0.04, "lipschitz": 1.5, "learn_sigma": False, "box": True},
    "ridge": {"weights": "ridge-weakly-convex-gray", "sigma": 0.07, "learn_weights": True},
}


@pytest.mark.parametrize("kind", DENOISERS)
def test_networks_as_priors_are_built_trained_saved_and_loaded(kind, tmp_path):
    run = config.from_dict(
        {
            "prior": {"type": kind, **DENOISERS[kind]},
            "model": {"depth": 2, "layers": 2, "restarts": 1, "reg": 0.3, "max_layers": 4},
        }
    )
    net = build.network_of(run, 1)
    told = net.describe()["map"]["prior"]
    learned = {n for n, p in net.named_parameters() if p.requires_grad}
    if kind == "ridge":
        assert told["convexity"] == "weakly convex"
        assert float(net.map.prior.sigma.value) == pytest.approx(0.07)
        assert "map.prior.profile.slope" in learned
    else:
        assert told["denoiser"]["type"] == "SmallUNet"
        assert not [n for n in learned if ".denoiser." in n]
        levels = told["sigma"]
        assert levels == pytest.approx([0.02, 0.03] if kind == "denoiser" else [0.04, 0.04], rel=1e-4)
        assert any(n.endswith("sigma.raw") for n in learned) == (kind == "denoiser")
    assert net.describe()["solver"] is None  # chosen again where the file is read
    assert type(net.training_solver).__name__ == ("Picard" if kind == "ridge" else "Damped")
    y, physics = build.problem_of(ProblemConfig(name="inpaint", keep=0.7)).measure(torch.rand(1, 1, 16, 18))
    image = net.eval().solve(y, physics).image
    net.save(tmp_path / "net.safetensors")
    assert torch.equal(retune.load(tmp_path / "net.safetensors").solve(y, physics).image, image)


@pytest.mark.parametrize(
    ("prior", "channels", "says"),
    [
        ({"type": "denoiser", "weights": "denoiser-color"}, 1, "images of 3 channel.*yours have 1; denoiser-gray fits"),
        ({"type": "ridge", "weights": "ridge-convex-gray"}, 3, "ridge-convex-color fits.*data.grey = true"),
        ({"type": "ridge"}, 2, "images of 1 channel.*yours have 2"),
        (
            {"type": "denoiser", "weights": "denoiser-color"},
            2,
            "a grey denoiser can be applied to each channel: denoiser-gray",
        ),
        ({"type": "ridge", "weights": "denoiser-gray"}, 1, "is a SmallUNet, not a ridge regulariser"),
    ],
)
def test_weights_that_do_not_fit(prior, channels, says):
    with pytest.raises(ConfigError, match=says):
        build.network_of(config.from_dict({"prior": prior}), channels)


def test_weights_by_name_and_by_file(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'denoiser-gray'"):
        build.prior_of(config.from_dict({"prior": {"type": "denoiser", "weights": "denoiser-grey"}}).prior, 1)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        build.prior_of(config.from_dict({"prior": {"type": "denoiser", "weights": "mine.safetensors"}}).prior, 1)
    own = SmallUNet(1, (4, 6), 1)
    _checkpoint.write(tmp_path / "own.safetensors", own.state_dict(), own.describe(), {})
    (tmp_path / "a.toml").write_text('[prior]\ntype = "denoiser"\nweights = "own.safetensors"\n')
    prior = build.prior_of(config.load(tmp_path / "a.toml").prior, 3)  # a grey denoiser is run on every channel
    x = torch.rand(2, 3, 8, 8)
    assert torch.allclose(prior.prox(x, sigma=0.1)[:, 1:2], own(x[:, 1:2], 0.1), atol=1e-6)


@pytest.mark.parametrize(("rule", "kind"), [("unrolled", "Unrolled"), ("implicit", "Implicit")])
def test_gradient_rules(rule, kind):
    given = {"rtol": 0.1} if rule == "implicit" else {}
    net = build.network_of(config.from_dict({"gradient": {"rule": rule, **given}}), 1)
    assert net.describe()["gradient"]["type"] == kind
    if rule == "implicit":
        assert net.describe()["gradient"]["rtol"] == 0.1
    else:
        assert net.stop.max_layers == net.depth


@pytest.mark.parametrize(
    ("gradient", "says"),
    [
        (
            {"rule": "implicit", "blocks": 3},
            r"gradient\.blocks = 3: the rule implicit has no blocks.*it has: rtol, max_blocks",
        ),
        ({"rule": "unrolled", "rtol": 0.1}, r"gradient\.rtol = 0\.1: the rule unrolled has no rtol"),
        ({"rule": "unrolled", "blocks": 2}, r"gradient\.blocks = 2: the rule unrolled has no blocks"),
        ({"rtol": 0.1, "blocks": 2}, r"with a tolerance \(rtol = 0\.1\) the rule truncated takes as many.*max_blocks"),
    ],
)
def test_what_a_rule_would_ignore_is_refused(gradient, says):
    with pytest.raises(ConfigError, match=says):
        build.network_of(config.from_dict({"gradient": gradient}), 1)


def test_what_a_run_writes_of_a_rule_can_be_read_again():
    """All fields are written, also those that are at their defaults and that the rule does not have."""
    run = config.from_dict({"gradient": {"rule": "unrolled", "blocks": 1}})
    assert "blocks = 1" in config.to_toml(run)
    assert build.rule_of(run.gradient) == retune.Unrolled()


def test_a_run_that_names_no_rule_gets_that_of_python():
    energy = config.from_dict({"prior": {"type": "energy", "weights": "energy-gray"}})
    assert build.network_of(energy, 1).gradient == retune.Truncated()
    assert build.network_of(config.from_dict({}), 1).gradient == retune.Truncated()
    named = config.from_dict({"prior": {"type": "energy", "weights": "energy-gray"}, "gradient": {"blocks": 2}})
    assert build.network_of(named, 1).gradient == retune.Truncated(blocks=2)


@pytest.mark.parametrize(
    ("section", "error", "says"),
    [
        ({"name": "debluring"}, UnknownNameError, "did you mean 'deblur'"),
        (
            {"name": "denoise", "kernel": "gaussian:1"},
            ConfigError,
            "denoise has no kernel .*deblur and superres have one",
        ),
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
    train, validation = build.training_images(DataConfig(train=str(tmp_path), crop=8))
    assert validation is None
    assert [tuple(x.shape) for x in train] == [(3, 9, 8)]
    grey, held_out = build.training_images(DataConfig(train=str(tmp_path), validation=str(tmp_path), grey=True, crop=8))
    assert held_out is not None
    assert torch.allclose(grey[0][0], 0.299 * train[0][0] + 0.587 * train[0][1] + 0.114 * train[0][2])
    assert torch.equal(held_out[0], grey[0])
    photographs, _ = build.training_images(Config().data)
    assert torch.equal(photographs[0], photograph("chelsea"))


def test_a_ridge_regulariser_is_taken_from_any_network_that_has_one(tmp_path, monkeypatch):
    """A class of somebody's: what it holds decides, not what it is called."""

    class Solved(torch.nn.Module):
        channels = 1

        def __init__(self):
            super().__init__()
            self.prior = retune.priors.Ridge(features=(2, 3))

    made = Solved()
    monkeypatch.setattr(retune.weights, "load", lambda name: made)
    prior = build.prior_of(config.from_dict({"prior": {"type": "ridge", "sigma": 0.07}}).prior, 1)
    assert prior is made.prior
    assert float(prior.sigma.value) == pytest.approx(0.07)
