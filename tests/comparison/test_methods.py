"""The methods of a comparison choose their rule by what they declare."""

from __future__ import annotations

import pytest
import torch
from deepinv.optim import DataFidelity

import retune
from retune.comparison.methods import METHODS, PNP, methods_of
from retune.comparison.tuning import method_network
from retune.config import Config, FidelityConfig, GradientConfig, ModelConfig, PriorConfig

BY_KEY = {m.key: m for m in (*METHODS, PNP)}
MODEL = ModelConfig(depth=4, restarts=2)


def rule(key, gradient):
    run = Config(model=MODEL, gradient=gradient)
    return method_network(methods_of(run)[key], run, 1).gradient


@pytest.mark.parametrize(
    ("key", "gradient", "expected"),
    [
        ("retune", GradientConfig(blocks=3), retune.Truncated(blocks=3)),
        ("jfb", GradientConfig(blocks=3), retune.Truncated()),
        ("retune", GradientConfig(rule="implicit", rtol=0.5), retune.Truncated()),
        ("implicit", GradientConfig(rule="implicit", rtol=0.5), retune.Implicit(rtol=1e-2, max_blocks=12)),
        ("unrolled", GradientConfig(blocks=3), retune.Unrolled()),
    ],
)
def test_a_method_has_the_rule_that_it_declares(key, gradient, expected):
    assert rule(key, gradient) == expected


def test_an_untrained_method_replaces_the_prior_of_the_run():
    learned = Config(prior=PriorConfig(type="denoiser", learn_weights=True), model=ModelConfig(layers=3))
    assert BY_KEY["variational"].run_of(learned).prior == PriorConfig()
    frozen = BY_KEY["pnp"].run_of(learned)
    assert frozen.prior == PriorConfig(type="denoiser")
    assert frozen.model.layers == 1
    assert BY_KEY["retune"].run_of(learned) is learned


def test_facts_of_ones_own_that_need_a_measurement_of_the_run_change_nothing(monkeypatch):
    """Whether a fidelity has a Lipschitz constant is asked with a y of one pixel."""

    class OfEightPixels(DataFidelity):
        def facts(self, y):
            return retune.FidelityFacts(lipschitz=float((torch.ones(8) @ y).max()))

    monkeypatch.setattr("retune.comparison.methods.fidelity_of", lambda _: OfEightPixels())
    run = Config(data_fidelity=FidelityConfig(options={"sigma": 2.0}))
    assert methods_of(run)["pnp"] == PNP
    assert PNP.run_of(run).data_fidelity == run.data_fidelity
