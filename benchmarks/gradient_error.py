"""Does the error of the gradient matter? The same training with K = 1, 5 and 20 layers, and with the exact gradient.

An energy with all its weights is trained at its equilibrium. All trainings have the same start, crops, noise, number
of steps and learning rates; only the gradient differs. The weights of the last step count: nothing is chosen on
validation images. "Exact" solves the adjoint equation to 1e-3.

The error and the cosine of a gradient are those of a step on crops of test images, at the weights of the start. There
the adjoint equation is solved to 1e-4. Seeds draw crops, masks, kernels and noise anew.

    OMP_NUM_THREADS=1 python benchmarks/gradient_error.py --data FOLDER    # FOLDER/train, val, test; resumable
    OMP_NUM_THREADS=1 python benchmarks/gradient_error.py --data FOLDER --run paper-embedded-energy-deblur
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median

import torch
from deepinv.loss.metric import PSNR

import retune
from retune.build import built, problem_of
from retune.comparison.images import images_of
from retune.comparison.paired import paired
from retune.config import Config, load
from retune.gradients import GradientRule, Implicit, Truncated
from retune.solve import Stop
from retune.studies.exact import relative_error, step_gradient
from retune.studies.scenes import Scene
from retune.training import TrainingData

START, EXACT = "the start", "exact"
RULES: dict[str, GradientRule] = {
    "K = 1 (JFB)": Truncated(),
    "K = 5": Truncated(),
    "K = 20": Truncated(),
    EXACT: Implicit(rtol=1e-3, max_blocks=100),
}
DEPTHS = {"K = 1 (JFB)": 1, "K = 5": 5, "K = 20": 20, EXACT: 1}
#: layers before the differentiated ones: R such that K(R + 1) is this
LAYERS = 60
#: crops of 64×64 on which the gradients are compared
COMPARED = 6


@dataclass
class Cell:
    """A training with one seed.

    Attributes:
        psnr: PSNR of each test image at rest, in dB.
        settled: number of test images that settle to 1e-4.
        loss: mean squared error of the training crops in the last tenth of the steps; NaN for the start.
    """

    psnr: list[float]
    settled: int
    loss: float = float("nan")


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    config = load(
        options.run,
        (
            f"data.train={options.data / 'train'}",
            f"data.validation={options.data / 'val'}",
            f"compare.test={options.data / 'test'}",
            "compare.every=4",
            "compare.crop=96",
            f"optimiser.steps={options.steps}",
            f"optimiser.lr_network={options.lr}",
        ),
    )
    cells: dict[str, list[Cell]] = {name: [] for name in (START, *RULES)}
    for seed in range(options.seeds):
        for name, found in cells.items():
            found.append(cell(config, name, seed, options))
    gradients = once(options.out / options.run / "gradients.json", lambda: compared(config))
    table(cells, gradients)


def cell(config: Config, name: str, seed: int, options: argparse.Namespace) -> Cell:
    """Train with a rule and a seed, and restore the test images; or read what is finished."""
    folder = options.out / options.run / name.replace(" ", "") / str(seed)

    def compute() -> dict:
        print(f"{name}, seed {seed}", flush=True)
        parts = built(config.model_copy(update={"seed": seed}))
        net, losses = parts.net, []
        if name != START:
            net = with_rule(net, name)
            fitting = replace(parts.options, seed=seed, folder=folder / "training", resume=True, validate_every=None)
            data = TrainingData(parts.data.images, parts.data.problem)
            losses = [s.loss for s in retune.fit(net, data, fitting).steps]
        psnr, settled = tested(net, config, seed)
        last = losses[-max(1, len(losses) // 10) :]
        return asdict(Cell(psnr, settled, fmean(last) if last else float("nan")))

    return Cell(**once(folder / "cell.json", compute))


def with_rule(net: retune.Restarted, name: str) -> retune.Restarted:
    """A network with the same map, and with the rule of this name."""
    depth = DEPTHS[name]
    return retune.Restarted(net.map, depth, LAYERS // depth - 1, RULES[name])


def tested(net: retune.Restarted, config: Config, seed: int) -> tuple[list[float], int]:
    """PSNR of every test image at rest, and the number of images that settle."""
    psnr, settled = [], 0
    problem = problem_of(config.problem)
    for place, x in enumerate(images_of(config).test):
        y, physics = problem.measure(x[None], seed + 1000 * (place + 1))
        found = net.eval().solve(y, physics, stop=Stop(1e-4, 1000))
        psnr.append(float(PSNR()(found.image, x[None])))
        settled += sum(s == "converged" for s in found.status)
    return psnr, settled


def compared(config: Config) -> dict[str, list[list[float]]]:
    """Relative error and cosine of each rule's gradient, for each of some crops, at the weights of the start."""
    net, problem = built(config).net.double().eval(), problem_of(config.problem)
    found: dict[str, list[list[float]]] = {name: [] for name in RULES}
    for place, x in enumerate(images_of(config).test[:COMPARED]):
        scene = Scene.of(str(place), x[None, :, 16:80, 16:80].double(), problem, 77 + place)
        rest = net.solve(scene.y, scene.physics, stop=Stop(1e-6, 3000)).state
        best, _ = step_gradient(net, scene, Implicit(rtol=1e-4, max_blocks=600), 1, rest)
        for name, rule in RULES.items():
            g, _ = step_gradient(net, scene, rule, DEPTHS[name], rest)
            found[name].append(list(relative_error(g, best)))
    return found


def once(path: Path, compute: Callable[[], dict]) -> dict:
    """What a file contains, or else what is computed now and written to it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = compute()
        half = path.with_suffix(".part")
        half.write_text(json.dumps(found))
        half.replace(path)
    return json.loads(path.read_text())


def table(cells: dict[str, list[Cell]], gradients: dict[str, list[list[float]]]) -> None:
    """Print the table as Markdown."""
    exact = [c.psnr for c in cells[EXACT]]
    print("| gradient | relative error | cosine | training loss | PSNR | settled | ahead of the exact gradient by |")
    print("|---" * 7 + "|")
    for name, found in cells.items():
        errors = gradients.get(name, [])
        difference = paired([c.psnr for c in found], exact)
        row = (
            name,
            f"{median(e for e, _ in errors):.2g}" if errors else "",
            f"{median(c for _, c in errors):.3f}" if errors else "",
            "" if name == START else f"{fmean(c.loss for c in found):.5f}",
            f"{fmean(fmean(c.psnr) for c in found):.2f}",
            f"{sum(c.settled for c in found)} of {sum(len(c.psnr) for c in found)}",
            "" if name == EXACT else f"{difference.mean:+.2f} ({difference.low:+.2f} to {difference.high:+.2f})",
        )
        print(f"| {' | '.join(row)} |")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, val and test")
    parser.add_argument("--run", default="paper-embedded-energy-inpaint", help="a shipped run with an energy")
    parser.add_argument("--out", type=Path, default=Path("gradient-error"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--lr", type=float, default=2e-4, help="learning rate of the weights")
    return parser.parse_args()


if __name__ == "__main__":
    main()
