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


@pytest.mark.parametrize("name", RUNS)
def test_a_comparison_with_it(name, tmp_path):
    for folder in ("train", "val", "test"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "0.npy", smooth(16, 20).clip(0.02, 1).astype(np.float32))
    prior, problem, fidelity = RUNS[name]
    run = retune.config.from_dict(
        {
            "prior": prior,
            "problem": problem,
            "map": {"type": name},
            "model": {"depth": 2, "restarts": 1, "max_layers": 20},
            "data": {
                "train": str(tmp_path / "train"),
                "validation": str(tmp_path / "val"),
                "crop": 16,
                "batch_size": 1,
            },
            "compare": {"test": str(tmp_path / "test"), "validation_crop": 16, "grid": 4, "far": 3},
            "optimiser": {"steps": 2},
            **({"data_fidelity": fidelity} if fidelity else {}),
        }
    )
    (tmp_path / "run.toml").write_text(retune.config.to_toml(run))
    out = tmp_path / "out"
    result, text = invoke("compare", tmp_path / "run.toml", "--device", "cpu", "-o", out, lines=80)
    assert result.exit_code == 0, text
    (section,) = json.loads((out / "results.json").read_text())["problems"].values()
    rows = section["methods"]
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
