"""``retune compare RUN.toml`` for every map that a run can name, from the file to the table and the page."""

import json
import math

import numpy as np
import pytest

import retune
from commands import invoke, smooth
from retune import registry

WAVELET = {"type": "wavelet", "wavelet": "haar", "levels": 2}
SMOOTHED = {"type": "tv", "options": {"smoothing": 0.1}}
UNDECIMATED = {"type": "undecimated_wavelet", "options": {"wavelet": "db2", "levels": 2}}
GAUSSIAN, COUNTS = {"name": "denoise", "sigma": 0.1}, {"name": "denoise", "noise": "poisson:0.02,0"}
LIKELIHOOD = {"type": "PoissonLikelihood", "options": {"gain": 0.02, "bkg": 0.0, "denormalize": True}}
#: What a run needs beside the name of its map: the prior, the problem, the data fidelity.
RUNS = {
    "forward_backward": (WAVELET, GAUSSIAN, {}),
    "gradient_step": (SMOOTHED, GAUSSIAN, {}),
    "primal_dual": (UNDECIMATED, GAUSSIAN, {}),
    "douglas_rachford": (WAVELET, GAUSSIAN, {}),
    "half_quadratic": (WAVELET, GAUSSIAN, {}),
    "three_operators": (WAVELET, GAUSSIAN, {}),
    "mirror_descent": (SMOOTHED, COUNTS, LIKELIHOOD),
}


def test_every_map_is_here():
    assert set(RUNS) == {n for n in registry.names("map") if registry.is_ours(n)}


def compared(folder, run, *options):
    """The rows of a comparison on three small images, and its folder."""
    for part in ("train", "val", "test"):
        (folder / part).mkdir()
        np.save(folder / part / "0.npy", smooth(16, 20).clip(0.02, 1).astype(np.float32))
    given = {
        "model": {"depth": 2, "restarts": 1, "max_layers": 20},
        "data": {"train": str(folder / "train"), "validation": str(folder / "val"), "crop": 16, "batch_size": 1},
        "compare": {"test": str(folder / "test"), "validation_crop": 16, "grid": 4, "far": 3},
        "optimiser": {"steps": 2},
    }
    (folder / "run.toml").write_text(retune.config.to_toml(retune.config.from_dict(given | run)))
    out = folder / "out"
    result, text = invoke("compare", folder / "run.toml", "--device", "cpu", "-o", out, *options, lines=80)
    assert result.exit_code == 0, text
    (section,) = json.loads((out / "results.json").read_text())["problems"].values()
    return section["methods"], out


@pytest.mark.parametrize("name", RUNS)
def test_a_comparison_with_it(name, tmp_path):
    prior, problem, fidelity = RUNS[name]
    run = {"prior": prior, "problem": problem, "map": {"type": name}}
    rows, out = compared(tmp_path, run | ({"data_fidelity": fidelity} if fidelity else {}))
    assert list(rows) == ["variational", "pnp", "unrolled", "jfb", "implicit", "retune"]
    expected = registry.find(name, "map").cls
    for key, row in rows.items():
        assert math.isfinite(row["psnr"]), key
        assert row["psnr"] > 5, key
        net = retune.load(out / "models" / f"{key}.safetensors")
        assert (type(net.map) is expected) == (key != "pnp" or name == "forward_backward"), key
    # Where no step along the gradient of the likelihood is small enough, Plug-and-Play takes squares, and says so.
    replaced = name == "mirror_descent"
    assert ("squares" in rows["pnp"]["label"]) == ("no Lipschitz constant" in rows["pnp"]["how"]) == replaced
    pnp = retune.load(out / "models" / "pnp.safetensors").map.data_fidelity
    assert type(pnp).__name__ == ("NoiseWeighted" if replaced else "L2")
    assert (out / "report.html").is_file()


def test_a_comparison_with_an_energy(tmp_path):
    """Its solver needs the objective of each image. ReTune's row differentiates K layers, as for every map."""
    prior = {"type": "energy", "weights": "energy-gray", "sigma": 0.1, "box": True, "learn_weights": True}
    rows, out = compared(tmp_path, {"prior": prior, "problem": GAUSSIAN}, "--methods", "unrolled,jfb,retune")
    assert list(rows) == ["unrolled", "jfb", "retune"]
    assert all(row["psnr"] > 15 for row in rows.values())
    rule = retune.load(out / "models" / "retune.safetensors").gradient
    assert rule == retune.Truncated()
    assert retune.load(out / "models" / "jfb.safetensors").gradient == retune.Truncated()
