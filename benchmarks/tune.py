"""``retune tune`` without ground truth, beside the same parameters learned with it.

Tuned on the measurements of some images (as a user would, with nothing else), and learned by ``retune.fit`` from the
sharp images themselves, by as many steps from the same start; both are scored on those measurements.
The folder of images is an argument; by default photographs that ship inside scikit-image. With ``--tiff`` the
measurements are TIFFs of 16 bits, clipped at black and white as a camera clips them; without, floats as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import Tensor

import retune
from retune import io
from retune.build import network_of, problem_of
from retune.config import Config
from retune.data import as_images, photograph
from retune.jobs.tune import starting_run, tune
from retune.model import Restarted
from retune.solve import Stop

PROBLEMS = {
    "denoise": {"name": "denoise", "sigma": 0.1},
    "deblur": {"name": "deblur", "kernel": "gaussian:1.6", "boundary": "reflect", "sigma": 0.02},
    "inpaint": {"name": "inpaint", "sigma": 0.05},
    "superres": {"name": "superres", "factor": 2, "sigma": 0.01},
}


def pictures(folder: str | None, count: int, side: int) -> list[Tensor]:
    """The middle of as many images, (3, side, side) or smaller, spread evenly over the folder."""
    if folder is None:
        found = [photograph(name) for name in ("astronaut", "rocket", "chelsea", "coffee")[:count]]
    else:
        every = as_images(folder)
        found = every[:: max(1, len(every) // count)][:count]
    middles = []
    for x in found:
        top, left = (max(0, (n - side) // 2) for n in x.shape[1:])
        middles.append(x[:, top : top + side, left : left + side])
    return middles


def measured(images: list[Tensor], fields: dict, folder: Path, tiff: bool) -> tuple[list[Path], dict]:
    """Files of the measurements, and what a user would say of them."""
    mask = None
    if fields["name"] == "inpaint":
        mask = folder / "mask.npy"
        shape = images[0].shape[1:]
        kept = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
        np.save(mask, kept.numpy().astype(np.uint8) * 255)
        fields = {**fields, "mask": str(mask)}
    problem = problem_of(_section(fields))
    files = []
    for i, x in enumerate(images):
        y, _ = problem.measure(x[None], seed=100 + i)
        array = y[0].permute(1, 2, 0).numpy()
        files.append(folder / (f"{i}.tif" if tiff else f"{i}.npy"))
        if tiff:
            tifffile.imwrite(files[-1], (65535 * array.clip(0, 1)).round().astype(np.uint16), photometric="rgb")
        else:
            np.save(files[-1], array)
    return files, fields


def _section(fields: dict):
    return starting_run(fields).problem


def with_truth(config: Config, images: list[Tensor]) -> Restarted:
    """The same network, learned from the sharp images with fresh measurements."""
    torch.manual_seed(config.seed)
    net = network_of(config, images[0].shape[0])
    retune.fit(
        net,
        images,
        problem_of(config.problem),
        steps=config.optimiser.steps,
        batch_size=config.data.batch_size,
        crop=config.data.crop,
        lr=config.optimiser.lr,
        seed=config.seed,
        device="cpu",
        progress=False,
        stop=Stop(config.model.rtol, config.model.depth * config.model.restarts),
    )
    return net


def score(net: Restarted, config: Config, images: list[Tensor], files: list[Path]) -> float:
    """Mean PSNR of the restored measurements, in dB."""
    problem, found = problem_of(config.problem), []
    for x, file in zip(images, files, strict=True):
        y, _ = io.read(file)
        image = net.eval().solve(y, problem.operator(y)).image
        found.append(-10 * torch.log10((image - x).square().mean()).item())
    return sum(found) / len(found)


def compare(name: str, images: list[Tensor], sets: list[str], loss: str, tiff: bool) -> list[dict]:
    """Rows of one problem: noise level given, and estimated where that can be done."""
    rows, truth = [], None
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files, fields = measured(images, PROBLEMS[name], folder, tiff)
        for sigma in ("given", "estimated") if name in ("denoise", "deblur") else ("given",):
            config = starting_run(fields, sets)
            asked = config if sigma == "given" else starting_run({**fields, "sigma": "estimate"}, sets)
            torch.manual_seed(config.seed)
            default = score(network_of(config, images[0].shape[0]), config, images, files)
            start = time.perf_counter()
            tuned, _ = tune(asked, files, folder / sigma, loss=loss, device="cpu", progress=False)
            seconds = time.perf_counter() - start
            without = score(retune.load(folder / sigma / "model.safetensors"), config, images, files)
            truth = score(with_truth(config, images), config, images, files) if truth is None else truth
            row = {
                "problem": name,
                "noise level": sigma,
                "loss": tuned.loss,
                "defaults": default,
                "tuned": without,
                "with truth": truth,
                "estimated gain": tuned.comparison.gain,
                "spread": tuned.comparison.spread,
                "seconds": seconds,
            }
            rows.append(row)
            print(
                f"{name:8} σ {sigma:9} defaults {default:6.2f}  tuned {without:6.2f}  with truth {truth:6.2f}  "
                f"difference {without - truth:+.2f} dB  (gain {without - default:+.2f}, estimated "
                f"{tuned.comparison.gain or float('nan'):+.2f})  {seconds:.0f} s",
                flush=True,
            )
    return rows


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="folder of sharp colour images")
    parser.add_argument("--problem", action="append", choices=sorted(PROBLEMS))
    parser.add_argument("--count", type=int, default=8, help="images")
    parser.add_argument("--side", type=int, default=256, help="of their middle, in pixels")
    parser.add_argument("--loss", default="auto", help="of retune tune")
    parser.add_argument("--set", action="append", default=[], help="a field, as optimiser.steps=40")
    parser.add_argument("--tiff", action="store_true", help="clipped measurements of 16 bits")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="file for the rows")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    images = pictures(given.folder, given.count, given.side)
    print(f"{len(images)} images, {tuple(images[0].shape)}", file=sys.stderr)
    options = (given.set, given.loss, given.tiff)
    rows = [row for name in given.problem or PROBLEMS for row in compare(name, images, *options)]
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
