"""Every map that a run can name goes through a run: built, trained, saved, loaded, solved, and compared."""

import pytest
import torch

import retune
from retune import registry
from retune.comparison.methods import METHODS
from retune.comparison.tuning import method_network
from retune.problems import denoise
from retune.training import FitOptions, TrainingData

WAVELET = {"prior": {"wavelet": "haar", "levels": 2}}
COUNTS = {"type": "PoissonLikelihood", "options": {"gain": 0.05, "bkg": 0.0, "denormalize": True}}
#: What a run needs beside the name of its map.
RUNS = {
    "forward_backward": WAVELET,
    "gradient_step": {"prior": {"type": "tv", "options": {"smoothing": 0.05}}},
    "primal_dual": {"prior": {"type": "tgv"}},
    "douglas_rachford": WAVELET,
    "half_quadratic": WAVELET,
    "three_operators": WAVELET,
    "mirror_descent": {"prior": {"type": "tv", "options": {"smoothing": 0.1}}, "data_fidelity": COUNTS},
}


def run_with(name):
    model = {"reg": 0.05, "depth": 2, "restarts": 1, "max_layers": 4}
    return retune.config.from_dict({**RUNS[name], "map": {"type": name}, "model": model})


def images():
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, 1, 8, 8, generator=generator)


def problem_for(name):
    return denoise(noise="poisson:0.05") if name == "mirror_descent" else denoise(0.1)


def test_every_map_is_here():
    assert set(RUNS) == {n for n in registry.names("map") if registry.is_ours(n)}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_it_is_trained_saved_loaded_and_solved(name, tmp_path):
    net = retune.build.network_of(run_with(name), 1)
    before = float(net.map.reg.value)
    options = FitOptions(steps=2, batch_size=1, crop=8, lr=0.1)
    result = retune.fit(net, TrainingData(images(), problem_for(name)), options)
    assert len(result.steps) == 2
    assert float(net.map.reg.value) != before
    net.save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors").eval()
    assert type(again.map) is type(net.map)
    y, physics = problem_for(name).measure(images(), seed=0)
    image = again.solve(y, physics).image
    assert bool(torch.isfinite(image).all())
    torch.testing.assert_close(image, net.eval().solve(y, physics).image)


@pytest.mark.parametrize("name", RUNS)
def test_every_method_of_a_comparison_takes_it(name):
    run = run_with(name)
    y, physics = problem_for(name).measure(images(), seed=0)
    for method in METHODS:
        net = method_network(method, method.run_of(run), 1).train()
        assert type(net.map) is registry.find(name, "map").cls
        net(y, physics).square().sum().backward()
        assert net.map.reg.raw.grad is not None
        assert bool(torch.isfinite(net.map.reg.raw.grad).all()), method.key
